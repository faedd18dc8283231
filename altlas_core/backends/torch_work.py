"""The kernels a worker process runs, and how their results are checked. torch is imported when a device is opened.

How the tasks of one device share it:
- CPU: kernels take turns (first come, first served, a few milliseconds each) and each uses all cores of the device.
  So a CPU device never computes on more cores than it was given, however many tasks it runs.
- CUDA: every task has a stream of its own; the hardware shares itself between them.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor

CPU_KERNEL_FLOP: Final = 5e9  # a larger product is cut into pieces: about 50 ms on one core of today
CUDA_KERNEL_FLOP: Final = 2e11  # 20 ms at 10 TFLOP/s
TURN_S: Final = 0.005  # a task keeps the CPU device at least so long, so that handing it on costs little
BURST_S: Final = 0.01  # kernels between two CUDA events; two bursts are in flight
SAMPLES: Final = 16
UNIT_ROUNDOFF_FP32: Final = 2.0**-24


@dataclass(slots=True, frozen=True)
class Order:
    """What one attempt asks for: TaskSpec's fields of the same names, defaults filled in."""

    kind: str
    duration_s: float | None
    iterations: float | None
    input_size: int
    output_size: int
    batch: int
    memory_bytes: int


class Turnstile:
    """A lock that is passed on in the order of arrival; threading.Lock lets the same thread win again and again."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        self._line: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._line.append(gate)
        gate.acquire()

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._line:
                self._line.popleft().release()
            else:
                self._taken = False


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
        for _ in range(times):
            if self._seen % self._every == 0:
                self._kept.append(seconds)
                if len(self._kept) >= self._limit:
                    del self._kept[1::2]
                    self._every *= 2
            self._seen += 1

    def percentile(self, percent: float) -> float | None:
        """Nearest rank; None without a measurement."""
        if not self._kept:
            return None
        ordered = sorted(self._kept)
        return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


@dataclass(slots=True)
class _Held:
    weight: Tensor
    size_bytes: int
    users: int = 0


class WorkDevice:
    """The one device of this process: its torch device, its kept weights and the turns on it."""

    def __init__(self, kind: str, cores: int, seed: int, memory_bytes: int) -> None:
        import torch

        self.torch: Any = torch
        self.kind = kind
        self.seed = seed
        self.turns = Turnstile()
        torch.set_num_threads(cores)
        torch.set_float32_matmul_precision("highest")  # fp32 means fp32, not TF32
        self.device = torch.device("cuda:0" if kind == "cuda" else "cpu")
        self._budget_bytes = memory_bytes
        self._reserved_bytes = 0
        self._weights: OrderedDict[tuple[int, int], _Held] = OrderedDict()
        self._lock = threading.Lock()
        # The first product loads libraries and, on CUDA, makes the context: not at the expense of the first task.
        warm = self.uniform(64, 64)
        (warm @ warm).sum().item()

    def uniform(self, rows: int, columns: int) -> Tensor:
        """fp32 values in [-1, 1), the same for the same seed, shape and kind of device."""
        torch = self.torch
        digest = hashlib.sha256(f"{self.seed}:{rows}x{columns}".encode()).digest()
        generator = torch.Generator(device=self.device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        tensor: Tensor = torch.empty((rows, columns), device=self.device).uniform_(-1, 1, generator=generator)
        return tensor

    @contextmanager
    def weight(self, order: Order) -> Iterator[Tensor]:
        """The weight of these sizes, made once and shared by all tasks of the device that use it."""
        key = (order.input_size, order.output_size)
        with self._lock:
            self._reserved_bytes += order.memory_bytes
            try:
                held = self._weights.get(key)
                self._drop_idle(keep=held)
                if held is None:
                    held = self._weights[key] = self._make(*key)
            except BaseException:
                self._reserved_bytes -= order.memory_bytes
                raise
            self._weights.move_to_end(key)
            held.users += 1
        try:
            yield held.weight
        finally:
            with self._lock:
                held.users -= 1
                self._reserved_bytes -= order.memory_bytes

    def _make(self, rows: int, columns: int) -> _Held:
        weight = self.uniform(rows, columns)
        if self.kind == "cuda":
            self.torch.cuda.synchronize()  # other streams may use it from here on
        return _Held(weight, rows * columns * weight.element_size())

    def _drop_idle(self, keep: _Held | None = None) -> None:
        """Weights nobody uses may only fill what running tasks have not reserved; the longest unused goes first."""
        idle = [(key, held) for key, held in self._weights.items() if not held.users and held is not keep]
        room = self._budget_bytes - self._reserved_bytes
        kept_bytes = sum(held.size_bytes for _, held in idle)
        for key, held in idle:
            if kept_bytes <= room:
                break
            kept_bytes -= held.size_bytes
            del self._weights[key]

    def free_memory(self) -> None:
        """After an out-of-memory error: let go of everything that no task uses."""
        with self._lock:
            for key in [key for key, held in self._weights.items() if not held.users]:
                del self._weights[key]
        if self.kind == "cuda":
            self.torch.cuda.empty_cache()

    def out_of_memory(self, error: BaseException) -> bool:
        if isinstance(error, MemoryError | self.torch.OutOfMemoryError):
            return True
        return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's CPU allocator


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
    with device.weight(order) as weight:
        x = device.uniform(order.batch, order.input_size)
        # NaN, so that what no kernel has written can never pass for a result.
        y = torch.full((order.batch, order.output_size), math.nan, device=device.device)
        if device.kind == "cuda":
            torch.cuda.synchronize()
        progress = _Progress(order, weight, y, limit, until_s)
        loop(device, progress, x, stop)
        iterations = progress.done / progress.columns
        return iterations, _detail(device, progress, iterations, (x, weight, y))


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

    Times come from events on the task's stream, one per burst: the mean over the burst, neighbours' share included.
    """
    cuda, mm = device.torch.cuda, device.torch.mm
    pieces, widths = progress.pieces, progress.widths
    flying: deque[tuple[Any, Any, int, int]] = deque()
    launched, burst, piece_s = 0, 1, 0.0
    with cuda.stream(cuda.Stream()):
        while True:
            over = progress.over(stop, launched)
            if over and not flying:
                return
            if not over:
                begin, end = (cuda.Event(enable_timing=True, blocking=True) for _ in range(2))
                begin.record()
                count, columns = 0, 0
                while count < burst and (progress.target is None or launched + columns < progress.target):
                    weight, out = pieces[progress.next]
                    mm(x, weight, out=out)
                    columns += widths[progress.next]
                    progress.next = (progress.next + 1) % len(pieces)
                    count += 1
                end.record()
                launched += columns
                flying.append((begin, end, count, columns))
            if over or len(flying) >= 2:
                begin, end, count, columns = flying.popleft()
                end.synchronize()
                burst_s = begin.elapsed_time(end) / 1000
                piece_s = burst_s / count
                progress.kernel_s += burst_s
                progress.timings.add(burst_s * progress.columns / columns, max(1, columns // progress.columns))
                progress.done += columns
                burst = _burst(piece_s, progress.until_s)


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
        # Of the whole worker process: torch does not tell its tasks apart.
        "peak_memory_bytes": device.torch.cuda.max_memory_allocated() if device.kind == "cuda" else None,
    }
    if progress.done:
        error, tolerance = check_product(*product, min(progress.done, progress.columns), device.seed + progress.done)
        detail.update(max_rel_error=error, tolerance=tolerance, reference_ok=error <= tolerance)
    return detail
