"""The waiting tasks, in the order they are to be looked at.

Order: effective priority, then first come first served. Every full `aging_s` since a task was submitted lifts it one
level (low to normal to high), so none starves: after two it competes by age alone. Tasks that need the same (a `Need`)
stand in one lane per level; if its first does not fit, none of the lane does. A lane's first is also its most aged, so
the next task is always the first of some lane, and looking for it costs a heap of lanes, not of tasks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace

from altlas_core.model import QUEUED, Task
from altlas_core.strategies import STRATEGIES, Choose


@dataclass(slots=True, eq=False)
class Need:
    """What a group of tasks needs of a GPU. Masks have bit i set for gpu_id i.

    `allowed`: GPUs that could ever serve it. `misses`: those found without enough free memory since they last gave
    some back. `solo`: wants a GPU to itself. `narrowed`: more than a slot and memory decides where it may go.
    `choose`: the built-in strategy; None where it is a user's own.
    """

    memory_bytes: int
    pin: int | None
    strategy: str
    solo: bool
    allowed: int = 0
    misses: int = 0
    narrowed: bool = False
    choose: Choose | None = None
    lanes: list[Lane | None] = field(default_factory=lambda: [None, None, None])

    def __post_init__(self) -> None:
        self.choose = STRATEGIES.get(self.strategy)
        self.narrowed = self.solo or self.strategy == "single_gpu"

    @property
    def idle(self) -> bool:
        """Nobody waits for it."""
        return not any(lane is not None and lane.tasks for lane in self.lanes)


@dataclass(slots=True, eq=False)
class Lane:
    """Waiting tasks of one need and one priority, in order of submission; the first is always still waiting."""

    need: Need
    level: int
    tasks: deque[Task] = field(default_factory=deque)

    @property
    def head(self) -> int:
        """The index of its first task; -1 when nobody waits."""
        return self.tasks[0].index if self.tasks else -1


_Entry = tuple[int, float, Lane]  # of the first task of a lane: its index and submitted_s


class TaskQueue:
    """Lanes of waiting tasks. `count` is how many tasks wait.

    Per level a heap of (index, submitted_s, lane) by the lane's first task; its top is always up to date, what lies
    deeper may be about a task that has left.
    """

    __slots__ = ("_dirty", "_levels", "aging_s", "count")

    def __init__(self, aging_s: float) -> None:
        self.aging_s = aging_s
        self.count = 0
        self._dirty = False  # whether a heap may hold entries that are no longer true
        self._levels: tuple[list[_Entry], ...] = ([], [], [])

    def push(self, task: Task, need: Need) -> None:
        """Add a task at its place: behind those submitted before it, also when it comes back from a failed attempt."""
        level = task.level
        lane = need.lanes[level]
        if lane is None:
            lane = need.lanes[level] = Lane(need, level)
        tasks = lane.tasks
        self.count += 1
        if not tasks:
            tasks.append(task)
            heappush(self._levels[level], (task.index, task.submitted_s, lane))
        elif tasks[-1].index < task.index:
            tasks.append(task)
        else:
            place = next(i for i, other in enumerate(tasks) if other.index > task.index)
            tasks.insert(place, task)
            if place == 0:
                self._dirty = True  # what the heap held for this lane is no longer about its first
                heappush(self._levels[level], (task.index, task.submitted_s, lane))

    def first(self, now: float) -> Lane | None:
        """The lane whose first task is next in order, or None when no lane is left to look at."""
        high, normal, low = self._levels
        aging_s = self.aging_s
        best: Lane | None = None
        best_level = best_index = 3
        if high:
            best_index, _, best = high[0]
            best_level = 0
        if normal:
            index, since, lane = normal[0]
            if best_level or index < best_index:
                level = 1 if now - since < aging_s else 0
                if level <= best_level:  # among equals its index is the lower one
                    best, best_level, best_index = lane, level, index
        if low:
            index, since, lane = low[0]
            if best_level or index < best_index:
                waited = now - since
                level = 2 if waited < aging_s else 1 if waited < 2 * aging_s else 0
                if level < best_level or (level == best_level and index < best_index):
                    best = lane
        return best

    def pop(self, lane: Lane) -> Task:
        """Take the first task of a lane that `first` has just returned."""
        tasks = lane.tasks
        task = tasks.popleft()
        self.count -= 1
        while tasks and tasks[0].state != QUEUED:
            tasks.popleft()
        heap = self._levels[lane.level]
        if tasks:
            head = tasks[0]
            heapreplace(heap, (head.index, head.submitted_s, lane))
        else:
            heappop(heap)
        if self._dirty:
            self._clean(heap)
        return task

    def set_aside(self, lane: Lane) -> _Entry:
        """Leave out a lane that `first` has just returned until `put_back`."""
        heap = self._levels[lane.level]
        entry = heappop(heap)
        if self._dirty:
            self._clean(heap)
        return entry

    def put_back(self, entries: list[_Entry]) -> None:
        for entry in entries:
            heappush(self._levels[entry[2].level], entry)

    def discard(self, task: Task, need: Need) -> None:
        """A waiting task is no longer to be started; its state has been changed already."""
        self.count -= 1
        lane = need.lanes[task.level]
        assert lane is not None  # it waits there
        tasks = lane.tasks
        if tasks[0] is not task:
            return  # skipped when its turn comes
        while tasks and tasks[0].state != QUEUED:
            tasks.popleft()
        self._dirty = True
        if tasks:
            heappush(self._levels[lane.level], (tasks[0].index, tasks[0].submitted_s, lane))
        self._clean(self._levels[lane.level])

    def _clean(self, heap: list[_Entry]) -> None:
        """Make the top true again."""
        while heap and heap[0][0] != heap[0][2].head:
            heappop(heap)

    def waiting(self, needs: Iterable[Need]) -> Iterator[Task]:
        """Every waiting task of these needs, in no particular order."""
        for need in needs:
            for lane in need.lanes:
                if lane is not None:
                    yield from (task for task in lane.tasks if task.state == QUEUED)
