"""What a run leaves: tables made when asked for, figures that sum it up, checks that must hold of every run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altlas_core.config import Settings
from altlas_core.config_schema import EXPORT_FORMATS
from altlas_core.event_log import EventLog
from altlas_core.events import AttemptFailed, AttemptFinished, AttemptStopped, DeviceLost, WorkerCrashed
from altlas_core.kinds import KINDS
from altlas_core.model import CANCELLED, COMPLETED, FAILED, FINAL_STATES, GIB, Attempt, Check, Device, DeviceSpec, Task
from altlas_core.telemetry import Telemetry

if TYPE_CHECKING:
    import pandas as pd


def _flops(attempt: Attempt) -> float:
    """Of the whole attempt: by the formula of its kind; what a user's own function did, only that can tell."""
    spec = attempt.task.spec
    if spec.call is not None:
        return float((attempt.detail or {}).get("flops", 0.0))
    return KINDS[spec.kind].flops(spec) * attempt.iterations


@dataclass(eq=False)
class Result:
    """One run. `virtual_s` is its length on its own clock (virtual or real).

    `backend` is the kind of its devices, "mixed" where there are several; `provenance` is where its figures come from:
    "simulated", "measured", or "mixed".
    """

    settings: Settings
    seed: int
    backend: str
    provenance: str
    devices: tuple[DeviceSpec, ...]
    virtual_s: float
    log: EventLog = field(repr=False)
    sampled: Telemetry = field(repr=False)
    task_list: Sequence[Task] = field(repr=False)
    pool: Sequence[Device] = field(repr=False)
    stale: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def tasks(self) -> pd.DataFrame:
        """One row per task, in task_id order; started_s is that of the last attempt. Times in seconds.

        `provenance` says what its last attempt ran on: "measured" or "simulated"; None if it never started.
        """
        import pandas as pd

        tasks = self.task_list

        def column(name: str) -> list[Any]:
            return [getattr(task, name) for task in tasks]

        return pd.DataFrame(
            {
                "task_id": [task.task_id for task in tasks],
                "kind": [task.spec.kind for task in tasks],
                "priority": [task.spec.priority for task in tasks],
                "state": column("state"),
                "gpu_id": pd.array(column("gpu_id"), dtype="Int64"),
                "attempts": pd.array(column("attempts"), dtype="int64"),
                "submitted_s": pd.array(column("submitted_s"), dtype="float64"),
                "started_s": pd.Series(column("started_s"), dtype="float64"),
                "finished_s": pd.Series(column("finished_s"), dtype="float64"),
                "error_code": pd.Series(column("error_code"), dtype="object"),
                "error": pd.Series(column("error"), dtype="object"),
                "provenance": self._provenance(task.gpu_id if task.attempts else None for task in tasks),
            }
        )

    @cached_property
    def attempts(self) -> pd.DataFrame:
        """One row per attempt, in the order they started. flops is of the whole attempt; `detail` what was measured.

        `provenance`: whether its device is real ("measured") or "simulated".
        """
        import pandas as pd

        attempts = self.log.attempts()
        flops = [_flops(attempt) for attempt in attempts]
        return pd.DataFrame(
            {
                "task_id": [a.task.task_id for a in attempts],
                "attempt": pd.array([a.number for a in attempts], dtype="int64"),
                "gpu_id": pd.array([a.gpu_id for a in attempts], dtype="int64"),
                "started_s": pd.Series([a.started_s for a in attempts], dtype="float64"),
                "ended_s": pd.Series([a.ended_s for a in attempts], dtype="float64"),
                "outcome": pd.Series([a.outcome for a in attempts], dtype="object"),
                "memory_bytes": pd.array([a.reserved_bytes for a in attempts], dtype="int64"),
                "iterations": pd.Series([a.iterations for a in attempts], dtype="float64"),
                "flops": pd.Series(flops, dtype="float64"),
                "detail": pd.Series([a.detail for a in attempts], dtype="object"),
                "provenance": self._provenance(a.gpu_id for a in attempts),
            }
        )

    def _provenance(self, gpu_ids: Iterable[int | None]) -> pd.Series[Any]:
        """Of each device: "measured" or "simulated"; None for no device."""
        import pandas as pd

        of = ["simulated" if spec.simulated else "measured" for spec in self.devices]
        return pd.Series([None if gpu_id is None else of[gpu_id] for gpu_id in gpu_ids], dtype="object")

    @property
    def telemetry(self) -> pd.DataFrame:
        """One row per (time, GPU); see Telemetry.table."""
        return self._telemetry_table

    @cached_property
    def _telemetry_table(self) -> pd.DataFrame:
        return self.sampled.table()

    @cached_property
    def readings(self) -> pd.DataFrame:
        """All that was read of the real devices, at their sampler's rate; see Telemetry.readings_table."""
        return self.sampled.readings_table()

    @cached_property
    def queue_depth(self) -> pd.DataFrame:
        """time_s, queued_tasks."""
        return self.sampled.queue_table()

    @cached_property
    def batches(self) -> pd.DataFrame:
        """One row per batch: batch_id, pieces, completed, first_submitted_s, finished_s."""
        import pandas as pd

        rows: dict[str, list[Task]] = {}
        for task in self.task_list:
            if task.spec.batch_id is not None:
                rows.setdefault(task.spec.batch_id, []).append(task)
        return pd.DataFrame(
            [
                {
                    "batch_id": batch_id,
                    "pieces": len(tasks),
                    "completed": sum(task.state == COMPLETED for task in tasks),
                    "submitted_s": min(task.submitted_s for task in tasks),
                    "finished_s": max(task.finished_s or 0.0 for task in tasks),
                }
                for batch_id, tasks in rows.items()
            ],
            columns=["batch_id", "pieces", "completed", "submitted_s", "finished_s"],
        )

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """The event log as dictionaries, header first."""
        import json

        return [json.loads(line) for line in self.log.lines()]

    def event_lines(self) -> Iterator[str]:
        """The event log as JSON lines."""
        return self.log.lines()

    @cached_property
    def event_log_sha256(self) -> str:
        return self.log.sha256()

    def export(self, folder: str | Path, formats: Iterable[str] = EXPORT_FORMATS) -> list[Path]:
        """Write tasks, attempts, telemetry and queue (csv, parquet) and a trace for Perfetto (trace) into a folder.

        Returns the paths. Raises ConfigError where the folder cannot be written.
        """
        from altlas_core.exports import export

        return export(self, folder, formats)

    # --- sums and checks ------------------------------------------------------------------------------------------

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Figures of the whole run. Seconds, watts, percent; None where nothing was there to measure.

        wait: from submission to the start of the last attempt; latency: from submission to the end of completed tasks.
        """
        import numpy as np

        tasks = self.task_list
        done = [task for task in tasks if task.state == COMPLETED]
        waits = [t.started_s - t.submitted_s for t in tasks if t.started_s is not None]
        latencies = [t.finished_s - t.submitted_s for t in done if t.finished_s is not None]
        ends = [task.finished_s for task in tasks if task.finished_s is not None]
        first = min((task.submitted_s for task in tasks), default=0.0)
        makespan = max(ends) - first if ends else 0.0
        flops = float(self.attempts["flops"].sum()) if len(tasks) else 0.0
        metrics: dict[str, Any] = {
            "tasks": len(tasks),
            "completed": len(done),
            "failed": sum(task.state == FAILED for task in tasks),
            "cancelled": sum(task.state == CANCELLED for task in tasks),
            "attempts": sum(task.attempts for task in tasks),
            "makespan_s": makespan,
            "throughput_tasks_per_s": len(done) / makespan if makespan else None,
            "achieved_tflops": flops / makespan / 1e12 if makespan else None,
            "late_facts": sum(self.stale.values()),
        }
        for name, values in (("wait", waits), ("latency", latencies)):
            for percent in (50, 95, 99):
                key = f"{name}_p{percent}_s"
                metrics[key] = float(np.percentile(values, percent)) if values else None
        table = self.telemetry
        for name, unit in (("utilization", "_pct"), ("power", "_w"), ("temperature", "_c")):
            readings = table[name + unit].dropna()
            metrics[f"{name}_mean{unit}"] = float(readings.mean()) if len(readings) else None
            metrics[f"{name}_max{unit}"] = float(readings.max()) if len(readings) else None
        metrics["queue_depth_max"] = max(self.sampled.queue_depth, default=0)
        return metrics

    @cached_property
    def checks(self) -> list[Check]:
        """What must hold of any run, whatever was asked: see each check's name."""
        return list(_invariants(self))


