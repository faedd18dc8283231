"""Simulated GPUs: attempts take the time the GPU model says, readings follow from the work being done.

Kernels that share a GPU share its rate equally: each device keeps the work done per running kernel, W(t) = integral of
dt / kernels(t) seconds. A task of k iterations ends when W has grown by k kernel times, so only the nearest such end is
planned and planned again when a neighbour comes or goes; a task with a duration ends when its time is over and has
run (growth of W) / (kernel time) iterations. Everything is posted with `post_at`; no clock is read.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from heapq import heappop, heappush
from math import inf, nan
from typing import Final

from altlas_core.backends.base import Mailbox
from altlas_core.errors import DeviceError
from altlas_core.events import (
    RANK_DEVICE,
    RANK_ENDED,
    AttemptFailed,
    AttemptFinished,
    AttemptStopped,
    DeviceLost,
    DeviceReturned,
    Fact,
    WorkerCrashed,
)
from altlas_core.faults import Fault
from altlas_core.gpu_model.catalog import CATALOG
from altlas_core.gpu_model.generation import GenerationCost, generation_cost, simulated_detail
from altlas_core.gpu_model.power import ThermalModel, decay_over, thermal_model
from altlas_core.gpu_model.roofline import KernelCost, kernel_cost
from altlas_core.model import Attempt, Demand, DeviceSample, DeviceSpec, TaskSpec

# An attempt on a simulated GPU: (what its kernel costs, the device's W when it started). A tuple: made at every start.
_Run = tuple[KernelCost, float]
SPECIAL_KINDS: Final = frozenset({"raise_error", "crash_worker", "hang"})  # their end is not simply "finished"


class _Gpu:
    """State of one simulated GPU. `active_s` integrates the activity of its kernels; the mark is the last reading."""

    __slots__ = (
        "active_s",
        "activity",
        "busy_s",
        "busy_since_s",
        "costs",
        "ends",
        "foreign_bytes",
        "foreign_pct",
        "forced_c",
        "hung",
        "kernels",
        "last_s",
        "lost",
        "mark_active_s",
        "mark_busy_s",
        "mark_c",
        "mark_s",
        "memory_bytes",
        "model",
        "next_end_s",
        "plan",
        "runs",
        "spec",
        "thermal",
        "wake_s",
        "work_s",
    )

    def __init__(self, spec: DeviceSpec, thermal: ThermalModel, costs: dict[Demand, KernelCost]) -> None:
        self.spec = spec
        self.model = CATALOG[spec.model]
        self.thermal = thermal
        self.runs: dict[Attempt, _Run] = {}
        self.hung: dict[Attempt, float] = {}  # hold their place and do nothing; how many iterations they had run
        self.costs = costs
        self.kernels = 0
        self.activity = 0.0  # sum over the running kernels
        self.memory_bytes = 0
        self.last_s = self.work_s = self.busy_s = self.busy_since_s = self.active_s = 0.0
        self.mark_s = self.mark_busy_s = self.mark_active_s = 0.0
        self.mark_c = thermal.steady_c(0.0)
        self.ends: list[tuple[float, int, Attempt]] = []
        self.plan = 0  # number of the planned end that still holds
        self.next_end_s = self.wake_s = inf  # when the next of `ends` is due, and when the device is next looked at
        self.lost = False
        self.foreign_bytes = 0
        self.foreign_pct = 0.0
        self.forced_c: float | None = None

    def advance(self, now: float) -> None:
        """Integrate up to `now`; comes before any change of what runs here. Those called often do it in line."""
        if self.kernels:
            share = (now - self.last_s) / self.kernels
            self.work_s += share
            self.active_s += share * self.activity
        self.last_s = now

    def leave(self, now: float, attempt: Attempt, run: _Run) -> float:
        """Take an attempt off that was in `runs`; returns how many iterations it ran."""
        self.memory_bytes -= attempt.task.memory_bytes
        cost, work_at_start = run
        kernels = self.kernels
        if kernels:
            share = (now - self.last_s) / kernels
            self.work_s += share
            self.active_s += share * self.activity
        self.last_s = now
        seconds = cost.seconds
        if not seconds:
            return 0.0
        self.kernels = kernels = kernels - 1
        if kernels:
            self.activity -= cost.activity
        else:
            self.activity = 0.0
            self.busy_s += now - self.busy_since_s
        return (self.work_s - work_at_start) / seconds

    def hang(self, now: float) -> None:
        """What started last makes no more progress: it keeps its memory and computes nothing. None runs: nothing."""
        attempt = next(reversed(self.runs), None)
        if attempt is not None:
            self.hung[attempt] = self.leave(now, attempt, self.runs.pop(attempt))
            self.memory_bytes += attempt.task.memory_bytes

    def unhang(self, attempt: Attempt) -> float:
        """Take a hung attempt off; returns how many iterations it had run."""
        self.memory_bytes -= attempt.task.memory_bytes
        return self.hung.pop(attempt)

    def read(self, now: float) -> DeviceSample:
        """The readings now; utilization and power are means since the mark, as NVML's are over its sample period."""
        self.advance(now)
        passed = now - self.mark_s
        if passed > 0.0:
            busy = 100.0 * (self._busy_until(now) - self.mark_busy_s) / passed
            active = min(1.0, (self.active_s - self.mark_active_s) / passed)
        else:
            busy, active = 0.0, 0.0
        own_c = self.thermal.after(passed, self.mark_c, active)
        return DeviceSample(
            min(100.0, max(busy, self.foreign_pct)),
            self.memory_bytes + self.foreign_bytes,
            own_c if self.forced_c is None else max(self.forced_c, own_c),
            self.thermal.watts(active),
            self.foreign_bytes,
            self.foreign_pct,
        )

    def _busy_until(self, now: float) -> float:
        """Seconds up to now in which at least one kernel was running."""
        return self.busy_s + (now - self.busy_since_s if self.kernels else 0.0)


