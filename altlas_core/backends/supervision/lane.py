"""One device as driver and supervisor both know it: its worker, what runs there, what waits to be sent.

Its lock is held for microseconds, by whichever thread has something to say: every fact about what runs here is posted
under it, so an attempt ends exactly once, however orders, answers and deaths cross each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from altlas_core.backends.supervision.process import WorkerProcess, assignment
from altlas_core.backends.supervision.restarts import Restarts
from altlas_core.backends.worker import channel as wire
from altlas_core.backends.worker import order as wire_order
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
    """`running`: attempts given to the device -> when their stop must be confirmed (None: not asked to stop).

    `complaint`: why the device should take nothing now, though it is not lost. `note` is called when that changes: by
    the supervisor's thread, with the lock held.
    """

    def __init__(self, spec: DeviceSpec, post: Callable[[Fact], None], note: Callable[[Lane], None]) -> None:
        self.spec = spec
        self.lock = threading.Lock()
        self.worker: WorkerProcess | None = None
        self.running: dict[Key, float | None] = {}
        self.lost = False
        self.problem: str | None = None  # why no worker could be started
        self.complaint: str | None = None
        self.late = 0  # answers that came after their attempt had been given up
        self._post = post
        self._note = note
        self._slots, self._seed = 1, 0
        self._orders: wire.Message = []  # not sent yet
        self._opening = True  # no worker was ready yet in this run
        self._returning = False  # DeviceReturned is due when its worker is ready
        self._restarts = Restarts()

    @property
    def ready(self) -> bool:
        worker = self.worker
        return worker is not None and worker.usable

    # --- orders: the driver's thread ------------------------------------------------------------------------------

    def renew(self, spec: DeviceSpec, slots: int, seed: int, post: Callable[[Fact], None]) -> None:
        """Back to the first state for another run; its worker forgets the one before, and ends with what still runs."""
        with self.lock:
            self._abandon()
            self.spec, self._post = spec, post
            self._slots, self._seed = slots, seed
            self.lost = self._returning = False
            self.problem = self.complaint = None
            self.late = 0
            self._restarts = Restarts()
            worker = self.worker
            self._opening = not self.ready
            if worker is not None:
                self._orders = [(wire.RENEW, -1, -1, slots, seed, spec.memory_total_bytes)]
                self._send()

    def rest(self) -> None:
        """Take no part in the next run: the worker stays, and nothing is reported."""
        with self.lock:
            self._abandon()
            self._post = _nobody_hears

    def start(self, attempt: Attempt) -> bool:
        """Take an order; False if it cannot be: the device is lost (DeviceLost is on its way, and speaks for this
        attempt too), or has no worker just now (that is on its way, too; the attempt is given back)."""
        key = (attempt.task.index, attempt.number)
        order = (wire.START, *key, *wire_order.pack(attempt))
        with self.lock:
            if self.lost:
                return False
            if self.complaint is not None:
                self._post(WorkerCrashed(self.spec.gpu_id, (key,), self.complaint, blamed=False))
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

    def kill_if_overdue(self, now: float) -> int:
        """Kill the worker if a stop is overdue: its death then reports itself. Returns how many are unconfirmed."""
        with self.lock:
            deadlines = [until_s for until_s in self.running.values() if until_s is not None]
            if deadlines and self.worker is not None and min(deadlines) <= now:
                self.worker.kill("killed: a task in it did not stop when asked")
            return len(deadlines)

    def lose(self, reason: str) -> None:
        """Take the device away: its worker is killed and not replaced."""
        with self.lock:
            if self.lost and not self._returning:
                return
            if self.worker is not None:
                self.worker.kill(reason)
            if self.lost:
                self._returning = False
            else:
                self._lose(reason)

    def take_back(self) -> bool:
        """The lost device is to return; DeviceReturned follows when its worker is ready."""
        with self.lock:
            if not self.lost or self._returning:
                return False
            self._returning = True
            self.problem = None
            self._restarts = Restarts()
        return True

    def crash(self) -> None:
        with self.lock:
            if self.worker is not None:
                self.worker.crash()

    def hang(self) -> None:
        with self.lock:
            if self.worker is not None and self.running:
                self.worker.hang()

    # --- news: the supervisor's thread ----------------------------------------------------------------------------

    def adopt(self, worker: WorkerProcess, now: float) -> bool:
        """A worker that has no device yet becomes this one's; False if none is needed any more."""
        with self.lock:
            if not self.needs_worker:
                return False
            self.worker = worker
            worker.assign(assignment(self.spec, self._slots, self._seed), now)
            return True

    @property
    def needs_worker(self) -> bool:
        return self.worker is None and (not self.lost or self._returning)

    def ping(self) -> None:
        """Ask the worker whether it still answers."""
        with self.lock:
            self._orders.append((wire.PING, -1, -1))
            self._send()

    def take(self, worker: WorkerProcess, messages: list[wire.Message]) -> bool:
        """Turn a worker's answers into facts. Returns True when it said that it is ready."""
        became_ready = False
        with self.lock:
            for answers in messages:
                for answer in answers:
                    code = answer[0]
                    if code > wire.STOPPED:
                        became_ready |= code == wire.READY
                        continue
                    key = (answer[1], answer[2])
                    if self.worker is not worker or self.running.pop(key, _UNKNOWN) is _UNKNOWN:
                        self.late += 1
                    elif code == wire.FINISHED:
                        self._restarts.deaths = 0
                        self._post(AttemptFinished(*key, answer[3], answer[4]))
                    elif code == wire.FAILED:
                        self._post(AttemptFailed(*key, *answer[3:]))
                    else:
                        self._post(AttemptStopped(*key, answer[3]))
            if became_ready:
                self._welcome(worker)
        return became_ready

    def bury(self, worker: WorkerProcess, cause: str) -> float | None:
        """A worker is gone: report what ran there. Returns after how many seconds to replace it; None: not at all."""
        with self.lock:
            if self.worker is not worker:
                return None
            self.worker = None
            if self.lost and (worker.killed or worker.ready):
                return 0.0 if self._returning else None
            if not worker.ready and not worker.killed:
                return self._start_failed(cause, worker.tail())
            delay_s = 0.0 if worker.killed else self._restarts.died()
            unsent = self._unsent()
            for key in [key for key, until_s in self.running.items() if until_s is not None]:
                del self.running[key]
                self._post(AttemptStopped(*key))
            crashed = tuple(key for key in self.running if key not in unsent)
            self.running = dict.fromkeys(key for key in self.running if key in unsent)
            if crashed or not worker.killed:
                self._post(WorkerCrashed(self.spec.gpu_id, crashed, cause, blamed=not worker.killed))
            self._wait(cause, delay_s)
            return delay_s

    def start_failed(self, cause: str, tail: str = "") -> float | None:
        """A process that was to become its worker has ended, or could not be started. Returns what `bury` does."""
        with self.lock:
            return self._start_failed(cause, tail)

    def end(self) -> None:
        """Nobody looks after it any more. Who ends the worker is the supervisor."""
        with self.lock:
            self.worker = None
            if not self.lost:
                self._lose("its supervisor has ended")

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

    def _welcome(self, worker: WorkerProcess) -> None:
        worker.ready = True
        self._opening = False
        self._restarts.failed_starts = 0
        if self._returning:
            self.lost = self._returning = False
            self._post(DeviceReturned(self.spec.gpu_id))
        if self.complaint is not None:
            self.complaint = None
            self._note(self)
        self._send()

    def _wait(self, cause: str, delay_s: float) -> None:
        """Take no work until the next worker is ready, or its time would run; give back what no worker was given."""
        if self.lost:
            return
        self.complaint = self._restarts.complaint(cause, delay_s)
        waiting = tuple(self.running)
        self._forget()
        if waiting:
            self._post(WorkerCrashed(self.spec.gpu_id, waiting, self.complaint, blamed=False))
        self._note(self)

    def _start_failed(self, cause: str, tail: str) -> float | None:
        cause = f"did not start: {cause}"
        delay_s = None if self._opening else self._restarts.failed_to_start()
        if delay_s is None:
            self._fail(cause, tail)
        else:
            self._wait(cause, delay_s)
        return delay_s

    def _fail(self, problem: str, tail: str) -> None:
        lines = tail.splitlines()
        if lines and problem.endswith(lines[-1]):
            lines.pop()
        self.problem = "\n".join([problem, *lines])
        if not self.lost:
            self._lose(f"its worker {problem}")
        self._returning = False

    def _abandon(self) -> None:
        worker = self.worker
        # One that is still starting has not been given anything; one that was just killed is no news any more.
        if worker is not None and ((self.running and worker.ready) or worker.struck):
            worker.kill("killed: another run begins")
            worker.killed = True
        self._forget()

    def _forget(self) -> None:
        self.running.clear()
        self._orders = []

    def _lose(self, reason: str) -> None:
        self.lost, self._returning = True, False
        self.complaint = None
        self._forget()
        self._post(DeviceLost(self.spec.gpu_id, reason))


def _nobody_hears(_: Fact) -> None:
    """For a lane that rests."""
