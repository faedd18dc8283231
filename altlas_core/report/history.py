"""Earlier runs of a reports folder, and how their numbers moved: read from their results.json, at a bounded cost."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from altlas_core.report import numbers
from altlas_core.report.environment import flat
from altlas_core.report.files import RAN_TO_ITS_END

MOST_RUNS: Final = 30
MOST_READ: Final = 2 * MOST_RUNS  # folders looked into: some may hold nothing that can be read
LARGEST_BYTES: Final = 8 * 2**20  # of a results.json: beyond, it is not one of ours
FEWEST_RUNS: Final = 3  # of a trend
_RUN_ID: Final = re.compile(r"\d{8}-\d{6}-[0-9a-f]+")
_WIDTH, _HEIGHT, _PAD = 132.0, 30.0, 3.0  # of a sparkline, px


@dataclass(slots=True, frozen=True)
class EarlierRun:
    """What the history says of a run. `status` is "waiting" where it did not end. Times are seconds.

    `metrics` are "scenario.metric" -> number.
    """

    run_id: str
    status: str
    started: datetime
    backend: str
    devices: tuple[str, ...]
    seed: int
    checks: int
    checks_passed: int
    wall_s: float
    scenarios: frozenset[str]
    metrics: Mapping[str, float] = field(default_factory=dict)

    def like(self, other: EarlierRun) -> bool:
        """Whether the times of both can be compared: the same machine."""
        return (self.backend, self.devices) == (other.backend, other.devices)


@dataclass(slots=True, frozen=True)
class Trend:
    """One number over the runs, oldest first: its latest value, what it says in words, and a line through them."""

    label: str
    value: str
    summary: str
    points: str
    last: tuple[float, float]
    width: float = _WIDTH
    height: float = _HEIGHT


def read_history(reports_dir: Path, before: str) -> list[EarlierRun]:
    """The latest runs that began before the run `before`, newest first; folders that hold no run are passed over."""
    try:
        names = sorted((path.name for path in reports_dir.iterdir() if _RUN_ID.fullmatch(path.name)), reverse=True)
    except OSError:
        return []
    earlier = [name for name in names if name < before][:MOST_READ]
    return list(_first(MOST_RUNS, (_read(reports_dir / name) for name in earlier)))


def earlier_run(results: Mapping[str, Any]) -> EarlierRun:
    """The content of a results.json. Raises KeyError, TypeError, ValueError or AttributeError where it is none."""
    scenarios: Mapping[str, Mapping[str, Any]] = results["scenarios"]
    checks = [check for scenario in scenarios.values() for check in scenario["checks"]]
    held = sum(bool(check["passed"]) for check in checks)
    found = {
        f"{name}.{metric}": float(value)
        for name, scenario in scenarios.items()
        for metric, value in flat(scenario["metrics"]).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    return EarlierRun(
        run_id=str(results["run_id"]),
        status=_status(bool(results["passed"]), checks, held),
        started=datetime.fromisoformat(results["started_at"]).astimezone(UTC),
        backend=str(results["backend"]),
        devices=tuple(map(str, results["devices"])),
        seed=int(results["seed"]),
        checks=len(checks),
        checks_passed=held,
        wall_s=float(results["wall_s"]),
        scenarios=frozenset(scenarios),
        metrics=found,
    )


def trends(runs: Sequence[EarlierRun], keys: Sequence[str]) -> tuple[list[Trend], int]:
    """How the wall time and the metrics `keys` ("scenario.metric") moved over `runs`, newest first, the first of them
    being the one that is looked at.

    Runs on other devices are left out; the wall time is compared among runs of the same scenarios only. Returns the
    trends of what changed and how many of `keys` never did.
    """
    latest = runs[0]
    alike = [run for run in reversed(runs) if run.like(latest) and run.status != "waiting"]
    whole = [run.wall_s for run in alike if run.scenarios == latest.scenarios]
    found = [_trend("Wall time of the run", "wall_s", whole)] if len(whole) >= FEWEST_RUNS else []
    unchanged = 0
    for key in keys:
        series = [run.metrics[key] for run in alike if key in run.metrics]
        if len(series) < FEWEST_RUNS:
            continue
        if len(set(series)) == 1:
            unchanged += 1
        else:
            scenario, _, metric = key.partition(".")
            named = f"{numbers.humanize(scenario)}: {_lowered(numbers.row(metric, 0.0)[0])}"
            found.append(_trend(named, metric, series))
    return found, unchanged


def _first(count: int, runs: Iterator[EarlierRun | None]) -> Iterator[EarlierRun]:
    for run in runs:
        if run is not None:
            yield run
            count -= 1
        if count == 0:
            return


def _read(folder: Path) -> EarlierRun | None:
    path = folder / "results.json"
    try:
        if path.stat().st_size > LARGEST_BYTES or not (folder / "index.html").is_file():
            return None
        run = earlier_run(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return run if run.run_id == folder.name else None  # a copy under another name is not that run


def _status(passed: bool, checks: Sequence[Mapping[str, Any]], held: int) -> str:
    if passed:
        return "passed"
    if any(check["name"] == RAN_TO_ITS_END for check in checks):
        return "broke"
    return "failed" if held < len(checks) else "waiting"


def _trend(label: str, metric: str, series: Sequence[float]) -> Trend:
    low, high = min(series), max(series)
    first, last, lowest, highest = (numbers.row(metric, value)[1] for value in (series[0], series[-1], low, high))
    summary = f"{first} {len(series) - 1} runs before; {lowest} to {highest}"
    spread = (high - low) or 1.0
    step = (_WIDTH - 2 * _PAD) / (len(series) - 1)
    points = [
        (round(_PAD + step * position, 1), round(_HEIGHT - _PAD - (value - low) / spread * (_HEIGHT - 2 * _PAD), 1))
        for position, value in enumerate(series)
    ]
    return Trend(label, last, summary, " ".join(f"{x:g},{y:g}" for x, y in points), points[-1])


def _lowered(text: str) -> str:
    """ "Best makespan" -> "best makespan", but "GPU count" as it is."""
    return text[:1].lower() + text[1:] if text[1:2].islower() else text
