"""Xid errors of one GPU as they happen, through NVML's events. Where the driver gives none, there are none to tell."""

from __future__ import annotations

import contextlib
from typing import Any, Final

from altlas_core.backends.nvml.ask import Gpu, NvmlError, ask

_XID_CRITICAL_ERROR: Final = 0x8  # nvmlEventTypeXidCriticalError
_MOST_AT_A_TIME: Final = 64  # a GPU that breaks may report without end


class XidWatch:
    """Xids from now on. An event set of its own: an event needs not be traced back to its GPU.

    Needs a driver for Linux and the right to register; without, `take` finds nothing.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._set: Any = None
        try:
            self._set = ask("nvmlEventSetCreate")
            ask("nvmlDeviceRegisterEvents", gpu.handle, _XID_CRITICAL_ERROR, self._set)
        except NvmlError:
            self.close()

    def take(self) -> list[int]:
        """The Xids since the last call, oldest first. Does not wait."""
        found: list[int] = []
        while self._set is not None and len(found) < _MOST_AT_A_TIME:
            try:
                event = ask("nvmlEventSetWait", self._set, 0)
            except NvmlError:  # TIMEOUT: there is none
                break
            found.append(int(event.eventData))
        return found

    def close(self) -> None:
        events, self._set = self._set, None
        if events is not None:
            with contextlib.suppress(NvmlError):
                ask("nvmlEventSetFree", events)
