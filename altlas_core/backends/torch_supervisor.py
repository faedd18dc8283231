"""The thread that starts worker processes, reads their answers and sees them end."""

from __future__ import annotations

import os
import queue
import selectors
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

from altlas_core.backends.torch_lane import Lane
from altlas_core.backends.torch_process import WorkerProcess
from altlas_core.model import DeviceSpec

_GOODBYE_S: Final = 1.0  # what an idle worker may take to end when asked


class Supervisor:
    """One for all lanes.

    It starts every worker itself, because the kernel ends a worker with the *thread* that started it, and this one
    lives as long as the backend is open.
    """

    def __init__(
        self, lanes: Collection[Lane], new_worker: Callable[[DeviceSpec], WorkerProcess], ready_timeout_s: float
    ) -> None:
        self._lanes = lanes
        self._new_worker = new_worker
        self._ready_timeout_s = ready_timeout_s
        self._commands: queue.SimpleQueue[Lane | None] = queue.SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._starting: dict[WorkerProcess, Lane] = {}
        self.changed = threading.Condition()  # notified when a worker is ready or could not be started
        self._thread = threading.Thread(target=self._run, name="altlas-workers", daemon=True)
        self._thread.start()

    def spawn(self, lane: Lane) -> None:
        """Start a worker for the lane, if it has none."""
        self._command(lane)

    def _command(self, lane: Lane | None) -> None:
        self._commands.put(lane)
        with suppress(BlockingIOError):  # the pipe is full: it will wake anyway
            os.write(self._wake_write, b"x")

    def end(self) -> None:
        """End every worker and the thread; leaves nothing behind."""
        self._command(None)
        self._thread.join()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _run(self) -> None:
        while True:
            patience = 1.0 if self._starting else None
            for ready, _ in self._selector.select(patience):
                if ready.data is None:
                    os.read(self._wake_read, 4096)
                else:
                    self._read(*ready.data)
            if self._starting:
                self._give_up_late_starters()
            while not self._commands.empty():
                lane = self._commands.get()
                if lane is None:
                    return self._end_all()
                self._spawn(lane)

    def _spawn(self, lane: Lane) -> None:
        if lane.worker is not None:
            return  # the one before is still dying: its end starts the next
        try:
            worker = self._new_worker(lane.spec)
        except OSError as error:
            lane.fail(f"did not start: {error}")
            self._notify()
            return
        with lane.lock:
            lane.worker = worker
        self._starting[worker] = lane
        self._selector.register(worker.channel, selectors.EVENT_READ, (lane, worker))

    def _read(self, lane: Lane, worker: WorkerProcess) -> None:
        try:
            messages = worker.channel.receive()
        except (EOFError, OSError):
            self._bury(lane, worker, "")
            return
        if lane.take(worker, messages):
            self._starting.pop(worker, None)
            self._notify()

    def _bury(self, lane: Lane, worker: WorkerProcess, why: str) -> None:
        self._selector.unregister(worker.channel)
        self._starting.pop(worker, None)
        cause = worker.reap(_GOODBYE_S)
        again = lane.bury(worker, why or cause)
        worker.release()
        if again:
            self._spawn(lane)
        self._notify()

    def _give_up_late_starters(self) -> None:
        limit_s = self._ready_timeout_s
        for worker, lane in list(self._starting.items()):
            if time.monotonic() - worker.started_at > limit_s:
                worker.kill()
                self._bury(lane, worker, f"not ready after {limit_s:g} s")

    def _notify(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def _end_all(self) -> None:
        """Closing the channel asks a worker to end; one that is still importing torch cannot hear it."""
        ended: list[WorkerProcess] = []
        for lane in self._lanes:
            worker = lane.clear()
            if worker is not None:
                self._selector.unregister(worker.channel)
                if not worker.ready:
                    worker.kill()
                worker.channel.close()
                ended.append(worker)
        until = time.monotonic() + _GOODBYE_S
        for worker in ended:
            worker.reap(max(0.0, until - time.monotonic()))
            worker.release()
        self._selector.close()
