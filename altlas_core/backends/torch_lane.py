"""One device as driver and supervisor both know it: its worker, what runs there, what waits to be sent.

Its lock is held for microseconds, by whichever thread has something to say: every fact about what runs here is posted
under it, so an attempt ends exactly once, however orders, answers and deaths cross each other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from altlas_core.backends import torch_channel as wire
from altlas_core.backends import torch_order
from altlas_core.backends.torch_process import WorkerProcess
from altlas_core.events import (
    AttemptFailed,
    AttemptFinished,
    AttemptStopped,
    DeviceLost,
    DeviceReturned,
    Fact,
    WorkerCrashed,
)
from altlas_core.model import Attempt, DeviceSpec

Key = tuple[int, int]  # task index, attempt number
_UNKNOWN: Final = object()


class Lane:
    """`running`: attempts given to the device -> when their stop must be confirmed (None: not asked to stop)."""

    def __init__(self, spec: DeviceSpec, post: Callable[[Fact], None]) -> None:
        self.spec = spec
        self.lock = threading.Lock()
        self.worker: WorkerProcess | None = None
        self.running: dict[Key, float | None] = {}
        self.lost = False
        self.problem: str | None = None  # why no worker could be started
        self.late = 0  # answers that came after their attempt had been given up
        self._post = post
        self._orders: wire.Message = []  # not sent yet
        self._returning = False  # DeviceReturned is due when its worker is ready

    @property
    def ready(self) -> bool:
        worker = self.worker
        return worker is not None and worker.usable

    # --- orders: the driver's thread ------------------------------------------------------------------------------

    def renew(self, spec: DeviceSpec, slots: int, seed: int, post: Callable[[Fact], None]) -> bool:
        """Back to the first state for another run; its worker forgets the one before, and ends with what still runs.

        Returns whether a worker must be started.
        """
        with self.lock:
            self._abandon()
            self.spec, self._post = spec, post
            self.lost = self._returning = False
            self.problem = None
            if self.worker is None:
                return True
            self.worker.forget_usage()
            self._orders = [(wire.RENEW, -1, -1, slots, seed, spec.memory_total_bytes)]
            self._send()
            return False

    def rest(self) -> None:
        """Take no part in the next run: the worker stays, and nothing is reported."""
        with self.lock:
            self._abandon()
            self._post = _nobody_hears

    def start(self, attempt: Attempt) -> bool:
        """Take an order; False if the device is lost: DeviceLost is on its way, and speaks for this attempt too."""
        key = (attempt.task.index, attempt.number)
        order = (wire.START, *key, *torch_order.pack(attempt))
        with self.lock:
            if self.lost:
                return False
            self.running[key] = None
            self._orders.append(order)
        return True

    def stop(self, key: Key, until_s: float) -> bool:
        """Ask an attempt to end before `until_s` (time.monotonic); False if there is nothing to send."""
        with self.lock:
            if key not in self.running:
                return False  # it has ended meanwhile: that fact is on its way
            if key in self._unsent():
                del self.running[key]
                self._orders = [order for order in self._orders if (order[1], order[2]) != key]
                self._post(AttemptStopped(*key))
                return False
            self.running[key] = until_s
            self._orders.append((wire.STOP, *key))
        return True

    def send(self) -> bool:
        """Send what waits, if there is a worker to take it; False if its wire is full: try again later."""
        with self.lock:
            return self._send()

    def kill_if_overdue(self) -> int:
        """Kill the worker if a stop is overdue: its death then reports itself. Returns how many are unconfirmed."""
        with self.lock:
            deadlines = [until_s for until_s in self.running.values() if until_s is not None]
            if deadlines and self.worker is not None and min(deadlines) <= time.monotonic():
                self.worker.kill()
            return len(deadlines)

    def lose(self, reason: str) -> None:
        """Take the device away: its worker is killed and not replaced."""
        with self.lock:
            if not self.lost:
                if self.worker is not None:
                    self.worker.kill()
                self._lose(reason)

    def take_back(self) -> bool:
        """The lost device is to return; DeviceReturned follows when its worker is ready."""
        with self.lock:
            if not self.lost or self._returning:
                return False
            self._returning = True
            self.problem = None
        return True

    def crash(self) -> None:
        with self.lock:
            if self.worker is not None:
                self.worker.crash()

    # --- news: the supervisor's thread ----------------------------------------------------------------------------

    def take(self, worker: WorkerProcess, messages: list[wire.Message]) -> bool:
        """Turn a worker's answers into facts. Returns True when it said that it is ready."""
        became_ready = False
        with self.lock:
            for answers in messages:
                for answer in answers:
                    code = answer[0]
                    if code == wire.READY:
                        became_ready = True
                        continue
                    key = (answer[1], answer[2])
                    if self.worker is not worker or self.running.pop(key, _UNKNOWN) is _UNKNOWN:
                        self.late += 1
                    elif code == wire.FINISHED:
                        self._post(AttemptFinished(*key, answer[3], answer[4]))
                    elif code == wire.FAILED:
                        self._post(AttemptFailed(*key, *answer[3:]))
                    else:
                        self._post(AttemptStopped(*key, answer[3]))
            if became_ready:
                worker.ready = True
                if self._returning:
                    self.lost = self._returning = False
                    self._post(DeviceReturned(self.spec.gpu_id))
                self._send()
        return became_ready

    def bury(self, worker: WorkerProcess, cause: str) -> bool:
        """A worker is gone: report what ran there. Returns whether it should be replaced."""
        with self.lock:
            if self.worker is not worker:
                return False
            self.worker = None
            if self.lost and worker.killed:
                return self._returning
            if not worker.ready:
                self._fail(f"did not start: {cause}", worker.tail())
                return False
            unsent = self._unsent()
            gone = {key: until_s for key, until_s in self.running.items() if key not in unsent}
            self.running = dict.fromkeys(key for key in self.running if key in unsent)
            self._orders = [order for order in self._orders if order[0] == wire.START]
            for key, until_s in gone.items():
                if until_s is not None:
                    self._post(AttemptStopped(*key))
            crashed = tuple(key for key, until_s in gone.items() if until_s is None)
            if crashed or not worker.killed:
                self._post(WorkerCrashed(self.spec.gpu_id, crashed, cause, blamed=not worker.killed))
            return True

    def fail(self, problem: str) -> None:
        """No worker can be started."""
        with self.lock:
            self._fail(problem, "")

    def clear(self) -> WorkerProcess | None:
        """The end: give up everything and hand over the worker, if there is one."""
        with self.lock:
            worker, self.worker = self.worker, None
            self._forget()
        return worker

    # --- with the lock held ---------------------------------------------------------------------------------------

    def _unsent(self) -> set[Key]:
        return {(order[1], order[2]) for order in self._orders if order[0] == wire.START}

    def _send(self) -> bool:
        worker = self.worker
        if worker is None or not worker.ready:
            return True  # it is sent when a worker is ready
        try:
            sent = worker.channel.send_soon(self._orders)
        except OSError:
            return True  # it has just died: what was not sent waits for its replacement
        self._orders = []
        return sent

    def _abandon(self) -> None:
        worker = self.worker
        # One that is still starting has not been given anything; one that a fault has just killed is no news any more.
        if worker is not None and ((self.running and worker.ready) or worker.doomed):
            worker.kill()
        self._forget()

    def _forget(self) -> None:
        self.running.clear()
        self._orders = []

    def _lose(self, reason: str) -> None:
        self.lost, self._returning = True, False
        self._forget()
        self._post(DeviceLost(self.spec.gpu_id, reason))

    def _fail(self, problem: str, tail: str) -> None:
        self.problem = f"{problem}\n{tail}".rstrip()
        if not self.lost:
            self._lose(f"its worker {problem}")
        self._returning = False


def _nobody_hears(_: Fact) -> None:
    """For a lane that rests."""
