"""What tasks of a worker really use of its device's memory, and what is said when it does not suffice.

torch does not tell the tasks of one process apart. So a task's peak is the peak of all that ran beside it; alone on its
worker it is the task's own. What it is compared with is reckoned alike: the largest sum of what they had reserved.
"""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from typing import Any, Final, Protocol

from altlas_core.model import GIB

CONTEXT_BYTES: Final = 512 << 20  # of its share a part of a GPU leaves so much to the CUDA context, a tenth at most
_UNITS: Final = {"bytes": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "PiB": 1 << 50}
# "Tried to allocate 20.00 GiB." (CUDA), "you tried to allocate 272629760 bytes." (CPU), "Unable to allocate 1.00 GiB
# for an array" (numpy).
_ASKED: Final = re.compile(r"\ballocate (\d+(?:\.\d+)?) (bytes|B|KiB|MiB|GiB|TiB|PiB)\b")


class Memory(Protocol):
    """The memory of a worker's device, in bytes. `problem`: why its budget is not enforced; None where it is."""

    problem: str | None

    @property
    def measurable(self) -> bool: ...
    def used(self) -> int: ...
    def peak(self) -> int: ...
    def reset_peak(self) -> None: ...
    def allocated(self) -> int: ...
    def room(self) -> int: ...
    def limit(self, budget_bytes: int, slots: int) -> None: ...
    def lift(self) -> None: ...
    def settle(self, idle_bytes: int) -> None: ...
    def give_back(self) -> None: ...


class CudaMemory:
    """Implements Memory for a GPU: what torch's allocator gives out. What others allocate there it does not see.

    A part of a GPU is held to its share; a whole one only by its end.
    """

    def __init__(self, torch: Any, parts: int) -> None:
        self.problem: str | None = None
        self.measurable = True
        self._torch = torch
        self._parts = parts
        self._limit_bytes: int = torch.cuda.get_device_properties(0).total_memory

    def used(self) -> int:
        return int(self._torch.cuda.memory_allocated())

    def peak(self) -> int:
        return int(self._torch.cuda.max_memory_allocated())

    def reset_peak(self) -> None:
        self._torch.cuda.reset_peak_memory_stats()

    def allocated(self) -> int:
        return self.used()

    def room(self) -> int:
        """What the GPU has free, what torch keeps without need, up to the share."""
        cuda = self._torch.cuda
        free_bytes = cuda.mem_get_info()[0] + cuda.memory_reserved() - self.used()
        return max(0, min(int(free_bytes), self._limit_bytes - self.used()))

    def limit(self, budget_bytes: int, slots: int) -> None:
        total_bytes = self._torch.cuda.get_device_properties(0).total_memory
        self._limit_bytes = total_bytes if self._parts == 1 else share_for_tasks(budget_bytes)
        self._torch.cuda.set_per_process_memory_fraction(min(1.0, self._limit_bytes / total_bytes), 0)

    def lift(self) -> None:
        """Nothing: starting threads needs no more than tasks do."""

    def settle(self, idle_bytes: int) -> None:
        """Nothing: what torch keeps for later is not counted."""

    def give_back(self) -> None:
        """What torch keeps for later."""
        self._torch.cuda.empty_cache()


