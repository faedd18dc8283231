"""What arrives in a live run, one task at a time: a workload, or an endless mix; as fast as somebody likes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from random import Random
from typing import Any, Final

from altlas_core.config_schema import GpuSettings
from altlas_core.events import RANK_CANCEL, RANK_SUBMIT, CancelRequested, Fact, TaskSubmitted
from altlas_core.experiment import Prepared
from altlas_core.intake import make_tasks
from altlas_core.model import Demand, DeviceSpec, Task, TaskSpec

MOST_TASKS: Final = 200_000  # of an endless run, or MOST_EACH for each GPU: every one of them is kept for its result
MOST_EACH: Final = 500
BUSY_SHARE: Final = 0.75  # of all slots, by the endless mix at its own rate
SHORTEST_S: Final = 0.5
LONGEST_S: Final = 8.0
LARGE_SHARE: Final = 0.1  # of the tasks
_SMALL_SIZES: Final = (1024, 2048, 4096)
_LARGE_SIZE: Final = 8192
_REAL_SIZES: Final = (256, 512, 1024)  # a CPU device must be able to look up between two kernels
_CHUNK: Final = 256

PostAt = Callable[[float, int, Callable[[float, Any], Fact | None], Any], None]


def endless(specs: Sequence[DeviceSpec], gpu: GpuSettings, seed: int, time_scale: float = 1.0) -> Iterator[TaskSpec]:
    """Poisson arrivals that keep the slots of this machine about BUSY_SHARE busy, where all of it is used.

    Durations from SHORTEST_S to LONGEST_S, three priorities; on simulated GPUs every tenth task or so is large: it
    takes the memory of two slots. Same machine and seed, same tasks. Endless but for MOST_TASKS.
    """
    random = Random(f"{seed}/live")
    slots = gpu.workload.max_concurrent_tasks_per_gpu
    rate_per_s = BUSY_SHARE * slots * len(specs) / ((SHORTEST_S + LONGEST_S) / 2)
    simulated = all(spec.simulated for spec in specs)
    offered = gpu.detection.memory_threshold * min(spec.memory_total_bytes for spec in specs)
    if gpu.memory_limit_bytes is not None:
        offered = min(offered, gpu.memory_limit_bytes)
    small = [int(share * offered / slots) for share in (0.2, 0.4, 0.6)]
    large = int(min(0.85, 2.0 / slots) * offered)
    now = 0.0
    for _ in range(max(MOST_TASKS, MOST_EACH * len(specs))):
        now += random.expovariate(rate_per_s)
        is_large = simulated and random.random() < LARGE_SHARE
        size = _LARGE_SIZE if is_large else random.choice(_SMALL_SIZES if simulated else _REAL_SIZES)
        yield TaskSpec(
            submit_s=now * time_scale,
            duration_s=random.uniform(SHORTEST_S, LONGEST_S) * time_scale,
            input_size=size,
            output_size=size,
            memory_bytes=None if not simulated else large if is_large else random.choice(small),
            priority=random.choices(("high", "normal", "low"), (0.2, 0.5, 0.3))[0],
        )


def tasks_of(ready: Prepared, mixed: bool) -> Iterator[Task]:
    """The tasks of a prepared run, made when they are asked for; `mixed`: those of the endless mix."""
    gpu, devices = ready.settings.gpu, len(ready.specs)
    if not mixed:
        yield from make_tasks(ready.requests, gpu, devices)
        return
    scale = 1.0 if ready.provenance == "simulated" else ready.settings.run.time_scale
    requests = endless(ready.specs, gpu, ready.seed, scale)
    made = 0
    while chunk := make_tasks(islice(requests, _CHUNK), gpu, devices):
        for task in chunk:
            task.index += made
        made += len(chunk)
        yield from chunk


class Arrivals:
    """Posts each task when the one before has arrived. All calls on the driver's thread, or before it runs.

    The times of the workload become those of the run: `factor` times as fast since the moment it was set. As long as it
    has always been 1 they are the same, bit for bit. `cancel_s` stays as long after its task's arrival.
    """

    def __init__(self, tasks: Iterator[Task], strategy: str, factor: float, post_at: PostAt) -> None:
        self.strategy = strategy  # of tasks that name none
        self._factor = factor
        self._tasks = tasks
        self._post_at = post_at
        self._since_s = self._workload_s = 0.0  # the same moment on both clocks
        self._next: Task | None = None
        self._plan = 0  # number of the planned arrival that still holds
        self._demands: dict[tuple[Any, ...], Demand] = {}

    def begin(self) -> None:
        self._plan_next(0.0)

    def more(self) -> bool:
        """Whether a task is still to come."""
        return self._next is not None

    def set_factor(self, now: float, factor: float) -> None:
        self._workload_s += (now - self._since_s) * self._factor
        self._since_s, self._factor = now, factor
        self._post_next(now)

    def _plan_next(self, now: float) -> None:
        self._next = next(self._tasks, None)
        self._post_next(now)

    def _post_next(self, now: float) -> None:
        self._plan += 1
        task = self._next
        if task is not None:
            time_s = self._since_s + (task.spec.submit_s - self._workload_s) / self._factor
            self._post_at(max(now, time_s), RANK_SUBMIT, self._arrive, self._plan)

    def _arrive(self, now: float, plan: int) -> Fact | None:
        task = self._next
        if plan != self._plan or task is None:
            return None  # the rate has changed since
        spec = task.spec
        if spec.cancel_s is not None:
            self._post_at(spec.cancel_s + (now - spec.submit_s), RANK_CANCEL, _cancel, task.index)
        self._settle_demand(task)
        self._plan_next(now)
        return TaskSubmitted(task)

    def _settle_demand(self, task: Task) -> None:
        """Its strategy is that of now; tasks that want the same share one Demand."""
        asked = task.demand
        strategy = self.strategy if task.spec.strategy is None else asked.strategy
        key = (asked.memory_bytes, asked.pin, strategy, asked.sizes)
        demand = self._demands.get(key)
        if demand is None:
            demand = self._demands[key] = asked if asked.strategy == strategy else Demand(*key)
        task.demand = demand


def _cancel(_now: float, task_index: int) -> Fact:
    return CancelRequested(task_index)
