"""A distributor on a bench: facts in by hand, actions out as short words. Shared by the tests of the core."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Any

from altlas_core.config import Settings, load_config
from altlas_core.distributor import Distributor
from altlas_core.events import (
    AttemptFailed,
    AttemptFinished,
    AttemptStopped,
    CancelRequested,
    DeviceLost,
    DeviceReturned,
    DeviceSampled,
    Fact,
    SetTimer,
    StopAttempt,
    TaskSubmitted,
    TimerFired,
    WorkerCrashed,
)
from altlas_core.intake import make_tasks
from altlas_core.model import GIB, Attempt, Device, DeviceSample, DeviceSpec, Task, TaskSpec

CLEAN = DeviceSample(0.0, 0, 40.0, 60.0, 0, 0.0)
HOT = DeviceSample(0.0, 0, 86.0, 60.0, 0, 0.0)


def settings(overrides: Mapping[str, Any] | None = None, **workload: Any) -> Settings:
    """Settings of a simulated machine; keywords are keys of gpu.workload, `overrides` full dotted keys."""
    keys: dict[str, Any] = {"gpu.backend": "simulated", "gpu.detection.memory_threshold": 1.0}
    keys["gpu.selection.default_strategy"] = "least_loaded"
    keys.update({f"gpu.workload.{name}": value for name, value in workload.items()})
    return load_config(None, {**keys, **(overrides or {})}, environ={})


def machine(*sizes_gib: float) -> list[DeviceSpec]:
    return [DeviceSpec(i, "simulated", f"GPU-{i}", int(size * GIB)) for i, size in enumerate(sizes_gib)]


def words(action: Any) -> str:
    if isinstance(action, Attempt):
        solo = " alone" if action.solo else ""
        return f"start {action.task.index}.{action.number} on {action.gpu_id}{solo}"
    if isinstance(action, StopAttempt):
        return f"stop {action.attempt.task.index}.{action.attempt.number} {action.reason}"
    assert isinstance(action, SetTimer)
    return f"timer {action.time_s:g}"


class Bench:
    """`gib` of a task is the memory it needs; GPUs are given by their size in GiB, all of which may be reserved."""

    def __init__(
        self, *sizes_gib: float, slots: int = 4, overrides: Mapping[str, Any] | None = None, **workload: Any
    ) -> None:
        self.settings = settings(overrides, max_concurrent_tasks_per_gpu=slots, **workload)
        self.specs = machine(*(sizes_gib or (10,)))
        self.distributor = Distributor(self.settings.gpu, self.specs, 42)
        self.made = 0

    # --- facts ---

    def task(self, gib: float = 1, **spec: Any) -> Task:
        """A task of the next index, not yet submitted."""
        spec.setdefault("duration_s", 1.0)
        request = TaskSpec(memory_bytes=int(gib * GIB), **spec)
        task = make_tasks([TaskSpec(duration_s=1.0)] * self.made + [request], self.settings.gpu, len(self.specs))[-1]
        self.made += 1
        return task

    def submit(self, gib: float = 1, **spec: Any) -> Fact:
        return TaskSubmitted(self.task(gib, **spec))

    def at(self, now: float, *facts: Fact) -> list[str]:
        """Apply the facts of one instant, then decide; returns every action but timers, in words."""
        said = []
        for fact in facts:
            said += [words(action) for action in self.distributor.on_event(now, fact)]
        said += [words(action) for action in self.distributor.dispatch(now)]
        return [text for text in said if not text.startswith("timer")]

    def timers(self, now: float, *facts: Fact) -> list[str]:
        """As `at`, but only the timers."""
        said = []
        for fact in facts:
            said += [words(action) for action in self.distributor.on_event(now, fact)]
        said += [words(action) for action in self.distributor.dispatch(now)]
        return [text for text in said if text.startswith("timer")]

    # --- looking ---

    def __getitem__(self, index: int) -> Task:
        return self.distributor.tasks[index]

    @property
    def gpus(self) -> list[Device]:
        return self.distributor.pool.devices

    def states(self) -> list[str]:
        return [task.state for _, task in sorted(self.distributor.tasks.items())]

    def running(self) -> list[int]:
        return [task.index for task in self.distributor.tasks.values() if task.state == "RUNNING"]


def finished(index: int, attempt: int = 1) -> AttemptFinished:
    return AttemptFinished(index, attempt, 5.0)


def failed(index: int, attempt: int = 1, code: str = "task_error") -> AttemptFailed:
    return AttemptFailed(index, attempt, code, f"it failed ({code})")


def stopped(index: int, attempt: int = 1) -> AttemptStopped:
    return AttemptStopped(index, attempt)


def crashed(*attempts: tuple[int, int], gpu_id: int = 0, blamed: bool = True) -> WorkerCrashed:
    return WorkerCrashed(gpu_id, tuple(attempts), "signal 9", blamed)


def cancel(index: int) -> CancelRequested:
    return CancelRequested(index)


def sampled(gpu_id: int = 0, **readings: Any) -> DeviceSampled:
    return DeviceSampled(gpu_id, dataclasses.replace(CLEAN, **readings))


def lost(gpu_id: int = 0) -> DeviceLost:
    return DeviceLost(gpu_id, "fell off the bus")


def returned(gpu_id: int = 0) -> DeviceReturned:
    return DeviceReturned(gpu_id)


def fired(timeout_s: float = 300.0) -> TimerFired:
    return TimerFired(timeout_s)


# --- everything an object holds, to see that nothing has changed ---


def deep_snapshot(thing: Any) -> Any:
    """The whole graph of objects below `thing` as plain, comparable data; an object met again is its number."""
    seen: dict[int, int] = {}

    def walk(value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str, bytes)):
            return value
        if callable(value) and not dataclasses.is_dataclass(value):
            return getattr(value, "__qualname__", "callable")
        if id(value) in seen:
            return ("seen", seen[id(value)])
        seen[id(value)] = len(seen)
        if isinstance(value, Random):
            return value.getstate()
        if isinstance(value, Mapping):
            return ("mapping", [(walk(key), walk(item)) for key, item in value.items()])
        if isinstance(value, (set, frozenset)):
            return ("set", sorted(id(item) for item in value))
        if isinstance(value, Iterable):
            return (type(value).__name__, [walk(item) for item in value])
        return (type(value).__name__, [(name, walk(getattr(value, name))) for name in _fields(value)])

    return walk(thing)


def _fields(value: Any) -> Sequence[str]:
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    return sorted(name for name in {*slots, *getattr(value, "__dict__", ())} if hasattr(value, name))
