"""What all scenarios share: running workloads on one machine, phases of a run, checks, and the result handed on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from altlas_core.backends.discover import discover
from altlas_core.backends.machine import Machine
from altlas_core.config import Settings, with_overrides
from altlas_core.experiment import run as run_experiment
from altlas_core.faults import Fault
from altlas_core.kinds import KINDS
from altlas_core.model import COMPLETED, Attempt, Check, DeviceSpec, Task
from altlas_core.result import Result
from altlas_core.scenarios import SCENARIOS, memory
from altlas_core.scenarios.measures import advice_for, all_completed, device_texts
from altlas_core.strategies import USER_STRATEGIES
from altlas_core.workloads import Workload

if TYPE_CHECKING:
    import pandas as pd

REAL_SLACK_S: Final = 1.0  # on real devices: what starting, stopping and reporting may add to an exact time
EVEN: Final = ("least_loaded", "round_robin", "memory_optimized")  # on equal idle GPUs these deal tasks out one by one
SPREADING: Final = (*EVEN, "random")
MIN_REAL_INTERVAL_S: Final = 0.1  # between two telemetry samples of a real device


@dataclass(eq=False)
class ScenarioResult:
    """What one scenario leaves. `runs` has every run by its label, `tables` what its notebook shows.

    `virtual_s` is the length of all runs together on their own clock. `advice` says what to do about a check that
    failed, by its name; `phases` are the parts of runs, by the run's label; `series` is what figures compare.
    `metrics` is JSON-able.
    """

    name: str
    title: str
    settings: Settings
    machine: Machine
    provenance: str
    checks: list[Check]
    metrics: dict[str, Any]
    key_metrics: list[str]
    runs: dict[str, Result]
    tables: dict[str, pd.DataFrame]
    advice: dict[str, str] = field(default_factory=dict)
    phases: dict[str, list[Phase]] = field(default_factory=dict)
    series: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def devices(self) -> tuple[DeviceSpec, ...]:
        return self.machine.devices

    @property
    def virtual_s(self) -> float:
        return math.fsum(result.virtual_s for result in self.runs.values())

    def event_lines(self) -> Iterator[str]:
        """The event logs of all runs as JSON lines; each begins with its header, which names the run."""
        for label, result in self.runs.items():
            lines = result.event_lines()
            yield json.dumps({"run": label, **json.loads(next(lines))}, separators=(",", ":")) + "\n"
            yield from lines

    @property
    def event_log(self) -> str:
        return "".join(self.event_lines())

    @cached_property
    def event_log_sha256(self) -> str:
        digest = hashlib.sha256()
        for line in self.event_lines():
            digest.update(line.encode())
        return digest.hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The result as reports read it."""
        return {
            "scenario": self.name,
            "title": self.title,
            "passed": self.passed,
            "checks": [self._check(check) for check in self.checks],
            "metrics": self.metrics,
            "key_metrics": self.key_metrics,
            "provenance": self.provenance,
            "virtual_s": self.virtual_s,
            "event_log_sha256": self.event_log_sha256,
            "backend": self.machine.backend,
            "devices": device_texts(self.devices),
            "seed": self.settings.seed,
        }

    def _check(self, check: Check) -> dict[str, Any]:
        shown = {"name": check.name, "passed": check.passed, "expected": check.expected, "observed": check.observed}
        if not check.passed and check.name in self.advice:
            shown["advice"] = self.advice[check.name]
        return shown


@dataclass(eq=False)
class Phase:
    """A part of a run: the tasks `start` to `stop` (by index), submitted together while nothing else is there."""

    label: str
    start: int
    stop: int
    result: Result

    @cached_property
    def tasks(self) -> Sequence[Task]:
        return self.result.task_list[self.start : self.stop]

    @cached_property
    def attempts(self) -> list[Attempt]:
        return [a for a in self.result.log.attempts() if self.start <= a.task.index < self.stop]

    @property
    def begin_s(self) -> float:
        return min(task.submitted_s for task in self.tasks)

    @property
    def end_s(self) -> float:
        return max(task.finished_s or 0.0 for task in self.tasks)

    @property
    def makespan_s(self) -> float:
        return self.end_s - self.begin_s

    @property
    def latencies_s(self) -> list[float]:
        """Submission to end of every task that completed."""
        return [t.finished_s - t.submitted_s for t in self.tasks if t.state == COMPLETED and t.finished_s is not None]

    @cached_property
    def gpu_ids(self) -> list[int]:
        """The GPUs that ran something of it."""
        return sorted({attempt.gpu_id for attempt in self.attempts})

    @cached_property
    def telemetry(self) -> pd.DataFrame:
        """The samples taken while it lasted, of the GPUs that took part."""
        table = self.result.telemetry
        inside = (table["time_s"] > self.begin_s) & (table["time_s"] <= self.end_s)
        return table[inside & table["gpu_id"].isin(self.gpu_ids)]


