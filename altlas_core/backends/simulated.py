"""Simulated GPUs: attempts take the time the GPU model says, readings follow from the work being done.

Kernels that share a GPU share its rate equally: each device keeps the work done per running kernel, W(t) = integral of
dt / kernels(t) seconds. A task of k iterations ends when W has grown by k kernel times, so only the nearest such end is
planned and planned again when a neighbour comes or goes; a task with a duration ends when its time is over and has
run (growth of W) / (kernel time) iterations. Everything is posted with `post_at`; no clock is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
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
from altlas_core.gpu_model.power import IDLE_TEMPERATURE_C, ThermalModel, thermal_model
from altlas_core.gpu_model.roofline import KernelCost, kernel_cost
from altlas_core.model import Attempt, Demand, DeviceSample, DeviceSpec, TaskSpec

# One attempt on a simulated GPU: (attempt, what its kernel costs, the device's W when it started). A plain tuple, for
# one is made at every start.
_Run = tuple[Attempt, KernelCost, float]
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
        "kernels",
        "last_s",
        "lost",
        "mark_active_s",
        "mark_busy_s",
        "mark_c",
        "mark_s",
        "memory_bytes",
        "model",
        "plan",
        "runs",
        "spec",
        "thermal",
        "work_s",
    )

    def __init__(self, spec: DeviceSpec, thermal: ThermalModel, costs: dict[Demand, KernelCost]) -> None:
        self.spec = spec
        self.model = CATALOG[spec.model]
        self.thermal = thermal
        self.runs: dict[int, _Run] = {}
        self.costs = costs
        self.kernels = 0
        self.activity = 0.0  # sum over the running kernels
        self.memory_bytes = 0
        self.last_s = self.work_s = self.busy_s = self.busy_since_s = self.active_s = 0.0
        self.mark_s = self.mark_busy_s = self.mark_active_s = 0.0
        self.mark_c = IDLE_TEMPERATURE_C
        self.ends: list[tuple[float, int, _Run]] = []
        self.plan = 0  # number of the planned end that still holds
        self.lost = False
        self.foreign_bytes = 0
        self.foreign_pct = 0.0
        self.forced_c: float | None = None

    def advance(self, now: float) -> None:
        """Integrate up to `now`; comes before any change of what runs here."""
        if self.kernels:
            share = (now - self.last_s) / self.kernels
            self.work_s += share
            self.active_s += share * self.activity
        self.last_s = now

    def leave(self, now: float, run: _Run) -> float:
        """Take an attempt off that was in `runs`; returns how many iterations it ran."""
        attempt, cost, work_at_start = run
        self.memory_bytes -= attempt.task.memory_bytes
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

    def read(self, now: float) -> DeviceSample:
        """The readings now; utilization and power are means since the mark, as NVML's are over its sample period."""
        self.advance(now)
        passed = now - self.mark_s
        if passed > 0.0:
            busy = 100.0 * (self._busy_until(now) - self.mark_busy_s) / passed
            active = (self.active_s - self.mark_active_s) / passed
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

    def mark(self, now: float, sample: DeviceSample) -> None:
        self.mark_s = now
        self.mark_busy_s = self._busy_until(now)
        self.mark_active_s = self.active_s
        if self.forced_c is None and sample.temperature_c is not None:
            self.mark_c = sample.temperature_c


