"""A user's workload on this machine: when everything was done, how long tasks waited, and what became of each.

A task that fails by its own nature (too large, out of time, its function raised) is a finding about the workload: it is
told, and fails no check. Checks are about the scheduler: that it did what the records say, and lost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from altlas_core.config import Settings
from altlas_core.model import CANCELLED, COMPLETED, FAILED, PRIORITY_NAMES, Attempt, Task
from altlas_core.result import Result
from altlas_core.scenarios.common import Bench, ScenarioResult
from altlas_core.scenarios.given import given_workload, workload_table
from altlas_core.scenarios.measures import WHAT_TO_DO, percentile
from altlas_core.scenarios.run_metrics import run_metrics
from altlas_core.scenarios.yardsticks import lower_bound_s
from altlas_core.words import seconds_text

if TYPE_CHECKING:
    import pandas as pd

RUN: Final = "workload"  # the label of its one run
MOST_TOLD: Final = 3
REAL_SHARE: Final = 0.95  # on real devices: clocks of two processes are compared
KEY_METRICS: Final = ("tasks", "failed", "makespan_s", "p99_s", "wait_p95_s", "utilization_mean_pct")
REASONS: Final = {
    "timeout": "ran longer than its timeout_s, or gpu.workload.timeout, allows",
    "too_large": "needs more memory than any GPU it may use offers",
    "out_of_memory": "used more memory than the device had left, in every attempt",
    "device_lost": "no device was left that it may use",
    "worker_crashed": "its worker process died in three attempts",
    "task_error": "its work raised an error in every attempt",
    "queue_full": "gpu.workload.max_queue tasks were waiting when it came",
}


def run(settings: Settings) -> ScenarioResult:
    """One run of run.workload, or of the example."""
    bench = Bench("own_workload", settings)
    given = given_workload(settings, bench.devices)
    result = bench.run(RUN, given.workload)
    tasks = result.task_list
    _check_devices(bench, tasks)
    _check_lengths(bench, tasks)
    _check_pins(bench, result.log.attempts())
    _check_endings(bench, tasks)
    _check_bound(bench, result)
    tables = {
        "workload": workload_table(given, tasks, _strategy_text(settings, tasks)),
        "outcomes": _outcomes(tasks),
        "priorities": _by_priority(tasks),
    }
    return bench.finish(run_metrics(result), KEY_METRICS, tables)


def latencies_by_priority(result: Result) -> dict[str, list[float]]:
    """Priority -> seconds from submission to end of its completed tasks."""
    return {name: _latencies([t for t in result.task_list if t.spec.priority == name]) for name in PRIORITY_NAMES}


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_devices(bench: Bench, tasks: Sequence[Task]) -> None:
    lost = [task for task in tasks if task.error_code == "device_lost"]
    bench.check(
        "no task ends for want of a device",
        not lost,
        "0 tasks",
        _some(lost, "tasks") + (f": {lost[0].error}" if lost else ""),
        WHAT_TO_DO["device_lost"],
    )


def _check_lengths(bench: Bench, tasks: Sequence[Task]) -> None:
    """In virtual time a duration is exact; on real devices nothing is cut short."""
    timed = [t for t in tasks if t.state == COMPLETED and t.spec.duration_s is not None]
    if not timed:
        return
    if bench.slack_s:
        wrong = [t for t in timed if _held_s(t) < REAL_SHARE * (t.spec.duration_s or 0.0)]
        name, expected = (
            "completed tasks held their GPU at least as long as they asked",
            f"{len(timed):,} not cut short",
        )
    else:
        wrong = [t for t in timed if t.finished_s != (t.started_s or 0.0) + (t.spec.duration_s or 0.0)]
        name, expected = "completed tasks held their GPU exactly as long as they asked", f"{len(timed):,} to the bit"
    bench.check(name, not wrong, expected, f"{_some(wrong, 'tasks')} differ")


def _check_pins(bench: Bench, attempts: Sequence[Attempt]) -> None:
    pinned = [a for a in attempts if a.task.demand.pin is not None]
    if not pinned:
        return
    strayed = [a.task for a in pinned if a.gpu_id != a.task.demand.pin]
    bench.check(
        "pinned tasks run on their GPU only",
        not strayed,
        f"all {len(pinned):,} attempts of pinned tasks",
        f"{_some(strayed, 'attempts')} elsewhere",
    )


def _check_endings(bench: Bench, tasks: Sequence[Task]) -> None:
    """A failure has a reason, and only its owner cancels a task."""
    mute = [t for t in tasks if t.state == FAILED and t.error_code is None]
    uncalled = [t for t in tasks if t.state == CANCELLED and t.spec.cancel_s is None]
    bench.check(
        "every task that did not complete says why",
        not mute and not uncalled,
        "failed tasks have an error code, cancelled ones a cancel_s",
        f"{_some(mute, 'failed')} without a code, {_some(uncalled, 'cancelled')} without cancel_s",
    )


def _check_bound(bench: Bench, result: Result) -> None:
    bound_s, makespan_s = lower_bound_s(result), result.metrics["makespan_s"]
    share = REAL_SHARE if bench.slack_s else 1 - 1e-9  # sums of many floats
    bench.check(
        "the makespan is not below what the work needs at least",
        makespan_s >= share * bound_s,
        f"at least {seconds_text(bound_s, 5)}",
        seconds_text(makespan_s, 5),
        "work was cut short, or more ran at a time than there is room for",
    )


def _held_s(task: Task) -> float:
    return (task.finished_s or 0.0) - (task.started_s or 0.0)


def _some(tasks: Sequence[Task], noun: str) -> str:
    """ "2 tasks (task-000003, task-000007)"."""
    names = ", ".join(task.task_id for task in tasks[:MOST_TOLD]) + (", ..." if len(tasks) > MOST_TOLD else "")
    return f"{len(tasks):,} {noun}" + (f" ({names})" if tasks else "")


# --- tables -----------------------------------------------------------------------------------------------------------


def _strategy_text(settings: Settings, tasks: Sequence[Task]) -> str:
    own = sum(task.spec.strategy is not None for task in tasks)
    default = settings.gpu.selection.default_strategy
    return default if not own else f"{default}; {own:,} tasks name their own"


def _outcomes(tasks: Sequence[Task]) -> pd.DataFrame:
    """What became of the tasks: a row for each way to end, the most frequent first."""
    import pandas as pd

    groups: dict[tuple[str, str], list[Task]] = {}
    for task in tasks:
        groups.setdefault((task.state, task.error_code or ""), []).append(task)
    rows: list[dict[str, Any]] = [
        {
            "ended": state,
            "why": code or "as asked",
            "tasks": len(own),
            "share (%)": 100 * len(own) / len(tasks),
            "the first of them": own[0].task_id,
            "what that means": REASONS.get(
                code, "its owner cancelled it" if state == CANCELLED else "it did what it was to do"
            ),
        }
        for (state, code), own in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
    return pd.DataFrame(rows)


def _by_priority(tasks: Sequence[Task]) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for name in PRIORITY_NAMES:
        own = [task for task in tasks if task.spec.priority == name]
        if not own:
            continue
        waits = [t.started_s - t.submitted_s for t in own if t.started_s is not None]
        latencies = _latencies(own)
        row: dict[str, Any] = {"priority": name, "tasks": len(own), "completed": len(latencies)}
        row |= {f"wait p{percent} (s)": percentile(waits, percent) for percent in (50, 95, 99)}
        row |= {f"latency p{percent} (s)": percentile(latencies, percent) for percent in (50, 95, 99)}
        rows.append(row)
    return pd.DataFrame(rows)


def _latencies(tasks: Sequence[Task]) -> list[float]:
    return [t.finished_s - t.submitted_s for t in tasks if t.state == COMPLETED and t.finished_s is not None]
