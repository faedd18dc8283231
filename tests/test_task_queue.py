"""The order in which waiting tasks are looked at, against a list that is sorted each time."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from altlas_core.model import CANCELLED, QUEUED, RUNNING, Demand, Task, TaskSpec
from altlas_core.task_queue import Lane, Need, TaskQueue

AGING_S = 60.0
SPEC = TaskSpec(duration_s=1.0)


def make_task(index: int, level: int, now: float) -> Task:
    return Task(index, SPEC, level, Demand(0, None, "random", ("linear", 1, 1, 1)), 0, 300.0, 3, submitted_s=now)


def effective_level(task: Task, now: float, aging_s: float = AGING_S) -> int:
    return max(0, task.level - int((now - task.submitted_s) // aging_s))


@dataclass
class Model:
    """What a queue must do, without any cleverness."""

    waiting: dict[int, tuple[Task, Need]] = field(default_factory=dict)

    def order(self, now: float, without: set[int] = frozenset()) -> list[Task]:  # type: ignore[assignment]
        """`without`: ids of (need, level) that were set aside."""
        tasks = [task for task, need in self.waiting.values() if (id(need), task.level) not in without]
        return sorted(tasks, key=lambda task: (effective_level(task, now), task.index))


class QueueMachine(RuleBasedStateMachine):
    """Random pushes, pops, cancels, retries and lanes set aside."""

    @initialize(needs=st.integers(1, 4))
    def begin(self, needs: int) -> None:
        self.queue = TaskQueue(AGING_S)
        self.model = Model()
        self.needs = [Need(i, None, "random", False) for i in range(needs)]
        self.taken: list[tuple[Task, Need]] = []
        self.now = 0.0
        self.made = 0

    @rule(step=st.sampled_from([0.0, 0.5, 7.0, 30.0, 60.0, 61.0, 200.0]))
    def wait(self, step: float) -> None:
        self.now += step

    @rule(level=st.integers(0, 2), which=st.integers(0, 3), number=st.integers(1, 4))
    def push(self, level: int, which: int, number: int) -> None:
        need = self.needs[which % len(self.needs)]
        for _ in range(number):
            task = make_task(self.made, level, self.now)
            self.made += 1
            self.queue.push(task, need)
            self.model.waiting[task.index] = (task, need)

    @rule(number=st.integers(1, 5))
    def pop(self, number: int) -> None:
        for _ in range(number):
            expected = self.model.order(self.now)
            lane = self.queue.first(self.now)
            if not expected:
                assert lane is None
                return
            assert lane is not None
            assert lane.tasks[0] is expected[0]
            task = self.queue.pop(lane)
            assert task is expected[0]
            task.state = RUNNING
            self.taken.append(self.model.waiting.pop(task.index))

    @precondition(lambda self: self.model.waiting)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(sorted(self.model.waiting)))
        task, need = self.model.waiting.pop(index)
        task.state = CANCELLED
        self.queue.discard(task, need)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        """A failed attempt: back to its place, perhaps with another need (alone on a GPU)."""
        task, need = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        need = data.draw(st.sampled_from([need, need, self.needs[-1]]))
        task.state = QUEUED
        self.queue.push(task, need)
        self.model.waiting[task.index] = (task, need)

    @rule(fits=st.lists(st.booleans(), max_size=8))
    def decide(self, fits: list[bool]) -> None:
        """As the distributor does: the first of each lane starts, or its whole lane is set aside until the end."""
        aside, without = [], set()
        for start in fits:
            expected = self.model.order(self.now, without)
            lane = self.queue.first(self.now)
            while lane is not None and (id(lane.need), lane.level) in without:  # met twice: must be set aside again
                aside.append(self.queue.set_aside(lane))
                lane = self.queue.first(self.now)
            if not expected:
                assert lane is None
                break
            assert lane is not None
            assert lane.tasks[0] is expected[0]
            if start:
                task = self.queue.pop(lane)
                task.state = RUNNING
                self.taken.append(self.model.waiting.pop(task.index))
            else:
                without.add((id(lane.need), lane.level))
                aside.append(self.queue.set_aside(lane))
        self.queue.put_back(aside)

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        assert self.queue.count == len(self.model.waiting)
        waiting = sorted(task.index for task in self.queue.waiting(self.needs))
        assert waiting == sorted(self.model.waiting)
        for need in self.needs:
            assert need.idle == all(mine is not need for _, mine in self.model.waiting.values())

    def teardown(self) -> None:
        if not hasattr(self, "queue"):
            return
        left = []
        while (lane := self.queue.first(self.now)) is not None:
            left.append(self.queue.pop(lane).index)
        assert left == [task.index for task in self.model.order(self.now)]


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@settings(max_examples=150, deadline=None)
@given(
    arrivals=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.sampled_from([0.0, 1.0, 25.0, 60.0]))),
    then=st.floats(0.0, 400.0),
)
def test_all_waiting_come_out_by_effective_level_then_first_come(
    arrivals: list[tuple[int, int, float]], then: float
) -> None:
    queue, needs, now, tasks = TaskQueue(AGING_S), [Need(i, None, "random", False) for i in range(4)], 0.0, []
    for index, (level, which, gap) in enumerate(arrivals):
        now += gap
        tasks.append(make_task(index, level, now))
        queue.push(tasks[-1], needs[which])
    now += then
    popped = []
    while (lane := queue.first(now)) is not None:
        popped.append(queue.pop(lane).index)
    assert popped == [t.index for t in sorted(tasks, key=lambda t: (effective_level(t, now), t.index))]


@pytest.mark.parametrize(("waited", "level"), [(0.0, 2), (59.999, 2), (60.0, 1), (119.999, 1), (120.0, 0), (1e6, 0)])
def test_the_effective_level_changes_exactly_at_each_full_period(waited: float, level: int) -> None:
    """A fresh task goes before a low one that has waited so long only where its own level is better."""
    for fresh_level in range(3):
        queue = TaskQueue(AGING_S)
        aged, fresh = make_task(0, 2, 0.0), make_task(1, fresh_level, waited)
        queue.push(aged, Need(0, None, "random", False))
        queue.push(fresh, Need(1, None, "random", False))
        lane = queue.first(waited)
        assert lane is not None
        assert (lane.tasks[0] is fresh) == (fresh_level < level)


def test_an_empty_queue_has_no_first() -> None:
    queue = TaskQueue(AGING_S)
    assert queue.first(0.0) is None
    assert queue.count == 0


def test_a_lane_set_aside_is_not_offered_again_until_put_back() -> None:
    queue = TaskQueue(AGING_S)
    needs = [Need(i, None, "random", False) for i in range(2)]
    for index in range(4):
        queue.push(make_task(index, 1, 0.0), needs[index % 2])
    lane = queue.first(0.0)
    assert isinstance(lane, Lane)
    aside = queue.set_aside(lane)
    second = queue.first(0.0)
    assert second is not None
    assert second.tasks[0].index == 1
    queue.put_back([aside])
    assert queue.first(0.0) is lane


def test_looking_for_the_next_task_does_not_touch_those_behind_it() -> None:
    """The heaps hold lanes, not tasks: 10,000 alike tasks are one entry."""
    queue, need = TaskQueue(AGING_S), Need(0, None, "random", False)
    for index in range(10_000):
        queue.push(make_task(index, 1, 0.0), need)
    assert sum(len(heap) for heap in queue._levels) == 1
