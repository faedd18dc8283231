"""Real worker processes on CPU devices: results, sharing, stops, deaths, and that nothing is left behind."""

from __future__ import annotations

import math
import os
import queue
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import psutil
import pytest

from altlas_core.backends.torch_backend import TorchBackend
from altlas_core.backends.torch_channel import pair
from altlas_core.backends.torch_process import describe_exit, environment
from altlas_core.config import load_config
from altlas_core.errors import DeviceError, RunError
from altlas_core.events import (
    AttemptFailed,
    AttemptFinished,
    AttemptStopped,
    DeviceLost,
    DeviceReturned,
    Fact,
    WorkerCrashed,
)
from altlas_core.faults import Fault
from altlas_core.intake import make_tasks
from altlas_core.model import Attempt, DeviceSpec, TaskSpec

PATIENCE_S = 60.0  # for a slow machine; nothing waits this long when all is well
DEVICES = [DeviceSpec(i, "cpu", f"cpu:{i}", 2 << 30, index=i, cores=1) for i in range(2)]
GRACE_S = 0.1
SETTINGS = load_config()


class Recorder:
    """A mailbox that keeps what arrives."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[Fact] = queue.SimpleQueue()

    def post(self, fact: Fact) -> None:
        self.inbox.put(fact)

    def post_at(self, *_: object) -> None:
        raise AssertionError("a real backend plans nothing")

    def next(self) -> Fact:
        return self.inbox.get(timeout=PATIENCE_S)


class Bench:
    """An open backend with its mailbox, and tasks numbered as they are started."""

    def __init__(self) -> None:
        self.backend = TorchBackend(DEVICES, 3, 42, GRACE_S)
        self.index = 0
        self.open()

    def open(self) -> None:
        self.mail = Recorder()
        self.backend.open(self.mail)

    def start(self, gpu_id: int = 0, **spec: object) -> Attempt:
        task = make_tasks([TaskSpec(**spec)], SETTINGS.gpu, len(DEVICES))[0]  # type: ignore[arg-type]
        task.index = self.index
        self.index += 1
        attempt = Attempt(task, 1, gpu_id, 0.0)
        self.backend.start(0.0, attempt)
        self.backend.flush()
        return attempt

    def stop(self, attempt: Attempt) -> None:
        self.backend.stop(0.0, attempt, "cancelled")
        self.backend.flush()

    def poll_until_next(self) -> Fact:
        """As the driver does: look again and again, until something arrives."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            self.backend.poll(0.0)
            try:
                return self.mail.inbox.get(timeout=0.02)
            except queue.Empty:
                pass
        raise AssertionError("nothing arrived")


@pytest.fixture(scope="module")
def shared() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.backend.close()


@pytest.fixture
def bench(shared: Bench) -> Bench:
    """Every test finds all workers ready and nothing running: opening again sees to that."""
    shared.open()
    return shared


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


# --- work -------------------------------------------------------------------------------------------------------------


def test_a_linear_task_runs_its_iterations_and_its_result_is_right(bench: Bench) -> None:
    bench.start(iterations=3, input_size=300, output_size=200, batch=16)
    fact = bench.mail.next()
    assert isinstance(fact, AttemptFinished)
    assert fact.iterations == 3
    detail = fact.detail
    assert detail is not None
    assert detail["measured"] is True
    assert detail["flops"] == 3 * 2 * 300 * 200 * 16
    assert detail["reference_ok"] is True
    assert 0 <= detail["max_rel_error"] <= detail["tolerance"] == pytest.approx(300 * 2.0**-24, rel=1e-3)
    assert 0 < detail["iteration_p50_s"] <= detail["iteration_p95_s"] <= detail["iteration_p99_s"]
    assert detail["kernel_s"] >= detail["iteration_p50_s"]
    assert detail["peak_memory_bytes"] is None


def test_a_linear_task_holds_the_device_for_its_duration(bench: Bench) -> None:
    begun = time.monotonic()
    bench.start(duration_s=0.2, input_size=64, output_size=64, batch=8)
    fact = bench.mail.next()
    assert time.monotonic() - begun >= 0.2
    assert isinstance(fact, AttemptFinished)
    assert fact.iterations > 1


