"""Running the kernels of one task again and again, and timing them: on CPU in turns, on CUDA in bursts."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from altlas_core.backends.worker.device import WorkDevice

# The largest piece of work that is put on a device at once, in FLOP: a stop is seen between pieces. On CPU about 50 ms
# on one core of today, also of one that has no instructions for the format and converts element by element.
CPU_KERNEL_FLOP: Final = {"fp32": 5e9, "bf16": 5e8, "fp16": 2e7}
CUDA_KERNEL_FLOP: Final = 2e11  # 20 ms at 10 TFLOP/s
TURN_S: Final = 0.005  # a task keeps the CPU device at least so long, so that handing it on costs little
BURST_S: Final = 0.01  # kernels between two CUDA events; two bursts are in flight


def most_flop(device: WorkDevice, dtype: str) -> float:
    """FLOP of the largest piece."""
    return CUDA_KERNEL_FLOP if device.kind == "cuda" else CPU_KERNEL_FLOP[dtype]


@dataclass(slots=True)
class Job:
    """What one task computes. An iteration is all `pieces` in their order; each puts its part on the device.

    `units` says how much of an iteration each is (columns, rows, bytes: any whole measure). `check` is given how many
    of the pieces have been done at least once, and a seed for what it samples; it says what the reference says.
    """

    dtype: str
    pieces: list[Callable[[], object]]
    units: list[int]
    check: Callable[[int, int], dict[str, Any]]


class Timings:
    """Durations in bounded memory: when full, every second one is dropped and from then on half as many are kept."""

    __slots__ = ("_every", "_kept", "_limit", "_seen")

    def __init__(self, limit: int = 4096) -> None:
        self._kept: list[float] = []
        self._limit = limit
        self._every = 1
        self._seen = 0

    def add(self, seconds: float, times: int = 1) -> None:
        """`times` iterations that took `seconds` each."""
        first = -self._seen % self._every  # of these, the one to be kept next
        self._kept += [seconds] * len(range(first, times, self._every))
        self._seen += times
        while len(self._kept) >= self._limit:
            del self._kept[1::2]
            self._every *= 2

    def percentile(self, percent: float) -> float | None:
        """Nearest rank; None without a measurement."""
        if not self._kept:
            return None
        ordered = sorted(self._kept)
        return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


class Progress:
    """A job on its way: what is done, and when it is over. `done` counts units over all iterations."""

    def __init__(self, job: Job, iterations: float | None, until_s: float | None) -> None:
        self.job = job
        self.whole = sum(job.units)  # of an iteration
        self.done = 0
        self.until_s = until_s
        self.target = None if iterations is None else max(1, math.ceil(iterations * self.whole))
        if self.target is None and until_s is None:
            self.target = self.whole
        self.next = 0  # piece
        self.kernel_s = 0.0
        self.timings = Timings()

    @property
    def iterations(self) -> float:
        """A part of an iteration counts as that fraction."""
        return self.done / self.whole

    @property
    def written(self) -> int:
        """How many of the pieces have been done at least once."""
        return len(self.job.pieces) if self.done >= self.whole else self.next

    def over(self, stop: threading.Event, launched: int) -> bool:
        """At least one piece is always done, so that there is a result to check."""
        if stop.is_set():
            return True
        if not launched:
            return False
        if self.target is not None and launched >= self.target:
            return True
        return self.until_s is not None and time.perf_counter() >= self.until_s


def run_loop(device: WorkDevice, progress: Progress, stop: threading.Event) -> None:
    """Do the pieces again and again until it is over. Nothing is under way afterwards."""
    if device.kind == "cuda":
        _loop_cuda(device, progress, stop)
    else:
        _loop_cpu(device, progress, stop)


def _loop_cpu(device: WorkDevice, progress: Progress, stop: threading.Event) -> None:
    clock = time.perf_counter
    pieces, units, timings = progress.job.pieces, progress.job.units, progress.timings
    spent_s = 0.0  # on the iteration under way
    while not progress.over(stop, progress.done):
        with device.turns:
            now = clock()
            turn_ends_s = now + TURN_S
            while now < turn_ends_s and not progress.over(stop, progress.done):
                at = progress.next
                begin = clock()
                pieces[at]()
                now = clock()
                spent_s += now - begin
                progress.kernel_s += now - begin
                progress.done += units[at]
                progress.next = at + 1
                if progress.next == len(pieces):
                    timings.add(spent_s)
                    progress.next, spent_s = 0, 0.0
    if 0 < progress.done < progress.whole:
        timings.add(spent_s * progress.whole / progress.done)  # not one whole iteration: by its part


def _loop_cuda(device: WorkDevice, progress: Progress, stop: threading.Event) -> None:
    """Keeps two bursts of about 10 ms in flight: the GPU never waits for Python, and a stop takes about 20 ms.

    Works on the current stream, the task's own. Times come from events there, one per burst: the mean over the burst,
    neighbours' share included. Waiting for an event lets go of the interpreter, so the tasks do not hold each other up.
    """
    flying: deque[tuple[Any, Any, int, int]] = deque()
    launched, burst = 0, 1
    while True:
        over = progress.over(stop, launched)
        if over and not flying:
            return
        if not over:
            with device.precision.of(progress.job.dtype):
                flying.append(_launch(device, progress, burst, launched))
            launched += flying[-1][3]
        if over or len(flying) >= 2:
            begin, end, count, done = flying.popleft()
            end.synchronize()
            burst_s = begin.elapsed_time(end) / 1000
            progress.kernel_s += burst_s
            progress.timings.add(burst_s * progress.whole / done, max(1, done // progress.whole))
            progress.done += done
            burst = _burst(burst_s / count, progress.until_s)


def _launch(device: WorkDevice, progress: Progress, burst: int, launched: int) -> tuple[Any, Any, int, int]:
    """Put up to `burst` pieces on the current stream between two events. Returns (begin, end, pieces, units)."""
    event = device.torch.cuda.Event
    pieces, units, target, at = progress.job.pieces, progress.job.units, progress.target, progress.next
    begin = event(enable_timing=True)
    end = event(enable_timing=True, blocking=True)  # its waiter sleeps instead of burning a core
    count, done = 0, 0
    begin.record()
    while count < burst and (target is None or launched + done < target):
        pieces[at]()
        done += units[at]
        count += 1
        at = at + 1 if at + 1 < len(pieces) else 0
    end.record()
    progress.next = at
    return begin, end, count, done


def _burst(piece_s: float, until_s: float | None) -> int:
    """Pieces for the next burst: about BURST_S worth, and not beyond the end."""
    span_s = BURST_S if until_s is None else min(BURST_S, until_s - time.perf_counter())
    return max(1, min(1024, int(span_s / max(piece_s, 1e-7))))
