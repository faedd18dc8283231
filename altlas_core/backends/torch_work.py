"""The kernels that a worker process runs, and how their results are checked."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from altlas_core.backends.torch_device import WorkDevice
from altlas_core.backends.torch_order import Order

if TYPE_CHECKING:
    from torch import Tensor

CPU_KERNEL_FLOP: Final = 5e9  # a larger product is cut into pieces: about 50 ms on one core of today
CUDA_KERNEL_FLOP: Final = 2e11  # 20 ms at 10 TFLOP/s
TURN_S: Final = 0.005  # a task keeps the CPU device at least so long, so that handing it on costs little
BURST_S: Final = 0.01  # kernels between two CUDA events; two bursts are in flight
SAMPLES: Final = 16
UNIT_ROUNDOFF_FP32: Final = 2.0**-24


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


def check_product(x: Tensor, weight: Tensor, y: Tensor, columns: int, seed: int) -> tuple[float, float]:
    """Compare sampled elements of the first `columns` columns of y with x @ weight in float64.

    Returns (largest error, tolerance), both relative to sum |x||w| of the element. The tolerance is the bound for a
    sum of n products in fp32 in any order, n u / (1 - n u) with u = 2^-24 (Higham, Accuracy and Stability of
    Numerical Algorithms, 2nd ed., eq. 3.5). NaN and infinity count as an infinite error.
    """
    import torch

    n = x.shape[1]
    pick = torch.Generator().manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
    rows = torch.randint(x.shape[0], (SAMPLES,), generator=pick)
    cols = torch.randint(columns, (SAMPLES,), generator=pick)
    rows_there, cols_there = rows.to(y.device), cols.to(y.device)
    got = y[rows_there, cols_there].cpu().double()
    products = x[rows_there].cpu().double() * weight[:, cols_there].T.cpu().double()
    error = ((got - products.sum(1)).abs() / products.abs().sum(1).clamp_min(1e-300)).max().item()
    rounding = n * UNIT_ROUNDOFF_FP32
    return (error if math.isfinite(error) else math.inf), rounding / (1 - rounding)


class _Progress:
    """One linear task on its way: the pieces of its product, what is done, and when it is over."""

    def __init__(self, order: Order, weight: Tensor, y: Tensor, limit_flop: float, until_s: float | None) -> None:
        columns = order.output_size
        column_flop = 2.0 * order.batch * order.input_size
        width = max(1, min(columns, int(limit_flop / column_flop)))
        if width >= 128:
            width -= width % 64  # whole tiles
        cuts = range(0, columns, width)
        self.pieces = [(weight[:, at : at + width], y[:, at : at + width]) for at in cuts]
        self.widths = [min(width, columns - at) for at in cuts]
        self.columns = columns
        self.done = 0  # columns, over all iterations
        self.until_s = until_s
        self.target = None if order.iterations is None else max(1, math.ceil(order.iterations * columns))
        if self.target is None and until_s is None:
            self.target = columns
        self.next = 0  # piece
        self.kernel_s = 0.0
        self.timings = Timings()
        self.iteration_flop = column_flop * columns

    def over(self, stop: threading.Event, launched: int) -> bool:
        """At least one piece is always done, so that there is a result to check."""
        if stop.is_set():
            return True
        if not launched:
            return False
        if self.target is not None and launched >= self.target:
            return True
        return self.until_s is not None and time.perf_counter() >= self.until_s


def run_linear(device: WorkDevice, order: Order, stop: threading.Event, begun_s: float) -> tuple[float, dict[str, Any]]:
    """Multiply batch x input by input x output until duration or iterations are reached, or `stop` is set.

    `duration_s` counts from `begun_s` (time.perf_counter of the start order), so it includes making the weight.
    Returns (iterations, detail); a part of a product counts as that fraction of an iteration.
    """
    torch = device.torch
    until_s = None if order.duration_s is None else begun_s + order.duration_s
    loop, limit = (_loop_cuda, CUDA_KERNEL_FLOP) if device.kind == "cuda" else (_loop_cpu, CPU_KERNEL_FLOP)
    with device.weight(order) as weight, device.own_stream() as stream:
        x = device.uniform(order.batch, order.input_size)
        # NaN, so that what no kernel has written can never pass for a result.
        y = torch.full((order.batch, order.output_size), math.nan, device=device.device)
        progress = _Progress(order, weight, y, limit, until_s)
        loop(device, progress, x, stop)
        iterations = progress.done / progress.columns
        detail = _detail(device, progress, iterations, (x, weight, y))
        if stream is not None:
            detail["stream"] = stream
        return iterations, detail


def _loop_cpu(device: WorkDevice, progress: _Progress, x: Tensor, stop: threading.Event) -> None:
    mm, clock = device.torch.mm, time.perf_counter
    pieces, widths, timings = progress.pieces, progress.widths, progress.timings
    spent_s = 0.0  # on the iteration under way
    while not progress.over(stop, progress.done):
        with device.turns:
            now = clock()
            turn_ends_s = now + TURN_S
            while now < turn_ends_s and not progress.over(stop, progress.done):
                at = progress.next
                weight, out = pieces[at]
                begin = clock()
                mm(x, weight, out=out)
                now = clock()
                spent_s += now - begin
                progress.kernel_s += now - begin
                progress.done += widths[at]
                progress.next = at + 1
                if progress.next == len(pieces):
                    timings.add(spent_s)
                    progress.next, spent_s = 0, 0.0
    if 0 < progress.done < progress.columns:
        timings.add(spent_s * progress.columns / progress.done)  # not one whole iteration: by its part


def _loop_cuda(device: WorkDevice, progress: _Progress, x: Tensor, stop: threading.Event) -> None:
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
            flying.append(_launch(device, progress, x, burst, launched))
            launched += flying[-1][3]
        if over or len(flying) >= 2:
            begin, end, count, columns = flying.popleft()
            end.synchronize()
            burst_s = begin.elapsed_time(end) / 1000
            progress.kernel_s += burst_s
            progress.timings.add(burst_s * progress.columns / columns, max(1, columns // progress.columns))
            progress.done += columns
            burst = _burst(burst_s / count, progress.until_s)


def _launch(device: WorkDevice, progress: _Progress, x: Tensor, burst: int, launched: int) -> tuple[Any, Any, int, int]:
    """Put up to `burst` pieces on the current stream between two events. Returns (begin, end, pieces, columns)."""
    mm, event = device.torch.mm, device.torch.cuda.Event
    pieces, widths, target, at = progress.pieces, progress.widths, progress.target, progress.next
    begin = event(enable_timing=True)
    end = event(enable_timing=True, blocking=True)  # its waiter sleeps instead of burning a core
    count, columns = 0, 0
    begin.record()
    while count < burst and (target is None or launched + columns < target):
        weight, out = pieces[at]
        mm(x, weight, out=out)
        columns += widths[at]
        count += 1
        at = at + 1 if at + 1 < len(pieces) else 0
    end.record()
    progress.next = at
    return begin, end, count, columns


def _burst(piece_s: float, until_s: float | None) -> int:
    """Pieces for the next burst: about BURST_S worth, and not beyond the end."""
    span_s = BURST_S if until_s is None else min(BURST_S, until_s - time.perf_counter())
    return max(1, min(1024, int(span_s / max(piece_s, 1e-7))))


def _detail(
    device: WorkDevice, progress: _Progress, iterations: float, product: tuple[Tensor, Tensor, Tensor]
) -> dict[str, Any]:
    detail: dict[str, Any] = {
        "measured": True,
        "flops": iterations * progress.iteration_flop,
        "kernel_s": progress.kernel_s,
        "iteration_p50_s": progress.timings.percentile(50),
        "iteration_p95_s": progress.timings.percentile(95),
        "iteration_p99_s": progress.timings.percentile(99),
        # Of the whole worker process since the run began: torch does not tell its tasks apart.
        "peak_memory_bytes": device.torch.cuda.max_memory_allocated() if device.kind == "cuda" else None,
    }
    if progress.done:
        error, tolerance = check_product(*product, min(progress.done, progress.columns), device.seed + progress.done)
        detail.update(max_rel_error=error, tolerance=tolerance, reference_ok=error <= tolerance)
    return detail
