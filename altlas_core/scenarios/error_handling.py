"""What goes wrong, on purpose: too much work, too large, too long, a lost device, a crashing worker, an error."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from altlas_core.config import Settings
from altlas_core.config_schema import ErrorCase
from altlas_core.faults import Fault
from altlas_core.model import COMPLETED, FAILED, GIB, Task
from altlas_core.result import Result
from altlas_core.scenarios.common import Bench, Phase, ScenarioResult
from altlas_core.scenarios.measures import (
    all_completed,
    capacity_bytes,
    list_schedule,
    need_bytes,
    peak_running,
    places,
    task_rows,
)

FIT: Final = 3  # the small GPU has memory for so many of the overload's tasks
TOO_LARGE: Final = 1.5  # times what the roomiest GPU offers
CRASHES: Final = 3  # the third crash ends a task
NEIGHBOURS: Final = 2
MOST_TASKS_LOST: Final = 16


def run(settings: Settings) -> ScenarioResult:
    """Overload on a whole and on a small GPU; a lost GPU; then errors, crashes and overruns in turn."""
    bench = Bench("error_handling", settings)
    cases = {case.name: case for case in settings.test.error_handling.scenarios}
    if "gpu_overload" in cases:
        _overload(bench, cases["gpu_overload"])
        _overload_small(bench, cases["gpu_overload"])
    _lost(bench)
    phases = _failures(bench, cases.get("task_timeout"))
    tasks = [task for result in bench.runs.values() for task in result.task_list]
    failed = [task for phase in phases for task in phase.tasks if task.state == FAILED]
    metrics: dict[str, Any] = {
        "tasks": len(tasks),
        "completed": sum(task.state == COMPLETED for task in tasks),
        "failed": sum(task.state == FAILED for task in tasks),
        "attempts": sum(task.attempts for task in tasks),
        "failures": dict(sorted(Counter(str(task.error_code) for task in tasks if task.error_code).items())),
    }
    table = task_rows(failed)[["task", "kind", "state", "why", "attempts", "GPU", "started (s)", "finished (s)"]]
    table["error"] = [task.error or "" for task in failed]
    tables = {"failed": table, "lost": task_rows(bench.runs["device_lost"].task_list)}
    return bench.finish(metrics, ["tasks", "completed", "failed", "attempts"], tables)


# --- too much for one GPU -----------------------------------------------------------------------------------------


def _overload_records(case: ErrorCase) -> list[dict[str, Any]]:
    size = {"input_size": case.input_size, "output_size": case.output_size}
    return [{**size, "duration_s": case.duration, "gpu_id": 0}] * case.concurrent_tasks


def _overload(bench: Bench, case: ErrorCase) -> None:
    """All at once on GPU 0: what finds no slot (or memory) waits."""
    result = bench.run("overload", _overload_records(case), devices=bench.devices[:1])
    need = need_bytes(input_size=case.input_size, output_size=case.output_size)
    room = places(result.settings, bench.devices[:1], need)[0]
    if room:
        _check_overload(bench, "gpu_overload", result, room)
    else:
        _check_too_large(bench, "gpu_overload", result.task_list, capacity_bytes(result.settings, bench.devices[0]))


def _overload_small(bench: Bench, case: ErrorCase) -> None:
    """The same on a GPU that offers memory for three: the fourth waits for memory although a slot is free."""
    need = need_bytes(input_size=case.input_size, output_size=case.output_size)
    limit = FIT * need + need // 2
    if limit > capacity_bytes(bench.settings, bench.devices[0]):
        bench.check(
            "small GPU: there is a GPU to make small",
            True,
            f"memory for {FIT} tasks of {need / GIB:.2f} GiB on GPU 0, else left out",
            f"left out: GPU 0 offers {capacity_bytes(bench.settings, bench.devices[0]) / GIB:.2f} GiB",
        )
        return
    slots = max(FIT + 1, bench.settings.gpu.workload.max_concurrent_tasks_per_gpu)
    changed = {"gpu.memory_limit_bytes": limit, "gpu.workload.max_concurrent_tasks_per_gpu": slots}
    result = bench.run("overload_small", _overload_records(case), changed, devices=bench.devices[:1])
    _check_overload(bench, "small GPU", result, FIT)
    attempts = result.log.attempts()
    most = peak_running(attempts)
    waited = sum((task.started_s or 0.0) > task.submitted_s for task in result.task_list)
    bench.check(
        "small GPU: what does not fit waits for memory, with slots free",
        most == min(FIT, case.concurrent_tasks) and most < slots,
        f"{min(FIT, case.concurrent_tasks)} at a time, {slots} slots",
        f"{most} at a time, {waited} waited",
    )
    bench.check(
        "small GPU: reserved memory stays under its limit",
        most * need <= limit,
        f"at most {limit / GIB:.2f} GiB",
        f"{most * need / GIB:.2f} GiB: {most} x {need / GIB:.2f} GiB",
    )


def _check_overload(bench: Bench, name: str, result: Result, room: int) -> None:
    tasks = result.task_list
    bench.check_completed(f"{name}: all tasks complete, nothing dies of it", tasks)
    durations = [task.spec.duration_s or 0.0 for task in tasks]
    if bench.slack_s:  # the first ones also make their weights, so it goes by how long each really held the GPU
        durations = [a.ended_s - a.started_s for a in result.log.attempts() if a.ended_s is not None]
    bound_s = list_schedule(durations, room)
    end_s = max(task.finished_s or math.inf for task in tasks)
    near = end_s == bound_s if not bench.slack_s else abs(end_s - bound_s) <= bench.slack_s
    bench.check(
        f"{name}: waiting tasks start as room comes free",
        near,
        f"done after {'about' if bench.slack_s else 'exactly'} {bound_s:g} s: {len(tasks)} tasks, {room} at a time",
        f"done after {end_s:.6g} s",
    )


# --- a device lost ------------------------------------------------------------------------------------------------


def _lost(bench: Bench) -> None:
    """Two tasks for each GPU (eight GPUs at most); GPU 0 is lost while all run."""
    case = bench.settings.test.basic_functionality
    slots = bench.settings.gpu.workload.max_concurrent_tasks_per_gpu
    strategy = bench.spreading_strategy()
    count = min(MOST_TASKS_LOST, 2 * len(bench.devices)) if slots > 1 else min(MOST_TASKS_LOST, len(bench.devices))
    record = {"input_size": case.input_size, "output_size": case.output_size, "duration_s": case.duration}
    fault = Fault(case.duration / 2, 0, "lose_gpu")
    result = bench.run("device_lost", [{**record, "strategy": strategy}] * count, faults=[fault])
    hit = {attempt.task.index for attempt in result.log.attempts() if attempt.outcome == "device_lost"}
    victims = [task for task in result.task_list if task.index in hit]
    if len(bench.devices) == 1:
        codes = {task.error_code for task in result.task_list}
        bench.check(
            "device lost: with no other device its tasks fail and say so",
            codes == {"device_lost"},
            "every task FAILED as device_lost: this machine has one device",
            ", ".join(sorted(str(code) for code in codes)),
        )
        return
    bench.check_completed("device lost: every task completes", result.task_list)
    moved = [task for task in victims if task.state == COMPLETED and task.gpu_id != 0 and task.attempts == 2]
    where = ", ".join(sorted({str(task.gpu_id) for task in moved})) or "none"
    bench.check(
        "device lost: its tasks finish elsewhere, in a second attempt",
        bool(victims) and len(moved) == len(victims),
        "all that ran on GPU 0, and at least one did",
        f"{len(moved)} of {len(victims)} finished on GPU {where}",
    )
    others = [task for task in result.task_list if task.index not in hit]
    bench.check(
        "device lost: nobody else notices",
        all(task.attempts == 1 for task in others),
        f"one attempt for each of the other {len(others)} tasks",
        f"at most {max((task.attempts for task in others), default=0)}",
    )
    late = [a for a in result.log.attempts() if a.gpu_id == 0 and a.started_s > fault.time_s * bench.scale]
    bench.check(
        "device lost: it takes no new task", not late, "no start on GPU 0 after it was lost", f"{len(late)} starts"
    )


# --- errors, crashes, overruns ------------------------------------------------------------------------------------


def _failures(bench: Bench, timeout_case: ErrorCase | None) -> list[Phase]:
    """One run, one thing after the other, each beside or after tasks that must not suffer from it."""
    case = bench.settings.test.basic_functionality
    d = case.duration
    size = {"input_size": case.input_size, "output_size": case.output_size}
    settings = bench.settings
    room = max(capacity_bytes(settings, spec) for spec in bench.devices)
    last = bench.last_gpu_id
    slots = settings.gpu.workload.max_concurrent_tasks_per_gpu
    neighbours = [{**size, "duration_s": d, "gpu_id": last}] * min(NEIGHBOURS, slots - 1)
    groups: list[tuple[str, list[dict[str, Any]], float]] = [
        ("too_large", [{"kind": "sleep", "duration_s": d, "memory_bytes": int(TOO_LARGE * room)}], 0.0),
        ("raises", [{"kind": "raise_error", "duration_s": d / (1 + settings.gpu.workload.retry_count)}], d),
        ("crashes", [*neighbours, {"kind": "crash_worker", "duration_s": d / 2, "gpu_id": last}], 4 * d),
        ("hangs", [{"kind": "hang", "duration_s": 10 * d, "timeout_s": d, "gpu_id": last}], d),
    ]
    if timeout_case is not None:
        size = {"input_size": timeout_case.input_size, "output_size": timeout_case.output_size}
        record = {**size, "duration_s": timeout_case.duration}
        expected_s = min(timeout_case.duration, settings.gpu.workload.timeout)
        groups.append(("task_timeout", [record] * timeout_case.concurrent_tasks, expected_s))
    phases = bench.run_phases("failures", groups)
    by_name = {phase.label: phase for phase in phases}
    _check_too_large(bench, "too large", by_name["too_large"].tasks, room)
    _check_raises(bench, by_name["raises"].tasks[0])
    _check_crashes(bench, by_name["crashes"])
    _check_overrun(bench, "a task that never looks", by_name["hangs"])
    if timeout_case is not None:
        _check_overrun(bench, "task_timeout", by_name["task_timeout"])
    return phases


def _check_too_large(bench: Bench, name: str, tasks: Sequence[Task], room: int) -> None:
    """Refused at once, with needed and available GiB."""
    need = tasks[0].memory_bytes
    wanted = (f"{need / GIB:.2f} GiB", f"{room / GIB:.2f} GiB")
    at_once = all(task.finished_s == task.submitted_s and task.attempts == 0 for task in tasks)
    told = all(number in (task.error or "") for task in tasks for number in wanted)
    bench.check(
        f"{name}: a task that fits on no GPU fails at once and says by how much",
        at_once and told and all(task.error_code == "too_large" for task in tasks),
        f"FAILED (too_large), 0 attempts, naming {wanted[0]} needed and {wanted[1]} available",
        f"{tasks[0].state} ({tasks[0].error_code}), {tasks[0].attempts} attempts: {tasks[0].error}",
    )


def _check_raises(bench: Bench, task: Task) -> None:
    allowed = 1 + bench.settings.gpu.workload.retry_count
    bench.check(
        "raises: a task that raises is tried again, then FAILED with its error",
        task.state == FAILED and task.error_code == "task_error" and task.attempts == allowed and bool(task.error),
        f"FAILED (task_error) after {allowed} attempts, with its text",
        f"{task.state} ({task.error_code}) after {task.attempts} attempts: {task.error}",
    )


def _check_crashes(bench: Bench, phase: Phase) -> None:
    *neighbours, crasher = phase.tasks
    bench.check(
        "crashes: the third worker crash ends the task",
        crasher.state == FAILED and crasher.error_code == "worker_crashed" and crasher.attempts == CRASHES,
        f"FAILED (worker_crashed) after {CRASHES} attempts",
        f"{crasher.state} ({crasher.error_code}) after {crasher.attempts} attempts: {crasher.error}",
    )
    if neighbours:
        done, text = all_completed(neighbours)
        attempts = max(task.attempts for task in neighbours)
        bench.check(
            "crashes: tasks beside it in the same worker complete all the same",
            done,
            f"{len(neighbours)} of {len(neighbours)}",
            f"{text}, in up to {attempts} attempts",
        )


def _check_overrun(bench: Bench, name: str, phase: Phase) -> None:
    """FAILED at exactly started + timeout, and the GPU given back: at once when simulated, soon when real."""
    grace_s = bench.settings.gpu.workload.kill_grace if bench.real else 0.0
    allowed_s = grace_s + bench.slack_s
    for task in phase.tasks[:1]:
        overruns = (task.spec.duration_s or 0.0) > task.timeout_s
        if not overruns:
            done, text = all_completed(phase.tasks)
            bench.check(f"{name}: ends before its timeout", done, f"{task.timeout_s:g} s are enough", text)
            return
    on_time = [t for t in phase.tasks if t.started_s is not None and t.finished_s == t.started_s + t.timeout_s]
    right = [t for t in on_time if t.state == FAILED and t.error_code == "timeout" and t.attempts == 1]
    first = phase.tasks[0]
    lasted_s = (first.finished_s or math.nan) - (first.started_s or 0.0)
    bench.check(
        f"{name}: FAILED at exactly its timeout, not tried again",
        len(right) == len(phase.tasks),
        f"FAILED (timeout) {first.timeout_s:g} s after its start, attempts: 1",
        f"{first.state} ({first.error_code}) after {lasted_s:.6g} s, attempts: {first.attempts}",
    )
    held = [math.inf if a.ended_s is None else a.ended_s - (a.task.finished_s or 0.0) for a in phase.attempts]
    longest_s = max(held, default=math.inf)
    bench.check(
        f"{name}: it is stopped for real and the GPU given back",
        longest_s <= allowed_s,
        f"within {allowed_s:g} s (kill_grace {grace_s:g} s)" if allowed_s else "at that instant",
        f"after {longest_s:.3g} s",
    )
