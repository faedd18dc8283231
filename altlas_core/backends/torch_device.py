"""The one device of a worker process: its memory, its kept weights, its streams. torch is imported when it is opened.

How the tasks of one device share it:
- CPU: kernels take turns (first come, first served, a few milliseconds each) and each uses all cores of the device.
  So a CPU device never computes on more cores than it was given, however many tasks it runs.
- CUDA: every task computes on a stream of its own; the hardware shares itself between them.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from altlas_core.backends.torch_order import Order

if TYPE_CHECKING:
    from torch import Tensor

# How torch says that memory is short where it does not raise OutOfMemoryError: its CPU allocator; what CUDA allocates
# beside torch's allocator (a kernel that is loaded, an event); cuBLAS, whose handles are made in each thread.
_OUT_OF_MEMORY: Final = ("can't allocate memory", "CUDA error: out of memory", "when calling `cublasCreate")


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


@dataclass(slots=True)
class _Held:
    weight: Tensor
    size_bytes: int
    users: int = 0


class WorkDevice:
    """The one device of this process: its torch device, its kept weights, the turns on it and the streams."""

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
        self._mine = threading.local()
        self.warm_up()  # loads libraries and, on CUDA, makes the context

    def warm_up(self) -> None:
        """A first product in the calling thread, which makes its stream and cuBLAS handle: before any task needs it."""
        with self.own_stream():
            warm = self.uniform(64, 64)
            (warm @ warm).sum().item()

    def renew(self, seed: int, memory_bytes: int) -> None:
        """Forget what an earlier run left, so that this one finds the device as a new worker would. Nothing may run."""
        with self._lock:
            self.seed = seed
            self._budget_bytes = memory_bytes
            self._weights.clear()
        if self.kind == "cuda":
            self.torch.cuda.empty_cache()
            self.torch.cuda.reset_peak_memory_stats()

    @contextmanager
    def own_stream(self) -> Iterator[int | None]:
        """Compute on the calling thread's own CUDA stream; at the end nothing of it is under way. Gives its id.

        One stream per thread, not per task: torch keeps a cuBLAS workspace (8 MiB, from Hopper on 32) for each pair of
        thread and stream, and never gives it back.
        """
        if self.kind != "cuda":
            yield None
            return
        stream = getattr(self._mine, "stream", None)
        if stream is None:
            stream = self._mine.stream = self.torch.cuda.Stream()
        with self.torch.cuda.stream(stream):
            try:
                yield int(stream.stream_id)
            finally:
                stream.synchronize()  # whatever happened: the memory that its kernels use is let go of next

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
            self.torch.cuda.current_stream().synchronize()  # other streams may use it from here on
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
        return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)

    def broken(self) -> bool:
        """Whether the CUDA context is beyond use, as after an illegal memory access.

        Such an error sticks: every later call of this process gives it again, whichever task calls.
        """
        if self.kind != "cuda":
            return False
        for _ in range(2):  # an error that does not stick is given once
            try:
                self.torch.cuda.synchronize()
            except RuntimeError:
                continue
            return False
        return True