def test_a_product_too_large_for_one_kernel_is_done_in_pieces_and_counts_fractions(bench: Bench) -> None:
    # 4096 x 4096 x 512: 17 GFLOP, cut into pieces of at most 5.
    attempt = bench.start(iterations=1000, input_size=4096, output_size=4096, batch=512)
    wait_for(lambda: bench.backend.sample(0.0, 0).memory_used_bytes is not None)  # type: ignore[union-attr]
    bench.stop(attempt)
    fact = bench.mail.next()
    assert isinstance(fact, AttemptStopped)
    assert fact.iterations < 1000
    bench.start(iterations=0.25, input_size=4096, output_size=4096, batch=512)
    fact = bench.mail.next()
    assert isinstance(fact, AttemptFinished)
    assert 0.25 <= fact.iterations < 1
    assert fact.detail is not None
    assert fact.detail["reference_ok"]


def test_a_corrupted_product_is_found_out() -> None:
    torch = pytest.importorskip("torch")
    from altlas_core.backends.torch_work import check_product

    x, weight = torch.rand(32, 512) * 2 - 1, torch.rand(512, 128) * 2 - 1
    y = x @ weight
    error, tolerance = check_product(x, weight, y, 128, seed=1)
    assert error <= tolerance
    for broken in (y + 0.01 * 512**0.5, torch.zeros_like(y), torch.full_like(y, math.nan), y.half().float() * 1.01):
        error, tolerance = check_product(x, weight, broken, 128, seed=1)
        assert error > tolerance


def test_several_tasks_run_at_a_time_on_one_device(bench: Bench) -> None:
    blockers = [bench.start(kind="sleep", duration_s=600) for _ in range(2)]
    bench.start(iterations=1, input_size=32, output_size=32, batch=4)  # ends although two others hold the device
    assert isinstance(bench.mail.next(), AttemptFinished)
    for attempt in blockers:
        bench.stop(attempt)
    assert {bench.mail.next().task_index for _ in blockers} == {a.task.index for a in blockers}  # type: ignore[union-attr]


def test_kernels_of_several_tasks_take_turns() -> None:
    from threading import Thread

    from altlas_core.backends.torch_device import Turnstile

    turns, order, line = Turnstile(), [], []
    with turns:
        for name in "abc":
            thread = Thread(target=lambda name=name: _take_turn(turns, order, name))
            thread.start()
            line.append(thread)
            wait_for(lambda: len(turns._line) == len(line))
    for thread in line:
        thread.join()
    assert order == ["a", "b", "c"]


def _take_turn(turns: object, order: list[str], name: str) -> None:
    with turns:  # type: ignore[attr-defined]
        order.append(name)


def test_a_task_that_raises_fails_with_its_error(bench: Bench) -> None:
    bench.start(kind="raise_error", duration_s=0.05)
    fact = bench.mail.next()
    assert isinstance(fact, AttemptFailed)
    assert fact.error_code == "task_error"
    assert fact.error == "RuntimeError: raise_error: this kind of task always fails"


def test_too_little_memory_is_reported_and_the_worker_stays_usable(bench: Bench) -> None:
    pid = bench.backend.worker_pids()[0]
    bench.start(iterations=1, input_size=1 << 24, output_size=1 << 24, batch=1)  # a weight of 1 PiB
    fact = bench.mail.next()
    assert isinstance(fact, AttemptFailed)
    assert fact.error_code == "out_of_memory"
    bench.start(kind="noop")
    assert isinstance(bench.mail.next(), AttemptFinished)
    assert bench.backend.worker_pids()[0] == pid


def test_every_way_torch_says_that_memory_is_short_is_known() -> None:
    torch = pytest.importorskip("torch")
    from altlas_core.backends.torch_device import WorkDevice

    device = WorkDevice("cpu", 1, 42, memory_bytes=1 << 20)
    cublas = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    short = [MemoryError(), torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError(cublas)]
    short.append(torch.AcceleratorError("CUDA error: out of memory\nSearch for"))
    assert all(device.out_of_memory(error) for error in short)
    other = [RuntimeError("out of luck"), torch.AcceleratorError("CUDA error: an illegal memory access"), KeyError()]
    assert not any(device.out_of_memory(error) for error in other)


