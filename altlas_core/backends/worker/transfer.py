"""The kind `transfer`: batch x input_size fp32 elements from the host to the device, on it, and back to the host.

On CUDA the host's buffers are pinned and the copies go over the link. On a CPU device all of it is one memory, and
`link` in the detail says so. The host's buffers hold a chunk, which is used again and again; the device's hold all.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from altlas_core.backends.worker.device import WorkDevice
from altlas_core.backends.worker.loop import Job
from altlas_core.backends.worker.order import Order
from altlas_core.backends.worker.reference import cut
from altlas_core.backends.worker.results import run_kernel
from altlas_core.kinds import CHUNK_BYTES, DTYPE_BYTES

if TYPE_CHECKING:
    from torch import Tensor

LEGS: Final = ("to_device", "on_device", "to_host")
_TIMED: Final = 64  # copies of each leg that are timed one by one
_BLOCK: Final = 1 << 20  # elements compared at a time


def run_transfer(
    device: WorkDevice, order: Order, stop: threading.Event, begun_s: float
) -> tuple[float, dict[str, Any]]:
    """Copy until duration or iterations are reached, or `stop` is set."""
    with device.weights(order):
        return run_kernel(device, order, stop, begun_s, lambda: transfer_job(device, order))


class _Leg:
    """Copies from one place to another, the first of which are timed."""

    def __init__(self, device: WorkDevice) -> None:
        self._cuda = device.torch.cuda if device.kind == "cuda" else None
        self._events: list[tuple[Any, Any]] = []
        self._seconds = 0.0
        self._bytes = 0
        self._count = 0

    def copy(self, source: Tensor, destination: Tensor) -> None:
        if self._count == _TIMED:
            destination.copy_(source, non_blocking=True)
            return
        self._count += 1
        self._bytes += source.numel() * source.element_size()
        if self._cuda is None:
            begin_s = time.perf_counter()
            destination.copy_(source)
            self._seconds += time.perf_counter() - begin_s
            return
        begin, end = self._cuda.Event(enable_timing=True), self._cuda.Event(enable_timing=True)
        begin.record()
        destination.copy_(source, non_blocking=True)
        end.record()
        self._events.append((begin, end))

    def gb_per_s(self) -> float | None:
        """Of the timed ones, each byte counted once; None before the first. All of them have ended."""
        seconds = self._seconds + sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
        return self._bytes / seconds / 1e9 if seconds else None


def transfer_job(device: WorkDevice, order: Order) -> Job:
    """All chunks to the device, then all on it, then all back. Checked: that every byte is where it belongs."""
    torch, elements = device.torch, order.batch * order.input_size
    chunk = min(elements, CHUNK_BYTES // DTYPE_BYTES[order.dtype])
    cuda = device.kind == "cuda"
    host, back = (torch.empty(chunk, pin_memory=cuda) for _ in range(2))
    host.copy_(device.uniform(1, chunk).view(-1))
    there, copied = (torch.full((elements,), math.nan, device=device.device) for _ in range(2))
    back.fill_(math.nan)
    legs = {name: _Leg(device) for name in LEGS}
    spans = [slice(at, min(elements, at + chunk)) for at in range(0, elements, chunk)]
    lengths = [span.stop - span.start for span in spans]
    pieces: list[Callable[[], object]] = [
        *(partial(legs["to_device"].copy, host[: span.stop - span.start], there[span]) for span in spans),
        *(partial(legs["on_device"].copy, there[span], copied[span]) for span in spans),
        *(partial(legs["to_host"].copy, copied[span], back[: span.stop - span.start]) for span in spans),
    ]

    def check(written: int, _seed: int) -> dict[str, Any]:
        reached = [min(len(spans), max(0, written - len(spans) * leg)) for leg in range(3)]
        wrong = _wrong(host, there, copied, spans, reached)
        wrong += _differing(back[: lengths[reached[2] - 1]], host) if reached[2] else 0
        checksum = sum(_sum(there[span]) for span in spans[: reached[0]])
        reference = sum(_sum(host[:length]) for length in lengths[: reached[0]])
        return {
            "link": "pinned host memory" if cuda else "a memory copy: a CPU device has no link",
            **{f"{name}_gb_per_s": leg.gb_per_s() for name, leg in legs.items()},
            "max_rel_error": float(wrong),
            "tolerance": 0.0,
            "checksum": checksum,
            "checksum_reference": reference,
            "checksum_tolerance": 0.0,
            "reference_ok": wrong == 0 and checksum == reference,
        }

    return Job(order.dtype, pieces, lengths * 3, check)


def _wrong(host: Tensor, there: Tensor, copied: Tensor, spans: list[slice], reached: list[int]) -> int:
    """Elements on the device that are not those of the host, among what each leg has reached. The first chunk is
    compared on the host; if it is right, the others are compared with it where they are."""
    first = there[spans[0]]
    wrong = _differing(first.cpu(), host)
    for buffer, chunks in ((there, reached[0]), (copied, reached[1])):
        wrong += sum(_differing(buffer[span], first) for span in spans[:chunks])
    return wrong


def _differing(found: Tensor, expected: Tensor) -> int:
    """How many elements differ, bit for bit, from the first as many expected."""
    pairs = zip(cut(_bits(found), _BLOCK), cut(_bits(expected)[: len(found)], _BLOCK), strict=True)
    return sum(int((one != other).sum().item()) for one, other in pairs)


def _sum(tensor: Tensor) -> int:
    """Of the bit patterns as whole numbers: exact, in any order."""
    return sum(int(part.sum().item()) for part in cut(_bits(tensor), _BLOCK))


def _bits(tensor: Tensor) -> Tensor:
    import torch

    return tensor.view(torch.int32)
