"""The thread that starts worker processes, reads their answers, and sees them end or fall silent."""

from __future__ import annotations

import os
import queue
import selectors
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

from altlas_core.backends.supervision.exit import OutOfMemoryKills
from altlas_core.backends.supervision.heartbeat import Heartbeat
from altlas_core.backends.supervision.keeper import Keeper
from altlas_core.backends.supervision.lane import Lane
from altlas_core.backends.supervision.process import DYING_S, WorkerProcess
from altlas_core.backends.supervision.restarts import Restarts
from altlas_core.backends.worker import channel as wire
from altlas_core.backends.worker.channel import GarbledError

_GOODBYE_S: Final = 1.0  # what an idle worker may take to end when asked
_START_CHECK_S: Final = 1.0  # how often starting workers are looked at
_MOST_STARTING: Final = 2 * (os.cpu_count() or 1) + 2  # at a time: importing torch is work for a core
_FOREVER: Final = float("inf")
_STUCK_S: Final = 10.0  # what the kernel and the GPU driver may take to end a killed process


class Supervisor:
    """One for all lanes.

    It starts every worker itself, because the kernel ends a worker with the *thread* that started it, and this one
    lives as long as the backend is open. A worker that has imported torch and has no device yet is free: it goes to the
    lane that has waited longest for one; `spare_workers` more than are waited for are kept.

    A worker that does not answer when asked is killed: it hangs, whatever its tasks do. What it said before is read
    first.
    """

    def __init__(
        self,
        lanes: Collection[Lane],
        launch: Callable[[float], WorkerProcess],
        ready_timeout_s: float,
        keeper: Keeper,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`launch(now)` starts a process."""
        self.changed = threading.Condition()  # notified when a worker is imported, ready or could not be started
        self._lanes = lanes
        self._launch = launch
        self._ready_timeout_s = ready_timeout_s
        self._clock = clock
        self._spare_workers = 0
        self._heartbeat = Heartbeat(clock(), _FOREVER)
        self._dying: dict[WorkerProcess, float] = {}  # killed, and seen alive since
        self._lane_of: dict[WorkerProcess, Lane | None] = {}  # every worker there is; None: free
        self._waiting: dict[Lane, None] = {}  # for a worker, in order
        self._later: dict[Lane, float] = {}  # when they are to wait for one
        self._spares_from_s = 0.0  # spares are not started before
        self._spare_restarts = Restarts()
        self._due_s = _FOREVER  # when something is to be looked at even if nothing arrives
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._kills = OutOfMemoryKills()
        self._keeper = keeper
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, name="altlas-workers", daemon=True)

    # --- for other threads ----------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def staff(self, lanes: Collection[Lane], spare_workers: int, heartbeat_timeout_s: float) -> None:
        """See to it that these lanes have a worker each, at once, and that there are so many spare ones."""

        def begin() -> None:
            self._spare_workers = spare_workers
            self._heartbeat = Heartbeat(self._clock(), heartbeat_timeout_s)
            self._spares_from_s = 0.0
            for lane in lanes:
                self._want_worker(lane)
            self._dismiss_surplus()

        self._command(begin)

    def spawn(self, lane: Lane) -> None:
        """Start a worker for the lane, if it has none."""
        self._command(lambda: self._want_worker(lane))

    def _command(self, command: Callable[[], None] | None) -> None:
        self._commands.put(command)
        with suppress(BlockingIOError):  # the pipe is full: it will wake anyway
            os.write(self._wake_write, b"x")

    def spares_settled(self) -> bool:
        """Whether no spare worker is still importing torch."""
        return self._commands.empty() and all(worker.imported for worker in self.free())

    def free(self) -> list[WorkerProcess]:
        """Workers without a device."""
        return [worker for worker, lane in list(self._lane_of.items()) if lane is None]

    def end(self) -> None:
        """End every worker and the thread; leaves nothing behind."""
        self._command(None)
        self._thread.join()
        os.close(self._wake_read)
        os.close(self._wake_write)

    # --- its own thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self.look(max(0.0, self._due_s - self._clock())):
                pass
        finally:
            self.end_all()

    def look(self, patience_s: float) -> bool:
        """Take what has arrived within `patience_s`, then do what is due. Returns False when it is to end."""
        arrived = self._selector.select(None if patience_s == _FOREVER else patience_s)
        now = self._clock()
        self._heartbeat.looked(self._lane_of, now, patience_s)
        self._read(arrived, now)
        while not self._commands.empty():
            command = self._commands.get()
            if command is None:
                return False
            command()
            self._staff(now)
        if now >= self._due_s:
            self._do_what_is_due(now)
        return True

    def _read(self, arrived: list[tuple[selectors.SelectorKey, int]], now: float) -> None:
        for key, _ in arrived:
            worker = key.data
            if worker is None:
                os.read(self._wake_read, 4096)
            elif worker in self._lane_of:  # else it was buried a moment ago
                self._hear(worker, now)

    def _hear(self, worker: WorkerProcess, now: float) -> None:
        try:
            messages = worker.channel.receive()
        except GarbledError as error:
            worker.kill(str(error), blamed=True)
            self._bury(worker, now)
            return
        except (EOFError, OSError):
            self._bury(worker, now)
            return
        self._heartbeat.heard(worker, now)
        lane = self._lane_of[worker]
        if lane is not None:
            try:
                became_ready = lane.take(worker, messages)
            except (TypeError, IndexError, KeyError):
                worker.kill("said what no worker says", blamed=True)
                return
            if became_ready:
                self._notify()
        elif not worker.imported:
            worker.imported = any(answer[0] == wire.IMPORTED for answers in messages for answer in answers)
            self._staff(now)

    def _do_what_is_due(self, now: float) -> None:
        for lane in [lane for lane, at_s in self._later.items() if at_s <= now]:
            self._want_worker(lane)
        self._staff(now)
        for worker in [worker for worker in self._lane_of if not _settled(worker, self._lane_of[worker])]:
            if now - worker.since_s > self._ready_timeout_s:
                worker.kill(f"not ready after {self._ready_timeout_s:g} s", blamed=True)
                self._bury(worker, now)
        self._listen(now)
        self._plan(now)

    def _plan(self, now: float) -> None:
        """When to look again."""
        due_s = min(self._later.values(), default=_FOREVER)
        if self._may_start(self._spare_workers):
            due_s = min(due_s, max(now, self._spares_from_s))
        if any(not _settled(worker, lane) for worker, lane in self._lane_of.items()):
            due_s = min(due_s, now + _START_CHECK_S)
        if self._lane_of:
            due_s = min(due_s, self._heartbeat.next_s)
        self._due_s = due_s

    # --- starting -------------------------------------------------------------------------------------------------

    def _want_worker(self, lane: Lane) -> None:
        self._later.pop(lane, None)
        if lane.needs_worker:  # else the one before is still dying, and its end starts the next
            self._waiting[lane] = None

    def _staff(self, now: float) -> None:
        """Give free workers to the lanes that wait, and start what is missing."""
        for worker in [worker for worker in self.free() if worker.imported]:
            self._give_away(worker, now)
        spares = self._spare_workers if now >= self._spares_from_s else 0
        while self._may_start(len(self._waiting) + spares) and self._start_one(now):
            pass
        self._plan(now)
        self._notify()

    def _may_start(self, wanted: int) -> bool:
        free = self.free()
        return len(free) < wanted and sum(not worker.imported for worker in free) < _MOST_STARTING

    def _give_away(self, worker: WorkerProcess, now: float) -> None:
        while self._waiting:
            lane = next(iter(self._waiting))
            del self._waiting[lane]
            with suppress(OSError):  # it has just died, which will be seen in a moment
                if not lane.adopt(worker, now):
                    continue
            self._lane_of[worker] = lane
            self._spare_restarts = Restarts()
            return

    def _start_one(self, now: float) -> bool:
        try:
            worker = self._launch(now)
        except OSError as error:
            return self._blame_for_start(str(error), "", now)
        self._keeper.watch(worker.pid)
        self._lane_of[worker] = None
        self._selector.register(worker.channel, selectors.EVENT_READ, worker)
        return True

    def _blame_for_start(self, cause: str, tail: str, now: float) -> bool:
        """A process without a device has ended, or could not be started. Returns whether a lane must wait for that."""
        if len(self.free()) >= len(self._waiting):
            self._spares_from_s = now + self._spare_restarts.died()
            return False
        lane = next(iter(self._waiting))
        del self._waiting[lane]
        self._again(lane, lane.start_failed(cause, tail), now)
        return True

    def _again(self, lane: Lane, delay_s: float | None, now: float) -> None:
        if delay_s is None:
            return
        if delay_s > 0.0:
            self._later[lane] = now + delay_s
        else:
            self._want_worker(lane)

    def _dismiss_surplus(self) -> None:
        surplus = len(self.free()) - len(self._waiting) - self._spare_workers
        for worker in self.free()[: max(0, surplus)]:
            worker.kill("not needed any more")
            self._end(worker, 0.0, DYING_S)
            worker.release()

    # --- ends -----------------------------------------------------------------------------------------------------

    def _bury(self, worker: WorkerProcess, now: float, stuck: bool = False) -> None:
        lane = self._lane_of[worker]
        wait_s, dying_s = (0.0, 0.0) if stuck else (_GOODBYE_S, DYING_S)
        cause = self._end(worker, wait_s, dying_s)
        if worker.killed_by_others:
            cause += self._kills.remark()
        if lane is None:
            self._blame_for_start(cause, worker.tail(), now)
        else:
            self._again(lane, lane.bury(worker, cause), now)
        worker.release()
        self._staff(now)

    def _end(self, worker: WorkerProcess, wait_s: float, dying_s: float) -> str:
        """Forget a worker that ends. Returns what it died of."""
        del self._lane_of[worker]
        self._dying.pop(worker, None)
        self._selector.unregister(worker.channel)
        cause = worker.reap(wait_s, dying_s)
        self._keeper.forget(worker.pid)
        return cause

    def _notify(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def end_all(self) -> None:
        """Closing the channel asks a worker to end; one that is still starting cannot hear it."""
        for lane in self._lanes:
            lane.end()
        for worker in self._lane_of:
            if not _settled(worker, self._lane_of[worker]):
                worker.kill("not needed any more")
            self._selector.unregister(worker.channel)
            worker.channel.close()
        until_s = time.monotonic() + _GOODBYE_S
        for worker in self._lane_of:
            worker.reap(max(0.0, until_s - time.monotonic()))
            worker.release()
        self._lane_of.clear()
        self._selector.close()
        self._keeper.close()

    # --- silence --------------------------------------------------------------------------------------------------

    def _listen(self, now: float) -> None:
        """Ask those that are silent; kill those that did not answer; give up those that do not die of it."""
        heartbeat = self._heartbeat
        if any(heartbeat.is_silent(worker, now) for worker in self._lane_of):
            self._read(self._selector.select(0), now)
        for worker, lane in list(self._lane_of.items()):
            worker.output.trim()
            if worker.struck:
                if now - self._dying.setdefault(worker, now) > _STUCK_S:
                    self._bury(worker, now, stuck=True)
            elif heartbeat.is_silent(worker, now):
                worker.kill(f"did not answer for {heartbeat.timeout_s:g} s", blamed=True)
            elif worker.pinged_s is not None and lane is not None:
                lane.send()  # in case the wire was full
            elif heartbeat.must_be_asked(worker, now) and _settled(worker, lane):
                self._ask(worker, lane, now)
        heartbeat.done(now)

    def _ask(self, worker: WorkerProcess, lane: Lane | None, now: float) -> None:
        worker.pinged_s = now
        if lane is not None:
            lane.ping()
        else:
            with suppress(OSError):
                worker.channel.send_soon([(wire.PING, -1, -1)])


def _settled(worker: WorkerProcess, lane: Lane | None) -> bool:
    """Whether it is not in the middle of starting: it hears what it is told."""
    return worker.imported if lane is None else worker.ready
