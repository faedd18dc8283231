"""Real time: the same distributor, driven by a clock and by what worker processes report.

One thread owns the distributor: the one that calls `run` or `serve`. All others post facts. At each look the driver
takes everything that has arrived or is due, gives it one `now`, applies it in the order of events.RANK_* (inside a
rank: what was due by its time, then what was posted as it arrived), and lets the distributor decide once.

Where there are simulated devices, alone or beside real ones, every fact keeps its own time instead: what was planned
happens when it is due, what was posted when it arrived, each instant with a decision of its own. So a simulated attempt
lasts exactly as long as it should, and a real one no longer than it did, however late the driver is; and with simulated
devices alone (`pace`) the log is the one that virtual time gives, only slower.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heappush
from typing import Any, Final, Protocol

from altlas_core.backends.base import Backend
from altlas_core.distributor import Distributor
from altlas_core.drivers.clock import Arrival, Call, Clock, Inbox, News
from altlas_core.drivers.patience import Patience
from altlas_core.events import (
    RANK_CANCEL,
    RANK_DEVICE,
    RANK_ENDED,
    RANK_SUBMIT,
    RANK_TIMER,
    Action,
    AttemptFailed,
    AttemptFinished,
    AttemptStopped,
    CancelRequested,
    DeviceLost,
    DeviceReturned,
    DeviceSampled,
    Fact,
    HopeLost,
    SetTimer,
    TaskSubmitted,
    TimerFired,
    WorkerCrashed,
)
from altlas_core.model import Attempt

Due = Callable[[float, Any], Fact | None]

FOREVER: Final = float("inf")
RANKS: Final[dict[type, int]] = {
    AttemptFinished: RANK_ENDED,
    AttemptFailed: RANK_ENDED,
    AttemptStopped: RANK_ENDED,
    WorkerCrashed: RANK_ENDED,
    DeviceSampled: RANK_DEVICE,
    DeviceLost: RANK_DEVICE,
    DeviceReturned: RANK_DEVICE,
    CancelRequested: RANK_CANCEL,
    TimerFired: RANK_TIMER,
    HopeLost: RANK_TIMER,
    TaskSubmitted: RANK_SUBMIT,
}


class _Log(Protocol):
    def fact(self, now: float, fact: Fact) -> None: ...
    def action(self, now: float, action: Action) -> None: ...


class _Sampler(Protocol):
    interval_s: float

    def sample(self, now: float) -> None: ...


class RealtimeDriver:
    """Drives a distributor and a backend by the clock. It is the backend's mailbox.

    A backend may have two methods more than the Protocol asks for: `poll(now)`, called at every look (at least each
    `queue_processing_interval_s`), and `flush()`, called when a batch of orders has been given. A log may have
    `looked(now)`, called at the end of every look.
    """

    def __init__(
        self,
        distributor: Distributor,
        backend: Backend,
        *,
        clock: Clock,
        queue_processing_interval_s: float,
        health_check_interval_s: float,
        telemetry: _Sampler | None = None,
        log: _Log | None = None,
        pace: float = 1.0,
    ) -> None:
        self.now = 0.0
        self._distributor = distributor
        self._backend = backend
        self._clock = clock
        self._interval_s = queue_processing_interval_s
        self._check_interval_s = health_check_interval_s
        self._telemetry = telemetry
        self._log = log
        self._pace = pace
        specs = backend.devices()
        self._exact = any(spec.simulated for spec in specs)  # every fact keeps its own time
        self._real = not all(spec.simulated for spec in specs)  # readings are taken by the clock
        self._poll: Callable[[float], None] = getattr(backend, "poll", _nothing)
        self._flush: Callable[[], None] = getattr(backend, "flush", _nothing)
        self._looked: Callable[[float], None] = getattr(log, "looked", _nothing)
        self._inbox: Inbox = queue.SimpleQueue()
        self._own: deque[Fact] = deque()  # posted on the driver's thread: applied before it goes on
        self._thread: int | None = None
        self._heap: list[tuple[float, int, int, Due, Any]] = []
        self._sequence = 0
        self._to_submit = 0  # planned submissions
        self._more = _never
        self._began_s = 0.0  # on the clock
        self._samples = 0
        self._next_sample_s = FOREVER
        self._patience = Patience()
        self._news = False  # whether a fact was applied since the last decision
        self._stopping = False
        self._draining = False

    # --- the mailbox ----------------------------------------------------------------------------------------------

    def post(self, fact: Fact) -> None:
        if threading.get_ident() == self._thread:
            self._own.append(fact)
        else:
            self._inbox.put(Arrival(fact, self._clock.monotonic()) if self._exact else fact)

    def call(self, due: Due, arg: Any) -> None:
        """Have `due(now, arg)` called soon on the driver's thread; a fact it returns is applied. Any thread."""
        call = Call(due, arg)
        self._inbox.put(Arrival(call, self._clock.monotonic()) if self._exact else call)

    def post_at(self, time_s: float, rank: int, due: Due, arg: Any) -> None:
        self._sequence = sequence = self._sequence + 1
        heappush(self._heap, (time_s, rank, sequence, due, arg))

    # --- the run --------------------------------------------------------------------------------------------------

    def run(
        self,
        plan: Iterable[tuple[float, int, Fact]] = (),
        close: bool = True,
        more: Callable[[], bool] | None = None,
    ) -> float:
        """Open the backend, play the plan of (time_s, rank, fact), return the seconds it took.

        Ends when every planned task was submitted, all tasks are final and the devices are free again. `close=False`
        leaves the backend open for a further run. `more()` says whether tasks are still to come that are not in the
        plan: they are posted. Raises StateError if a fact is impossible (a fault in this program); then, and on Ctrl-C,
        the backend is closed in any case.
        """
        self._more = more or _never
        return self._play(plan, until_done=True, close=close)

    def serve(self) -> None:
        """Run until `stop()`, from another thread: whoever likes posts TaskSubmitted and CancelRequested."""
        self._play((), until_done=False, close=True)

    def drain(self) -> None:
        """Start nothing more, until `resume`; what runs goes on. Any thread."""
        self._draining = True

    def resume(self) -> None:
        """Undo `drain`: what waits is decided about at once. Any thread."""
        self._draining = False
        self.call(_nothing, None)

    @property
    def busy(self) -> bool:
        """Whether an attempt holds a device. Any thread."""
        return any(device.running for device in self._distributor.pool.devices)

    def stop(self) -> None:
        """Make `serve` or `run` return soon. Any thread."""
        self._stopping = True
        self._inbox.put(None)

    def _play(self, plan: Iterable[tuple[float, int, Fact]], until_done: bool, close: bool) -> float:
        self._thread = threading.get_ident()
        finished = False
        try:
            self._begin(plan)
            while not self._stopping and not (until_done and self._done()):
                first = self._clock.wait(self._inbox, self._patience_s())
                self._look(first, until_done)
            if self._telemetry is not None:
                if not self._real:
                    self._sample_before(self.now)
                self._telemetry.sample(self.now)
            finished = True
        finally:
            self._thread = None
            if close or not finished:
                self._backend.close()
        return self.now

    def _begin(self, plan: Iterable[tuple[float, int, Fact]]) -> None:
        self._backend.open(self)
        for time_s, rank, fact in plan:
            self._sequence += 1
            submission = type(fact) is TaskSubmitted
            self._to_submit += submission
            self._heap.append((time_s, rank, self._sequence, self._submit if submission else _as_planned, fact))
        heapify(self._heap)
        # Real devices are looked at before anything is put on them: others may be using them.
        self.post_at(0.0 if self._real else self._check_interval_s, RANK_DEVICE, self._check_health, None)
        if self._telemetry is not None:
            self._next_sample_s = 0.0
        self._began_s = self._clock.monotonic()

    def _submit(self, _now: float, fact: Fact) -> Fact:
        self._to_submit -= 1
        return fact

    def _done(self) -> bool:
        distributor = self._distributor
        if self._to_submit or distributor.open_tasks or self._more() or not self._inbox.empty():
            return False
        return not self.busy

    def _run_s(self) -> float:
        """Seconds on the run's clock. Never behind what has been processed."""
        return max(self.now, (self._clock.monotonic() - self._began_s) * self._pace)

    def _patience_s(self) -> float:
        due_s = self._heap[0][0] if self._heap else FOREVER
        if self._real:  # readings of simulated devices alone are taken at their own time, whenever that is
            due_s = min(due_s, self._next_sample_s)
        return max(0.0, min(self._interval_s, (due_s - self._run_s()) / self._pace))

    # --- looking --------------------------------------------------------------------------------------------------

    def _posted(self, first: News | None) -> list[News]:
        inbox = self._inbox
        news = [] if first is None else [first]
        news.extend(self._own)  # by poll()
        self._own.clear()
        while not inbox.empty():
            item = inbox.get_nowait()
            if item is not None:
                news.append(item)
        return news

    def _look(self, first: News | None, until_done: bool) -> None:
        now = self._run_s()
        self._poll(now)
        if self._exact:
            self._play_until(now, first, until_done)
        else:
            self._take_together(now, first)
        if self._real and now >= self._next_sample_s and self._telemetry is not None:
            self.now = max(self.now, now)
            self._telemetry.sample(self.now)
            self._next_sample_s = (now // self._telemetry.interval_s + 1) * self._telemetry.interval_s
        self._looked(now)

    def _take_together(self, now: float, first: News | None) -> None:
        """Real devices alone: one `now` for all that has happened since the last look."""
        self.now = now
        heap = self._heap
        batch: list[tuple[int, int, Due | None, Any]] = []
        while heap and heap[0][0] <= now:
            _, rank, _, due, arg = heappop(heap)
            batch.append((rank, len(batch), due, arg))
        for item in self._posted(first):
            if type(item) is Call:
                batch.append((RANK_SUBMIT, len(batch), item.due, item.arg))
            else:
                batch.append((RANKS[type(item)], len(batch), None, item))
        if len(batch) > 1:
            batch.sort()  # by (rank, position): positions are unique, so the comparison ends there
        for _, _, what, arg in batch:
            self._take(now, what, arg)
        if batch:
            self._decide(now)

    def _play_until(self, look_s: float, first: News | None, until_done: bool) -> None:
        """Simulated devices, alone or among others: all that has happened by now, each instant at its own time."""
        heap = self._heap
        for item in self._posted(first):
            news, time_s = item, look_s
            if type(item) is Arrival:
                news, time_s = item.news, min(look_s, (item.clock_s - self._began_s) * self._pace)
            time_s = max(self.now, time_s)
            if type(news) is Call:
                self.post_at(time_s, RANK_SUBMIT, news.due, news.arg)
            else:
                self.post_at(time_s, RANKS[type(news)], _as_planned, news)
        while heap and heap[0][0] <= look_s:
            now = max(self.now, heap[0][0])
            if not self._real:
                self._sample_before(now)
            self.now = now
            while heap and heap[0][0] <= now:
                _, _, _, due, arg = heappop(heap)
                self._take(now, due, arg)
                if until_done and self._done():
                    return
            self._decide(now)
        if not self._real:
            self._sample_before(look_s)

    def _sample_before(self, time_s: float) -> None:
        telemetry = self._telemetry
        while telemetry is not None and self._next_sample_s < time_s:
            telemetry.sample(self._next_sample_s)
            self._samples += 1
            self._next_sample_s = self._samples * telemetry.interval_s

    # --- applying -------------------------------------------------------------------------------------------------

    def _take(self, now: float, due: Due | None, arg: Any) -> None:
        """Apply what was planned (due) or posted (no due: `arg` is the fact)."""
        fact: Fact | None = arg if due is None else due(now, arg)
        if fact is not None:
            self._apply(now, fact)
        elif self._own:
            self._apply_own(now)

    def _apply(self, now: float, fact: Fact) -> None:
        self._news = True
        if self._log is not None:
            self._log.fact(now, fact)
        actions = self._distributor.on_event(now, fact)
        if actions:
            self._perform(now, actions)
        if type(fact) is DeviceReturned:
            self.post_at(now, RANK_DEVICE, self._check_device, fact.gpu_id)
        if self._own:
            self._apply_own(now)

    def _apply_own(self, now: float) -> None:
        while self._own:
            self._apply(now, self._own.popleft())

    def _decide(self, now: float) -> None:
        """Decide once about what was applied since the last time; without a fact it could not be replayed.

        What a decision brings about at once (a device gives an attempt back) is decided about in a next round.
        """
        while self._news and not self._draining:
            self._news = False
            actions = self._distributor.dispatch(now)
            if actions:
                self._perform(now, actions)
                self._apply_own(now)
        self._flush()

    def _perform(self, now: float, actions: Sequence[Action]) -> None:
        log, backend = self._log, self._backend
        for action in actions:
            if log is not None:
                log.action(now, action)
            if type(action) is Attempt:
                backend.start(now, action)
            elif type(action) is SetTimer:
                self.post_at(action.time_s, RANK_TIMER, _fire, action.timeout_s)
            else:
                backend.stop(now, action.attempt, action.reason)  # type: ignore[union-attr]

    # --- health ---------------------------------------------------------------------------------------------------

    def _check_health(self, now: float, _: None) -> Fact | None:
        for device in self._distributor.pool.devices:
            if not device.lost:
                self._apply(now, self._reading(now, device.gpu_id))
        self.post_at(now + self._check_interval_s, RANK_DEVICE, self._check_health, None)
        return self._patience.judge(self._distributor, self._heap, self._check_health)

    def _check_device(self, now: float, gpu_id: int) -> Fact:
        return self._reading(now, gpu_id)

    def _reading(self, now: float, gpu_id: int) -> Fact:
        sample = self._backend.sample(now, gpu_id)
        return DeviceLost(gpu_id, "no longer answers") if sample is None else DeviceSampled(gpu_id, sample)


def _nothing(*_: object) -> None:
    """For backends without poll or flush; as a call, it only makes the driver decide."""


def _never() -> bool:
    return False


def _as_planned(_now: float, fact: Fact) -> Fact:
    return fact


def _fire(_now: float, timeout_s: float) -> Fact:
    return TimerFired(timeout_s)