class SimulatedBackend:
    """Devices of the catalog behind the same seam as real ones. `max_temperature_c` is what their cooling is set to.

    Their gpu_ids are those of the pool, of which they may be a part (see mixed.py).
    """

    def __init__(self, specs: Sequence[DeviceSpec], max_temperature_c: float) -> None:
        self._specs = tuple(specs)
        self._max_temperature_c = max_temperature_c
        costs: dict[str, dict[Demand, KernelCost]] = {spec.model: {} for spec in specs}
        thermal = {model: thermal_model(CATALOG[model], max_temperature_c) for model in costs}
        self._gpus = {spec.gpu_id: _Gpu(spec, thermal[spec.model], costs[spec.model]) for spec in specs}
        self._mailbox: Mailbox

    def devices(self) -> Sequence[DeviceSpec]:
        return self._specs

    def open(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._post_at = mailbox.post_at

    def close(self) -> None:
        """Nothing is held."""

    def start(self, now: float, attempt: Attempt) -> None:
        gpu = self._gpus[attempt.gpu_id]
        task = attempt.task
        spec = task.spec
        cost = gpu.costs.get(task.demand)
        if cost is None:
            if spec.generation is not None:  # never kept by demand: tasks that share one have prompts of their own
                self._start_once(now, gpu, attempt, generation_cost(spec.generation, gpu.model))
                return
            cost = gpu.costs[task.demand] = kernel_cost(spec, gpu.model)
        kernels = gpu.kernels
        if kernels:
            passed = now - gpu.last_s
            if passed:
                share = passed / kernels
                gpu.work_s += share
                gpu.active_s += share * gpu.activity
        gpu.last_s = now
        gpu.runs[attempt] = (cost, gpu.work_s)
        gpu.memory_bytes += task.memory_bytes
        if cost.seconds:
            if not kernels:
                gpu.busy_since_s = now
            gpu.kernels = kernels + 1
            gpu.activity += cost.activity
        duration_s = spec.duration_s
        if duration_s is None:
            duration_s = 0.0
            if spec.iterations is not None and cost.seconds:
                heappush(gpu.ends, (gpu.work_s + spec.iterations * cost.seconds, task.index, attempt))
                self._plan_end(gpu)
                return
        due = self._special_end if spec.kind in SPECIAL_KINDS else self._end_of_duration
        self._post_at(now + duration_s, RANK_ENDED, due, attempt)
        if gpu.ends:
            self._plan_end(gpu)

    def _start_once(self, now: float, gpu: _Gpu, attempt: Attempt, cost: KernelCost) -> None:
        """Start an attempt that is one iteration of this cost."""
        gpu.advance(now)
        gpu.runs[attempt] = (cost, gpu.work_s)
        gpu.memory_bytes += attempt.task.memory_bytes
        if cost.seconds:
            if not gpu.kernels:
                gpu.busy_since_s = now
            gpu.kernels += 1
            gpu.activity += cost.activity
        heappush(gpu.ends, (gpu.work_s + cost.seconds, attempt.task.index, attempt))
        self._plan_end(gpu)

    def stop(self, now: float, attempt: Attempt, reason: str) -> None:
        gpu = self._gpus[attempt.gpu_id]
        run = gpu.runs.pop(attempt, None)
        if run is not None:
            iterations = gpu.leave(now, attempt, run)
            if gpu.ends:
                self._plan_end(gpu)
        elif attempt in gpu.hung:
            iterations = gpu.unhang(attempt)
        else:
            return  # its own ending came first
        self._mailbox.post(AttemptStopped(attempt.task.index, attempt.number, iterations))

    def sample(self, now: float, gpu_id: int) -> DeviceSample | None:
        gpu = self._gpus[gpu_id]
        return None if gpu.lost else gpu.read(now)

    def record(
        self,
        now: float,
        utilization_pct: array[float],
        memory_used_bytes: array[float],
        temperature_c: array[float],
        power_w: array[float],
    ) -> None:
        """Append a reading of every device to these columns (NaN for a lost one); the next means start here.

        The same readings as `sample`, in one loop without a DeviceSample each: a thousand GPUs are read every second.
        """
        decay_for, decay = -1.0, 1.0  # most GPUs were last read at the same time
        for gpu in self._gpus.values():
            if gpu.lost:
                for column in (utilization_pct, memory_used_bytes, temperature_c, power_w):
                    column.append(nan)
                continue
            busy_s = gpu.busy_s
            kernels = gpu.kernels
            if kernels:
                share = (now - gpu.last_s) / kernels
                gpu.work_s += share
                gpu.active_s += share * gpu.activity
                busy_s += now - gpu.busy_since_s
            gpu.last_s = now
            passed = now - gpu.mark_s
            busy = active = 0.0
            if passed > 0.0:
                busy = 100.0 * (busy_s - gpu.mark_busy_s) / passed
                active = (gpu.active_s - gpu.mark_active_s) / passed
                if active > 1.0:
                    active = 1.0  # sums of shares may pass it by a rounding error
            if passed != decay_for:
                decay_for, decay = passed, decay_over(passed)
            thermal = gpu.thermal
            steady_c = thermal.steady_c(active)
            own_c = steady_c + (gpu.mark_c - steady_c) * decay
            if busy < gpu.foreign_pct:
                busy = gpu.foreign_pct
            utilization_pct.append(busy if busy < 100.0 else 100.0)
            memory_used_bytes.append(gpu.memory_bytes + gpu.foreign_bytes)
            power_w.append(thermal.idle_w + thermal.dynamic_w * active)
            gpu.mark_c = own_c
            temperature_c.append(own_c if gpu.forced_c is None or own_c > gpu.forced_c else gpu.forced_c)
            gpu.mark_s = now
            gpu.mark_busy_s = busy_s
            gpu.mark_active_s = gpu.active_s

    def cost(self, gpu_id: int, spec: TaskSpec) -> KernelCost:
        """What one kernel of this task costs on this GPU when alone."""
        return kernel_cost(spec, self._gpus[gpu_id].model)

    def _end_of_duration(self, now: float, attempt: Attempt) -> Fact | None:
        gpu = self._gpus[attempt.gpu_id]
        run = gpu.runs.pop(attempt, None)
        if run is None:
            return None  # it was stopped, or the GPU lost
        iterations = gpu.leave(now, attempt, run)
        if gpu.ends:
            self._plan_end(gpu)
        return AttemptFinished(attempt.task.index, attempt.number, iterations)

    def _special_end(self, now: float, attempt: Attempt) -> Fact | None:
        """The end of a kind that does not just finish."""
        index, number, kind = attempt.task.index, attempt.number, attempt.task.spec.kind
        if self._end_of_duration(now, attempt) is None:
            return None
        if kind == "raise_error":
            return AttemptFailed(index, number, "task_error", "RuntimeError: raise_error: this kind always fails")
        if kind == "crash_worker":
            return self._crash(attempt.gpu_id, [(index, number)], "signal 9 (SIGKILL), simulated")
        return AttemptFinished(index, number, 0.0)

    def _plan_end(self, gpu: _Gpu) -> None:
        """Plan the nearest end of a task with iterations; plans made before no longer hold."""
        ends = gpu.ends
        while ends and ends[0][2] not in gpu.runs:
            heappop(ends)
        gpu.plan += 1
        gpu.next_end_s = gpu.last_s + max(0.0, ends[0][0] - gpu.work_s) * gpu.kernels if ends else inf
        if gpu.next_end_s < gpu.wake_s:
            self._wake_at_end(gpu)

    def _wake_at_end(self, gpu: _Gpu) -> None:
        gpu.wake_s = gpu.next_end_s
        self._post_at(gpu.wake_s, RANK_ENDED, self._end_of_iterations, (gpu, gpu.plan))

    def _end_of_iterations(self, now: float, planned: tuple[_Gpu, int]) -> Fact | None:
        gpu, plan = planned
        if now == gpu.wake_s:
            gpu.wake_s = inf
        if plan != gpu.plan or gpu.lost:
            if gpu.next_end_s < gpu.wake_s:  # it moved on meanwhile; planned anew only now, so that plans never pile up
                self._wake_at_end(gpu)
            return None
        gpu.advance(now)
        work_at_end, _, attempt = heappop(gpu.ends)
        gpu.work_s = work_at_end  # it is there by plan; rounding must not leave a sliver of work
        run = gpu.runs.pop(attempt)
        gpu.leave(now, attempt, run)
        self._plan_end(gpu)
        task = attempt.task
        iterations = task.spec.iterations
        if iterations is not None:
            return AttemptFinished(task.index, attempt.number, float(iterations))
        cost = run[0]
        assert isinstance(cost, GenerationCost)
        detail = simulated_detail(cost, gpu.model.name, now - attempt.started_s)
        return AttemptFinished(task.index, attempt.number, 1.0, detail)

    def _crash(self, gpu_id: int, attempts: list[tuple[int, int]], error: str) -> WorkerCrashed:
        """A worker process serves a whole device: all that runs there goes down with it."""
        attempts += self._clear(self._gpus[gpu_id])
        return WorkerCrashed(gpu_id, tuple(attempts), error)

    def _clear(self, gpu: _Gpu) -> list[tuple[int, int]]:
        """Everything on a GPU is gone at once; returns what ran as (task_index, attempt number)."""
        runs, hung = list(gpu.runs.items()), list(gpu.hung)
        for attempt, run in runs:
            gpu.leave(gpu.last_s, attempt, run)
        for attempt in hung:
            gpu.unhang(attempt)
        gpu.runs.clear()
        gpu.ends.clear()
        gpu.plan += 1
        gpu.next_end_s = inf
        return [(attempt.task.index, attempt.number) for attempt in [*(attempt for attempt, _ in runs), *hung]]

    # --- faults ---------------------------------------------------------------------------------------------------

    def inject(self, now: float, fault: Fault) -> Fact | None:
        gpu = self._gpus[fault.gpu_id]
        gpu.advance(now)
        if fault.kind == "lose_gpu":
            self._clear(gpu)
            gpu.lost = True
            return DeviceLost(fault.gpu_id, "fell off the bus (simulated fault)")
        if fault.kind == "return_gpu":
            gpu.lost = False
            return DeviceReturned(fault.gpu_id)
        if fault.kind == "crash_worker":
            return self._crash(fault.gpu_id, [], "signal 9 (SIGKILL), simulated fault")
        if fault.kind == "hang_task":
            gpu.hang(now)
            self._plan_end(gpu)
            return None
        self._disturb(gpu, fault.kind, fault.value)
        if fault.duration_s is not None:
            self._mailbox.post_at(now + fault.duration_s, RANK_DEVICE, self._calm, (gpu, fault.kind))
        return None

    def _disturb(self, gpu: _Gpu, kind: str, value: float | None) -> None:
        if kind == "overheat":
            gpu.forced_c = value
        elif kind == "foreign_memory":
            gpu.foreign_bytes = int(value or 0)
        elif kind == "foreign_load":
            gpu.foreign_pct = value or 0.0
        else:
            raise DeviceError(f"fault '{kind}' is not one that simulated GPUs know")

    def _calm(self, now: float, what: tuple[_Gpu, str]) -> None:
        self._disturb(what[0], what[1], None)
