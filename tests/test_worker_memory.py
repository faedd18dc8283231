"""A real worker with a small memory budget: what is too large fails there, and nothing else does."""

from __future__ import annotations

import queue
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from altlas_core.backends.supervision.backend import TorchBackend
from altlas_core.config import load_config
from altlas_core.events import AttemptFailed, AttemptFinished, Fact
from altlas_core.experiment import run
from altlas_core.intake import make_tasks
from altlas_core.model import Attempt, DeviceSpec, TaskSpec
from altlas_core.replay import replay
from altlas_core.workloads import Workload

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="budgets are enforced on Linux")

PATIENCE_S = 60.0
MIB = 1 << 20
BUDGET_BYTES = 256 * MIB
SLOTS = 2
SETTINGS = load_config()
TOO_LARGE = {"input_size": 12_000, "output_size": 12_000, "batch": 1, "iterations": 1.0}  # 549 MiB
FITS = {"input_size": 6_000, "output_size": 6_000, "batch": 1, "iterations": 1.0}  # 137 MiB


def device(budget_bytes: int = BUDGET_BYTES, gpu_id: int = 0) -> DeviceSpec:
    return DeviceSpec(gpu_id, "cpu", f"cpu:{gpu_id}", budget_bytes, index=gpu_id, cores=1)


class Bench:
    """A backend of one device, opened anew for every test; its worker stays."""

    def __init__(self) -> None:
        self.backend = TorchBackend([device()], SLOTS, 42, 2.0)
        self.index = 0

    def open(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self.facts: queue.SimpleQueue[Fact] = queue.SimpleQueue()
        self.backend.set_up([device(budget_bytes)], SLOTS, 42, 2.0)
        self.backend.open(self)

    def post(self, fact: Fact) -> None:
        self.facts.put(fact)

    def post_at(self, *_: object) -> None:
        raise AssertionError("a real backend plans nothing")

    def start(self, **spec: Any) -> int:
        task = make_tasks([TaskSpec(**spec)], SETTINGS.gpu, 1)[0]
        task.index = self.index
        self.index += 1
        self.backend.start(0.0, Attempt(task, 1, 0, 0.0))
        self.backend.flush()
        return task.index

    def next(self) -> Fact:
        return self.facts.get(timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def shared() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.backend.close()


@pytest.fixture
def bench(shared: Bench) -> Bench:
    shared.open()
    return shared


def test_a_task_over_the_budget_fails_and_worker_and_neighbour_go_on(bench: Bench) -> None:
    pid = bench.backend.worker_pids()
    neighbour = bench.start(input_size=256, output_size=256, duration_s=1.0)
    large = bench.start(**TOO_LARGE)
    fact = bench.next()
    assert isinstance(fact, AttemptFailed)
    assert (fact.task_index, fact.error_code) == (large, "out_of_memory")
    assert fact.free_bytes is not None
    assert fact.free_bytes < 12_000 * 12_000 * 4
    fits = bench.start(**FITS)
    ended = [bench.next(), bench.next()]
    assert {fact.task_index for fact in ended if isinstance(fact, AttemptFinished)} == {neighbour, fits}
    assert all(isinstance(fact, AttemptFinished) and fact.detail and fact.detail["reference_ok"] for fact in ended)
    assert bench.backend.worker_pids() == pid


def test_alone_it_says_what_it_needed_and_what_was_free(bench: Bench) -> None:
    bench.start(**TOO_LARGE, memory_bytes=MIB)
    fact = bench.next()
    assert isinstance(fact, AttemptFailed)
    weight_bytes = 12_000 * 12_000 * 4
    assert fact.needed_bytes is not None
    assert fact.free_bytes is not None
    assert weight_bytes <= fact.needed_bytes < weight_bytes + 16 * MIB
    assert BUDGET_BYTES <= fact.free_bytes < BUDGET_BYTES + 128 * MIB
    assert fact.error.startswith("out of memory: 0.536 GiB needed, 0.2")
    assert "0.001 GiB reserved" in fact.error


def test_a_finished_task_says_what_it_reserved_and_used(bench: Bench) -> None:
    for _ in range(2):  # the second finds its weight kept
        bench.start(**FITS)
        fact = bench.next()
        assert isinstance(fact, AttemptFinished)
        assert fact.detail is not None
        reserved = fact.detail["reserved_bytes"]
        assert reserved == fact.detail["reserved_peak_bytes"] > 137 * MIB
        assert abs(fact.detail["peak_memory_bytes"] - reserved) < 48 * MIB
        assert fact.detail["memory_neighbours"] == 0
        assert fact.detail["memory_enforced"]


def test_another_run_has_its_own_budget(bench: Bench) -> None:
    """The same worker: more, then less than before."""
    pid = bench.backend.worker_pids()
    bench.open(1024 * MIB)
    bench.start(**TOO_LARGE)
    assert isinstance(bench.next(), AttemptFinished)
    bench.open(16 * MIB)
    bench.start(**FITS)
    assert isinstance(bench.next(), AttemptFailed)
    assert bench.backend.worker_pids() == pid


def test_a_task_that_takes_more_than_it_reserved_moves_to_a_larger_device() -> None:
    """A whole run: the first device is too small for what it really needs; one task fits on none. The log replays."""
    config = load_config(None, {"gpu.backend": "cpu", "gpu.selection.default_strategy": "single_gpu"}, environ={})
    records = [{**TOO_LARGE, "memory_bytes": MIB}, {**TOO_LARGE, "input_size": 60_000, "memory_bytes": MIB}]
    result = run(config, Workload.from_records(records), devices=[device(), device(1024 * MIB, 1)])
    moved, failed = result.task_list
    assert (moved.state, moved.gpu_id, moved.attempts) == ("COMPLETED", 1, 2)
    assert (failed.state, failed.error_code) == ("FAILED", "out_of_memory")
    assert failed.error is not None
    assert "2.6" in failed.error
    assert "GiB needed" in failed.error
    assert "GiB free" in failed.error
    assert "at most 0.90 GiB are available on one GPU" in failed.error
    assert all(check.passed for check in result.checks), result.checks
    assert replay(result.event_lines()).same
