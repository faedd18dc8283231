"""What the sampler reads: each GPU once, however many devices of ours are on it, and each CPU device's worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from altlas_core.backends.nvml.card import GpuCard
from altlas_core.backends.sampling.sampler import Source
from altlas_core.model import DeviceSample, DeviceSpec


def device_sources(
    specs: Sequence[DeviceSpec], pid_of: Callable[[int], int | None], our_pids: Callable[[], Collection[int]]
) -> list[Source]:
    """The sources of these devices, kinds "cuda" and "cpu".

    `pid_of(gpu_id)` is the process that works for a device now, None while there is none; `our_pids()` are all
    processes whose load is ours, those of other devices and of earlier runs among them. Both are asked in the
    sampler's thread.
    """
    cards: dict[str | int, list[DeviceSpec]] = {}
    workers: list[Source] = []
    for spec in specs:
        if spec.kind == "cuda":
            cards.setdefault(spec.uuid if spec.uuid is not None else spec.index, []).append(spec)
        else:
            workers.append(WorkerUsage(spec, pid_of))
    return [*(GpuCard(group, pid_of, our_pids) for group in cards.values()), *workers]


class WorkerUsage:
    """A CPU device: the CPU time of its worker as a share of the device's cores, and the worker's resident memory.

    What would mean something else than it does on a GPU is None: temperature, power and clocks are those of a whole
    processor, and the cores of a CPU device are nobody's own, so what others do on them is not foreign load.
    """

    def __init__(
        self,
        spec: DeviceSpec,
        pid_of: Callable[[int], int | None],
        clock: Callable[[], float] = time.monotonic,  # noqa: TID251 - of a worker process
    ) -> None:
        self.gpu_ids = (spec.gpu_id,)
        self._cores = max(1, spec.cores or 1)
        self._pid_of = pid_of
        self._clock = clock
        self._process: psutil.Process | None = None
        self._before: tuple[float, float] | None = None  # (clock, CPU seconds of the worker) at the last reading
        self._processes: int | None = None

    def read(self, thorough: bool) -> list[DeviceSample]:
        pid = self._pid_of(self.gpu_ids[0])
        if pid is None:
            self.close()
            return [DeviceSample()]
        try:
            if self._process is None or self._process.pid != pid:
                self.close()
                self._process = psutil.Process(pid)
                thorough = True
            if thorough:
                self._processes = family_size(pid)
            busy_pct, resident_bytes = self._busy_pct(pid), int(self._process.memory_info().rss)
        except (OSError, psutil.Error):  # it has just ended
            self.close()
            return [DeviceSample()]
        return [DeviceSample(utilization_pct=busy_pct, memory_used_bytes=resident_bytes, processes=self._processes)]

    def close(self) -> None:
        self._process = self._before = self._processes = None

    def _busy_pct(self, pid: int) -> float | None:
        """Of the device's cores since the last reading; None at the first."""
        now = self._clock(), cpu_seconds(pid)
        before, self._before = self._before, now
        if before is None or now[0] <= before[0]:
            return None
        return min(100.0, 100.0 * (now[1] - before[1]) / (now[0] - before[0]) / self._cores)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, all its threads, to the nanosecond. (psutil's is in ticks of 10 ms: too coarse here.)

    Its CPU-time clock has the id that clock_getcpuclockid(3) gives on Linux. Raises OSError when it has ended.
    """
    return time.clock_gettime((~pid << 3) | 2)


def family_size(pid: int) -> int | None:
    """How many processes a process and its descendants are; None where the kernel does not list children."""
    children = _children(pid)
    return None if children is None else 1 + sum(family_size(child) or 1 for child in children)


def _children(pid: int) -> list[int] | None:
    """Each of its threads knows the processes it started. (psutil's children() looks at every process there is.)"""
    lists = []
    with suppress(OSError):  # it has just ended
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # so has the thread
                lists.append((thread / "children").read_text())
    return [int(child) for children in lists for child in children.split()] if lists else None