BROKEN_CONTEXT = """
    import socket, sys
    from altlas_core.backends import torch_worker
    from altlas_core.backends.torch_channel import START, Channel, pair
    from altlas_core.backends.torch_device import WorkDevice

    class Broken(WorkDevice):
        def broken(self):  # as a CUDA device after an illegal memory access
            return True

    ours, theirs = pair()
    ours.send([(START, 0, 1, "raise_error", None, None, 1, 1, 1, 0), (START, 1, 1, "sleep", 600, None, 1, 1, 1, 0)])
    torch_worker.Worker(Channel(theirs), Broken("cpu", 1, 42, 1 << 20), 2).serve()
"""


def test_a_worker_whose_context_is_broken_ends_instead_of_blaming_one_task() -> None:
    program = textwrap.dedent(BROKEN_CONTEXT)
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert describe_exit(ended.returncode, ended.stderr.strip()) == (
        "exit status 70: the CUDA context is beyond use: RuntimeError: raise_error: this kind of task always fails"
    )


def test_idle_weights_make_room_for_what_running_tasks_reserve() -> None:
    pytest.importorskip("torch")
    from altlas_core.backends.torch_device import WorkDevice
    from altlas_core.backends.torch_order import Order

    device = WorkDevice("cpu", 1, 42, memory_bytes=3 * 4 * 64 * 64)

    def use(size: int, memory_bytes: int) -> None:
        with device.weight(Order("linear", None, 1, size, size, 1, memory_bytes)) as weight:
            assert tuple(weight.shape) == (size, size)

    use(64, 4 * 64 * 64)
    use(32, 4 * 32 * 32)
    assert set(device._weights) == {(64, 64), (32, 32)}
    use(16, 3 * 4 * 64 * 64)  # reserves everything
    assert set(device._weights) == {(16, 16)}


def test_percentiles_come_from_a_bounded_sample() -> None:
    from altlas_core.backends.torch_work import Timings

    timings = Timings(limit=64)
    for number in range(1, 10_001):
        timings.add(number / 10_000)
    assert timings.percentile(50) == pytest.approx(0.5, abs=0.03)
    assert timings.percentile(99) == pytest.approx(0.99, abs=0.03)
    assert len(timings._kept) < 64
    at_once, one_by_one = Timings(limit=64), Timings(limit=64)
    for number in range(300):  # bursts of iterations that took the same
        at_once.add(number, times=number % 9)
        for _ in range(number % 9):
            one_by_one.add(number)
    assert at_once._kept == one_by_one._kept
    assert Timings().percentile(50) is None


# --- stops ------------------------------------------------------------------------------------------------------------


def test_a_running_task_stops_when_asked(bench: Bench) -> None:
    pid = bench.backend.worker_pids()[0]
    attempt = bench.start(kind="sleep", duration_s=600)
    bench.stop(attempt)
    assert bench.mail.next() == AttemptStopped(attempt.task.index, 1, 0.0)
    assert bench.backend.worker_pids()[0] == pid


def test_a_task_that_does_not_stop_is_killed_and_its_neighbours_are_not_blamed(bench: Bench) -> None:
    pid = bench.backend.worker_pids()[0]
    hanging = bench.start(kind="hang", duration_s=600)
    neighbour = bench.start(kind="sleep", duration_s=600)
    bench.stop(hanging)
    facts = [bench.poll_until_next(), bench.mail.next()]
    assert facts[0] == AttemptStopped(hanging.task.index, 1)
    assert facts[1] == WorkerCrashed(0, ((neighbour.task.index, 1),), "signal 9 (SIGKILL)", blamed=False)
    bench.start(kind="noop")  # waits for the replacement
    assert isinstance(bench.mail.next(), AttemptFinished)
    assert pid is not None
    assert gone(pid)
    assert bench.backend.worker_pids()[0] not in (None, pid)


def test_stopping_what_has_ended_changes_nothing(bench: Bench) -> None:
    attempt = bench.start(kind="noop")
    assert isinstance(bench.mail.next(), AttemptFinished)
    bench.stop(attempt)
    bench.start(kind="noop")
    assert bench.mail.next() == AttemptFinished(attempt.task.index + 1, 1, 0.0, None)


