"""The seam between scheduler and hardware: what a backend is, and the mailbox it reports to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from altlas_core.events import Fact
from altlas_core.faults import Fault
from altlas_core.model import Attempt, DeviceSample, DeviceSpec


class Mailbox(Protocol):
    """Given to a backend by the driver. Facts posted here reach the distributor on the driver's thread."""

    def post(self, fact: Fact) -> None:
        """Report a fact that has just happened. Any thread."""
        ...

    def post_at(self, time_s: float, rank: int, due: Callable[[float, Any], Fact | None], arg: Any) -> None:
        """At `time_s` call `due(now, arg)` on the driver's thread; the fact it returns, if any, is reported.

        Only from the driver's thread. `rank` orders facts of the same instant (see events.RANK_*). Returning None
        says that what was planned is no longer so.
        """
        ...


class Backend(Protocol):
    """Runs attempts on devices. `start`, `stop` and `sample` are called on the driver's thread and do not block."""

    def devices(self) -> Sequence[DeviceSpec]:
        """The devices, gpu_id 0, 1, 2, ... in order."""
        ...

    def open(self, mailbox: Mailbox) -> None:
        """Make ready: after it returns every device takes work. Raises RunError where one cannot."""
        ...

    def start(self, now: float, attempt: Attempt) -> None:
        """Run the attempt; report AttemptFinished, AttemptFailed or WorkerCrashed when it has ended."""
        ...

    def stop(self, now: float, attempt: Attempt, reason: str) -> None:
        """Ask an attempt to end; AttemptStopped (or its own ending, if that came first) confirms it."""
        ...

    def sample(self, now: float, gpu_id: int) -> DeviceSample | None:
        """The device's readings now; None for a device that is lost."""
        ...

    def inject(self, now: float, fault: Fault) -> Fact | None:
        """Make a planned fault happen; returns the fact it is known by, if at once. Raises DeviceError if it cannot."""
        ...

    def close(self) -> None:
        """Stop everything and leave nothing behind. May be called twice."""
        ...
