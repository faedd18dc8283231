"""A user's own function as a task: what it is given, what it may return, and what its errors become."""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import altlas_core as altlas
from altlas_core import calls
from altlas_core.model import DeviceSpec
from altlas_core.rules import RefusedError

torch = pytest.importorskip("torch")

from altlas_core.backends.worker.call import run_call  # noqa: E402
from altlas_core.backends.worker.device import WorkDevice  # noqa: E402
from altlas_core.backends.worker.order import Order  # noqa: E402

JOBS = """
import json, torch

def train(task, steps, rate=0.5):
    print("noise " * 1000)
    x = task.uniform(task.batch, task.input_size)
    weight = torch.zeros(task.input_size, 1, dtype=task.dtype, device=task.device)
    for step in range(steps):
        weight += rate
    return {"iterations": steps, "flops": 2.0 * steps, "bytes_moved": 8 * steps, "checksum": weight.sum(),
            "checksum_reference": steps * rate * task.input_size, "checksum_tolerance": 1e-3,
            "result": {"shape": list(x.shape), "bytes": task.element_bytes, "memory": task.memory_bytes}}

def nothing(task): pass

def wait(task):
    rounds = 0
    while not task.should_stop():
        rounds += 1
    return {"iterations": rounds, "result": task.remaining_s()}

def turns(task):
    with task.turn():
        return {"result": task.duration_s}

def fail(task, text): raise LookupError(text)

def leave(task): raise SystemExit(3)

def hungry(task): torch.empty(1 << 60, dtype=torch.uint8)

def answer(task, text): return eval(text)

class Trainer:
    @staticmethod
    def go(task): return {"iterations": 7}

constant = 3
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of functions that is found from the working directory only."""
    (tmp_path / "users_jobs.py").write_text(JOBS)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    importlib.invalidate_caches()
    yield "users_jobs"
    sys.path[:] = before
    sys.modules.pop("users_jobs", None)


@pytest.fixture(scope="module")
def device() -> Iterator[WorkDevice]:
    threads = torch.get_num_threads()
    yield WorkDevice("cpu", 1, 42, 1 << 30)
    torch.set_num_threads(threads)


def call(device: WorkDevice, target: str, more: dict[str, Any] | None = None, **arguments: Any) -> Any:
    fields: dict[str, Any] = {"duration_s": None, "iterations": None, "input_size": 6, "output_size": 1, "batch": 2}
    wire = (target, json.dumps(arguments), calls.search_paths())
    order = Order("call", memory_bytes=77, call=wire, **{**fields, **(more or {})})
    return run_call(device, order, threading.Event(), time.perf_counter())


# --- running it -------------------------------------------------------------------------------------------------------


def test_a_function_gets_the_task_and_its_arguments_and_its_figures_are_told(device: WorkDevice, jobs: str) -> None:
    iterations, detail = call(device, f"{jobs}:train", {"dtype": "bf16"}, steps=4)
    assert iterations == 4
    assert (detail["flops"], detail["bytes_moved"]) == (8.0, 32.0)
    assert detail["achieved_tflops"] == pytest.approx(8.0 / detail["call_s"] / 1e12)
    assert (detail["checksum"], detail["checksum_reference"], detail["reference_ok"]) == (12.0, 12.0, True)
    assert detail["result"] == {"shape": [2, 6], "bytes": 2, "memory": 77}
    json.dumps(detail)


def test_a_function_need_not_return_anything_and_may_be_a_method(device: WorkDevice, jobs: str) -> None:
    iterations, detail = call(device, f"{jobs}:nothing")
    assert iterations == 0.0
    assert (detail["flops"], detail["measured"]) == (0.0, True)
    assert "reference_ok" not in detail
    assert call(device, f"{jobs}:Trainer.go")[0] == 7


def test_a_function_is_told_when_its_time_is_over(device: WorkDevice, jobs: str) -> None:
    begun = time.perf_counter()
    _, detail = call(device, f"{jobs}:wait", {"duration_s": 0.1})
    assert time.perf_counter() - begun >= 0.1
    assert detail["result"] == 0.0
    assert call(device, f"{jobs}:turns", {"duration_s": 5.0})[1]["result"] == 5.0
    assert not device.turns._taken


def test_a_function_without_a_duration_is_told_only_of_a_stop(device: WorkDevice, jobs: str) -> None:
    stop = threading.Event()
    threading.Timer(0.05, stop.set).start()
    order = Order("call", None, None, 1, 1, 1, 0, call=(f"{jobs}:wait", "{}", calls.search_paths()))
    _, detail = run_call(device, order, stop, time.perf_counter() - 1000.0)
    assert stop.is_set()
    assert "result" not in detail  # None: it had no end


def test_what_a_function_raises_is_its_own(device: WorkDevice, jobs: str) -> None:
    with pytest.raises(LookupError, match="no such page"):
        call(device, f"{jobs}:fail", text="no such page")
    with pytest.raises(SystemExit):
        call(device, f"{jobs}:leave")
    with pytest.raises(RuntimeError) as caught:
        call(device, f"{jobs}:hungry")
    assert device.out_of_memory(caught.value)
    assert device._reserved_bytes == 0