def _invariants(result: Result) -> Iterator[Check]:
    tasks = result.task_list
    open_tasks = [task.task_id for task in tasks if task.state not in FINAL_STATES]
    yield Check(
        "every task ends in exactly one final state",
        not open_tasks,
        f"{len(tasks)} final",
        f"{len(tasks) - len(open_tasks)} final" + (f", open: {', '.join(open_tasks[:3])}" if open_tasks else ""),
    )
    backwards = [
        task.task_id
        for task in tasks
        if task.started_s is not None
        and task.finished_s is not None
        and not task.submitted_s <= task.started_s <= task.finished_s
    ]
    yield Check(
        "times are in order",
        not backwards,
        "submitted <= started <= finished for every task",
        f"{len(backwards)} out of order" + (f": {', '.join(backwards[:3])}" if backwards else ""),
    )
    slots, memory = _peaks(result.log, len(result.pool))
    limit = result.settings.gpu.workload.max_concurrent_tasks_per_gpu
    yield Check(
        "slots per GPU are never exceeded",
        max(slots, default=0) <= limit,
        f"at most {limit} tasks at a time on a GPU",
        f"at most {max(slots, default=0)}",
    )
    over = [d.gpu_id for d, peak in zip(result.pool, memory, strict=True) if peak > d.capacity_bytes]
    shares = [peak / d.capacity_bytes for d, peak in zip(result.pool, memory, strict=True) if d.capacity_bytes]
    fullest = max(shares, default=0.0)
    yield Check(
        "reserved memory never exceeds what a GPU offers",
        not over,
        "at most memory_threshold x its memory on every GPU",
        f"at most {100 * fullest:.1f} % of that, {max(memory, default=0) / GIB:.2f} GiB",
    )


