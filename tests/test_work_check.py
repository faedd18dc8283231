"""What a workload asks of devices that they do not have is refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from altlas_core.backends.work_check import check_work, dtypes_of
from altlas_core.errors import WorkloadError
from altlas_core.gpu_model.catalog import CATALOG
from altlas_core.model import Call, DeviceSpec, TaskSpec


def simulated(gpu_id: int, model: str) -> DeviceSpec:
    return DeviceSpec(gpu_id, "simulated", CATALOG[model].name, CATALOG[model].memory_total_bytes, model=model)


def cuda(gpu_id: int, capability: tuple[int, int] | None) -> DeviceSpec:
    return DeviceSpec(gpu_id, "cuda", "a card", 1 << 34, compute_capability=capability)


CPU = DeviceSpec(0, "cpu", "CPU", 1 << 30, cores=1)


@pytest.mark.parametrize(
    ("device", "formats"),
    [
        (CPU, "fp32 fp16 bf16"),
        (cuda(0, (6, 1)), "fp32"),
        (cuda(0, (7, 5)), "fp32 fp16"),
        (cuda(0, (8, 0)), "fp32 tf32 fp16 bf16"),
        (cuda(0, (12, 0)), "fp32 tf32 fp16 bf16"),
        (cuda(0, None), "fp32 tf32 fp16 bf16"),  # not told: it will say so itself
        (simulated(0, "T4"), "fp32 fp16"),
        (simulated(0, "A100-SXM4-80GB"), "fp32 tf32 fp16 bf16"),
    ],
)
def test_which_formats_a_device_has(device: DeviceSpec, formats: str) -> None:
    assert list(dtypes_of(device)) == formats.split()


def refusal(requests: list[TaskSpec], devices: list[DeviceSpec]) -> str:
    with pytest.raises(WorkloadError) as caught:
        check_work(requests, devices)
    return str(caught.value)


def test_a_format_that_a_device_lacks_is_refused_with_task_field_value_and_what_is_allowed() -> None:
    tasks = [TaskSpec(), TaskSpec(dtype="tf32", iterations=1)]
    assert refusal(tasks, [CPU]) == (
        "task-000001: dtype: tf32 is not among the number formats of GPU 0 (CPU); allowed: fp32, fp16, bf16"
    )
    assert "GPU 0 (T4); allowed: fp32, fp16" in refusal([TaskSpec(dtype="bf16")], [simulated(0, "T4")])
    assert refusal([TaskSpec(kind="attention", dtype="bf16")], [cuda(0, (7, 0))]).endswith("allowed: fp32, fp16")


def test_every_device_the_task_may_run_on_must_have_the_format() -> None:
    machine = [simulated(0, "A100-SXM4-80GB"), simulated(1, "T4")]
    assert "GPU 1 (T4)" in refusal([TaskSpec(dtype="bf16")], machine)
    assert refusal([TaskSpec(dtype="bf16")], machine).endswith("or a gpu_id whose device has it")
    check_work([TaskSpec(dtype="bf16", gpu_id=0), TaskSpec(dtype="fp16"), TaskSpec()], machine)
    assert refusal([TaskSpec(dtype="bf16", gpu_id=1)], machine).endswith("allowed: fp32, fp16")


def test_a_kind_that_computes_nothing_needs_no_format() -> None:
    check_work([TaskSpec(kind="sleep", duration_s=1, dtype="tf32")], [CPU])


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (Call("altlas_absent:f"), "task-000000: call: 'altlas_absent:f' cannot be imported: ModuleNotFoundError"),
        (Call("json:dumps", '{"depth":1}'), None),  # takes any keyword
        (Call("json:JSONEncoder.default", '{"p":1}'), 'task-000000: args: {"p":1} does not fit'),
    ],
)
def test_a_function_is_looked_for_where_devices_are_real(call: Call, part: str | None) -> None:
    task: Any = TaskSpec(kind="call", call=call)
    check_work([task], [simulated(0, "T4")])  # simulated: never imported
    if part is None:
        check_work([task], [CPU])
    else:
        assert refusal([task], [CPU]).startswith(part)


def test_a_function_pinned_to_a_simulated_device_is_not_looked_for() -> None:
    machine = [CPU, simulated(1, "T4")]
    check_work([TaskSpec(kind="call", call=Call("altlas_absent:f"), gpu_id=1)], machine)
    assert "cannot be imported" in refusal([TaskSpec(kind="call", call=Call("altlas_absent:f"))], machine)
