"""What is measured and enforced of a worker's memory, in this process: no worker is started."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from altlas_core.backends.worker.memory import (
    CudaMemory,
    Meter,
    asked_bytes,
    explain_shortage,
    gib,
    share_for_tasks,
)
from altlas_core.backends.worker.process_memory import MIB, SLACK_BYTES, SLACK_PER_THREAD_BYTES, ProcessMemory
from altlas_core.model import GIB

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, sets RLIMIT_DATA")


class FakeMemory:
    """A device on which a test allocates by hand."""

    def __init__(self, size: int = 1000, measurable: bool = True) -> None:
        self.problem: str | None = None
        self.measurable = measurable
        self.size = size
        self.now = self.most = 0
        self.settled: list[int] = []

    def hold(self, change: int) -> None:
        self.now += change
        self.most = max(self.most, self.now)

    def used(self) -> int:
        return self.now

    allocated = used

    def peak(self) -> int:
        return self.most

    def reset_peak(self) -> None:
        self.most = self.now

    def room(self) -> int:
        return self.size - self.now

    def limit(self, budget_bytes: int, slots: int) -> None: ...

    def lift(self) -> None: ...

    def settle(self, idle_bytes: int) -> None:
        self.settled.append(idle_bytes)

    def give_back(self) -> None: ...


@pytest.fixture
def memory() -> FakeMemory:
    made = FakeMemory()
    made.hold(100)  # the interpreter and its libraries
    return made


@pytest.fixture
def meter(memory: FakeMemory) -> Meter:
    return Meter(memory)


# --- peaks ------------------------------------------------------------------------------------------------------------


def test_alone_the_peak_is_the_tasks_own(memory: FakeMemory, meter: Meter) -> None:
    usage = meter.begin(50)
    memory.hold(40)
    memory.hold(-30)
    meter.end(usage)
    assert meter.figures(usage) == {
        "reserved_bytes": 50,
        "peak_memory_bytes": 40,
        "reserved_peak_bytes": 50,
        "memory_neighbours": 0,
        "memory_enforced": True,
    }


def test_what_an_earlier_task_left_is_not_the_next_ones(memory: FakeMemory, meter: Meter) -> None:
    first = meter.begin(50)
    memory.hold(40)
    meter.end(first)  # and gives back nothing: a library keeps it
    second = meter.begin(50)
    memory.hold(7)
    meter.end(second)
    assert (first.peak_bytes, second.peak_bytes) == (40, 7)


def test_a_peak_counts_for_those_that_ran_then_and_for_no_others(memory: FakeMemory, meter: Meter) -> None:
    first = meter.begin(10)
    memory.hold(10)
    second = meter.begin(30)
    memory.hold(30)
    memory.hold(-30)
    meter.end(second)
    third = meter.begin(5)
    memory.hold(5)
    meter.end(third)
    memory.hold(-15)
    meter.end(first)
    peaks = [(use.peak_bytes, use.reserved_peak_bytes, use.neighbours) for use in (first, second, third)]
    assert peaks == [(40, 40, 1), (40, 40, 1), (15, 15, 1)]


def test_a_kept_weight_counts_while_somebody_uses_it(memory: FakeMemory, meter: Meter) -> None:
    memory.hold(60)
    meter.idle_changed(60)  # kept from before
    without = meter.begin(5)
    memory.hold(5)
    memory.hold(-5)
    meter.end(without)
    user = meter.begin(65)
    meter.idle_changed(0)  # it takes the weight
    memory.hold(5)
    memory.hold(-5)
    meter.idle_changed(60)
    meter.end(user)
    assert (without.peak_bytes, user.peak_bytes) == (5, 65)
    assert memory.settled == [60, 60]


def test_a_kept_weight_that_goes_makes_no_peak(memory: FakeMemory, meter: Meter) -> None:
    memory.hold(60)
    meter.idle_changed(60)
    usage = meter.begin(20)
    memory.hold(-60)
    meter.idle_changed(0)
    memory.hold(20)
    meter.end(usage)
    assert usage.peak_bytes == 20


def test_an_attempt_ends_also_where_nothing_is_left_to_look_with(
    memory: FakeMemory, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peak() -> int:
        raise MemoryError

    first = meter.begin(50)
    monkeypatch.setattr(memory, "peak", peak)
    meter.end(first)
    monkeypatch.undo()
    second = meter.begin(50)
    assert (second.neighbours, second.reserved_peak_bytes) == (0, 50)


def test_what_cannot_be_measured_is_none() -> None:
    meter = Meter(FakeMemory(measurable=False))
    usage = meter.begin(50)
    assert meter.figures(usage)["peak_memory_bytes"] is None


# --- out of memory ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 272629760 bytes. E", 272629760),
        ("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total", int(20.005 * GIB) + 1),
        ("CUDA out of memory. Tried to allocate 2 MiB.", 2 * MIB),
        ("Unable to allocate 1.50 KiB for an array with shape (192,)", int(1.505 * 1024) + 1),
        ("std::bad_alloc", None),
        ("", None),
    ],
)  # fmt: skip
def test_what_was_asked_for_is_read_from_the_message(text: str, asked: int | None) -> None:
    assert asked_bytes(RuntimeError(text)) == asked


def tried(count: int) -> RuntimeError:
    return RuntimeError(f"can't allocate memory: you tried to allocate {count} bytes.\nmore")


def test_alone_a_task_needed_what_it_held_and_what_it_asked_for(memory: FakeMemory, meter: Meter) -> None:
    meter.begin(50)
    memory.hold(300)
    text, needed, free = explain_shortage(tried(700), 50, 0, meter)
    assert (needed, free) == (1000, 900)
    assert text.startswith("out of memory: 0.000 GiB needed, 0.000 GiB free, 0.000 GiB reserved (RuntimeError: can't")
    assert "more" not in text


def test_its_own_weight_is_a_part_of_what_it_held(memory: FakeMemory, meter: Meter) -> None:
    meter.begin(50)
    memory.hold(300)
    meter.idle_changed(200)  # by now nobody uses it
    _, needed, free = explain_shortage(tried(700), 50, 200, meter)
    assert (needed, free) == (1000, 900)


def test_kept_weights_are_room(memory: FakeMemory, meter: Meter) -> None:
    memory.hold(200)
    meter.idle_changed(200)
    meter.begin(50)
    memory.hold(300)
    assert explain_shortage(tried(800), 50, 0, meter)[1:] == (1100, 900)


@pytest.mark.parametrize(("asked", "needed"), [(700, 700), (40, None)])
def test_beside_others_only_what_it_asked_for_is_sure(
    memory: FakeMemory, meter: Meter, asked: int, needed: int | None
) -> None:
    meter.begin(50)
    meter.begin(10)
    memory.hold(300)
    text, least, free = explain_shortage(tried(asked), 50, 0, meter)
    assert (least, free) == (needed, 600)
    assert "free beside other tasks" in text


def test_an_error_without_a_figure_says_more_than_was_free(memory: FakeMemory, meter: Meter) -> None:
    meter.begin(50)
    memory.hold(700)
    text, needed, free = explain_shortage(MemoryError(), 50, 0, meter)
    assert (needed, free) == (901, 900)
    assert "more than 0.000 GiB needed" in text
    meter.begin(50)  # beside another it says nothing
    assert explain_shortage(MemoryError(), 50, 0, meter)[1] is None


def test_sizes_are_told_in_gib() -> None:
    assert [gib(size) for size in (3 * GIB, GIB // 4, 1 << 50)] == ["3.00 GiB", "0.250 GiB", "1,048,576.00 GiB"]


# --- a GPU ------------------------------------------------------------------------------------------------------------


def fake_torch(total: int, allocated: int = 0, kept: int = 0, free: int = 0) -> Any:
    fractions: list[float] = []
    cuda = SimpleNamespace(
        get_device_properties=lambda _: SimpleNamespace(total_memory=total),
        memory_allocated=lambda: allocated,
        memory_reserved=lambda: allocated + kept,
        mem_get_info=lambda: (free, total),
        set_per_process_memory_fraction=lambda fraction, _: fractions.append(fraction),
        fractions=fractions,
    )
    return SimpleNamespace(cuda=cuda)


def test_a_part_of_a_gpu_is_held_to_its_share_less_its_context() -> None:
    torch = fake_torch(80 * GIB, allocated=2 * GIB, kept=GIB, free=60 * GIB)
    memory = CudaMemory(torch, parts=4)
    memory.limit(20 * GIB, 4)
    assert torch.cuda.fractions == [19.5 / 80]
    assert memory.room() == int(17.5 * GIB)


def test_a_whole_gpu_is_held_to_nothing() -> None:
    torch = fake_torch(80 * GIB, allocated=2 * GIB, kept=GIB, free=60 * GIB)
    memory = CudaMemory(torch, parts=1)
    memory.limit(80 * GIB, 4)
    assert torch.cuda.fractions == [1.0]
    assert memory.room() == 61 * GIB


def test_a_small_part_leaves_its_context_a_tenth() -> None:
    assert share_for_tasks(2 * GIB) == 2 * GIB - 2 * GIB // 10


# --- this process -----------------------------------------------------------------------------------------------------


@pytest.fixture
def process() -> Iterator[ProcessMemory]:
    memory = ProcessMemory(threads=1)
    yield memory
    memory.lift()


@linux
def test_a_budget_holds_and_only_the_allocation_fails(process: ProcessMemory) -> None:
    process.limit(64 * MIB, slots=2)
    assert process.problem is None
    allowed = 64 * MIB + SLACK_BYTES + 2 * SLACK_PER_THREAD_BYTES
    assert allowed - 8 * MIB <= process.room() <= allowed  # what reading it takes has gone
    with pytest.raises(MemoryError):
        bytearray(allowed + MIB)
    assert len(bytearray(64 * MIB)) == 64 * MIB
    process.limit(256 * MIB, slots=2)  # another run, another budget
    assert len(bytearray(allowed + MIB)) == allowed + MIB
    process.lift()
    assert process.problem is not None


@linux
def test_a_peak_is_seen_after_it_is_over_and_forgotten_when_asked(process: ProcessMemory) -> None:
    before = process.used()
    process.reset_peak()
    size = 64 * MIB
    block = bytearray(size)
    block[::4096] = b"x" * (size // 4096)
    del block
    assert size - MIB <= process.peak() - before < size + 16 * MIB
    process.reset_peak()
    assert process.peak() - before < size // 2


@linux
def test_what_is_kept_is_not_counted_against_the_budget(process: ProcessMemory) -> None:
    kept = bytearray(128 * MIB)
    process.limit(64 * MIB, slots=1)
    room = process.room()
    process.settle(len(kept))  # kept, but nobody's: it would go if its place were needed
    assert room - process.room() > 100 * MIB
    del kept
    assert process.room() >= room - 8 * MIB


def test_where_the_kernel_does_not_enforce_it_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "other")
    memory = ProcessMemory(threads=1)
    memory.limit(MIB, slots=1)
    assert memory.problem == "a memory budget can be enforced on Linux only"
    assert len(bytearray(256 * MIB)) == 256 * MIB


# --- the device of a worker -------------------------------------------------------------------------------------------


@linux
def test_a_device_measures_its_tasks_and_survives_one_that_is_too_large() -> None:
    pytest.importorskip("torch")
    from altlas_core.backends.worker.device import WorkDevice
    from altlas_core.backends.worker.kinds import RUNNERS
    from altlas_core.model import TaskSpec

    device = WorkDevice("cpu", 1, 42, memory_bytes=256 * MIB)
    device.limit_memory(1)
    try:
        small = work_order(TaskSpec(input_size=4096, output_size=4096, batch=64, iterations=1))
        for _ in range(2):  # the second finds the weight kept, and uses it all the same
            with device.metered(small) as usage:
                assert usage is not None
                _, detail = RUNNERS["linear"](device, small, threading.Event(), 0.0)
                figures = device.meter.figures(usage)
            assert detail["reference_ok"]
            assert abs(figures["peak_memory_bytes"] - small.memory_bytes) < 32 * MIB
        large = work_order(TaskSpec(input_size=12000, output_size=12000, batch=1, iterations=1))
        with device.metered(large), pytest.raises(RuntimeError) as caught:
            RUNNERS["linear"](device, large, threading.Event(), 0.0)
        assert device.out_of_memory(caught.value)
        with device.metered(small):
            RUNNERS["linear"](device, small, threading.Event(), 0.0)
        with device.metered(work_order(TaskSpec(kind="sleep", duration_s=1.0))) as nothing:
            assert nothing is None
    finally:
        device.lift_memory_limit()


def work_order(spec: Any) -> Any:
    from altlas_core.backends.worker.order import Order, pack
    from altlas_core.config import load_config
    from altlas_core.intake import make_tasks
    from altlas_core.model import Attempt

    return Order(*pack(Attempt(make_tasks([spec], load_config().gpu, 1)[0], 1, 0, 0.0)))
