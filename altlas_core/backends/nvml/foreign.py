"""Which part of a GPU's load is not ours, from what the driver tells of processes. None where that cannot be told.

Inside a container the driver may hide processes, withhold their memory, or name them by pids of the host, which say
nothing here. Guessing either way would stop work on a free GPU or overfill a shared one, so the answer is None then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from altlas_core.backends.machine import GpuProcess
from altlas_core.model import GIB

# More than this in use while no process is listed means that the list is hidden from us, not that it is empty.
_HIDDEN_LIST_BYTES = GIB // 4


def pid_is_here(pid: int) -> bool:
    """Whether a process of this number exists in our pid namespace."""
    return Path(f"/proc/{pid}").exists()


def others(
    processes: Sequence[GpuProcess] | None,
    used_bytes: int | None,
    our_pids: frozenset[int],
    is_here: Callable[[int], bool] = pid_is_here,
) -> list[GpuProcess] | None:
    """The processes on the GPU that are not ours; None where ours cannot be told from the rest."""
    if processes is None:
        return None
    foreign = [process for process in processes if process.pid not in our_pids]
    if not our_pids or len(foreign) < len(processes):
        return foreign  # nothing is ours, or ours are listed by the pids we know
    if not processes and used_bytes is not None and used_bytes > _HIDDEN_LIST_BYTES:
        return None
    # None of ours is listed: true before they first use the GPU, and also where pids are those of the host.
    return foreign if all(is_here(process.pid) for process in foreign) else None


def foreign_memory(
    processes: Sequence[GpuProcess] | None,
    used_bytes: int | None,
    our_pids: frozenset[int],
    is_here: Callable[[int], bool] = pid_is_here,
) -> int | None:
    """Bytes held by processes that are not ours; None where it cannot be told.

    With no process of ours at all, everything in use is foreign, listed or not (graphics, other containers).
    """
    if not our_pids and used_bytes is not None:
        return used_bytes
    foreign = others(processes, used_bytes, our_pids, is_here)
    if foreign is None:
        return None
    held = [process.memory_bytes for process in foreign]
    known = [item for item in held if item is not None]
    return sum(known) if len(known) == len(held) else None


def foreign_utilization(
    processes: Sequence[GpuProcess] | None,
    utilization_pct: float | None,
    our_pids: frozenset[int],
    used_bytes: int | None,
    per_process: Callable[[], dict[int, float] | None],
    is_here: Callable[[int], bool] = pid_is_here,
) -> float | None:
    """Percent of the GPU's time that processes not ours keep it busy; None where it cannot be told.

    `per_process` gives percent by pid and is only asked where both ours and others are on the GPU.
    """
    if not our_pids:
        return utilization_pct
    foreign = others(processes, used_bytes, our_pids, is_here)
    if foreign is None or processes is None:
        return None
    if not foreign:
        return 0.0
    if len(foreign) == len(processes):
        return utilization_pct
    shares = per_process()
    if shares is None:
        return None
    return min(100.0, sum(percent for pid, percent in shares.items() if pid not in our_pids))
