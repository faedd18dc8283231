"""An open backend of worker processes on CPU devices, as tests drive it: what it reports, and waiting for things."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import Any

import psutil

from altlas_core.backends.supervision.backend import TorchBackend
from altlas_core.config import load_config
from altlas_core.events import Fact
from altlas_core.intake import make_tasks
from altlas_core.model import Attempt, DeviceSpec, TaskSpec

PATIENCE_S = 60.0  # for a slow machine; nothing waits this long when all is well
DEVICES = [DeviceSpec(i, "cpu", f"cpu:{i}", 2 << 30, index=i, cores=1) for i in range(2)]
GRACE_S = 0.1
SETTINGS = load_config(environ={})


class Recorder:
    """A mailbox that keeps what arrives."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[Fact] = queue.SimpleQueue()

    def post(self, fact: Fact) -> None:
        self.inbox.put(fact)

    def post_at(self, *_: object) -> None:
        raise AssertionError("a real backend plans nothing")

    def next(self) -> Fact:
        return self.inbox.get(timeout=PATIENCE_S)


class Bench:
    """An open backend with its mailbox, and tasks numbered as they are started."""

    def __init__(self, devices: list[DeviceSpec] = DEVICES, **settings: Any) -> None:
        self.backend = TorchBackend(devices, 3, 42, GRACE_S, **settings)
        self.index = 0
        self.open()

    def open(self) -> None:
        self.mail = Recorder()
        self.backend.open(self.mail)

    def start(self, gpu_id: int = 0, at_once: bool = False, **spec: Any) -> Attempt:
        """Give a task to a device: as soon as it has a worker (or is lost), as the pool does, unless `at_once`."""
        lane = self.backend._lanes[gpu_id]
        wait_for(lambda: at_once or lane.ready or lane.lost)
        task = make_tasks([TaskSpec(**spec)], SETTINGS.gpu, len(DEVICES))[0]
        task.index = self.index
        self.index += 1
        attempt = Attempt(task, 1, gpu_id, 0.0)
        self.backend.start(0.0, attempt)
        self.backend.flush()
        return attempt

    def stop(self, attempt: Attempt) -> None:
        self.backend.stop(0.0, attempt, "cancelled")
        self.backend.flush()

    def pid(self, gpu_id: int = 0) -> int:
        pid = self.backend.worker_pids()[gpu_id]
        assert pid is not None
        return pid

    def poll_until_next(self) -> Fact:
        """As the driver does: look again and again, until something arrives."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            self.backend.poll(0.0)
            try:
                return self.mail.inbox.get(timeout=0.02)
            except queue.Empty:
                pass
        raise AssertionError("nothing arrived")


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for(what: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)
