"""What the real-time driver waits on: a clock and an inbox. Tests bring their own."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from altlas_core.events import Fact


class Call(NamedTuple):
    """`due(now, arg)` is to be called on the driver's thread; a fact it returns is applied."""

    due: Callable[[float, Any], Fact | None]
    arg: Any


class Arrival(NamedTuple):
    """What another thread has posted, and when, on the clock."""

    news: Fact | Call
    clock_s: float


News = Fact | Call | Arrival
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