# --- deaths -----------------------------------------------------------------------------------------------------------


def test_a_killed_worker_reports_what_ran_there_and_is_replaced(bench: Bench) -> None:
    running = [bench.start(gpu_id=1, kind="sleep", duration_s=600) for _ in range(2)]
    pid = bench.backend.worker_pids()[1]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    crash = bench.mail.next()
    assert crash == WorkerCrashed(1, tuple((a.task.index, 1) for a in running), "signal 9 (SIGKILL)", blamed=True)
    waiting = bench.start(gpu_id=1, kind="sleep", duration_s=600)  # no worker yet
    bench.stop(waiting)
    assert not bench.mail.inbox.empty()  # nobody needs to be asked
    assert bench.mail.next() == AttemptStopped(waiting.task.index, 1)
    bench.start(gpu_id=1, kind="noop")
    assert isinstance(bench.mail.next(), AttemptFinished)


def test_a_crashing_task_takes_its_worker_with_it(bench: Bench) -> None:
    attempt = bench.start(kind="crash_worker")
    assert bench.mail.next() == WorkerCrashed(0, ((attempt.task.index, 1),), "signal 9 (SIGKILL)", blamed=True)


def test_a_lost_device_says_so_once_and_takes_nothing_until_it_returns(bench: Bench) -> None:
    pid = bench.backend.worker_pids()[1]
    bench.start(gpu_id=1, kind="sleep", duration_s=600)
    bench.backend.inject(0.0, Fault(0.0, 1, "lose_gpu"))
    bench.backend.inject(0.0, Fault(0.0, 1, "lose_gpu"))
    lost = bench.mail.next()
    assert isinstance(lost, DeviceLost)
    assert lost.gpu_id == 1
    assert bench.backend.sample(0.0, 1) is None
    assert pid is not None
    wait_for(lambda: gone(pid))
    bench.start(gpu_id=1, kind="noop")  # goes nowhere: DeviceLost speaks for it
    bench.start(gpu_id=0, kind="noop")
    fact = bench.mail.next()
    assert isinstance(fact, AttemptFinished)
    assert fact.task_index == bench.index - 1
    bench.backend.inject(0.0, Fault(1.0, 1, "return_gpu"))
    assert bench.mail.next() == DeviceReturned(1)
    bench.start(gpu_id=1, kind="noop")
    assert isinstance(bench.mail.next(), AttemptFinished)


def test_faults_of_sensors_are_refused_with_what_to_do(bench: Bench) -> None:
    with pytest.raises(DeviceError, match="allowed on real devices: lose_gpu"):
        bench.backend.inject(0.0, Fault(0.0, 0, "overheat", value=95.0))


def test_a_worker_that_cannot_start_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    backend = TorchBackend(DEVICES[:1], 1, 42, GRACE_S)
    with pytest.raises(RunError, match=r"worker of GPU 0 \(cpu:0\) did not start: exit status 1"):
        backend.open(Recorder())
    assert backend.worker_pids() == [None]


# --- readings, environment, wire --------------------------------------------------------------------------------------


def test_readings_of_a_cpu_device_are_those_of_its_worker(bench: Bench) -> None:
    attempt = bench.start(duration_s=600, input_size=512, output_size=512)
    busy = []

    def seen() -> bool:
        sample = bench.backend.sample(0.0, 0)
        assert sample is not None
        assert (sample.temperature_c, sample.power_w, sample.foreign_memory_bytes) == (None, None, None)
        busy.append(sample.utilization_pct or 0.0)
        return busy[-1] > 0 and (sample.memory_used_bytes or 0) > 10 << 20

    wait_for(seen)
    assert max(busy) <= 100
    bench.stop(attempt)
    bench.mail.next()


def test_a_worker_sees_its_own_gpu_only_and_no_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = DeviceSpec(0, "cuda", "GPU", 1 << 34, index=3, uuid="GPU-abc")
    assert environment(gpu)["CUDA_VISIBLE_DEVICES"] == "GPU-abc"
    assert environment(gpu)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert "NVIDIA_TF32_OVERRIDE" not in environment(gpu)
    cpu = environment(replace(DEVICES[0], cores=3))
    assert (cpu["CUDA_VISIBLE_DEVICES"], cpu["OMP_NUM_THREADS"]) == ("", "3")


