"""The kernels a worker runs, in this process on the CPU: counted, cut, stopped, and checked against float64."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from altlas_core.kinds import KINDS

torch = pytest.importorskip("torch")

from altlas_core.backends.worker import loop  # noqa: E402
from altlas_core.backends.worker.attention import _reference_row  # noqa: E402
from altlas_core.backends.worker.device import Weight, WorkDevice  # noqa: E402
from altlas_core.backends.worker.kinds import RUNNERS  # noqa: E402
from altlas_core.backends.worker.order import Order  # noqa: E402
from altlas_core.backends.worker.reference import Verdict, blocks, check_product, check_sum, worst_of  # noqa: E402

KERNELS = [name for name, kind in KINDS.items() if kind.kernel]
ON_CPU = [(name, dtype) for name in KERNELS for dtype in KINDS[name].dtypes if dtype != "tf32"]
SIZES = {"input_size": 96, "output_size": 128, "batch": 4}


@pytest.fixture(scope="module")
def device() -> Iterator[WorkDevice]:
    threads = torch.get_num_threads()
    yield WorkDevice("cpu", 1, 42, 1 << 30)
    torch.set_num_threads(threads)


class Torch:
    """torch, but for the functions that are put in place of its own."""

    def __init__(self, **instead: Any) -> None:
        self.__dict__.update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class StopAfter(threading.Event):
    """Set once it has been looked at so often."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def order(kind: str = "linear", **more: Any) -> Order:
    fields = {"duration_s": None, "iterations": None, **SIZES, "memory_bytes": 1 << 20, **more}
    return Order(kind, **fields)


def run(device: WorkDevice, asked: Order, stop: threading.Event | None = None) -> tuple[float, dict[str, Any]]:
    done, detail = RUNNERS[asked.kind](device, asked, stop or threading.Event(), time.perf_counter())
    assert detail is not None
    return done, detail


# --- counting and cutting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "dtype"), ON_CPU)
def test_a_kernel_runs_its_iterations_and_says_what_they_were(device: WorkDevice, kind: str, dtype: str) -> None:
    asked = order(kind, iterations=3, dtype=dtype)
    done, detail = run(device, asked)
    assert done == 3
    assert detail["dtype"] == dtype
    assert detail["flops"] == 3 * KINDS[kind].flops(asked)
    assert detail["bytes_moved"] == 3 * KINDS[kind].bytes_moved(asked)
    assert detail["achieved_tflops"] == pytest.approx(detail["flops"] / detail["kernel_s"] / 1e12)
    assert detail["achieved_gb_per_s"] == pytest.approx(detail["bytes_moved"] / detail["kernel_s"] / 1e9)
    assert 0 < detail["iteration_p50_s"] <= detail["iteration_p99_s"] <= detail["kernel_s"]