def _peaks(log: EventLog, gpus: int) -> tuple[list[int], list[int]]:
    """The most attempts, and bytes, held at one time on each GPU, counted along the log (tasks may take no time)."""
    held: dict[int, Attempt] = {}
    slots, memory, most_slots, most_memory = [0] * gpus, [0] * gpus, [0] * gpus, [0] * gpus

    def end(index: int) -> None:
        attempt = held.pop(index, None)
        if attempt is not None:
            slots[attempt.gpu_id] -= 1
            memory[attempt.gpu_id] -= attempt.reserved_bytes

    for entry in log.entries:
        if isinstance(entry, Attempt):
            gpu_id = entry.gpu_id
            held[entry.task.index] = entry
            slots[gpu_id] += 1
            memory[gpu_id] += entry.reserved_bytes
            most_slots[gpu_id] = max(most_slots[gpu_id], slots[gpu_id])
            most_memory[gpu_id] = max(most_memory[gpu_id], memory[gpu_id])
        elif isinstance(entry, AttemptFinished | AttemptFailed | AttemptStopped):
            if entry.task_index in held and held[entry.task_index].number == entry.attempt:
                end(entry.task_index)
        elif isinstance(entry, WorkerCrashed):
            for index, number in entry.attempts:
                if index in held and held[index].number == number:
                    end(index)
        elif isinstance(entry, DeviceLost):
            for index in [index for index, attempt in held.items() if attempt.gpu_id == entry.gpu_id]:
                end(index)
    return most_slots, most_memory
