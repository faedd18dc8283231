"""One task's whole life under each strategy, a batch, cancelling, and priorities: the promises everything rests on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from altlas_core.config import Settings
from altlas_core.events import AttemptFinished, TaskSubmitted
from altlas_core.model import CANCELLED, COMPLETED, PRIORITIES, PRIORITY_NAMES, Attempt, Task
from altlas_core.result import Result
from altlas_core.scenarios.common import Bench, Phase, ScenarioResult
from altlas_core.scenarios.measures import advice_for, all_completed, strategies_of, task_rows

if TYPE_CHECKING:
    import pandas as pd

BATCHES = 2.5  # so many full pieces in the batch, so that the last one is smaller
QUEUE_UNIT = 0.2  # the tasks of the queue test take this share of the duration
EACH_PRIORITY = 2
PATIENCE = 100.0  # priority_aging at least so many durations, so that waiting lifts no task during the test


def run(settings: Settings) -> ScenarioResult:
    """Two runs: tasks one by one and a batch on the whole machine; a queue on GPU 0 with a single slot."""
    bench = Bench("basic_functionality", settings)
    lives, batch = _lives(bench)
    queue = _queue(bench)
    for phase in lives:
        _check_life(bench, phase)
    _check_batch(bench, batch)
    _check_cancelled(bench, queue)
    _check_priorities(bench, queue)
    tasks = [task for phase in lives for task in phase.tasks]
    overhead_s = [_held_s(task) - _asked_s(task) for task in tasks if task.finished_s is not None]
    metrics: dict[str, Any] = {
        "strategies": len(lives),
        "tasks": sum(len(result.task_list) for result in bench.runs.values()),
        "completed": sum(t.state == COMPLETED for r in bench.runs.values() for t in r.task_list),
        "batch_pieces": len(batch.tasks),
        "largest_overrun_s": max(overhead_s, default=None),
    }
    tables = {"lives": _life_table(lives), "batch": batch.result.batches, "queue": task_rows(queue.task_list)}
    return bench.finish(metrics, ["tasks", "completed", "strategies", "largest_overrun_s"], tables)


def _asked_s(task: Task) -> float:
    """What it asked for; in a result these are the seconds of the run's own clock already."""
    return task.spec.duration_s or 0.0


def _held_s(task: Task) -> float:
    return (task.finished_s or 0.0) - (task.started_s or 0.0)


def _lives(bench: Bench) -> tuple[list[Phase], Phase]:
    """One task under each strategy, one after the other, then a batch."""
    case = bench.settings.test.basic_functionality
    size = {"input_size": case.input_size, "output_size": case.output_size}
    pieces = bench.settings.gpu.workload.batch_size
    items = max(2, math.ceil(BATCHES * pieces))
    strategies = strategies_of(bench.settings)
    groups: list[tuple[str, list[dict[str, Any]], float]] = [
        (name, [{**size, "duration_s": case.duration, "strategy": name}], case.duration) for name in strategies
    ]
    item = {**size, "duration_s": case.duration / pieces, "items": items, "strategy": bench.spreading_strategy()}
    groups.append(("batch", [item], case.duration * BATCHES))
    phases = bench.run_phases("one_by_one", groups)
    batch = phases[-1]
    batch.stop = len(batch.result.task_list)
    return phases[:-1], batch


def _check_life(bench: Bench, phase: Phase) -> None:
    """submitted -> started -> finished, at once on an idle machine, and for exactly as long as asked."""
    task = phase.tasks[0]
    facts = _facts_of(phase.result, task)
    started, finished = task.started_s, task.finished_s
    slack = bench.slack_s
    whole = task.state == COMPLETED and facts == ["submitted", "started", "finished"] and task.attempts == 1
    waited_s = math.inf if started is None else started - task.submitted_s
    late_s = math.inf if started is None or finished is None else finished - (started + _asked_s(task))
    exact = "exactly" if not slack else f"to within {slack:g} s"
    bench.check(
        f"{phase.label}: a task's whole life",
        whole and waited_s <= slack and -0.05 * slack <= late_s <= slack,
        f"submitted, started at once, finished after {_asked_s(task):g} s ({exact}), in one attempt",
        f"{', '.join(facts)}; waited {waited_s:.3g} s, held GPU {task.gpu_id} for {_held_s(task):.6g} s, {task.state}",
        advice_for([task]) or "see the event log of this run for what happened instead",
    )


