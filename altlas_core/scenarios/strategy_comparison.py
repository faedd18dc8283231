"""One workload under every strategy, on the same machine with the same seed; each against the best that was found.

Every strategy has a run of its own, with the same times of submission. A task that names a strategy in its record is
run under the one compared like the others (a pin to a GPU stays: it is part of the work).

The regret of a strategy is value / best - 1, for each metric of which less is better. The best makespan is that of the
strategies and of schedules made with every length known (yardsticks.py); of other metrics the best of the strategies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from altlas_core.config import Settings
from altlas_core.model import COMPLETED
from altlas_core.scenarios.common import Bench, ScenarioResult
from altlas_core.scenarios.given import given_workload, workload_table
from altlas_core.scenarios.measures import strategies_of
from altlas_core.scenarios.run_metrics import run_metrics
from altlas_core.scenarios.yardsticks import graham_bound_s, length_s, lower_bound_s, offline_schedule
from altlas_core.strategies import STRATEGIES, USER_STRATEGIES
from altlas_core.workloads import Workload

if TYPE_CHECKING:
    import pandas as pd

REGRETS: Final = {  # metric of which less is better -> what its regret is called
    "makespan_s": "makespan_regret",
    "wait_p50_s": "wait_p50_regret",
    "wait_p95_s": "wait_p95_regret",
    "p99_s": "p99_regret",
    "energy_j": "energy_regret",
}
REAL_SHARE: Final = 0.95  # of a bound, on real devices, where clocks of two processes are compared
KEY_METRICS: Final = ("best_strategy", "best_makespan_s", "lower_bound_s", "offline_makespan_s", "largest_regret")


def run(settings: Settings) -> ScenarioResult:
    """A run for each strategy that the settings allow, and for each of the user's own."""
    bench = Bench("strategy_comparison", settings)
    given = given_workload(settings, bench.devices)
    named = sum(spec.strategy is not None for spec in given.workload.specs)
    workload = _free(given.workload) if named else given.workload
    for name in compared(settings):
        bench.run(name, workload, {"gpu.selection.default_strategy": name})
    _check_same_tasks(bench)
    runs = list(bench.runs.values())
    some = runs[0]  # what is known in advance is the same in all
    bound_s, offline = lower_bound_s(*runs), offline_schedule(*runs)
    _check_bound(bench, bound_s)
    _check_work_conserving(bench)
    rows = {name: run_metrics(result) for name, result in bench.runs.items()}
    _add_regrets(rows, offline)
    best = min(rows, key=lambda name: rows[name]["makespan_s"])
    metrics = {
        "tasks": len(some.task_list),
        "best_strategy": best,
        "best_makespan_s": rows[best]["makespan_s"],
        "lower_bound_s": bound_s,
        "offline_makespan_s": None if offline is None else offline[0],
        "largest_regret": max(row["makespan_regret"] or 0.0 for row in rows.values()),
        "strategies": rows,
    }
    tables = {
        "workload": workload_table(given, some.task_list, _strategy_text(list(rows), named)),
        "strategies": _strategy_table(rows),
        "yardsticks": _yardstick_table(rows, best, bound_s, offline),
    }
    return bench.finish(metrics, KEY_METRICS, tables)


def compared(settings: Settings) -> list[str]:
    """The strategies of the settings, the default where it is the user's own, and those registered in this process."""
    return list(dict.fromkeys([*strategies_of(settings), settings.gpu.selection.default_strategy, *USER_STRATEGIES]))


def latencies(result: ScenarioResult) -> dict[str, list[float]]:
    """Strategy -> seconds from submission to end of its completed tasks."""
    return {
        name: [t.finished_s - t.submitted_s for t in run.task_list if t.state == COMPLETED and t.finished_s is not None]
        for name, run in result.runs.items()
    }


def task_counts(result: ScenarioResult) -> dict[str, list[int]]:
    """Strategy -> tasks that each GPU was the last to run."""
    counts = {name: [0] * len(result.devices) for name in result.runs}
    for name, run in result.runs.items():
        for task in run.task_list:
            if task.gpu_id is not None and task.attempts:
                counts[name][task.gpu_id] += 1
    return counts


def _free(workload: Workload) -> Workload:
    """The same, no task naming a strategy of its own."""
    return replace(workload, specs=tuple(replace(spec, strategy=None) for spec in workload.specs))


