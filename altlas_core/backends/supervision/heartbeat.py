"""When a silent worker is asked whether it still answers, and when it is given up: a rule without clock or process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from altlas_core.backends.supervision.process import WorkerProcess

_PINGS: Final = 4  # in one timeout


class Heartbeat:
    """A worker that has said nothing for a quarter of the timeout is asked; then it has the whole timeout to answer.

    The time in which nobody could look (a suspended computer, a stopped process) is not held against it.
    """

    def __init__(self, now: float, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.next_s = now  # when to look at all of them again
        self._looked_s = now

    def looked(self, workers: Iterable[WorkerProcess], now: float, patience_s: float) -> None:
        """Somebody looks, and meant to within `patience_s` of the last time; if it is much later, all begins anew."""
        if now - self._looked_s > patience_s + self.timeout_s / _PINGS:
            for worker in workers:
                if worker.pinged_s is not None:
                    worker.pinged_s = now
        self._looked_s = now

    def done(self, now: float) -> None:
        """All have been looked at."""
        self.next_s = now + self.timeout_s / _PINGS

    def heard(self, worker: WorkerProcess, now: float) -> None:
        """It said something."""
        worker.heard_s, worker.pinged_s = now, None

    def must_be_asked(self, worker: WorkerProcess, now: float) -> bool:
        return worker.pinged_s is None and now - worker.heard_s >= self.timeout_s / _PINGS

    def is_silent(self, worker: WorkerProcess, now: float) -> bool:
        return worker.pinged_s is not None and now - worker.pinged_s >= self.timeout_s
