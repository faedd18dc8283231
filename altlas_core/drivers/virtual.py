"""Virtual time: a heap of future events. Waiting costs nothing, and the same seed gives the same bytes.

At each instant the facts come in the order of events.RANK_*, then in the order they were planned; then the distributor
decides once. Facts that a decision causes at that same instant form the next round of it. Readings are taken when an
instant is over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import Any, Final

from altlas_core.backends.base import Backend
from altlas_core.distributor import Distributor
from altlas_core.drivers.patience import Patience
from altlas_core.event_log import EventLog
from altlas_core.events import (
    RANK_CANCEL,
    RANK_DEVICE,
    RANK_SUBMIT,
    RANK_TIMER,
    Action,
    CancelRequested,
    DeviceLost,
    DeviceReturned,
    DeviceSampled,
    Fact,
    SetTimer,
    TaskSubmitted,
    TimerFired,
)
from altlas_core.faults import Fault
from altlas_core.model import Attempt, Task
from altlas_core.telemetry import Telemetry

FOREVER: Final = float("inf")


class VirtualDriver:
    """Runs a distributor and a simulated backend through a workload, as fast as the processor goes."""

    def __init__(
        self,
        distributor: Distributor,
        backend: Backend,
        log: EventLog,
        telemetry: Telemetry | None,
        health_check_interval_s: float,
    ) -> None:
        self.now = 0.0
        self._distributor = distributor
        self._backend = backend
        self._log = log
        self._telemetry = telemetry
        self._check_interval_s = health_check_interval_s
        self._heap: list[tuple[float, int, int, Callable[[float, Any], Fact | None], Any]] = []
        self._sequence = count()
        self._posted: deque[Fact] = deque()
        self._patience = Patience()
        self._news = False  # whether a health check has applied facts that the loop in _play did not see

    # --- the mailbox ----------------------------------------------------------------------------------------------

    def post(self, fact: Fact) -> None:
        self._posted.append(fact)

    def post_at(self, time_s: float, rank: int, due: Callable[[float, Any], Fact | None], arg: Any) -> None:
        heappush(self._heap, (time_s, rank, next(self._sequence), due, arg))

    # --- the run --------------------------------------------------------------------------------------------------

    def run(self, tasks: Sequence[Task], faults: Sequence[Fault] = ()) -> float:
        """Play the workload to its end; returns the virtual seconds it took.

        `tasks` are in order of submit_s. Raises StateError if a fact is impossible (a fault in this program).
        """
        self._backend.open(self)
        for task in tasks:
            if task.spec.cancel_s is not None:
                self.post_at(task.spec.cancel_s, RANK_CANCEL, _cancel, task)
        for fault in faults:
            self.post_at(fault.time_s, RANK_DEVICE, self._break, fault)
        self.post_at(self._check_interval_s, RANK_DEVICE, self._check_health, None)
        try:
            self._play(tasks)
        finally:
            self._backend.close()
        return self.now

    def _play(self, tasks: Sequence[Task]) -> None:  # noqa: C901  the hot loop, written in one piece for speed
        heap, distributor, queue, pool = self._heap, self._distributor, self._distributor.queue, self._distributor.pool
        handlers, dispatch, bounded = distributor.handlers, distributor.dispatch, distributor.bounded
        log_entry, start = self._log.entries.append, self._backend.start
        telemetry = self._telemetry
        next_sample = 0.0 if telemetry is not None else FOREVER
        now = 0.0
        news = False
        fact: Fact | None
        arrived, total = 0, len(tasks)
        next_arrival = tasks[0].spec.submit_s if total else FOREVER
        while arrived < total or distributor.open_tasks:
            now, rank, _, due, arg = heap[0]  # never empty: the next health check is in it
            if next_arrival < now or (next_arrival == now and rank > RANK_SUBMIT):
                now = next_arrival
                if next_sample < now:
                    next_sample = self._sample_until(now, next_sample)
                fact = TaskSubmitted(tasks[arrived])
                arrived += 1
                next_arrival = tasks[arrived].spec.submit_s if arrived < total else FOREVER
            else:
                if next_sample < now:
                    next_sample = self._sample_until(now, next_sample)
                heappop(heap)
                fact = due(now, arg)
            if fact is not None:
                news = True
                log_entry(now)
                log_entry(fact)
                actions = handlers[type(fact)](now, fact)
                if actions:
                    self._perform(now, actions)
            elif self._news:
                news, self._news = True, False
            if heap[0][0] == now or next_arrival == now:
                continue  # more facts of this instant before anything is decided
            if not news or not ((pool.open and queue.count) or bounded):
                continue  # there is nothing to decide, or nothing new to decide it by
            news = False
            for action in dispatch(now):
                log_entry(action)
                if type(action) is Attempt:
                    start(now, action)
                else:
                    self._perform_one(now, action)
        self.now = now
        if telemetry is not None:
            self._sample_until(self.now, next_sample)
            telemetry.sample(self.now)

    def _sample_until(self, now: float, next_sample: float) -> float:
        """Take the readings due before `now`; returns when the next one is due."""
        telemetry = self._telemetry
        assert telemetry is not None
        while next_sample < now:
            telemetry.sample(next_sample)
            next_sample = len(telemetry.queue_time_s) * telemetry.interval_s  # no sum of rounding errors
        return next_sample

    def _apply(self, now: float, fact: Fact) -> None:
        self._log.fact(now, fact)
        self._perform(now, self._distributor.on_event(now, fact))

    def _perform(self, now: float, actions: Sequence[Action]) -> None:
        for action in actions:
            self._log.action(now, action)
            self._perform_one(now, action)
        while self._posted:
            self._apply(now, self._posted.popleft())

    def _perform_one(self, now: float, action: Action) -> None:
        if isinstance(action, SetTimer):
            self.post_at(action.time_s, RANK_TIMER, _fire, action.timeout_s)
        elif isinstance(action, Attempt):
            self._backend.start(now, action)
        else:
            self._backend.stop(now, action.attempt, action.reason)

    # --- health ---------------------------------------------------------------------------------------------------

    def _check_health(self, now: float, _: None) -> None:
        for device in self._distributor.pool.devices:
            if not device.lost:
                self._news = True
                self._apply(now, self._check_device(now, device.gpu_id))
        self.post_at(now + self._check_interval_s, RANK_DEVICE, self._check_health, None)
        hopeless = self._patience.judge(self._distributor, self._heap, self._check_health)
        if hopeless is not None:
            self._apply(now, hopeless)

    def _break(self, now: float, fault: Fault) -> Fact | None:
        fact = self._backend.inject(now, fault)
        if type(fact) is DeviceReturned:  # it is looked at before anything is put on it
            self.post_at(now, RANK_DEVICE, self._check_device, fault.gpu_id)
        return fact

    def _check_device(self, now: float, gpu_id: int) -> Fact:
        sample = self._backend.sample(now, gpu_id)
        return DeviceLost(gpu_id, "no longer answers") if sample is None else DeviceSampled(gpu_id, sample)


def _cancel(now: float, task: Task) -> Fact | None:
    return CancelRequested(task.index)


def _fire(now: float, timeout_s: float) -> Fact | None:
    return TimerFired(timeout_s)
