"""The kinds of work a task may be, and what one iteration of each needs from a device.

Imports nothing of the project: anything with the sizes of a TaskSpec will do. In the formulas b is `batch`, i is
`input_size`, o is `output_size` and e the bytes of an element.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

# Number format -> bytes of an element. TF32 is how fp32 numbers are multiplied: they are stored as fp32.
DTYPE_BYTES: Final = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2}
DTYPES: Final = tuple(DTYPE_BYTES)
HEAD_WIDTH: Final = 64  # of attention: the width of its heads
CHUNK_BYTES: Final = 64 * 2**20  # of transfer: the most that is copied at once, and the size of its host buffers


class Sizes(Protocol):
    """The part of a TaskSpec that decides what its kernel costs: elements along each side, rows, number format."""

    @property
    def input_size(self) -> int: ...
    @property
    def output_size(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def dtype(self) -> str: ...


def _nothing(_: Sizes) -> float:
    return 0.0


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of work. The functions take the spec of a task.

    memory_bytes: device memory it holds while it runs. flops, bytes_moved and link_bytes: per iteration; bytes_moved
    crosses the device's memory bus, link_bytes the link between host and device. kernel: whether it runs a kernel at
    all (only then `iterations` means something). needs_length: whether a task must say how long it runs. dtypes: the
    number formats it knows. output_multiple: what output_size must be a multiple of. recorded: whether the record of a
    workload may name it; the others are submitted through the API alone.
    """

    name: str
    summary: str
    memory_bytes: Callable[[Sizes], int]
    flops: Callable[[Sizes], float]
    bytes_moved: Callable[[Sizes], float]
    kernel: bool = False
    needs_length: bool = True
    link_bytes: Callable[[Sizes], float] = _nothing
    dtypes: tuple[str, ...] = DTYPES
    output_multiple: int = 1
    recorded: bool = True


def linear_bytes(sizes: Sizes) -> int:
    """e (i o + b i + b o): the weight, the input and the output."""
    rows, width, height = sizes.batch, sizes.input_size, sizes.output_size
    return DTYPE_BYTES[sizes.dtype] * (width * height + rows * width + rows * height)


def linear_flops(sizes: Sizes) -> float:
    """2 b i o: a multiplication and an addition for each weight and row."""
    return 2.0 * sizes.batch * sizes.input_size * sizes.output_size


def linear_bytes_moved(sizes: Sizes) -> float:
    """Each of the three arrays crosses the memory bus once: the least that any kernel can move."""
    return float(linear_bytes(sizes))


def mlp_bytes(sizes: Sizes) -> int:
    """e (2 i o + 2 b i + b o): two weights, input and output of width i, the hidden layer of width o."""
    rows, width, hidden = sizes.batch, sizes.input_size, sizes.output_size
    return DTYPE_BYTES[sizes.dtype] * (2 * width * hidden + 2 * rows * width + rows * hidden)


def mlp_flops(sizes: Sizes) -> float:
    """4 b i o: two products. The comparisons of the ReLU between them are not counted."""
    return 2.0 * linear_flops(sizes)


def mlp_bytes_moved(sizes: Sizes) -> float:
    """e (2 i o + 2 b i + 4 b o): all arrays once, the hidden layer four times: written, read, written again, read."""
    return float(mlp_bytes(sizes) + DTYPE_BYTES[sizes.dtype] * 3 * sizes.batch * sizes.output_size)


def attention_bytes(sizes: Sizes) -> int:
    """5 e b i o + 4 b i o / 64: queries, keys, values, the heads' outputs, the merged output; an fp32 log-sum-exp per
    row and head, which the kernel keeps. No matrix of i x i scores: they stay in the kernel's fast memory."""
    elements = sizes.batch * sizes.input_size * sizes.output_size
    return DTYPE_BYTES[sizes.dtype] * 5 * elements + 4 * elements // HEAD_WIDTH


def attention_flops(sizes: Sizes) -> float:
    """4 b i² o: the two products of every head. The exponentials are not counted."""
    return 4.0 * sizes.batch * sizes.input_size**2 * sizes.output_size


def attention_bytes_moved(sizes: Sizes) -> float:
    """6 e b i o: queries, keys and values read once, the output written, read and written merged: the least."""
    return 6.0 * DTYPE_BYTES[sizes.dtype] * sizes.batch * sizes.input_size * sizes.output_size


def transfer_buffer_bytes(sizes: Sizes) -> int:
    """e b i: what is moved each way. output_size means nothing here."""
    return DTYPE_BYTES[sizes.dtype] * sizes.batch * sizes.input_size


def transfer_bytes(sizes: Sizes) -> int:
    """Two buffers on the device and two of at most 64 MiB on the host. All four count, for on a CPU device all four
    are memory of the device."""
    buffer = transfer_buffer_bytes(sizes)
    return 2 * buffer + 2 * min(buffer, CHUNK_BYTES)


def transfer_bytes_moved(sizes: Sizes) -> float:
    """4 e b i in the device's memory: written from the host, read and written on the device, read by the host."""
    return 4.0 * transfer_buffer_bytes(sizes)


def transfer_link_bytes(sizes: Sizes) -> float:
    """2 e b i: there and back."""
    return 2.0 * transfer_buffer_bytes(sizes)


def _no_bytes(_: Sizes) -> int:
    return 0


def _idle(name: str, summary: str, needs_length: bool) -> Kind:
    """A kind that runs no kernel of ours and holds no memory unless the task asks for some."""
    return Kind(name, summary, _no_bytes, _nothing, _nothing, kernel=False, needs_length=needs_length)


KINDS: Final[dict[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind("linear", "multiplies a batch by a weight", linear_bytes, linear_flops, linear_bytes_moved, kernel=True),
        Kind(
            "mlp",
            "two linear layers, input_size to output_size and back, with a ReLU between them",
            mlp_bytes,
            mlp_flops,
            mlp_bytes_moved,
            kernel=True,
        ),
        Kind(
            "attention",
            "scaled dot-product attention over batch sequences of input_size positions, output_size wide, heads of 64",
            attention_bytes,
            attention_flops,
            attention_bytes_moved,
            kernel=True,
            dtypes=("fp32", "fp16", "bf16"),
            output_multiple=HEAD_WIDTH,
        ),
        Kind(
            "transfer",
            "copies batch x input_size elements from the host to the device, on it, and back",
            transfer_bytes,
            _nothing,
            transfer_bytes_moved,
            kernel=True,
            link_bytes=transfer_link_bytes,
            dtypes=("fp32",),
        ),
        _idle("call", "a function of yours, by import path; where devices are simulated it is a sleep", False),
        Kind(
            "text_generation",
            "continues prompts; what it holds and costs follows from them and the text model, not from the sizes",
            _no_bytes,
            _nothing,
            _nothing,
            needs_length=False,
            dtypes=("fp32",),
            recorded=False,
        ),
        _idle("sleep", "holds the device and computes nothing", needs_length=True),
        _idle("noop", "ends at once", needs_length=False),
        _idle("hang", "never looks whether it should stop; its worker must be killed", needs_length=True),
        _idle("raise_error", "raises an error after duration_s", needs_length=False),
        _idle("crash_worker", "kills its own worker process after duration_s", needs_length=False),
    )
}