def _strategy_text(names: Sequence[str], named: int) -> str:
    text = f"each of {', '.join(names)}"
    return text if not named else f"{text}; the one that {named:,} records name is set aside"


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_same_tasks(bench: Bench) -> None:
    """Of the tasks whose end does not depend on when and beside what they run: known length, and no full queue."""
    if bench.settings.gpu.workload.max_queue:
        return
    done = {
        name: {task.index for task in result.task_list if length_s(task) is not None and task.state == COMPLETED}
        for name, result in bench.runs.items()
    }
    first, *others = done
    different = [name for name in others if done[name] != done[first]]
    observed = f"{len(done[first]):,} under each"
    if different:
        name = different[0]
        odd = min(done[name] ^ done[first])
        observed = (
            f"{len(done[first]):,} under {first}, {len(done[name]):,} under {name}; task-{odd:06d} under one only"
        )
    bench.check(
        "every strategy completes the same tasks of known length",
        not different,
        "the same tasks",
        observed,
        "a strategy of yours that answers None leaves tasks waiting; on real devices look at the error of the task",
    )


def _check_bound(bench: Bench, bound_s: float) -> None:
    fastest = min(bench.runs, key=lambda name: float(bench.runs[name].metrics["makespan_s"]))
    makespan_s = bench.runs[fastest].metrics["makespan_s"]
    share = REAL_SHARE if bench.slack_s else 1 - 1e-9  # sums of many floats
    bench.check(
        "no strategy beats the lower bound",
        makespan_s >= share * bound_s,
        f"at least {bound_s:.5g} s",
        f"{makespan_s:.5g} s ({fastest})",
        "work was cut short, or more ran at a time than there is room for",
    )


def _check_work_conserving(bench: Bench) -> None:
    """Where nothing but a slot is ever waited for, Graham's bound holds of strategies that leave none idle. In virtual
    time only: starting a task takes time elsewhere."""
    names = [name for name in bench.runs if name in STRATEGIES and name != "single_gpu"]
    most_s = graham_bound_s(*(bench.runs[name] for name in names)) if names and not bench.slack_s else None
    if most_s is None:
        return
    slowest = max(names, key=lambda name: float(bench.runs[name].metrics["makespan_s"]))
    makespan_s = bench.runs[slowest].metrics["makespan_s"]
    bench.check(
        "strategies that leave no slot idle stay within Graham's bound",
        makespan_s <= most_s * (1 + 1e-9),
        f"at most {most_s:.5g} s",
        f"{makespan_s:.5g} s ({slowest})",
        "a slot was idle while a task waited",
    )


# --- regret -----------------------------------------------------------------------------------------------------------


def _add_regrets(rows: Mapping[str, dict[str, Any]], offline: tuple[float, str] | None) -> None:
    for metric, called in REGRETS.items():
        known = [row[metric] for row in rows.values() if row[metric] is not None]
        if offline is not None and metric == "makespan_s":
            known.append(offline[0])
        best = min(known, default=None)
        for row in rows.values():
            row[called] = regret(row[metric], best)


def regret(value: float | None, best: float | None) -> float | None:
    """value / best - 1: 0 = as good as the best found, 1 = twice that. None where no ratio says anything."""
    if value is None or best is None:
        return None
    if best == 0:
        return 0.0 if value == 0 else None
    return value / best - 1


# --- tables -----------------------------------------------------------------------------------------------------------


def _strategy_table(rows: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    table = []
    for name, row in sorted(rows.items(), key=lambda item: float(item[1]["makespan_s"])):
        energy = row["energy_j"]
        table.append(
            {
                "strategy": name,
                "makespan (s)": row["makespan_s"],
                "regret (%)": _percent(row["makespan_regret"]),
                "wait p50 (s)": row["wait_p50_s"],
                "wait p95 (s)": row["wait_p95_s"],
                "latency p99 (s)": row["p99_s"],
                "Jain's index": row["jain_index"],
                "energy (kJ)": None if energy is None else energy / 1000,
                "completed": row["completed"],
            }
        )
    return pd.DataFrame(table)


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 1)


def _yardstick_table(
    rows: Mapping[str, Mapping[str, Any]], best: str, bound_s: float, offline: tuple[float, str] | None
) -> pd.DataFrame:
    """What the makespans are measured against, the shortest first."""
    import pandas as pd

    lines = [("lower bound", bound_s, "no schedule can be shorter: slots, memory, lengths and times of submission")]
    if offline is not None:
        lines.append((f"offline: {offline[1]}", offline[0], "a schedule made with every length known in advance"))
    else:
        lines.append(("offline", float("nan"), "none: some length is not known in advance, or it would take too long"))
    lines.append((f"best strategy: {best}", rows[best]["makespan_s"], "knew no length and nothing of what was to come"))
    lines.sort(key=lambda line: (line[1] != line[1], line[1]))
    return pd.DataFrame(lines, columns=["yardstick", "makespan (s)", "what it is"])