def _facts_of(result: Result, task: Task) -> list[str]:
    """What happened to one task, in order."""
    names = []
    for entry in result.log.entries:
        if isinstance(entry, TaskSubmitted) and entry.task is task:
            names.append("submitted")
        elif isinstance(entry, Attempt) and entry.task is task:
            names.append("started")
        elif isinstance(entry, AttemptFinished) and entry.task_index == task.index:
            names.append("finished")
    return names


def _check_batch(bench: Bench, phase: Phase) -> None:
    size = bench.settings.gpu.workload.batch_size
    items = max(2, math.ceil(BATCHES * size))
    expected = [min(size, items - start) for start in range(0, items, size)]
    item_s = bench.settings.test.basic_functionality.duration / size * bench.scale
    observed = [round(_asked_s(task) / item_s) for task in phase.tasks]
    ids = {task.spec.batch_id for task in phase.tasks}
    bench.check(
        "a batch is cut into pieces of batch_size",
        observed == expected and len(ids) == 1,
        f"{items} items in {len(expected)} pieces of {', '.join(map(str, expected))}, one batch",
        f"{len(observed)} pieces of {', '.join(map(str, observed))}, {len(ids)} batch",
    )
    bench.check_completed("every piece of the batch completes", phase.tasks)


def _queue(bench: Bench) -> Result:
    """GPU 0 with one slot: a task that is cancelled while it runs, one while it waits, then two of each priority."""
    case = bench.settings.test.basic_functionality
    d, unit = case.duration, QUEUE_UNIT * case.duration
    same = {"input_size": case.input_size, "output_size": case.output_size, "gpu_id": 0}
    records: list[dict[str, Any]] = [
        {**same, "duration_s": d, "cancel_s": 0.6 * d},
        {**same, "duration_s": unit, "submit_s": 0.1 * d, "cancel_s": 0.4 * d},
    ]
    for name in reversed(PRIORITY_NAMES):  # the least urgent come first
        records += [{**same, "duration_s": unit, "submit_s": 0.2 * d, "priority": name}] * EACH_PRIORITY
    aging_s = max(bench.settings.gpu.workload.priority_aging, PATIENCE * d)
    changed = {"gpu.workload.max_concurrent_tasks_per_gpu": 1, "gpu.workload.priority_aging": aging_s}
    return bench.run("queue_of_one_slot", records, changed, devices=bench.devices[:1])


def _check_cancelled(bench: Bench, result: Result) -> None:
    running, waiting = result.task_list[:2]
    attempt = next(iter(result.log.attempts()), None)
    ended_s = None if attempt is None else attempt.ended_s
    wanted_s = running.spec.cancel_s or 0.0
    grace_s = bench.settings.gpu.workload.kill_grace if bench.real else 0.0
    let_go = ended_s is not None and ended_s - (running.finished_s or 0.0) <= grace_s + bench.slack_s
    on_time = running.finished_s is not None and 0 <= running.finished_s - wanted_s <= bench.slack_s
    bench.check(
        "a running task that is cancelled stays CANCELLED",
        running.state == CANCELLED and on_time and let_go and running.attempts == 1,
        f"CANCELLED {'at exactly' if not bench.slack_s else 'soon after'} {wanted_s:g} s, its GPU given back",
        f"{running.state} at {_text(running.finished_s)} s, GPU given back at {_text(ended_s)} s",
    )
    bench.check(
        "a waiting task that is cancelled never starts",
        waiting.state == CANCELLED and waiting.attempts == 0,
        "CANCELLED, 0 attempts",
        f"{waiting.state}, {waiting.attempts} attempts",
    )


def _text(seconds: float | None) -> str:
    return "N/A" if seconds is None else f"{seconds:.6g}"


def _check_priorities(bench: Bench, result: Result) -> None:
    tasks = result.task_list[2:]
    order = sorted(tasks, key=lambda task: (math.inf if task.started_s is None else task.started_s, task.index))
    wanted = sorted(tasks, key=lambda task: (PRIORITIES[task.spec.priority], task.index))
    done, _ = all_completed(tasks)
    bench.check(
        "priorities decide the order, first come first served inside each",
        done and order == wanted,
        ", ".join(f"{task.spec.priority} {task.index}" for task in wanted),
        ", ".join(f"{task.spec.priority} {task.index}" for task in order),
    )


def _life_table(lives: list[Phase]) -> pd.DataFrame:
    table = task_rows([phase.tasks[0] for phase in lives])
    table["held (s)"] = table["finished (s)"] - table["started (s)"]
    return table[["strategy", "task", "state", "GPU", "submitted (s)", "started (s)", "finished (s)", "held (s)"]]
