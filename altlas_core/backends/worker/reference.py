"""What products should be, found another way and in float64: sampled elements, and the sum of all.

The numbers multiplied are those of the number format itself, so their products are exact in fp32 and what is left to
bound is the fp32 sum, whose order is the kernel's, and the rounding of the result to its format.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor

    from altlas_core.backends.worker.device import Weight

SAMPLES: Final = 16
FP32_ROUNDOFF: Final = 2.0**-24
RESULT_ROUNDOFF: Final = {"fp32": 0.0, "tf32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8}  # a sum in fp32 is not rounded
SMALLEST_ROUNDOFF: Final = {"fp32": 0.0, "tf32": 0.0, "fp16": 2.0**-25, "bf16": 0.0}  # absolute, among subnormals
LAMBDA: Final = 8.0  # a martingale's sum passes lambda standard bounds with probability 2 exp(-lambda^2 / 2): 3e-14
# Elements that are turned into float64 at a time: few enough for a core's cache, or enough for a GPU.
_CPU_BLOCK: Final = 1 << 16
_CUDA_BLOCK: Final = 1 << 20


@dataclass(slots=True, frozen=True)
class Verdict:
    """`error` and `tolerance` are of the worst of the sampled results, relative to the sum of the magnitudes that were
    added; `checksum`, `reference` and `checksum_tolerance` are absolute, None where there is nothing to sum yet. What
    is not finite is never right."""

    error: float
    tolerance: float
    checksum: float | None = None
    reference: float | None = None
    checksum_tolerance: float | None = None

    def detail(self) -> dict[str, Any]:
        """As fields of an attempt's detail. A sum that is not finite is told as None, which JSON can say."""
        sums = (self.checksum, self.reference, self.checksum_tolerance)
        finite = [each if each is not None and math.isfinite(each) else None for each in sums]
        return {
            "max_rel_error": self.error,
            "tolerance": self.tolerance,
            "checksum": finite[0],
            "checksum_reference": finite[1],
            "checksum_tolerance": finite[2],
            "reference_ok": self.error <= self.tolerance and self._sum_is_right(),
        }

    def _sum_is_right(self) -> bool:
        if self.checksum is None or self.reference is None or self.checksum_tolerance is None:
            return True
        return abs(self.checksum - self.reference) <= self.checksum_tolerance < math.inf  # NaN is never


@dataclass(slots=True, frozen=True)
class WeightSums:
    """Of a weight: the sum of each row, in float64, and its Frobenius norm."""

    rows: Tensor
    norm: float


def worst_of(*judged: tuple[float, float]) -> tuple[float, float]:
    """Of several (error, tolerance) the one nearest to failing, or beyond."""
    return max(judged, key=lambda pair: pair[0] / pair[1])


def sum_bound(n: int) -> float:
    """gamma_n = n u / (1 - n u): relative to the sum of magnitudes, the error of an fp32 sum of n products in any order
    (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., eq. 3.5)."""
    rounding = n * FP32_ROUNDOFF
    return rounding / (1 - rounding)


def finite_or_inf(value: float) -> float:
    """NaN and infinity count as an infinite error."""
    return value if math.isfinite(value) else math.inf


def check_product(
    x: Tensor, weight: Tensor, y: Tensor, columns: int, seed: int, dtype: str = "fp32", relu: bool = False
) -> tuple[float, float]:
    """Compare sampled elements of the first `columns` columns of y with x @ weight (with its negative part cut off if
    `relu`) in float64.

    Returns (largest error beyond the rounding of the result itself, tolerance), both relative to sum |x||w| of the
    element. The tolerance is gamma_n (1 + u) with u the unit roundoff of the result's format.
    """
    import torch

    pick = torch.Generator().manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
    rows = torch.randint(x.shape[0], (SAMPLES,), generator=pick)
    cols = torch.randint(columns, (SAMPLES,), generator=pick)
    rows_there, cols_there = rows.to(y.device), cols.to(y.device)
    got = y[rows_there, cols_there].cpu().double()
    products = x[rows_there].cpu().double() * weight[:, cols_there].T.cpu().double()
    right = products.sum(1).clamp_min(0.0 if relu else -math.inf)
    excess = (got - right).abs() - RESULT_ROUNDOFF[dtype] * right.abs() - SMALLEST_ROUNDOFF[dtype]
    error = (excess.clamp_min(0.0) / products.abs().sum(1).clamp_min(1e-300)).max().item()
    return finite_or_inf(error), sum_bound(x.shape[1]) * (1 + RESULT_ROUNDOFF[dtype])


