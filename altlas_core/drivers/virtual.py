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
from altlas_core.event_log import EventLog
from altlas_core.events import (
    RANK_CANCEL,
    RANK_DEVICE,
    RANK_SUBMIT,
    RANK_TIMER,
    Action,
    CancelRequested,
    DeviceLost,
    DeviceSampled,
    Fact,
    HopeLost,
    SetTimer,
    TaskSubmitted,
    TimerFired,
)
from altlas_core.faults import Fault
from altlas_core.model import Attempt, Task
from altlas_core.telemetry import Telemetry

FOREVER: Final = float("inf")
HOPELESS_CHECKS: Final = 100  # health checks in a row at which nothing else is planned and nothing could start


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
        self._hopeless = 0

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
            self.post_at(fault.time_s, RANK_DEVICE, self._backend.inject, fault)
        self.post_at(self._check_interval_s, RANK_DEVICE, self._check_health, None)
        try:
            self._play(tasks)
        finally:
            self._backend.close()
        return self.now

    def _play(self, tasks: Sequence[Task]) -> None:
        heap, log, distributor = self._heap, self._log, self._distributor
        dispatch = distributor.dispatch
        now = 0.0
        log_entry, start = log.entries.append, self._backend.start
        telemetry = self._telemetry
        next_sample = 0.0 if telemetry is not None else FOREVER
        arrived, total = 0, len(tasks)
        next_arrival = tasks[0].spec.submit_s if total else FOREVER
        handlers = distributor.handlers
        while arrived < total or distributor.open_tasks:
            entry = heap[0]  # never empty: the next health check is in it
            now = entry[0]
            if next_arrival < now or (next_arrival == now and entry[1] > RANK_SUBMIT):
                now = next_arrival
                if next_sample < now:
                    next_sample = self._sample_until(now, next_sample)
                fact: Fact | None = TaskSubmitted(tasks[arrived])
                arrived += 1
                next_arrival = tasks[arrived].spec.submit_s if arrived < total else FOREVER
            else:
                if next_sample < now:
                    next_sample = self._sample_until(now, next_sample)
                heappop(heap)
                fact = entry[3](now, entry[4])
            if fact is not None:
                log_entry(now)
                log_entry(fact)
                actions = handlers[type(fact)](now, fact)
                if actions:
                    self._perform(now, actions)
            if heap[0][0] == now or next_arrival == now:
                continue  # more facts of this instant before anything is decided
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
            self._hopeless = 0
            self._backend.start(now, action)
        else:
            self._backend.stop(now, action.attempt, action.reason)

    # --- health ---------------------------------------------------------------------------------------------------

    def _check_health(self, now: float, _: None) -> Fact | None:
        for device in self._distributor.pool.devices:
            if device.lost:
                continue
            sample = self._backend.sample(now, device.gpu_id)
            if sample is None:
                self._apply(now, DeviceLost(device.gpu_id, "no longer answers"))
            else:
                self._apply(now, DeviceSampled(device.gpu_id, sample))
        self.post_at(now + self._check_interval_s, RANK_DEVICE, self._check_health, None)
        return self._despair()

    def _despair(self) -> Fact | None:
        """Tasks wait, nothing runs, nothing else is planned: after enough checks like this, say so."""
        devices = self._distributor.pool.devices
        stuck = len(self._heap) == 1 and not any(device.running for device in devices)
        self._hopeless = self._hopeless + 1 if stuck else 0
        if self._hopeless < HOPELESS_CHECKS:
            return None
        self._hopeless = 0
        states = ", ".join(f"GPU {device.gpu_id} {device.reason or device.state}" for device in devices[:4])
        more = f" and {len(devices) - 4} more" if len(devices) > 4 else ""
        return HopeLost(
            f"no usable GPU in {HOPELESS_CHECKS} health checks, and nothing left that could change it: {states}{more}"
        )


def _cancel(now: float, task: Task) -> Fact | None:
    return CancelRequested(task.index)


def _fire(now: float, timeout_s: float) -> Fact | None:
    return TimerFired(timeout_s)