class Bench:
    """One scenario at work: finds the machine once, runs workloads on it and gathers what is checked."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.settings = settings
        self.machine = discover(settings)
        self.real = self.machine.provenance != "simulated"  # some device is: the run is in real time
        self.scale = settings.run.time_scale if self.real else 1.0
        self.runs: dict[str, Result] = {}
        self.checks: list[Check] = []
        self.advice: dict[str, str] = {}
        self.phases: dict[str, list[Phase]] = {}
        self.work_names: dict[tuple[int, int], str] = {}  # what (input_size, output_size) is called in tables

    @property
    def devices(self) -> tuple[DeviceSpec, ...]:
        return self.machine.devices

    @property
    def last_gpu_id(self) -> int:
        """The last device; where some are real the last of these, so that what is made to fail there fails for real."""
        return [spec.gpu_id for spec in self.devices if not (self.real and spec.simulated)][-1]

    @property
    def slack_s(self) -> float:
        """What an exact time may be missed by: nothing in virtual time."""
        if self.real:
            return REAL_SLACK_S
        return REAL_SLACK_S * max(1.0, self.settings.run.pace) if self.settings.run.pace else 0.0

    @property
    def gap_s(self) -> float:
        """Between two phases, on the workload's clock: time enough for the samples of one to end before the next."""
        gap_s = 2 * self.settings.telemetry.interval
        return max(gap_s, REAL_SLACK_S / self.scale) if self.slack_s else gap_s

    def run(
        self,
        label: str,
        records: Sequence[Mapping[str, Any]] | Workload,
        overrides: Mapping[str, Any] | None = None,
        faults: Sequence[Fault] = (),
        devices: Sequence[DeviceSpec] | None = None,
    ) -> Result:
        """Play records on the machine (or on `devices` of it). Times are the workload's: real devices scale them."""
        changed = dict(overrides or {})
        if self.real:
            interval_s = self.settings.telemetry.interval * self.scale
            changed.setdefault("telemetry.interval", max(MIN_REAL_INTERVAL_S, interval_s))
        settings = with_overrides(self.settings, changed, tuple(USER_STRATEGIES)) if changed else self.settings
        specs = self.devices if devices is None else devices
        workload = records if isinstance(records, Workload) else Workload.from_records(records)
        self.runs[label] = run_experiment(settings, workload, faults=faults, devices=specs)
        return self.runs[label]

    def run_phases(
        self,
        label: str,
        phases: Sequence[tuple[str, Sequence[Mapping[str, Any]], float]],
        overrides: Mapping[str, Any] | None = None,
        devices: Sequence[DeviceSpec] | None = None,
    ) -> list[Phase]:
        """Groups of records one after the other in one run: (label, records, seconds it is expected to take).

        A group starts at whole samples, after the one before it should have ended; records' times count from there.
        """
        interval_s = self.settings.telemetry.interval
        submitted: list[dict[str, Any]] = []
        counts = []
        start_s = 0.0
        for _, records, expected_s in phases:
            for record in records:
                shifted = {**record, "submit_s": start_s + record.get("submit_s", 0.0)}
                if "cancel_s" in record:
                    shifted["cancel_s"] = start_s + record["cancel_s"]
                submitted.append(shifted)
            counts.append(len(records))
            start_s += expected_s + (0.5 * expected_s if self.slack_s else 0.0) + self.gap_s
            start_s = math.ceil(start_s / interval_s) * interval_s
        result = self.run(label, submitted, overrides, devices=devices)
        made, start = [], 0
        for (name, _, _), count in zip(phases, counts, strict=True):
            made.append(Phase(name, start, start + count, result))
            start += count
        self.phases[label] = made
        return made

    def spreading_strategy(self) -> str:
        """A strategy that uses all GPUs, if the settings allow one; else the default."""
        selection = self.settings.gpu.selection
        allowed = [name for name in SPREADING if name in selection.strategies]
        return allowed[0] if allowed else selection.default_strategy

    # --- checks ---------------------------------------------------------------------------------------------------

    def check(self, name: str, passed: bool, expected: str, observed: str, advice: str = "") -> None:
        self.checks.append(Check(name, bool(passed), expected, observed))
        if advice:
            self.advice[name] = advice

    def check_completed(self, name: str, tasks: Sequence[Task]) -> None:
        """That all of them completed."""
        done, text = all_completed(tasks)
        self.check(name, done, f"{len(tasks)} of {len(tasks)}", text, advice_for(tasks))

    def check_results(self) -> None:
        """On real devices: the sampled outputs of every finished attempt against the float64 reference."""
        if not self.real:
            return
        attempts = [
            attempt
            for result in self.runs.values()
            for attempt in result.log.attempts()
            if not result.devices[attempt.gpu_id].simulated
        ]
        compared = [a for a in attempts if a.outcome == "finished" and KINDS[a.task.spec.kind].kernel]
        if not any(KINDS[a.task.spec.kind].kernel for a in attempts):
            return  # a scenario that computes nothing
        details = [attempt.detail or {} for attempt in compared]
        right = sum(detail.get("reference_ok") is True for detail in details)
        worst = max((detail.get("max_rel_error", math.inf) for detail in details), default=0.0)
        self.check(
            "sampled outputs agree with the float64 reference",
            bool(compared) and right == len(compared),
            "every finished attempt within the error bound of an fp32 sum of its length",
            f"{right} of {len(compared)}; largest relative error {worst:.2g}",
            "a wrong product means broken memory, a broken library or a wrong worker: run it again on another device",
        )

    def _check_invariants(self) -> None:
        """The checks of every run, each once for all of them."""
        runs = [(label, check) for label, result in self.runs.items() for check in result.checks]
        for name in dict.fromkeys(check.name for _, check in runs):
            same = [(label, check) for label, check in runs if check.name == name]
            broken = [f"{label}: {check.observed} ({check.expected})" for label, check in same if not check.passed]
            observed = "; ".join(broken) or (
                same[0][1].observed if len(same) == 1 else f"holds in all {len(same)} runs"
            )
            expected = same[0][1].expected if len(same) == 1 else _general(name)
            self.check(name, not broken, expected, observed)

    def finish(
        self, metrics: Mapping[str, Any], key_metrics: Sequence[str], tables: Mapping[str, pd.DataFrame]
    ) -> ScenarioResult:
        self.check_results()
        self._check_invariants()
        if used := memory.measured(self.runs.values()):  # on real devices
            self.checks.append(memory.check_use(used))
            metrics = {**metrics, **memory.use_metrics(used)}
            tables = {**tables, "memory": memory.use_table(used, self.work_names)}
        if self.real:  # where a machine is slower than expected, one part still ran as the next began: figures mix
            metrics = {**metrics, "overlapping_parts": sum(_overlaps(parts) for parts in self.phases.values())}
        return ScenarioResult(
            self.name,
            SCENARIOS[self.name].title,
            self.settings,
            self.machine,
            self.machine.provenance,
            self.checks,
            dict(metrics),
            list(key_metrics),
            self.runs,
            dict(tables),
            self.advice,
            self.phases,
        )


_GENERAL: Final = {
    "every task ends in exactly one final state": "all of them final",
    "times are in order": "submitted <= started <= finished for every task",
    "slots per GPU are never exceeded": "at most gpu.workload.max_concurrent_tasks_per_gpu on a GPU",
    "reserved memory never exceeds what a GPU offers": "at most memory_threshold x its memory on every GPU",
}


def _general(name: str) -> str:
    return _GENERAL.get(name, "holds in every run")


def _overlaps(phases: Sequence[Phase]) -> int:
    return sum(before.end_s > after.begin_s for before, after in pairwise(phases))