def check_sum(x: Tensor, weight: Weight, y: Tensor, columns: int, dtype: str) -> tuple[float, float, float]:
    """The sum of the first `columns` columns of y = x @ weight, what it should be, and how far apart they may be.

    What it should be is (1' x)(weight 1), which has no product of matrices in it. The rounding errors of n b o
    additions, each at most u times the magnitude of a sum under way, are taken as independent with mean zero given
    those before (Higham and Mary, "A New Approach to Probabilistic Rounding Error Analysis", SIAM J. Sci. Comput. 41,
    2019). By the Azuma-Hoeffding inequality their sum then exceeds lambda u sqrt(n) |x| |weight| + lambda u' |y| with
    probability 2 exp(-lambda^2 / 2) at most; |.| is the Frobenius norm, u' the roundoff of the result's format.
    """
    sums = _sums(weight, columns)
    checksum = sum(block.sum().item() for block in blocks(y[:, :columns]))
    x_columns = sums.rows.new_zeros(x.shape[1])
    for block in blocks(x):
        x_columns += block.sum(0)
    additions = FP32_ROUNDOFF * math.sqrt(x.shape[1]) * norm(x) * sums.norm
    roundings = RESULT_ROUNDOFF[dtype] * norm(y[:, :columns]) if RESULT_ROUNDOFF[dtype] else 0.0
    subnormal = SMALLEST_ROUNDOFF[dtype] * math.sqrt(y.shape[0] * columns)
    return checksum, (x_columns @ sums.rows).item(), LAMBDA * (additions + roundings + subnormal)


def _sums(weight: Weight, columns: int) -> WeightSums:
    """Found once for a whole weight, anew for the first columns of one."""
    if columns < weight.tensor.shape[1]:
        return sums_of(weight.tensor[:, :columns])
    if weight.sums is None:
        weight.sums = sums_of(weight.tensor)
    sums: WeightSums = weight.sums
    return sums


def sums_of(tensor: Tensor) -> WeightSums:
    import torch

    rows = torch.empty(len(tensor), dtype=torch.float64, device=tensor.device)
    at = 0
    for block in blocks(tensor):
        torch.sum(block, 1, out=rows[at : at + len(block)])
        at += len(block)
    return WeightSums(rows, norm(tensor))  # which waits: what other streams read of it afterwards is there


def norm(tensor: Tensor) -> float:
    """Frobenius norm; NaN if an element is."""
    return math.sqrt(sum(block.square_().sum().item() for block in blocks(tensor)))


def blocks(tensor: Tensor) -> Iterator[Tensor]:
    """Its rows in float64, some at a time, each in the place of those before it.

    One place for all: what is made and dropped between results that stay leaves holes which the allocator of CPU
    memory cannot fill again, and the heap grows by every block.
    """
    import torch

    columns = tensor.shape[1]
    rows = max(1, (_CUDA_BLOCK if tensor.is_cuda else _CPU_BLOCK) // columns)
    place = torch.empty((min(rows, len(tensor)), columns), dtype=torch.float64, device=tensor.device)
    for part in cut(tensor, rows):
        yield place[: len(part)].copy_(part)


def cut(tensor: Tensor, length: int) -> list[Tensor]:
    """Parts of so many rows each; the last may be shorter."""
    return [tensor[at : at + length] for at in range(0, len(tensor), length)]