@pytest.mark.parametrize(("kind", "dtype"), ON_CPU)
def test_the_reference_confirms_a_right_result_in_every_format(device: WorkDevice, kind: str, dtype: str) -> None:
    _, detail = run(device, order(kind, iterations=1, dtype=dtype))
    assert detail["reference_ok"] is True
    assert 0 <= detail["max_rel_error"] <= detail["tolerance"]
    assert abs(detail["checksum"] - detail["checksum_reference"]) <= detail["checksum_tolerance"]


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("share", [0.04, 0.3, 0.75, 1.0, 2.6])
def test_a_part_of_an_iteration_counts_as_that_and_what_is_written_is_checked(
    device: WorkDevice, monkeypatch: pytest.MonkeyPatch, kind: str, share: float
) -> None:
    asked = order(kind, iterations=share)
    pieces = 30
    flop = KINDS[kind].flops(asked) / pieces
    monkeypatch.setitem(loop.CPU_KERNEL_FLOP, "fp32", flop)
    monkeypatch.setattr("altlas_core.backends.worker.transfer.CHUNK_BYTES", 4 * 96 * 4 // 10)
    done, detail = run(device, asked)
    assert share <= done <= share + 0.2
    assert detail["flops"] == done * KINDS[kind].flops(asked)
    assert detail["reference_ok"] is True


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kernel=st.sampled_from(ON_CPU),
    sizes=st.tuples(st.integers(1, 300), st.integers(1, 300), st.integers(1, 20)),
    iterations=st.sampled_from([0.3, 1.0, 2.0]),
    seed=st.integers(0, 2**31),
)
def test_no_right_result_is_denied_whatever_its_sizes(
    device: WorkDevice, kernel: tuple[str, str], sizes: tuple[int, int, int], iterations: float, seed: int
) -> None:
    kind, dtype = kernel
    inputs, outputs, batch = sizes
    outputs = -(-outputs // KINDS[kind].output_multiple) * KINDS[kind].output_multiple
    device.renew(seed, 1 << 30)
    asked = order(kind, iterations=iterations, dtype=dtype, input_size=inputs, output_size=outputs, batch=batch)
    assert run(device, asked)[1]["reference_ok"] is True


def test_tasks_of_all_kinds_and_formats_run_beside_each_other(device: WorkDevice) -> None:
    with ThreadPoolExecutor(len(ON_CPU)) as threads:
        asked = [order(kind, duration_s=0.3, dtype=dtype) for kind, dtype in ON_CPU]
        ended = [each.result() for each in [threads.submit(run, device, one) for one in asked]]
    assert all(done > 0 for done, _ in ended)
    assert all(detail["reference_ok"] is True for _, detail in ended)
    assert not device.turns._taken
    assert device._reserved_bytes == 0


def test_an_attention_too_large_for_a_piece_is_cut_by_sequences_then_heads_then_positions() -> None:
    from altlas_core.backends.worker.attention import _parts, _units

    asked = order("attention", batch=3, input_size=100, output_size=128)
    row_flop = 4 * 64 * 100
    for rows, pieces in ((1000, 1), (400, 2), (100, 6), (30, 24), (1, 600)):
        parts = list(_parts(asked, 2, rows * row_flop))
        assert len(parts) == pieces
        assert sum(_units(part) for part in parts) == 3 * 2 * 100
        assert max(_units(part) for part in parts) <= rows


@pytest.mark.parametrize("kind", KERNELS)
def test_a_kernel_stops_when_it_is_asked_to(device: WorkDevice, kind: str) -> None:
    stop = StopAfter(looks=30)
    done, detail = run(device, order(kind, duration_s=600.0), stop)
    assert 0 < done <= 30
    assert detail["reference_ok"] is True
    nothing, detail = run(device, order(kind, duration_s=600.0), stop)
    assert nothing == 0
    assert "reference_ok" not in detail
    assert detail["achieved_tflops"] is None


def test_a_duration_counts_from_the_start_of_the_order(device: WorkDevice) -> None:
    begun = time.perf_counter()
    done, _ = RUNNERS["mlp"](device, order("mlp", duration_s=0.1), threading.Event(), begun)
    assert time.perf_counter() - begun >= 0.1
    assert done > 0
    assert RUNNERS["mlp"](device, order("mlp", duration_s=0.1), threading.Event(), begun - 1)[0] < 1.5  # over already


def test_tasks_of_different_formats_have_weights_of_their_own_and_equal_ones_share(device: WorkDevice) -> None:
    asked = [order(dtype=dtype) for dtype in ("fp32", "bf16", "fp32")]
    shape = (asked[0].input_size, asked[0].output_size)
    with (
        device.weights(asked[0], shape) as (one,),
        device.weights(asked[1], shape) as (half,),
        device.weights(asked[2], shape) as (same,),
    ):
        assert same is one
        assert half.size_bytes * 2 == one.size_bytes == 4 * 96 * 128
        assert (half.tensor.dtype, one.tensor.dtype) == (torch.bfloat16, torch.float32)
    with device.weights(asked[0], (64, 64), (64, 64)) as (up, down), device.weights(asked[0], (64, 64)) as (alone,):
        assert alone is up is not down  # two layers alike in shape are two weights
        assert not torch.equal(up.tensor, down.tensor)


def test_idle_weights_make_room_for_what_running_tasks_reserve() -> None:
    device = WorkDevice("cpu", 1, 42, memory_bytes=3 * 4 * 64 * 64)

    def use(size: int, memory_bytes: int) -> None:
        with device.weights(order(memory_bytes=memory_bytes), (size, size)) as (weight,):
            assert tuple(weight.tensor.shape) == (size, size)

    use(64, 4 * 64 * 64)
    use(32, 4 * 32 * 32)
    assert {key[0] for key in device._weights} == {64, 32}
    use(16, 3 * 4 * 64 * 64)  # reserves everything
    assert {key[0] for key in device._weights} == {16}
    with device.weights(order(memory_bytes=3 * 4 * 64 * 64)):  # needs no weight, but the room
        assert not device._weights


def test_percentiles_come_from_a_bounded_sample() -> None:
    timings = loop.Timings(limit=64)
    for number in range(1, 10_001):
        timings.add(number / 10_000)
    assert timings.percentile(50) == pytest.approx(0.5, abs=0.03)
    assert timings.percentile(99) == pytest.approx(0.99, abs=0.03)
    assert len(timings._kept) < 64
    at_once, one_by_one = loop.Timings(limit=64), loop.Timings(limit=64)
    for number in range(300):  # bursts of iterations that took the same
        at_once.add(number, times=number % 9)
        for _ in range(number % 9):
            one_by_one.add(number)
    assert at_once._kept == one_by_one._kept
    assert loop.Timings().percentile(50) is None


# --- what is wrong is found out ---------------------------------------------------------------------------------------


def test_a_corrupted_product_is_found_out() -> None:
    x, weight = torch.rand(32, 512) * 2 - 1, torch.rand(512, 128) * 2 - 1
    y = x @ weight
    error, tolerance = check_product(x, weight, y, 128, seed=1)
    assert error <= tolerance == pytest.approx(512 * 2.0**-24, rel=1e-3)
    for broken in (y + 0.01 * 512**0.5, torch.zeros_like(y), torch.full_like(y, math.nan), y.half().float() * 1.01):
        error, tolerance = check_product(x, weight, broken, 128, seed=1)
        assert error > tolerance


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_the_sum_finds_a_fault_that_samples_miss(dtype: str) -> None:
    kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    generator = torch.Generator().manual_seed(7)
    x = torch.empty(64, 1024).uniform_(-1, 1, generator=generator).to(kind)
    weight = torch.empty(1024, 256).uniform_(-1, 1, generator=generator).to(kind)
    y = (x.double() @ weight.double()).to(kind)

    def verdict(result: Any) -> bool:
        sums = check_sum(x, Weight(weight, 0), result, 256, dtype)
        return Verdict(0.0, 1.0, *sums).detail()["reference_ok"]  # type: ignore[no-any-return]

    assert verdict(y)
    row = y.clone()
    row[int(y.double().sum(1).abs().argmax())] = 0.0  # one of 64 rows was not computed
    assert not verdict(row)
    hole = y.clone()
    hole[3, 200] = math.nan
    assert not verdict(hole)
    assert Verdict(0.0, 1.0, *check_sum(x, Weight(weight, 0), hole, 256, dtype)).detail()["checksum"] is None


def test_the_sum_of_the_first_columns_does_not_see_the_others() -> None:
    x, weight = torch.rand(8, 32), Weight(torch.rand(32, 16), 0)
    y = x @ weight.tensor
    y[:, 10:] = math.nan
    checksum, reference, tolerance = check_sum(x, weight, y, 10, "fp32")
    assert abs(checksum - reference) <= tolerance
    assert weight.sums is None  # that of a part is not kept for the whole


def test_a_check_turns_a_result_into_float64_in_one_place_of_limited_size() -> None:
    result = torch.rand(3000, 100).bfloat16()
    total, places = 0.0, set()
    for block in blocks(result):
        total += block.sum().item()
        places.add(block.data_ptr())
        assert block.numel() <= 1 << 16
    assert total == pytest.approx(result.double().sum().item())
    assert len(places) == 1
    assert [len(block) for block in blocks(torch.rand(2, 1 << 17))] == [1, 1]


def test_a_product_rounded_to_bf16_on_the_way_is_no_fp32(device: WorkDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded(x: Any, weight: Any, out: Any) -> None:
        out.copy_(torch.mm(x.bfloat16(), weight.bfloat16()))

    monkeypatch.setattr(device, "torch", Torch(mm=rounded))
    for kind in ("linear", "mlp"):
        _, detail = run(device, order(kind, iterations=1))
        assert detail["reference_ok"] is False
        assert detail["max_rel_error"] > detail["tolerance"]


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_kernel_that_writes_nothing_gives_no_result(
    device: WorkDevice, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(device, "torch", Torch(mm=lambda *_, **__: None))
    _, detail = run(device, order(kind, iterations=1))
    assert detail["reference_ok"] is False
    assert detail["max_rel_error"] == math.inf
    assert detail["checksum"] is None


def test_an_mlp_without_its_relu_is_found_out(device: WorkDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "torch", Torch(relu_=lambda hidden: hidden))
    assert run(device, order("mlp", iterations=1))[1]["reference_ok"] is False


def faulty_attention(fault: str) -> Torch:
    """torch, whose attention has a fault."""
    from types import SimpleNamespace

    attend = torch.nn.functional.scaled_dot_product_attention

    def attention(q: Any, k: Any, v: Any) -> Any:
        out = attend(q, k, v, scale=1.0 if fault == "scale" else None, is_causal=fault == "mask")
        if fault == "row":
            out[-1, -1, -1] = 0.0
        elif fault == "nothing":
            out = torch.full_like(out, math.nan)
        elif fault == "weights":
            out *= 1.03
        return out

    return Torch(nn=SimpleNamespace(functional=SimpleNamespace(scaled_dot_product_attention=attention)))


@pytest.mark.parametrize("fault", ["scale", "mask", "row", "nothing", "weights"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_faulty_attention_is_found_out(
    device: WorkDevice, monkeypatch: pytest.MonkeyPatch, fault: str, dtype: str
) -> None:
    monkeypatch.setattr(device, "torch", faulty_attention("none"))
    assert run(device, order("attention", iterations=1, dtype=dtype))[1]["reference_ok"] is True
    monkeypatch.setattr(device, "torch", faulty_attention(fault))
    assert run(device, order("attention", iterations=1, dtype=dtype))[1]["reference_ok"] is False


def test_the_reference_of_attention_is_softmax() -> None:
    q, k, v = torch.randn(64), torch.randn(50, 64), torch.randn(50, 64)
    right, magnitude, bound = _reference_row(q, k, v, "fp32")
    weights = torch.softmax(k.double() @ q.double() / 8, 0)
    assert torch.allclose(right, weights @ v.double(), rtol=1e-12)
    assert torch.allclose(magnitude, weights @ v.double().abs(), rtol=1e-12)
    assert 0 < bound < 1e-3


@pytest.mark.parametrize("leg", ["to_device", "on_device", "to_host"])
def test_a_copy_that_loses_a_byte_is_found_out(device: WorkDevice, monkeypatch: pytest.MonkeyPatch, leg: str) -> None:
    from altlas_core.backends.worker import transfer

    class Leg(transfer._Leg):
        def copy(self, source: Any, destination: Any) -> None:
            super().copy(source, destination)
            if self is made[transfer.LEGS.index(leg)]:
                destination.view(torch.uint8)[-1] ^= 1

    made: list[Leg] = []

    def make(device: WorkDevice) -> Leg:
        made.append(Leg(device))
        return made[-1]

    monkeypatch.setattr(transfer, "CHUNK_BYTES", 4 * 4 * 96 // 3)
    monkeypatch.setattr(transfer, "_Leg", make)
    _, detail = run(device, order("transfer", iterations=1))
    assert detail["reference_ok"] is False
    assert detail["max_rel_error"] >= 1


def test_a_transfer_on_a_cpu_device_says_that_it_is_a_memory_copy(device: WorkDevice) -> None:
    _, detail = run(device, order("transfer", iterations=200))
    assert detail["link"] == "a memory copy: a CPU device has no link"
    assert all(detail[f"{leg}_gb_per_s"] > 0 for leg in ("to_device", "on_device", "to_host"))
    assert (detail["max_rel_error"], detail["tolerance"]) == (0.0, 0.0)


def test_the_worst_of_two_is_that_nearest_to_failing() -> None:
    assert worst_of((1.0, 10.0), (0.5, 1.0)) == (0.5, 1.0)
    assert worst_of((math.inf, 1.0), (2.0, 1.0)) == (math.inf, 1.0)


def test_what_is_not_finite_is_never_right() -> None:
    assert Verdict(0.0, 1.0, 5.0, 5.0, 0.1).detail()["reference_ok"] is True
    assert Verdict(0.0, 1.0).detail()["reference_ok"] is True  # nothing to sum yet
    for sums in ((math.nan, 5.0, 0.1), (5.0, math.nan, 0.1), (5.0, 5.0, math.inf), (5.0, 5.0, math.nan)):
        assert Verdict(0.0, 1.0, *sums).detail()["reference_ok"] is False
    assert Verdict(math.inf, 1.0, 5.0, 5.0, 0.1).detail()["reference_ok"] is False
