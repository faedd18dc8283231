"""What a kernel costs on a simulated GPU: bound by arithmetic, by memory, or by the link to the host."""

from __future__ import annotations

import pytest

from altlas_core.gpu_model.catalog import CATALOG
from altlas_core.gpu_model.roofline import NO_KERNEL, kernel_cost, link_bytes_per_s
from altlas_core.kinds import KINDS
from altlas_core.model import Call, TaskSpec

A100 = CATALOG["A100-SXM4-80GB"]


@pytest.mark.parametrize("dtype", list(A100.peak_flops))
def test_a_large_product_runs_at_the_peak_rate_of_its_format(dtype: str) -> None:
    cost = kernel_cost(TaskSpec(input_size=2**14, output_size=2**14, batch=2**14, dtype=dtype), A100)
    assert cost.flops / cost.seconds == pytest.approx(A100.peak_flops[dtype])
    assert cost.intensity == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", list(A100.peak_flops))
def test_a_thin_product_runs_at_the_bandwidth_of_the_memory_whatever_its_format(dtype: str) -> None:
    cost = kernel_cost(TaskSpec(input_size=2**14, output_size=2**14, batch=1, dtype=dtype), A100)
    assert cost.bytes_moved / cost.seconds == pytest.approx(A100.memory_bandwidth_bytes_per_s)
    assert cost.intensity < 0.1


@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_every_kernel_takes_the_longer_of_arithmetic_and_memory(kind: str) -> None:
    for batch in (1, 64):
        spec = TaskSpec(kind=kind, batch=batch, dtype="fp16")
        cost = kernel_cost(spec, A100)
        flops, moved = KINDS[kind].flops(spec), KINDS[kind].bytes_moved(spec)
        assert cost.seconds == max(flops / A100.peak_flops["fp16"], moved / A100.memory_bandwidth_bytes_per_s)


def test_a_transfer_takes_the_links_time_both_ways_and_the_memorys_between() -> None:
    cost = kernel_cost(TaskSpec(kind="transfer", input_size=2**20, batch=256), A100)
    buffer = 2**30
    assert cost.seconds == pytest.approx(2 * buffer / 31.5e9 + 2 * buffer / A100.memory_bandwidth_bytes_per_s, rel=1e-3)
    assert (cost.flops, cost.intensity) == (0.0, 0.0)
    assert cost.activity > 0  # it is a kernel: the GPU is busy


def test_every_board_of_the_catalog_has_a_link() -> None:
    assert link_bytes_per_s("3.0 x16") == pytest.approx(15.75e9, rel=1e-3)
    assert link_bytes_per_s("4.0 x8") == link_bytes_per_s("3.0 x16")
    assert all(link_bytes_per_s(model.pcie) > 7e9 for model in CATALOG.values())


def test_a_call_is_a_sleep() -> None:
    assert kernel_cost(TaskSpec(kind="call", call=Call("jobs:f")), A100) == NO_KERNEL
