"""The CUDA side of a worker, with torch.cuda played by a stand-in: its order of calls, its counting, its endings.

Products are computed on the CPU at once; what a GPU alone can show is in benchmarks/gpu_check.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from altlas_core.backends.worker import loop
from altlas_core.backends.worker.device import WorkDevice
from altlas_core.backends.worker.kinds import RUNNERS
from altlas_core.backends.worker.order import Order
from altlas_core.backends.worker.precision import Precision


class FakeStream:
    made = 0

    def __init__(self) -> None:
        FakeStream.made += 1
        self.stream_id = FakeStream.made
        self.synchronized = 0

    def synchronize(self) -> None:
        self.synchronized += 1


class FakeEvent:
    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        assert enable_timing
        self.recorded_on: Any = None

    def record(self) -> None:
        self.at_s = time.perf_counter()
        self.recorded_on = CUDA.current_stream()

    def synchronize(self) -> None:
        assert self.recorded_on is not None

    def elapsed_time(self, end: FakeEvent) -> float:
        assert self.recorded_on is end.recorded_on
        return (end.at_s - self.at_s) * 1000


class FakeCuda:
    """What of torch.cuda a worker calls."""

    Event, Stream = FakeEvent, FakeStream

    def __init__(self) -> None:
        self.mine = threading.local()
        self.default = FakeStream()
        self.sticking: Exception | None = None
        self.emptied = 0

    def current_stream(self) -> FakeStream:
        stream: FakeStream = getattr(self.mine, "stream", self.default)
        return stream

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.mine.stream = self.current_stream(), stream
        try:
            yield
        finally:
            self.mine.stream = before

    def synchronize(self) -> None:
        if self.sticking is not None:
            raise self.sticking

    def empty_cache(self) -> None:
        self.emptied += 1


CUDA = FakeCuda()


class Torch:
    """torch, but for its cuda and for products, which note the stream they are put on."""

    def __init__(self) -> None:
        self.cuda = CUDA
        self.products: list[FakeStream] = []
        self.precisions: set[str] = set()
        self.pinned = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def mm(self, x: Any, weight: Any, out: Any) -> Any:
        self.products.append(CUDA.current_stream())
        self.precisions.add(torch.get_float32_matmul_precision())
        return torch.mm(x, weight, out=out)

    def empty(self, *size: Any, pin_memory: bool = False, **more: Any) -> Any:
        self.pinned += pin_memory
        return torch.empty(*size, **more)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> WorkDevice:
    made = WorkDevice("cpu", 1, 42, 1 << 30)
    made.kind, made.torch = "cuda", Torch()
    CUDA.sticking = None
    return made


def order(**more: Any) -> Order:
    fields: dict[str, Any] = {"duration_s": None, "iterations": None, "input_size": 48, "output_size": 256, "batch": 8}
    return Order(**{"kind": "linear", "memory_bytes": 1 << 20, **fields, **more})


def run(device: WorkDevice, asked: Order, stop: threading.Event | None = None) -> tuple[float, dict[str, Any]]:
    return RUNNERS[asked.kind](device, asked, stop or threading.Event(), time.perf_counter())


@pytest.mark.parametrize("iterations", [1, 7, 500])
def test_exactly_the_iterations_asked_for_are_put_on_the_tasks_stream(device: WorkDevice, iterations: int) -> None:
    done, detail = run(device, order(iterations=iterations))
    assert done == iterations
    assert len(device.torch.products) == iterations
    assert detail["reference_ok"]
    assert {stream.stream_id for stream in device.torch.products} == {detail["stream"]}
    assert detail["stream"] != CUDA.default.stream_id
    assert 0 < detail["iteration_p50_s"] <= detail["kernel_s"]


def test_a_product_in_pieces_counts_fractions(device: WorkDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CUDA_KERNEL_FLOP", 2.0 * 8 * 48 * 64)  # 64 of 256 columns
    done, detail = run(device, order(iterations=2.5))
    assert done == 2.5
    assert len(device.torch.products) == 10
    assert detail["reference_ok"]
    assert run(device, order(iterations=0.25))[0] == 0.25


def test_a_duration_ends_with_its_last_burst(device: WorkDevice) -> None:
    begun = time.perf_counter()
    done, detail = run(device, order(duration_s=0.15))
    assert time.perf_counter() - begun >= 0.15
    assert done == len(device.torch.products) > 2
    assert detail["reference_ok"]


def test_a_stopped_task_lets_what_is_in_flight_end_and_says_how_much_it_was(device: WorkDevice) -> None:
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    done, detail = run(device, order(duration_s=600.0), stop)
    assert done == len(device.torch.products)
    assert detail["reference_ok"]
    stopped_before = run(device, order(duration_s=600.0), stop)
    assert stopped_before[0] == 0
    assert "reference_ok" not in stopped_before[1]


def test_a_thread_keeps_its_stream_and_two_threads_have_two(device: WorkDevice) -> None:
    streams: list[int] = []

    def work() -> None:
        streams.extend(run(device, order(iterations=1))[1]["stream"] for _ in range(2))

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert streams[0] == streams[1] != streams[2] == streams[3]


def test_nothing_is_in_flight_when_a_failed_task_lets_go_of_its_memory(
    device: WorkDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    run(device, order(iterations=1))
    stream = device.torch.products[-1]
    before = stream.synchronized
    monkeypatch.setattr(device.torch, "mm", short)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        run(device, order(iterations=1))
    assert stream.synchronized == before + 1
    assert device.out_of_memory(caught.value)
    assert not device.broken()
    device.free_memory()
    assert not device._weights


def test_an_error_that_sticks_breaks_the_device_and_one_that_does_not_is_none(device: WorkDevice) -> None:
    assert not device.broken()
    CUDA.sticking = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    assert device.broken()


def test_another_run_finds_no_weight_and_no_cache(device: WorkDevice) -> None:
    run(device, order(iterations=1))
    before = CUDA.emptied
    device.renew(7, 1 << 20)
    assert CUDA.emptied == before + 1
    assert not device._weights


def test_a_weight_is_finished_before_other_streams_may_read_it(device: WorkDevice) -> None:
    before = CUDA.default.synchronized
    with device.weights(order(), (48, 256)):
        assert CUDA.default.synchronized == before + 1
    with device.weights(order(), (48, 256)):
        assert CUDA.default.synchronized == before + 1  # made once


# --- kinds and number formats -----------------------------------------------------------------------------------------


def test_tf32_is_switched_on_for_the_kernels_of_tf32_alone(device: WorkDevice) -> None:
    for dtype, precision in (("tf32", "high"), ("bf16", "high"), ("fp32", "highest")):  # bf16 leaves it as it stands
        device.torch.precisions.clear()
        _, detail = run(device, order(iterations=3, dtype=dtype))
        assert device.torch.precisions == {precision}
        assert detail["reference_ok"]


def test_tasks_of_fp32_and_tf32_launch_by_turns() -> None:
    precision, entered = Precision(torch), []

    def launch(dtype: str) -> None:
        with precision.of(dtype):
            entered.append((dtype, torch.get_float32_matmul_precision()))

    def until(what: Callable[[], bool]) -> None:
        patience = time.monotonic() + 30
        while not what():
            assert time.monotonic() < patience, "waited in vain"
            time.sleep(0.001)

    threads = [threading.Thread(target=launch, args=(dtype,), daemon=True) for dtype in ("tf32", "fp32")]
    with precision.of("fp32"):
        launch("fp32")  # any number of one kind at a time
        launch("bf16")  # which does not care
        threads[0].start()
        until(precision._door.locked)  # it waits until nobody wants fp32 any more
        threads[1].start()  # waits behind it, although the switch still stands right
        assert entered == [("fp32", "highest"), ("bf16", "highest")]
    until(lambda: len(entered) == 4)
    assert entered[2:] == [("tf32", "high"), ("fp32", "highest")]


def test_numbers_of_tf32_have_ten_bits_of_mantissa(device: WorkDevice) -> None:
    numbers = device.uniform(64, 64, "tf32")
    assert numbers.dtype == torch.float32
    assert not (numbers.view(torch.int32) & 0x1FFF).any()
    assert numbers.unique().numel() > 1000


@pytest.mark.parametrize("kind", ["mlp", "attention", "transfer"])
def test_other_kernels_run_on_the_tasks_stream_too(device: WorkDevice, kind: str) -> None:
    done, detail = run(device, order(kind=kind, iterations=5, input_size=64, output_size=64))
    assert done == 5
    assert detail["reference_ok"]
    assert detail["stream"] != CUDA.default.stream_id


def test_a_transfer_goes_through_pinned_memory_and_times_each_way(device: WorkDevice) -> None:
    _, detail = run(device, order(kind="transfer", iterations=100))
    assert device.torch.pinned == 2
    assert detail["link"] == "pinned host memory"
    assert all(detail[f"{leg}_gb_per_s"] > 0 for leg in ("to_device", "on_device", "to_host"))
