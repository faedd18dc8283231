"""The one device of a worker process: its memory, its kept weights, its streams. torch is imported when it is opened.

How the tasks of one device share it:
- CPU: kernels take turns (first come, first served, a few milliseconds each) and each uses all cores of the device.
  So a CPU device never computes on more cores than it was given, however many tasks it runs.
- CUDA: every task computes on a stream of its own; the hardware shares itself between them.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from altlas_core.backends.worker.memory import CudaMemory, Memory, Meter, Usage, explain_shortage
from altlas_core.backends.worker.order import Order
from altlas_core.backends.worker.precision import Precision
from altlas_core.backends.worker.process_memory import ProcessMemory
from altlas_core.backends.worker.turnstile import Turnstile

if TYPE_CHECKING:
    from torch import Tensor

# How torch says that memory is short where it does not raise OutOfMemoryError: its CPU allocator; C++; oneDNN, whose
# kernels are compiled when first used; what CUDA allocates beside torch's allocator (a kernel that is loaded, an
# event); cuBLAS, whose handles are made in each thread.
_OUT_OF_MEMORY: Final = (
    "can't allocate memory",
    "std::bad_alloc",
    "could not create a primitive",
    "CUDA error: out of memory",
    "when calling `cublasCreate",
)
_BALLAST_BYTES: Final = 1 << 20  # of host memory: thrown off when nothing else is left
# Kinds that compute nothing: what a task of them reserves it does not use, and looking would cost more than the task.
_IDLE_KINDS: Final = frozenset({"sleep", "noop", "hang", "raise_error", "crash_worker"})


WeightKey = tuple[int, int, str, int]  # rows, columns, number format, which of several alike
ModelKey = tuple[str, str]  # "model", its name


@dataclass(slots=True, eq=False)
class Weight:
    """A weight that tasks share. `sums` is what the check of their results once found out about it.

    `tensor` is a Tensor, or for a text model all that computes with its weights.
    """

    tensor: Any
    size_bytes: int
    users: int = 0
    sums: Any = None


class WorkDevice:
    """The one device of this process: its torch device, its kept weights, the turns on it and the streams."""

    def __init__(self, kind: str, cores: int, seed: int, memory_bytes: int, parts: int = 1) -> None:
        """`memory_bytes`: what tasks may use, enforced from `limit_memory` on; `parts`: into how many it was split."""
        import torch

        self.torch: Any = torch
        self.kind = kind
        self.seed = seed
        self.turns = Turnstile()
        torch.set_num_threads(cores)
        torch.set_float32_matmul_precision("highest")  # fp32 means fp32, not TF32
        products = torch.backends.cuda.matmul  # sums stay fp32, also where a product is cut along its length
        products.allow_fp16_reduced_precision_reduction = products.allow_bf16_reduced_precision_reduction = False
        self.precision = Precision(torch)
        self.device = torch.device("cuda:0" if kind == "cuda" else "cpu")
        self._budget_bytes = memory_bytes
        self._reserved_bytes = 0
        self._weights: OrderedDict[WeightKey | ModelKey, Weight] = OrderedDict()
        self._lock = threading.Lock()
        self._loading = threading.Lock()  # of a text model; taken before the other, which is never held for long
        self._mine = threading.local()
        self.memory: Memory = CudaMemory(torch, parts) if kind == "cuda" else ProcessMemory(cores)
        self.meter = Meter(self.memory)
        self._ballast: bytearray | None = bytearray(_BALLAST_BYTES)
        self.warm_up()  # loads libraries and, on CUDA, makes the context

    def warm_up(self) -> None:
        """A first product in the calling thread, which makes its stream and cuBLAS handle: before any task needs it."""
        with self.own_stream():
            warm = self.uniform(64, 64)
            (warm @ warm).sum().item()
            if self.kind != "cuda":  # oneDNN does not survive it if memory is short when it is first used
                half = warm.bfloat16()
                (half @ half).sum().item()

    # --- memory ---------------------------------------------------------------------------------------------------

    def limit_memory(self, slots: int) -> None:
        """Hold the tasks of this worker to its device's memory, or to its part of it, from now on.

        Nothing may run, and the threads of all slots are there and warm. Where it cannot be enforced,
        `memory.problem` says why.
        """
        self.memory.limit(self._budget_bytes, slots)

    def lift_memory_limit(self) -> None:
        """Until `limit_memory`: threads may be started, which need memory of their own."""
        self.memory.lift()

    @contextmanager
    def metered(self, order: Order) -> Iterator[Usage | None]:
        """Follow what an attempt uses of the memory while it lasts; None for kinds that use none."""
        if order.kind in _IDLE_KINDS:
            yield None
            return
        self._mine.held = ()
        usage = self.meter.begin(order.memory_bytes)
        try:
            yield usage
        finally:
            self.meter.end(usage)

    def explain_out_of_memory(self, error: BaseException, order: Order) -> tuple[str, int | None, int | None]:
        """(sentence, bytes needed, bytes free) for an error of the calling thread's task; None: not known.

        To be asked while the error is being handled: its traceback still holds what the task held.
        """
        self._ballast = None  # so that there is something to explain it with
        with self._lock:
            held = [self._weights[key] for key in set(getattr(self._mine, "held", ())) if key in self._weights]
            own_bytes = sum(weight.size_bytes for weight in held if not weight.users)
        return explain_shortage(error, order.memory_bytes, own_bytes, self.meter)

    def _idle_bytes(self) -> int:
        return sum(held.size_bytes for held in self._weights.values() if not held.users)

    # --- runs, streams, tensors -----------------------------------------------------------------------------------

    def renew(self, seed: int, memory_bytes: int) -> None:
        """Forget what an earlier run left, so that this one finds the device as a new worker would. Nothing may run."""
        with self._lock:
            self.seed = seed
            self._budget_bytes = memory_bytes
            self._weights.clear()
            self.meter.idle_changed(0)
        if self.kind == "cuda":
            self.torch.cuda.empty_cache()

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

    def uniform(self, rows: int, columns: int, dtype: str = "fp32", copy: int = 0) -> Tensor:
        """Values in [-1, 1), the same for the same seed, shape, number format, `copy` and kind of device.

        Those of tf32 are fp32 numbers that TF32, with its 10 bits of mantissa, holds exactly.
        """
        torch = self.torch
        name = f"{self.seed}:{rows}x{columns}" + ("" if dtype == "fp32" else f":{dtype}") + (f":{copy}" if copy else "")
        digest = hashlib.sha256(name.encode()).digest()
        generator = torch.Generator(device=self.device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        tensor: Tensor = torch.empty((rows, columns), dtype=self.element(dtype), device=self.device)
        tensor.uniform_(-1, 1, generator=generator)
        if dtype == "tf32":
            tensor.view(torch.int32).bitwise_and_(-1 << 13)
        return tensor

    def element(self, dtype: str) -> Any:
        """The torch.dtype that numbers of this format are stored in."""
        names = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}
        return getattr(self.torch, names[dtype])

    @contextmanager
    def weights(self, order: Order, *shapes: tuple[int, int]) -> Iterator[tuple[Weight, ...]]:
        """The weights of these shapes (of equal shapes different ones), in the order's number format: made once, shared
        by all tasks of the device.

        Meanwhile what the order reserves counts as reserved, also without any weight.
        """
        taken: list[Weight] = []
        keys = self._mine.held = [
            (*shape, order.dtype, shapes[:place].count(shape)) for place, shape in enumerate(shapes)
        ]
        with self._lock:
            self._reserved_bytes += order.memory_bytes
        try:
            with self._lock:
                self._take(taken, keys)
            yield tuple(taken)
        finally:
            with self._lock:
                for weight in taken:
                    weight.users -= 1
                self._reserved_bytes -= order.memory_bytes
                self.meter.idle_changed(self._idle_bytes())

    @contextmanager
    def model(self, order: Order, name: str, load: Callable[[], tuple[Any, int]]) -> Iterator[Any]:
        """The text model of this name as `load` gives it (with its bytes): loaded once, shared by all tasks.

        Another one that nobody uses is let go of first. Meanwhile what the order reserves counts as reserved.
        """
        key: ModelKey = ("model", name)
        self._mine.held = [key]
        weight: Weight | None = None
        with self._lock:
            self._reserved_bytes += order.memory_bytes
        try:
            with self._loading:
                weight = self._use_model(key)
                if weight is None:
                    made, size_bytes = load()
                    if self.kind == "cuda":
                        self.torch.cuda.synchronize()  # other streams may use it from here on
                    with self._lock:
                        weight = self._weights[key] = Weight(made, size_bytes, users=1)
            yield weight.tensor
        finally:
            with self._lock:
                if weight is not None:
                    weight.users -= 1
                self._reserved_bytes -= order.memory_bytes
                self.meter.idle_changed(self._idle_bytes())

    def _use_model(self, key: ModelKey) -> Weight | None:
        """Become a user of this model if it is there; else make room for it."""
        with self._lock:
            weight = self._weights.get(key)
            if weight is not None:
                weight.users += 1
                self._weights.move_to_end(key)
            else:
                others = [at for at, held in self._weights.items() if at[0] == key[0] and not held.users]
                for other in others:
                    del self._weights[other]
            self._drop_idle()
            self.meter.idle_changed(self._idle_bytes())
            return weight

    def _take(self, taken: list[Weight], keys: list[WeightKey]) -> None:
        """Become a user of these weights, each as soon as it is there. With the lock held."""
        self._drop_idle(keep=[self._weights[key] for key in keys if key in self._weights])
        for key in keys:
            weight = self._weights.get(key)
            if weight is None:
                weight = self._weights[key] = self._make(*key)
            self._weights.move_to_end(key)
            weight.users += 1
            taken.append(weight)
        self.meter.idle_changed(self._idle_bytes())

    def _make(self, rows: int, columns: int, dtype: str, copy: int) -> Weight:
        tensor = self.uniform(rows, columns, dtype, copy)
        if self.kind == "cuda":
            self.torch.cuda.current_stream().synchronize()  # other streams may use it from here on
        return Weight(tensor, rows * columns * tensor.element_size())

    def _drop_idle(self, keep: Sequence[Weight] = ()) -> None:
        """Weights nobody uses may only fill what running tasks have not reserved; the longest unused goes first."""
        idle = [(key, held) for key, held in self._weights.items() if not held.users and held not in keep]
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
            self.meter.idle_changed(0)
        self.memory.give_back()
        with suppress(MemoryError):  # other tasks have taken what there was
            self._ballast = bytearray(_BALLAST_BYTES)

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
