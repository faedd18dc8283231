"""Real worker processes on CPU devices: results, sharing, readings, and the wire."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest
from workers import DEVICES, PATIENCE_S, Bench, wait_for

from altlas_core.backends.supervision.exit import describe_exit
from altlas_core.backends.supervision.process import assignment, environment
from altlas_core.backends.worker.channel import Channel, pair
from altlas_core.errors import DeviceError
from altlas_core.events import AttemptFailed, AttemptFinished, AttemptStopped
from altlas_core.faults import Fault
from altlas_core.model import DeviceSpec


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


def test_several_tasks_run_at_a_time_on_one_device(bench: Bench) -> None:
    blockers = [bench.start(kind="sleep", duration_s=600) for _ in range(2)]
    bench.start(iterations=1, input_size=32, output_size=32, batch=4)  # ends although two others hold the device
    assert isinstance(bench.mail.next(), AttemptFinished)
    for attempt in blockers:
        bench.stop(attempt)
    assert {bench.mail.next().task_index for _ in blockers} == {a.task.index for a in blockers}  # type: ignore[union-attr]


def test_kernels_of_several_tasks_take_turns() -> None:
    from threading import Thread

    from altlas_core.backends.worker.device import Turnstile

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
    from altlas_core.backends.worker.device import WorkDevice

    device = WorkDevice("cpu", 1, 42, memory_bytes=1 << 20)
    cublas = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    short = [MemoryError(), torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError(cublas)]
    short.append(torch.AcceleratorError("CUDA error: out of memory\nSearch for"))
    assert all(device.out_of_memory(error) for error in short)
    other = [RuntimeError("out of luck"), torch.AcceleratorError("CUDA error: an illegal memory access"), KeyError()]
    assert not any(device.out_of_memory(error) for error in other)


BROKEN_CONTEXT = """
    import socket, sys
    from altlas_core.backends.worker import program as torch_worker
    from altlas_core.backends.worker.channel import START, Channel, pair
    from altlas_core.backends.worker.device import WorkDevice

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


def test_faults_of_sensors_are_refused_with_what_to_do(bench: Bench) -> None:
    with pytest.raises(DeviceError, match="allowed on real devices: lose_gpu"):
        bench.backend.inject(0.0, Fault(0.0, 0, "overheat", value=95.0))


def test_a_worker_sees_its_own_gpu_only_and_no_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = DeviceSpec(0, "cuda", "GPU", 1 << 34, index=3, uuid="GPU-abc", part=1, parts=4)
    given = assignment(gpu, slots=2, seed=7)
    assert given["environment"] == {"CUDA_VISIBLE_DEVICES": "GPU-abc", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert (given["cores"], given["parts"], given["memory_bytes"], given["slots"], given["seed"]) == (
        1,
        4,
        1 << 34,
        2,
        7,
    )
    cpu = assignment(replace(DEVICES[0], cores=3, cpu_ids=(1, 2, 5)), 1, 42)
    assert (cpu["environment"], cpu["cores"], cpu["cpu_ids"]) == ({"CUDA_VISIBLE_DEVICES": ""}, 3, (1, 2, 5))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert "NVIDIA_TF32_OVERRIDE" not in environment(3)
    assert environment(3)["OMP_NUM_THREADS"] == "3"


DEVICE_TAKEN = """
    import json, os, sys, threading
    from altlas_core.backends.worker.program import Assignment, take_device
    import torch  # before the device is known, as in a spare worker

    cores = int(sys.argv[1])
    take_device(Assignment("cpu", cores, (0,), 1, 1 << 30, 1, 42, {"CUDA_VISIBLE_DEVICES": ""}))
    found = []
    task = threading.Thread(target=lambda: found.append((torch.get_num_threads(), sorted(os.sched_getaffinity(0)))))
    task.start()
    task.join()
    print(json.dumps([*found[0], sorted(os.sched_getaffinity(0)), os.environ["CUDA_VISIBLE_DEVICES"]]))
"""


def test_a_worker_that_imported_torch_before_it_knew_its_device_keeps_to_its_cores() -> None:
    program = textwrap.dedent(DEVICE_TAKEN)
    text = subprocess.check_output([sys.executable, "-c", program, "1"], text=True, timeout=PATIENCE_S)
    assert json.loads(text) == [1, [0], [0], ""]


def test_a_message_larger_than_the_wire_arrives_whole_and_sending_never_waits() -> None:
    ours, theirs = pair()
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