def share_for_tasks(part_bytes: int) -> int:
    """What torch may allocate of a part's share of the memory; the rest is for its CUDA context."""
    return part_bytes - min(CONTEXT_BYTES, part_bytes // 10)


class Usage:
    """One attempt while it runs: the most that was used, and reserved, at one time by it and those beside it."""

    __slots__ = ("neighbours", "peak_bytes", "reserved_bytes", "reserved_peak_bytes")

    def __init__(self, reserved_bytes: int) -> None:
        self.reserved_bytes = reserved_bytes
        self.reserved_peak_bytes = 0
        self.peak_bytes = 0
        self.neighbours = 0  # the most at one time


class Meter:
    """Follows memory over the attempts that run at a time; called by their threads.

    Time is cut wherever an attempt begins or ends or the weights that nobody uses change. In each piece the device's
    peak, less what was there before and those weights, is what the attempts of that piece used.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._running: list[Usage] = []
        self._idle_bytes = 0
        self._before_bytes = 0  # used by nobody: the interpreter, libraries, workspaces
        self._before_allocated_bytes = 0

    def begin(self, reserved_bytes: int) -> Usage:
        usage = Usage(reserved_bytes)
        with self._lock:
            if self._running:
                self._cut()
            else:
                self._settle()
            self._running.append(usage)
            reserved = sum(each.reserved_bytes for each in self._running)
            for each in self._running:
                each.reserved_peak_bytes = max(each.reserved_peak_bytes, reserved)
                each.neighbours = max(each.neighbours, len(self._running) - 1)
        return usage

    def end(self, usage: Usage) -> None:
        with self._lock:
            self._cut()
            self._running.remove(usage)

    def idle_changed(self, idle_bytes: int) -> None:
        """The weights that are kept although nobody uses them have changed: they are so large now."""
        with self._lock:
            self._cut()
            self._idle_bytes = idle_bytes

    def figures(self, usage: Usage) -> dict[str, Any]:
        """What an attempt's detail says of memory, up to now. peak_memory_bytes is None where it cannot be read."""
        with self._lock:
            self._cut()
        return {
            "reserved_bytes": usage.reserved_bytes,
            "peak_memory_bytes": usage.peak_bytes if self._memory.measurable else None,
            "reserved_peak_bytes": usage.reserved_peak_bytes,
            "memory_neighbours": usage.neighbours,
            "memory_enforced": self._memory.problem is None,
        }

    def held_alone(self) -> int | None:
        """Allocated now by the one attempt that runs; None where several do (or none), whose parts cannot be told."""
        with self._lock:
            if len(self._running) != 1:
                return None
            return max(0, self._memory.allocated() - self._before_allocated_bytes - self._idle_bytes)

    def room(self) -> int:
        """What could still be allocated, once the idle weights are let go of."""
        with self._lock:
            return self._memory.room() + self._idle_bytes

    def _settle(self) -> None:
        memory, idle_bytes = self._memory, self._idle_bytes
        memory.settle(idle_bytes)
        self._before_bytes = memory.used() - idle_bytes
        self._before_allocated_bytes = memory.allocated() - idle_bytes
        memory.reset_peak()

    def _cut(self) -> None:
        with suppress(MemoryError):  # so little is left that it cannot be looked at now; what follows must happen
            used = self._memory.peak() - self._before_bytes - self._idle_bytes
            for usage in self._running:
                usage.peak_bytes = max(usage.peak_bytes, used)
            self._memory.reset_peak()


def asked_bytes(error: BaseException) -> int | None:
    """What the allocation that failed had asked for, rounded up where the message rounds; None where it is not told."""
    found = _ASKED.search(str(error))
    if found is None:
        return None
    number, unit = found[1], _UNITS[found[2]]
    decimals = len(number.partition(".")[2])
    return int(number) * unit if not decimals else int((float(number) + 0.5 * 10**-decimals) * unit) + 1


def explain_shortage(
    error: BaseException, reserved_bytes: int, own_bytes: int, meter: Meter
) -> tuple[str, int | None, int]:
    """An out-of-memory error as (sentence, bytes needed, bytes free), while what the task holds is still there.

    Alone on its worker, a task needed what it held and what it asked for (where that is not told: more than was free),
    and could have had what it held and what was free. Beside others, what it held is not known; it needed at least
    what it asked for at once. Needed is None where all that is known is no more than it had reserved. `own_bytes`: of
    the weights that are idle now, its own.
    """
    asked, held, free = asked_bytes(error), meter.held_alone(), meter.room()
    if held is None:
        needed = asked if asked is not None and asked > reserved_bytes else None
    else:
        free += held
        needed = own_bytes + (free + 1 if asked is None else held + asked)
    parts = ["out of memory"]
    if needed is not None:
        parts.append(f"{'' if asked else 'more than '}{gib(needed)} needed")
    elif asked is not None:
        parts.append(f"{gib(asked)} more asked for")
    parts.append(f"{gib(free)} free" + (" beside other tasks" if held is None else ""))
    parts.append(f"{gib(reserved_bytes)} reserved")
    first_line = str(error).partition("\n")[0]
    return f"{parts[0]}: {', '.join(parts[1:])} ({type(error).__name__}: {first_line})", needed, free


def gib(size_bytes: int) -> str:
    """In GiB, three decimals below one."""
    return f"{size_bytes / GIB:,.2f} GiB" if size_bytes >= GIB else f"{size_bytes / GIB:.3f} GiB"