class SimulatedBackend:
    """Devices of the catalog behind the same seam as real ones. `max_temperature_c` is what their cooling is set to."""

    def __init__(self, specs: Sequence[DeviceSpec], max_temperature_c: float) -> None:
        self._specs = tuple(specs)
        self._max_temperature_c = max_temperature_c
        costs: dict[str, dict[Demand, KernelCost]] = {spec.model: {} for spec in specs}
        thermal = {model: thermal_model(CATALOG[model], max_temperature_c) for model in costs}
        self._gpus = [_Gpu(spec, thermal[spec.model], costs[spec.model]) for spec in specs]
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
            cost = gpu.costs[task.demand] = kernel_cost(spec, gpu.model)
        gpu.advance(now)
        gpu.runs[task.index] = run = (attempt, cost, gpu.work_s)
        gpu.memory_bytes += task.memory_bytes
        if cost.seconds:
            if not gpu.kernels:
                gpu.busy_since_s = now
            gpu.kernels += 1
            gpu.activity += cost.activity
        duration_s = spec.duration_s
        if duration_s is None:
            duration_s = 0.0
            if spec.iterations is not None and cost.seconds:
                heappush(gpu.ends, (gpu.work_s + spec.iterations * cost.seconds, task.index, run))
                self._plan_end(gpu)
                return
        due = self._special_end if spec.kind in SPECIAL_KINDS else self._end_of_duration
        self._post_at(now + duration_s, RANK_ENDED, due, run)
        if gpu.ends:
            self._plan_end(gpu)

    def stop(self, now: float, attempt: Attempt, reason: str) -> None:
        gpu = self._gpus[attempt.gpu_id]
        run = gpu.runs.get(attempt.task.index)
        if run is None or run[0] is not attempt:
            return  # its own ending came first
        iterations = self._leave(now, gpu, run)
        self._mailbox.post(AttemptStopped(attempt.task.index, attempt.number, iterations))

    def sample(self, now: float, gpu_id: int) -> DeviceSample | None:
        gpu = self._gpus[gpu_id]
        return None if gpu.lost else gpu.read(now)

    def mark(self, now: float, gpu_id: int, sample: DeviceSample) -> None:
        """The next reading's means start here: the telemetry says when it has taken one."""
        self._gpus[gpu_id].mark(now, sample)

    def cost(self, gpu_id: int, spec: TaskSpec) -> KernelCost:
        """What one kernel of this task costs on this GPU when alone."""
        return kernel_cost(spec, self._gpus[gpu_id].model)

    def _leave(self, now: float, gpu: _Gpu, run: _Run) -> float:
        del gpu.runs[run[0].task.index]
        iterations = gpu.leave(now, run)
        if gpu.ends:
            self._plan_end(gpu)
        return iterations

    def _end_of_duration(self, now: float, run: _Run) -> Fact | None:
        attempt = run[0]
        index = attempt.task.index
        gpu = self._gpus[attempt.gpu_id]
        if gpu.runs.get(index) is not run:
            return None  # it was stopped, or the GPU lost
        del gpu.runs[index]
        iterations = gpu.leave(now, run)
        if gpu.ends:
            self._plan_end(gpu)
        return AttemptFinished(index, attempt.number, iterations)

    def _special_end(self, now: float, run: _Run) -> Fact | None:
        """The end of a kind that does not just finish."""
        attempt = run[0]
        index, number, kind = attempt.task.index, attempt.number, attempt.task.spec.kind
        if self._end_of_duration(now, run) is None:
            return None
        if kind == "raise_error":
            return AttemptFailed(index, number, "task_error", "RuntimeError: raise_error: this kind always fails")
        if kind == "crash_worker":
            return self._crash(attempt.gpu_id, [(index, number)], "signal 9 (SIGKILL), simulated")
        return AttemptFinished(index, number, 0.0)

    def _plan_end(self, gpu: _Gpu) -> None:
        """Plan the nearest end of a task with iterations; plans made before no longer hold."""
        ends = gpu.ends
        while ends and gpu.runs.get(ends[0][1]) is not ends[0][2]:
            heappop(ends)
        gpu.plan += 1
        if ends:
            left = max(0.0, ends[0][0] - gpu.work_s)
            time_s = gpu.last_s + left * gpu.kernels
            self._mailbox.post_at(time_s, RANK_ENDED, self._end_of_iterations, (gpu, gpu.plan))

    def _end_of_iterations(self, now: float, planned: tuple[_Gpu, int]) -> Fact | None:
        gpu, plan = planned
        if plan != gpu.plan or gpu.lost:
            return None
        gpu.advance(now)
        work_at_end, _, run = heappop(gpu.ends)
        gpu.work_s = work_at_end  # it is there by plan; rounding must not leave a sliver of work
        self._leave(now, gpu, run)
        attempt = run[0]
        return AttemptFinished(attempt.task.index, attempt.number, float(attempt.task.spec.iterations or 0.0))

    def _crash(self, gpu_id: int, attempts: list[tuple[int, int]], error: str) -> WorkerCrashed:
        """A worker process serves a whole device: all that runs there goes down with it."""
        attempts += self._clear(self._gpus[gpu_id])
        return WorkerCrashed(gpu_id, tuple(attempts), error)

    def _clear(self, gpu: _Gpu) -> list[tuple[int, int]]:
        """Everything on a GPU is gone at once; returns what ran as (task_index, attempt number)."""
        runs = list(gpu.runs.values())
        for run in runs:
            gpu.leave(gpu.last_s, run)
        gpu.runs.clear()
        gpu.ends.clear()
        gpu.plan += 1
        return [(attempt.task.index, attempt.number) for attempt, _, _ in runs]

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
