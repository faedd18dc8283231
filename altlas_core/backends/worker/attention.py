"""The kind `attention`: batch sequences of input_size positions, output_size wide, in heads of 64; no mask.

An iteration is softmax(q k' / 8) v of every head and putting the heads side by side again, as a model needs them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from altlas_core.backends.worker.device import WorkDevice
from altlas_core.backends.worker.loop import Job, most_flop
from altlas_core.backends.worker.order import Order
from altlas_core.backends.worker.reference import (
    FP32_ROUNDOFF,
    RESULT_ROUNDOFF,
    Verdict,
    blocks,
    cut,
    finite_or_inf,
    sum_bound,
)
from altlas_core.backends.worker.results import run_kernel
from altlas_core.kinds import HEAD_WIDTH

if TYPE_CHECKING:
    from torch import Tensor

_ROWS: Final = 8  # sampled; each is 64 outputs
_SCALE: Final = 1 / math.sqrt(HEAD_WIDTH)
_SHARPER: Final = 8.0  # queries times this: weights that differ. A power of two, so exact in every format

Part = tuple[slice, slice, slice]  # sequences, heads, positions


def run_attention(
    device: WorkDevice, order: Order, stop: threading.Event, begun_s: float
) -> tuple[float, dict[str, Any]]:
    """Attend until duration or iterations are reached, or `stop` is set."""
    with device.weights(order):
        return run_kernel(device, order, stop, begun_s, lambda: attention_job(device, order))


def attention_job(device: WorkDevice, order: Order) -> Job:
    """Cut by sequences, heads or positions, whichever are few enough. See _check for what is checked."""
    torch, heads = device.torch, order.output_size // HEAD_WIDTH
    shape = (order.batch, heads, order.input_size, HEAD_WIDTH)
    rows = order.batch * heads * order.input_size
    q, k, v = (part.view(shape) for part in cut(device.uniform(3 * rows, HEAD_WIDTH, order.dtype), rows))
    q *= _SHARPER
    v[..., 0] = 1.0  # so that output 0 of every row is the sum of its weights, which is 1
    y = torch.full((order.batch, order.input_size, heads, HEAD_WIDTH), math.nan, dtype=q.dtype, device=device.device)
    parts = list(_parts(order, heads, most_flop(device, order.dtype)))
    torch.full_like(q[parts[0][0], parts[0][1], parts[0][2]], math.nan)  # and given back: what the kernel finds there
    attend = partial(_attend, torch.nn.functional.scaled_dot_product_attention, (q, k, v), y)

    def check(written: int, seed: int) -> dict[str, Any]:
        return _check((q, k, v), y, parts[:written], written == len(parts), seed, order.dtype)

    return Job(order.dtype, [partial(attend, part) for part in parts], [_units(part) for part in parts], check)


def _attend(attention: Any, qkv: tuple[Tensor, Tensor, Tensor], y: Tensor, part: Part) -> None:
    sequences, heads, positions = part
    q, k, v = qkv
    out = attention(q[sequences, heads, positions], k[sequences, heads], v[sequences, heads])
    y[sequences, positions, heads].copy_(out.transpose(1, 2))


def _units(part: Part) -> int:
    """Rows of one head."""
    return math.prod(each.stop - each.start for each in part)


def _parts(order: Order, heads: int, limit_flop: float) -> Iterator[Part]:
    length = order.input_size
    rows = max(1, int(limit_flop / (4.0 * HEAD_WIDTH * length)))  # of one head, in a piece
    sequences_each = min(order.batch, max(1, rows // (heads * length)))
    heads_each = min(heads, max(1, rows // length))
    rows_each = min(length, rows - rows % 64 if rows >= 128 else rows)  # whole tiles
    for first in range(0, order.batch, sequences_each):
        sequences = slice(first, min(order.batch, first + sequences_each))
        for head in range(0, heads, heads_each):
            for row in range(0, length, rows_each):
                yield sequences, slice(head, min(heads, head + heads_each)), slice(row, min(length, row + rows_each))


def _check(
    qkv: tuple[Tensor, Tensor, Tensor], y: Tensor, parts: list[Part], whole: bool, seed: int, dtype: str
) -> dict[str, Any]:
    """Sampled rows against float64; and of every row of every head that the weights sum to one.

    `checksum` is the sum of the sampled rows, for the sum of all has no other way to it than attention itself.
    """
    import torch

    pick = torch.Generator().manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
    error, tolerance = _weights_error(y, [(slice(None),) * 3] if whole else parts, dtype), math.inf
    checksum = reference = allowed = 0.0
    for _ in range(_ROWS):
        part = parts[int(torch.randint(len(parts), (1,), generator=pick))]
        at, head, row = (int(torch.randint(each.start, each.stop, (1,), generator=pick)) for each in part)
        right, magnitude, bound = _reference_row(qkv[0][at, head, row], qkv[1][at, head], qkv[2][at, head], dtype)
        got = y[at, row, head].double()
        rounding = RESULT_ROUNDOFF[dtype] * right.abs()
        excess = ((got - right).abs() - rounding).clamp_min(0.0) / magnitude
        error, tolerance = max(error, finite_or_inf(excess.max().item())), min(tolerance, bound)
        checksum, reference = checksum + got.sum().item(), reference + right.sum().item()
        allowed += (bound * magnitude + rounding).sum().item()
    return Verdict(error, tolerance, checksum, reference, allowed).detail()


def _weights_error(y: Tensor, parts: list[Part], dtype: str) -> float:
    """How far output 0 of any row is from one, beyond the rounding of the result."""
    worst = max(
        finite_or_inf((y[sequences, rows, heads, 0].float() - 1.0).abs().max().item())
        for sequences, heads, rows in parts
    )
    return max(0.0, worst - RESULT_ROUNDOFF[dtype])


def _reference_row(q: Tensor, k: Tensor, v: Tensor, dtype: str) -> tuple[Tensor, Tensor, float]:
    """(outputs, sum of weight x |v| for each, bound of the error relative to that) of one query, in float64.

    With u = 2^-24: a score is an fp32 sum of 64 products, scaled, so it is off by at most d = (64 + 3) u max sum |q||k|
    / 8, and its exponential by a factor within exp(d) and some u of the function itself. Numerator and denominator
    have such factors, and are fp32 sums of their length: exp(2 d) - 1 + 2 gamma_s + 16 u. Formats of 16 bits round the
    weights once more before they are multiplied by v.
    """
    import torch

    query = q.double()
    scores = torch.cat([block @ query for block in blocks(k)]) * _SCALE
    largest = max((block.abs_() @ query.abs()).max().item() for block in blocks(k)) * _SCALE
    weights = torch.softmax(scores, 0)
    right, magnitude, at = torch.zeros_like(query), torch.zeros_like(query), 0
    for block in blocks(v):
        share = weights[at : at + len(block)]
        right += share @ block
        magnitude += share @ block.abs_()
        at += len(block)
    score_error = (HEAD_WIDTH + 3) * FP32_ROUNDOFF * largest
    bound = math.expm1(2 * score_error) + 2 * sum_bound(len(k)) + 16 * FP32_ROUNDOFF + RESULT_ROUNDOFF[dtype]
    return right, magnitude, bound * (1 + RESULT_ROUNDOFF[dtype])
