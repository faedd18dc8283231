"""The memory of a CPU device's worker: this process's own. Read from /proc, held to a budget by the kernel.

RLIMIT_DATA bounds the private writable memory of a process (VmData): what malloc, torch's allocator and numpy take.
Beyond it an allocation fails, as on a GPU that is full, and nothing else does: the process goes on.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import sys
from typing import Final

MIB: Final = 1 << 20
# Beside tasks: what the interpreter and the heap keep, and what MKL and oneDNN keep for each thread that computes
# (up to 10 MiB measured; MKL does with less).
SLACK_BYTES: Final = 32 * MIB
SLACK_PER_THREAD_BYTES: Final = 8 * MIB
LEFT_BEHIND_BYTES: Final = 64 * MIB  # of earlier tasks (modules, the heap's holes) so much is not counted, leaks are
_GROWN_BYTES: Final = 4 * MIB  # more than so much left by what ran before is given back before the next is measured
_M_ARENA_MAX: Final = -8  # malloc.h
_FIELDS: Final = {
    name: re.compile(rb"^%s:\s+(\d+) kB" % name, re.MULTILINE) for name in (b"VmData", b"VmRSS", b"VmHWM")
}


class ProcessMemory:
    """Implements memory.Memory for a CPU device.

    `problem`: why the budget is not enforced, in words; None where it is. `measurable`: whether peaks can be read.
    """

    def __init__(self, threads: int) -> None:
        """`threads`: CPU cores that each running task computes on."""
        self.problem: str | None = "no budget was set"
        self._threads = threads
        self._allowed_bytes: int | None = None  # budget and slack together
        self._first_bytes: int | None = None  # allocated when the budget was set
        self._status: int | None = None
        self._clear: int | None = None
        self._settled_bytes = 0
        try:
            self._status = os.open("/proc/self/status", os.O_RDONLY)
            self._clear = os.open("/proc/self/clear_refs", os.O_WRONLY)
            self.reset_peak()
        except OSError:
            self._clear = None
        libc = ctypes.CDLL(None) if sys.platform == "linux" else None
        self._glibc = libc if libc is not None and hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
        if self._glibc is not None:
            # One heap for all threads: what one task has freed, the next can have, whichever thread runs it.
            self._glibc.mallopt(_M_ARENA_MAX, 1)

    @property
    def measurable(self) -> bool:
        return self._clear is not None

    # --- readings, bytes ------------------------------------------------------------------------------------------

    def used(self) -> int:
        """Resident now."""
        return self._read(b"VmRSS")

    def peak(self) -> int:
        """The most that was resident at one time since `reset_peak`."""
        return self._read(b"VmHWM")

    def reset_peak(self) -> None:
        if self._clear is not None:
            os.pwrite(self._clear, b"5", 0)  # proc(5): resets the peak resident set size

    def allocated(self) -> int:
        """Allocated now, touched or not: what the budget counts."""
        return self._read(b"VmData")

    def room(self) -> int:
        """How much more could be allocated now: what the budget leaves, or the computer."""
        import psutil

        available: int = psutil.virtual_memory().available
        if self.problem is not None:
            return available
        import resource

        return min(available, max(0, resource.getrlimit(resource.RLIMIT_DATA)[0] - self.allocated()))

    def _read(self, name: bytes) -> int:
        if self._status is None:
            return 0
        found = _FIELDS[name].search(os.pread(self._status, 8192, 0))
        return 0 if found is None else 1024 * int(found[1])

    # --- the budget -----------------------------------------------------------------------------------------------

    def limit(self, budget_bytes: int, slots: int) -> None:
        """Hold this process to what it has now and so much more. Call when nothing runs and all threads are there."""
        slack_bytes = SLACK_BYTES + SLACK_PER_THREAD_BYTES * slots * self._threads
        self.problem = self._why_not()
        self._allowed_bytes = None if self.problem else budget_bytes + slack_bytes
        self._first_bytes = None
        self.settle(0)

    def lift(self) -> None:
        """No limit, until `limit` is called again: for starting threads."""
        if self._allowed_bytes is not None:
            self._allowed_bytes = None
            self.problem = "no budget was set"
            _set_soft_limit(None)

    def settle(self, idle_bytes: int) -> None:
        """Nothing runs: what is there now, but for `idle_bytes` of kept weights, is nobody's use of the budget.

        What earlier tasks left in the heap is given back first where it is much.
        """
        if self.used() - idle_bytes - self._settled_bytes > _GROWN_BYTES:
            self.give_back()
        self._settled_bytes = self.used() - idle_bytes
        if self._allowed_bytes is not None:
            nobodys = max(0, self.allocated() - idle_bytes)
            if self._first_bytes is None:
                self._first_bytes = nobodys
            _set_soft_limit(min(nobodys, self._first_bytes + LEFT_BEHIND_BYTES) + self._allowed_bytes)

    def give_back(self) -> None:
        """What the heap keeps free."""
        if self._glibc is not None:
            self._glibc.malloc_trim(0)

    def _why_not(self) -> str | None:
        """Why the kernel does not enforce such a limit, seen by trying; None if it does."""
        if sys.platform != "linux" or not self.allocated():
            return "a memory budget can be enforced on Linux only"
        try:
            _set_soft_limit(self.allocated())
            try:
                mmap.mmap(-1, MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
            except OSError:
                return None
            finally:
                _set_soft_limit(None)
        except (OSError, ValueError) as error:
            return f"RLIMIT_DATA cannot be set: {error}"
        return "this kernel does not enforce RLIMIT_DATA"


def _set_soft_limit(limit_bytes: int | None) -> None:
    """None: as much as the hard limit, which stays as it is, allows."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = hard if limit_bytes is None else limit_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