@pytest.mark.parametrize(
    ("returned", "part"),
    [
        ("[1]", "returned [1]; allowed: None, or a dict with iterations, flops"),
        ("{'loss': 1}", "returned a dict with 'loss'; allowed"),
        ("{'flops': 'many'}", "returned flops 'many'; allowed: a number"),
        ("{'flops': torch.ones(3)}", "returned flops tensor"),
        ("{'iterations': float('nan')}", "returned iterations nan; allowed: a finite number, not below 0"),
        ("{'bytes_moved': -1}", "returned bytes_moved -1"),
        ("{'result': {1, 2}}", "returned result: {1, 2} (set) is no JSON value"),
        ("{'result': [{'a': torch.ones(1)}]}", "returned result[0].a: "),
        ("{'result': 'x' * 70_000}", "a result of 70002 characters of JSON; allowed: up to 65536"),
    ],
)
def test_what_a_function_may_not_return_is_its_error(device: WorkDevice, jobs: str, returned: str, part: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call(device, f"{jobs}:answer", text=returned)
    assert f"{jobs}:answer" in str(caught.value)
    assert part in str(caught.value)


def test_a_sum_that_the_functions_own_reference_denies_is_not_right(device: WorkDevice, jobs: str) -> None:
    sums = {"checksum": 1.0, "checksum_reference": 1.5}
    assert call(device, f"{jobs}:answer", text=repr(sums))[1]["reference_ok"] is False
    assert call(device, f"{jobs}:answer", text=repr(sums | {"checksum_tolerance": 0.5}))[1]["reference_ok"] is True


# --- finding it, and its arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "arguments", "part"),
    [
        ("users_jobs:train", '{"steps":1}', None),
        ("users_jobs:train", '{"rate":1,"steps":1}', None),
        ("users_jobs:Trainer.go", "{}", None),
        ("users_jobs:train", "{}", "args: {} does not fit 'users_jobs:train' (missing a required argument: 'steps')"),
        ("users_jobs:train", '{"step":1,"steps":1}', "unexpected keyword argument 'step'"),
        ("users_jobs:train", '{"steps":1,"task":1}', "multiple values for argument 'task'"),
        ("users_jobs:trian", "{}", "'users_jobs:trian': users_jobs has no 'trian'; allowed: the import path"),
        ("users_jobs:constant", "{}", "'users_jobs:constant' is a int, no function"),
        ("absent_jobs:train", "{}", "'absent_jobs:train' cannot be imported: ModuleNotFoundError: No module named"),
        ("broken_jobs:train", "{}", "'broken_jobs:train' cannot be imported: ZeroDivisionError: division by zero"),
        ("leaving_jobs:train", "{}", "'leaving_jobs:train' cannot be imported: SystemExit: 1"),
    ],
)
def test_a_function_is_looked_for_before_anything_runs(
    jobs: str, tmp_path: Path, target: str, arguments: str, part: str | None
) -> None:
    (tmp_path / "broken_jobs.py").write_text("1 / 0\n")
    (tmp_path / "leaving_jobs.py").write_text("raise SystemExit(1)\n")
    before = list(sys.path)
    if part is None:
        calls.check(target, arguments)
    else:
        with pytest.raises(RefusedError) as caught:
            calls.check(target, arguments)
        assert part in str(caught.value)
        assert "; allowed: " in str(caught.value)
    assert sys.path == before


def test_equal_arguments_are_equal_text() -> None:
    assert calls.arguments({"b": (1, 2.5), "a": None}) == calls.arguments('{"a": null, "b": [1, 2.5]}')
    assert calls.arguments({"b": (1, 2.5), "a": None}) == '{"a":null,"b":[1,2.5]}'


# --- through a worker process -----------------------------------------------------------------------------------------


def test_a_worker_finds_the_function_runs_it_and_outlives_its_errors(jobs: str) -> None:
    settings = altlas.load_config(overrides={"gpu.workload.retry_count": 0}, environ={})
    workload = altlas.Workload.from_records(
        [
            {"call": f"{jobs}:train", "args": {"steps": 3}},
            {"call": f"{jobs}:fail", "args": {"text": "no such page"}},
            {"call": f"{jobs}:leave"},
            {"call": f"{jobs}:wait", "duration_s": 0.05, "submit_s": 0.1},
            {"call": f"{jobs}:wait", "timeout_s": 0.2},
            {"kind": "mlp", "iterations": 2, "input_size": 64, "output_size": 32, "batch": 4, "dtype": "bf16"},
        ]
    )
    result = altlas.run(settings, workload, devices=[DeviceSpec(0, "cpu", "CPU", 1 << 30, cores=1)])
    tasks = {task.spec.call.target if task.spec.call else "mlp": task for task in result.task_list[:4]}
    assert tasks[f"{jobs}:train"].state == "COMPLETED"
    assert tasks[f"{jobs}:fail"].error == "LookupError: no such page"
    assert tasks[f"{jobs}:leave"].error_code == "task_error"
    assert result.tasks["state"].value_counts().to_dict() == {"COMPLETED": 3, "FAILED": 3}
    assert list(result.tasks["error_code"].dropna()) == ["task_error", "task_error", "timeout"]
    details = [attempt.detail for attempt in result.log.attempts() if attempt.outcome == "finished"]
    assert all(detail is not None and detail.get("reference_ok", True) for detail in details)
    assert [detail["dtype"] for detail in details if detail and "dtype" in detail] == ["bf16"]
