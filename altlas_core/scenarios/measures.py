"""Figures of runs that scenarios compare: what fits where, list scheduling, peaks, balance, tables of tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from altlas_core.config import Settings
from altlas_core.device_names import group_name
from altlas_core.kinds import KINDS
from altlas_core.model import COMPLETED, Attempt, DeviceSpec, Task, TaskSpec
from altlas_core.strategies import STRATEGIES

if TYPE_CHECKING:
    import pandas as pd


def need_bytes(**sizes: Any) -> int:
    """The device memory that a linear task of these sizes holds."""
    return KINDS["linear"].memory_bytes(TaskSpec(**sizes))


def capacity_bytes(settings: Settings, spec: DeviceSpec) -> int:
    """What tasks may reserve on a device without foreign use: memory_threshold of it, memory_limit_bytes at most."""
    most = int(settings.gpu.detection.memory_threshold * spec.memory_total_bytes)
    limit = settings.gpu.memory_limit_bytes
    return most if limit is None else min(most, limit)


def places(settings: Settings, devices: Sequence[DeviceSpec], task_bytes: int) -> list[int]:
    """How many tasks of this size fit on each device at a time: by slots and by memory."""
    slots = settings.gpu.workload.max_concurrent_tasks_per_gpu
    return [min(slots, capacity_bytes(settings, spec) // task_bytes if task_bytes else slots) for spec in devices]


def usable_places(strategy: str, places_per_gpu: Sequence[int]) -> list[int]:
    """The places a strategy may use: single_gpu those of the first GPU that can hold the task, others all."""
    if strategy != "single_gpu":
        return list(places_per_gpu)
    first = next((gpu_id for gpu_id, count in enumerate(places_per_gpu) if count), 0)
    return [count if gpu_id == first else 0 for gpu_id, count in enumerate(places_per_gpu)]


def list_schedule(durations_s: Sequence[float], slots: int, start_s: float = 0.0) -> float:
    """When the last task ends if each, in order, takes the slot that is free first (Graham's list scheduling, 1966)."""
    import heapq

    free_s = [start_s] * max(1, min(slots, len(durations_s)))
    for duration_s in durations_s:
        heapq.heapreplace(free_s, free_s[0] + duration_s)
    return max(free_s)


def peak_running(attempts: Sequence[Attempt]) -> int:
    """The most attempts that ran at one time; one that ends as another starts has made room for it."""
    changes = sorted(
        [(a.started_s, 1) for a in attempts] + [(math.inf if a.ended_s is None else a.ended_s, -1) for a in attempts]
    )
    running = most = 0
    for _, change in changes:
        running += change
        most = max(most, running)
    return most


def jain_index(counts: Sequence[float]) -> float:
    """(sum x)^2 / (n sum x^2): 1 = all alike, 1/n = one has it all (Jain, Chiu, Hawe, 1984)."""
    squares = sum(count * count for count in counts)
    return sum(counts) ** 2 / (len(counts) * squares) if squares else 1.0


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Linear between ranks; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


WHAT_TO_DO: Final = {  # about tasks that did not complete although they should, by error code
    "queue_full": "gpu.workload.max_queue is smaller than what this scenario submits at once: raise it, or set it to 0",
    "too_large": "the tasks need more memory than one GPU offers: larger GPUs, smaller sizes in test.*, or a higher "
    "gpu.memory_limit_bytes or gpu.detection.memory_threshold",
    "timeout": "gpu.workload.timeout is shorter than the durations in test.*: raise the one or lower the others",
    "out_of_memory": "the device had less memory left than it offered: close other programs that use it, or set "
    "gpu.memory_limit_bytes",
    "device_lost": "a device stopped answering: look at `altlas gpus` and, for a real GPU, at the system log (Xid)",
    "worker_crashed": "worker processes died: the error of the task names the signal; SIGKILL often means that the "
    "system ran out of memory",
    "task_error": "the work itself raised: the error of the task has its text",
}


def advice_for(tasks: Sequence[Task]) -> str:
    """What to do about those that failed, each reason once."""
    codes = dict.fromkeys(str(task.error_code) for task in tasks if task.error_code)
    return "; ".join(WHAT_TO_DO[code] for code in codes if code in WHAT_TO_DO)


def alike(devices: Sequence[DeviceSpec]) -> bool:
    """Whether all are of one kind and size, so that the same work on each should take the same time."""
    return len({(spec.kind, group_name(spec), spec.memory_total_bytes) for spec in devices}) == 1


def all_completed(tasks: Sequence[Task]) -> tuple[bool, str]:
    """Whether all completed, and how many in words, with the first that did not."""
    done = sum(task.state == COMPLETED for task in tasks)
    other = next((task for task in tasks if task.state != COMPLETED), None)
    text = f"{done} of {len(tasks)}"
    if other is not None:
        text += f"; {other.task_id} {other.state}" + (f" ({other.error_code})" if other.error_code else "")
    return other is None and bool(tasks), text


def device_texts(devices: Sequence[DeviceSpec]) -> list[str]:
    """["8x A100-SXM4-80GB"], ["2x CPU ..."], ["4x NVIDIA H200 (1/4)"]: equal neighbours together."""
    groups = groupby(devices, key=group_name)
    return [f"{sum(1 for _ in group)}x {name}" for name, group in groups]


def strategies_of(settings: Settings) -> list[str]:
    """The strategies a scenario goes through: those the settings allow, built-in ones first."""
    return sorted(settings.gpu.selection.strategies, key=lambda name: name not in STRATEGIES)


def task_rows(tasks: Sequence[Task]) -> pd.DataFrame:
    """What became of tasks, as a table for people."""
    import pandas as pd

    return pd.DataFrame(
        {
            "task": [task.task_id for task in tasks],
            "kind": [task.spec.kind for task in tasks],
            "priority": [task.spec.priority for task in tasks],
            "strategy": [task.demand.strategy for task in tasks],
            "state": [task.state for task in tasks],
            "GPU": pd.array([task.gpu_id for task in tasks], dtype="Int64"),
            "attempts": [task.attempts for task in tasks],
            "submitted (s)": [task.submitted_s for task in tasks],
            "started (s)": pd.Series([task.started_s for task in tasks], dtype="float64"),
            "finished (s)": pd.Series([task.finished_s for task in tasks], dtype="float64"),
            "why": [task.error_code or "" for task in tasks],
        }
    )
