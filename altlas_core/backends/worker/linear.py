"""The kinds `linear` and `mlp`: products of a batch with one weight, or with two and a ReLU between them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from altlas_core.backends.worker.device import Weight, WorkDevice
from altlas_core.backends.worker.loop import Job, most_flop
from altlas_core.backends.worker.order import Order
from altlas_core.backends.worker.reference import Verdict, check_product, check_sum, worst_of
from altlas_core.backends.worker.results import run_kernel

if TYPE_CHECKING:
    from torch import Tensor


def run_linear(device: WorkDevice, order: Order, stop: threading.Event, begun_s: float) -> tuple[float, dict[str, Any]]:
    """Multiply batch x input by input x output until duration or iterations are reached, or `stop` is set."""
    with device.weights(order, (order.input_size, order.output_size)) as (weight,):
        return run_kernel(device, order, stop, begun_s, lambda: linear_job(device, order, weight))


def run_mlp(device: WorkDevice, order: Order, stop: threading.Event, begun_s: float) -> tuple[float, dict[str, Any]]:
    """relu(x @ up) @ down until duration or iterations are reached, or `stop` is set."""
    width, hidden = order.input_size, order.output_size
    with device.weights(order, (width, hidden), (hidden, width)) as (up, down):
        return run_kernel(device, order, stop, begun_s, lambda: mlp_job(device, order, up, down))


def linear_job(device: WorkDevice, order: Order, weight: Weight) -> Job:
    """One product, cut by columns. Checked: sampled elements and the sum of all that is written."""
    x = device.uniform(order.batch, order.input_size, order.dtype)
    y = unwritten(device, order, order.output_size)
    pieces, widths = _cut(device, order.dtype, x, weight.tensor, y)

    def check(written: int, seed: int) -> dict[str, Any]:
        columns = sum(widths[:written])
        sampled = check_product(x, weight.tensor, y, columns, seed, order.dtype)
        return Verdict(*sampled, *check_sum(x, weight, y, columns, order.dtype)).detail()

    return Job(order.dtype, pieces, widths, check)


def mlp_job(device: WorkDevice, order: Order, up: Weight, down: Weight) -> Job:
    """Two products, each cut by columns. Checked layer by layer, the second against the hidden layer as it was found:
    sampled elements of both, and the sum of the output. Before any output is written, that of the hidden layer alone.
    """
    dtype = order.dtype
    x = device.uniform(order.batch, order.input_size, dtype)
    hidden, y = unwritten(device, order, order.output_size), unwritten(device, order, order.input_size)
    ups, up_widths = _cut(device, dtype, x, up.tensor, hidden, device.torch.relu_)
    downs, down_widths = _cut(device, dtype, hidden, down.tensor, y)
    units = [width * order.input_size for width in up_widths] + [width * order.output_size for width in down_widths]

    def check(written: int, seed: int) -> dict[str, Any]:
        hidden_columns, columns = sum(up_widths[:written]), sum(down_widths[: max(0, written - len(ups))])
        first = check_product(x, up.tensor, hidden, hidden_columns, seed, dtype, relu=True)
        if not columns:
            return Verdict(*first).detail()
        second = check_product(hidden, down.tensor, y, columns, seed, dtype)
        return Verdict(*worst_of(first, second), *check_sum(hidden, down, y, columns, dtype)).detail()

    return Job(dtype, ups + downs, units, check)


def unwritten(device: WorkDevice, order: Order, columns: int) -> Tensor:
    """Room for a result: NaN, so that what no kernel has written can never pass for one."""
    made: Tensor = device.torch.full(
        (order.batch, columns), math.nan, dtype=device.element(order.dtype), device=device.device
    )
    return made


def _cut(
    device: WorkDevice,
    dtype: str,
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    then: Callable[[Tensor], object] | None = None,
) -> tuple[list[Callable[[], object]], list[int]]:
    """The pieces of out = x @ weight (and `then` of it, in place) and the columns of each."""
    mm, columns = device.torch.mm, out.shape[1]
    width = max(1, min(columns, int(most_flop(device, dtype) / (2.0 * x.shape[0] * x.shape[1]))))
    if width >= 128:
        width -= width % 64  # whole tiles
    pieces: list[Callable[[], object]] = []
    for at in range(0, columns, width):
        part, there = weight[:, at : at + width], out[:, at : at + width]
        product = partial(mm, x, part, out=there)
        pieces.append(product if then is None else partial(_both, product, partial(then, there)))
    return pieces, [min(width, columns - at) for at in range(0, columns, width)]


def _both(first: Callable[[], object], second: Callable[[], object]) -> None:
    first()
    second()
