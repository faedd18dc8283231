"""What the real-time driver waits on: a clock and an inbox. Tests bring their own."""

from __future__ import annotations

import queue
import time
from typing import NamedTuple, Protocol

from altlas_core.events import Fact


class Arrival(NamedTuple):
    """A fact posted by another thread, and when, on the clock."""

    fact: Fact
    clock_s: float


News = Fact | Arrival
Inbox = queue.SimpleQueue[News | None]  # None only wakes the driver


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        ...

    def wait(self, inbox: Inbox, timeout_s: float) -> News | None:
        """The next item of the inbox, or None when none came in time."""
        ...


class MonotonicClock:
    """The real one."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, inbox: Inbox, timeout_s: float) -> News | None:
        try:
            return inbox.get(timeout=timeout_s) if timeout_s > 0 else inbox.get_nowait()
        except queue.Empty:
            return None