def test_an_exit_is_told_in_words() -> None:
    assert describe_exit(-11, "") == "signal 11 (SIGSEGV)"
    assert describe_exit(3, "a\nImportError: no torch") == "exit status 3: ImportError: no torch"


def test_a_message_larger_than_the_wire_arrives_whole_and_sending_never_waits() -> None:
    ours, theirs = pair()
    from altlas_core.backends.torch_channel import Channel

    other = Channel(theirs)
    message = [(1, "x" * 3_000_000)]
    assert not ours.send_soon(message)
    arrived = []
    while not arrived:
        arrived += other.receive()
        ours.send_soon([])
    assert arrived == [message]
    ours.close()
    with pytest.raises(EOFError):
        other.receive()
    other.close()


# --- nothing is left behind -------------------------------------------------------------------------------------------


def test_after_close_no_process_is_left_and_closing_again_is_fine() -> None:
    bench = Bench()
    bench.start(kind="hang", duration_s=600)
    pids = bench.backend.worker_pids()
    bench.backend.close()
    bench.backend.close()
    assert all(pid is not None and not psutil.pid_exists(pid) for pid in pids)


PARENT = """
    import sys, time
    from altlas_core.backends.torch_backend import TorchBackend
    from altlas_core.config import load_config
    from altlas_core.intake import make_tasks
    from altlas_core.model import Attempt, DeviceSpec, TaskSpec

    class Mail:
        def post(self, fact): pass
        def post_at(self, *_): pass

    backend = TorchBackend([DeviceSpec(0, "cpu", "cpu:0", 1 << 30, cores=1)], 2, 42, 1.0)
    backend.open(Mail())  # at the top level of a script, without a __main__ guard
    task = make_tasks([TaskSpec(kind="hang", duration_s=600)], load_config().gpu, 1)[0]
    backend.start(0.0, Attempt(task, 1, 0, 0.0))
    backend.flush()
    print(*backend.worker_pids(), flush=True)
    {then}
"""


@pytest.mark.parametrize(
    ("then", "how"),
    [("time.sleep(600)", signal.SIGKILL), ("time.sleep(600)", signal.SIGINT), ("sys.exit(1)", None)],
    ids=["parent killed", "Ctrl-C", "never closed"],
)
def test_workers_end_with_their_parent(then: str, how: signal.Signals | None) -> None:
    program = textwrap.dedent(PARENT).format(then=then)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if how is not None:
            assert not gone(pid)
            parent.send_signal(how)
        parent.wait(PATIENCE_S)
    wait_for(lambda: gone(pid))


def test_opening_again_ends_what_an_earlier_run_left_and_waits_for_new_workers(bench: Bench) -> None:
    pid = bench.backend.worker_pids()[0]
    bench.start(kind="hang", duration_s=600)
    bench.start(kind="crash_worker", gpu_id=1)
    assert isinstance(bench.mail.next(), WorkerCrashed)
    bench.start(kind="sleep", gpu_id=1, duration_s=600)  # waits for a worker that is still starting
    bench.open()
    assert pid is not None
    wait_for(lambda: gone(pid))
    bench.start(kind="noop", gpu_id=0)
    bench.start(kind="noop", gpu_id=1)
    facts = [bench.mail.next(), bench.mail.next()]
    assert all(isinstance(fact, AttemptFinished) for fact in facts)


def test_a_device_may_be_lost_and_return_while_its_worker_is_starting(bench: Bench) -> None:
    bench.start(kind="crash_worker", gpu_id=1)
    assert isinstance(bench.mail.next(), WorkerCrashed)
    bench.backend.lose_device(1, "test")
    bench.backend.return_device(1)
    assert bench.mail.next() == DeviceLost(1, "test")
    assert bench.mail.next() == DeviceReturned(1)


def test_a_worker_killed_by_a_fault_of_one_run_is_no_news_in_the_next(bench: Bench) -> None:
    bench.backend.crash_worker(1)
    bench.open()
    bench.start(kind="noop", gpu_id=1)
    assert isinstance(bench.mail.next(), AttemptFinished)
