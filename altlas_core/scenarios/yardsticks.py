"""What a run is measured against: a makespan that nothing can beat, and one that was found knowing every length.

Both speak of tasks whose length is known before they run. Seconds are those of the run's clock, real or virtual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple

from altlas_core.kinds import KINDS
from altlas_core.model import COMPLETED, Device, Task
from altlas_core.result import Result

MOST_STEPS: Final = 30_000_000  # of the offline schedule, about 0.1 us each (see _steps); beyond there is none
CROWDS: Final = (1, 2, 3)  # see lower_bound_s
_NEVER_RUN: Final = frozenset({"too_large", "queue_full"})


class Work(NamedTuple):
    """What a task takes at least: a slot and `memory_bytes` of one GPU, for `length_s`, from `submit_s` on."""

    submit_s: float
    length_s: float
    memory_bytes: int
    gpu_id: int | None


def length_s(task: Task) -> float | None:
    """How long it holds its GPU; None where that is not known before: iterations, a function, an owner who cancels, a
    kind that fails and may be tried again."""
    spec = task.spec
    if spec.duration_s is None or spec.cancel_s is not None:
        return None
    if not KINDS[spec.kind].kernel and spec.kind not in ("sleep", "noop"):
        return None
    return min(spec.duration_s, task.timeout_s)


def known_work(runs: Sequence[Result]) -> list[Work]:
    """Of every task of known length that ran as long in each of these runs of one workload, in order of submission.

    One that failed before (its memory, its worker, its device) took less than it asked for.
    """
    return [
        Work(task.submitted_s, length, task.demand.memory_bytes, task.demand.pin)
        for task, *others in _tasks(runs)
        if all(_lasted(each) for each in (task, *others)) and (length := length_s(task)) is not None
    ]


def _all_work(runs: Sequence[Result]) -> list[Work] | None:
    """The same, where that is all that a GPU can hold; else None."""
    work = known_work(runs)
    held = sum(any(task.error_code not in _NEVER_RUN for task in same) for same in _tasks(runs))
    return work if work and len(work) == held else None


def _tasks(runs: Sequence[Result]) -> Iterator[tuple[Task, ...]]:
    """Each task, as it ended in each run."""
    return zip(*(run.task_list for run in runs), strict=True)


def _lasted(task: Task) -> bool:
    return task.state == COMPLETED or task.error_code == "timeout"


def lower_bound_s(*runs: Result) -> float:
    """A makespan that no schedule of these tasks can go below, however clever; of several runs, none of them.

    The largest of: a task's submission and its length; and for every time t, what is submitted from t on, spread
    evenly over the machine: by slots, by bytes, and by tasks so large that at most k of them fit on one GPU.
    Tasks of unknown length, and those that failed before it was over, count nothing.
    """
    work, result = known_work(runs), runs[0]
    if not work:
        return 0.0
    first_s = result.task_list[0].submitted_s
    bound = max(each.submit_s - first_s + each.length_s for each in work)
    for own, devices in _parts(work, result.pool):
        bound = max([bound, *(_spread_s(own, first_s, share) for share in _shares(devices))])
    return bound


def _parts(work: Sequence[Work], pool: Sequence[Device]) -> Iterator[tuple[Sequence[Work], Sequence[Device]]]:
    """All tasks on all GPUs; and those pinned to a GPU on that one."""
    yield work, pool
    pinned: dict[int, list[Work]] = {}
    for each in work:
        if each.gpu_id is not None:
            pinned.setdefault(each.gpu_id, []).append(each)
    for gpu_id, own in pinned.items():
        yield own, [pool[gpu_id]]


def _shares(devices: Sequence[Device]) -> Iterator[Callable[[Work], float]]:
    """What part of these devices a task takes: by slots, by memory, and as one of few that fit on a device."""
    slots = sum(device.slots for device in devices)
    memory = sum(device.capacity_bytes for device in devices)
    largest = max(device.capacity_bytes for device in devices)
    yield lambda work: 1.0 / slots
    if memory:
        yield lambda work: work.memory_bytes / memory
    for most in CROWDS:
        yield lambda work, most=most: (  # type: ignore[misc]
            1.0 / (most * len(devices)) if (most + 1) * work.memory_bytes > largest else 0.0
        )


def _spread_s(work: Sequence[Work], first_s: float, share: Callable[[Work], float]) -> float:
    """The largest of: a time, and what is submitted from then on if the machine shared it out without a gap."""
    most = area_s = 0.0
    for each in reversed(work):
        area_s += each.length_s * share(each)
        most = max(most, each.submit_s - first_s + area_s)
    return most


# --- a schedule made with all lengths known ---------------------------------------------------------------------------

ORDERS: Final[dict[str, Callable[[Work], float]]] = {
    "longest first": lambda work: work.length_s,
    "most memory x time first": lambda work: work.length_s * work.memory_bytes,
}


def offline_schedule(*runs: Result) -> tuple[float, str] | None:
    """The best makespan of some list schedules that know every length in advance, and the order of the best one.

    Each puts the first of the waiting tasks in its order (Graham's "longest processing time", 1969, is one) on the GPU
    it fits most tightly, and may let smaller ones pass. Priorities count for nothing. None where a length is not
    known or a task did not run for it, or where it would take too long to find (more than about 3 s).
    """
    work, result = _all_work(runs), runs[0]
    if work is None or _steps(work, len(result.pool)) > MOST_STEPS:
        return None
    first_s = result.task_list[0].submitted_s
    return min((_list_schedule_s(work, result.pool, order) - first_s, name) for name, order in ORDERS.items())


def _steps(work: Sequence[Work], gpus: int) -> int:
    """What all orders cost, as measured: at each start and end every need is held against every GPU."""
    needs = len({(each.memory_bytes, each.gpu_id) for each in work})
    return len(ORDERS) * len(work) * (130 + needs * (20 + gpus))


def _list_schedule_s(work: Sequence[Work], pool: Sequence[Device], order: Callable[[Work], float]) -> float:
    """When the last task ends."""
    slots = [device.slots for device in pool]
    free = [device.capacity_bytes for device in pool]
    waiting: dict[tuple[int, int | None], list[tuple[float, int]]] = {}  # by need: (-order, position)
    running: list[tuple[float, int, int]] = []  # (end, GPU, bytes)
    arrived, now = 0, work[0].submit_s
    while arrived < len(work) or running:
        if not running or (arrived < len(work) and work[arrived].submit_s <= running[0][0]):
            now = work[arrived].submit_s
            while arrived < len(work) and work[arrived].submit_s == now:
                each = work[arrived]
                heappush(waiting.setdefault((each.memory_bytes, each.gpu_id), []), (-order(each), arrived))
                arrived += 1
        else:
            now = running[0][0]
        while running and running[0][0] <= now:
            _, gpu_id, memory = heappop(running)
            slots[gpu_id] += 1
            free[gpu_id] += memory
        heads = [(lane[0], need) for need, lane in waiting.items() if lane]
        heapify(heads)
        while heads:
            (_, position), need = heappop(heads)
            gpu_id = _tightest(need, slots, free)
            if gpu_id < 0:
                continue  # nothing of this need fits now
            heappop(waiting[need])
            slots[gpu_id] -= 1
            free[gpu_id] -= need[0]
            heappush(running, (now + work[position].length_s, gpu_id, need[0]))
            if waiting[need]:
                heappush(heads, (waiting[need][0], need))
    return now


def _tightest(need: tuple[int, int | None], slots: Sequence[int], free: Sequence[int]) -> int:
    """The GPU with a slot that has room for a need and least beside it; -1: none. Of equals the emptiest of tasks."""
    memory, pin = need
    here = range(len(slots)) if pin is None else (pin,)
    fits = [(free[gpu_id], -slots[gpu_id], gpu_id) for gpu_id in here if slots[gpu_id] and free[gpu_id] >= memory]
    return min(fits)[2] if fits else -1


# --- what a scheduler that leaves no slot idle can be held to ---------------------------------------------------------


def graham_bound_s(*runs: Result) -> float | None:
    """The longest makespan of a schedule that never leaves a slot idle while a task waits (Graham, 1966, with times of
    submission): the largest submission + (1 - 1/m) length, and all work / m, on m slots.

    None where a task may have to wait with a slot free, for memory or its GPU, or where a length is not known or a task
    did not run for it.
    """
    work, result = _all_work(runs), runs[0]
    if work is None or any(each.gpu_id is not None for each in work):
        return None
    largest = max(each.memory_bytes for each in work)
    if any(device.slots * largest > device.capacity_bytes for device in result.pool):
        return None
    slots = sum(device.slots for device in result.pool)
    first_s = result.task_list[0].submitted_s
    last_s = max(each.submit_s - first_s + (1 - 1 / slots) * each.length_s for each in work)
    return last_s + sum(each.length_s for each in work) / slots
