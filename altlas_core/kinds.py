"""The kinds of work a task may be, and what one iteration of each needs from a device.

Imports nothing of the project: anything with the sizes of a TaskSpec will do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

FP32_BYTES: Final = 4


class Sizes(Protocol):
    """The part of a TaskSpec that decides what its kernel costs: elements along each side, and rows."""

    @property
    def input_size(self) -> int: ...
    @property
    def output_size(self) -> int: ...
    @property
    def batch(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of work. The three functions take the spec of a task.

    memory_bytes: device memory it holds while it runs. flops and bytes_moved: per iteration. kernel: whether it runs a
    kernel at all (only then `iterations` means something). needs_length: whether a task must say how long it runs.
    """

    name: str
    summary: str
    memory_bytes: Callable[[Sizes], int]
    flops: Callable[[Sizes], float]
    bytes_moved: Callable[[Sizes], float]
    kernel: bool = False
    needs_length: bool = True


def linear_bytes(sizes: Sizes) -> int:
    """Bytes of the fp32 weight (input x output), the input (batch x input) and the output (batch x output)."""
    rows, width, height = sizes.batch, sizes.input_size, sizes.output_size
    return FP32_BYTES * (width * height + rows * width + rows * height)


def linear_flops(sizes: Sizes) -> float:
    """A multiplication and an addition for each weight and row."""
    return 2.0 * sizes.batch * sizes.input_size * sizes.output_size


def linear_bytes_moved(sizes: Sizes) -> float:
    """Each of the three arrays crosses the memory bus once: the least that any kernel can move."""
    return float(linear_bytes(sizes))


def _no_bytes(_: Sizes) -> int:
    return 0


def _nothing(_: Sizes) -> float:
    return 0.0


def _idle(name: str, summary: str, needs_length: bool) -> Kind:
    """A kind that runs no kernel and holds no memory unless the task asks for some."""
    return Kind(name, summary, _no_bytes, _nothing, _nothing, kernel=False, needs_length=needs_length)


LINEAR: Final = Kind(
    "linear", "multiplies a batch by a weight", linear_bytes, linear_flops, linear_bytes_moved, kernel=True
)

KINDS: Final[dict[str, Kind]] = {
    kind.name: kind
    for kind in (
        LINEAR,
        _idle("sleep", "holds the device and computes nothing", needs_length=True),
        _idle("noop", "ends at once", needs_length=False),
        _idle("hang", "never looks whether it should stop; its worker must be killed", needs_length=True),
        _idle("raise_error", "raises an error after duration_s", needs_length=False),
        _idle("crash_worker", "kills its own worker process after duration_s", needs_length=False),
    )
}
