"""From what was asked for to a task: defaults filled in, and what cannot be refused before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from altlas_core.calls import arguments
from altlas_core.config_schema import GpuSettings
from altlas_core.errors import WorkloadError
from altlas_core.kinds import KINDS
from altlas_core.model import PRIORITIES, Call, Demand, Task, TaskSpec
from altlas_core.strategies import check_strategy


def make_tasks(specs: Iterable[TaskSpec], settings: GpuSettings, device_count: int) -> list[Task]:
    """Tasks numbered 0, 1, 2, ... in the given order.

    Raises WorkloadError for a pin to a GPU that is not there, StrategyError for a strategy that may not be used.
    """
    selection = settings.selection
    default_timeout_s, default_retries = settings.workload.timeout, settings.workload.retry_count
    allowed = selection.strategies
    default = check_strategy(selection.default_strategy, allowed, "gpu.selection.default_strategy")
    demands: dict[tuple[int | None, int | None, str | None, str, int, int, int, str], Demand] = {}
    unique: dict[tuple[Any, ...], Demand] = {}  # tasks that say the same in different words want the same
    tasks = []
    for index, spec in enumerate(specs):
        wanted = (
            spec.memory_bytes,
            spec.gpu_id,
            spec.strategy,
            spec.kind,
            spec.input_size,
            spec.output_size,
            spec.batch,
            spec.dtype,
        )
        demand = demands.get(wanted)
        if demand is None:
            where = f"task-{index:06d}"
            memory = KINDS[spec.kind].memory_bytes(spec) if spec.memory_bytes is None else spec.memory_bytes
            strategy = default if spec.strategy is None else check_strategy(spec.strategy, allowed, where)
            pin = _check_pin(spec.gpu_id, device_count, where)
            resolved = (memory, pin, strategy, wanted[3:])
            demand = demands[wanted] = unique.setdefault(resolved, Demand(*resolved))
        timeout_s = default_timeout_s if spec.timeout_s is None else spec.timeout_s
        retry_count = default_retries if spec.retry_count is None else spec.retry_count
        tasks.append(Task(index, spec, PRIORITIES[spec.priority], demand, demand.memory_bytes, timeout_s, retry_count))
    return tasks


def _check_pin(gpu_id: int | None, device_count: int, where: str) -> int | None:
    if gpu_id is not None and not 0 <= gpu_id < device_count:
        there = "GPU 0" if device_count == 1 else f"GPUs 0 to {device_count - 1}"
        raise WorkloadError(f"{where}: gpu_id {gpu_id} is not there; this machine has {there}")
    return gpu_id


def make_task(record: Mapping[str, Any], demands: dict[tuple[Any, ...], Demand]) -> Task:
    """The task of a TaskSubmitted line of an event log, as it was when it was submitted.

    `demands` keeps the demands met so far, for tasks alike share one.
    """
    names = ("kind", "duration_s", "iterations", "input_size", "output_size", "batch", "priority", "batch_id")
    spec = TaskSpec(
        submit_s=record["t"],
        dtype=record.get("dtype", "fp32"),
        call=Call(record["call"], arguments(record["args"])) if "call" in record else None,
        **{name: record[name] for name in names},
    )
    sizes = (spec.kind, spec.input_size, spec.output_size, spec.batch, spec.dtype)
    wanted = (record["memory_bytes"], record["gpu_id"], record["strategy"], sizes)
    demand = demands.setdefault(wanted, Demand(*wanted))
    level = PRIORITIES[spec.priority]
    return Task(record["task"], spec, level, demand, demand.memory_bytes, record["timeout_s"], record["retry_count"])
