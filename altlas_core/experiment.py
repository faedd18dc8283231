"""Settings + workload -> Result: find the devices, pick the driver, play the workload."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from altlas_core.backends import warm
from altlas_core.backends.discover import discover
from altlas_core.backends.machine import provenance_of
from altlas_core.backends.mixed import MixedBackend
from altlas_core.backends.simulated import SimulatedBackend
from altlas_core.backends.work_check import check_work
from altlas_core.config import Settings, load_config
from altlas_core.config_schema import rules_of
from altlas_core.distributor import Distributor
from altlas_core.drivers.virtual import VirtualDriver
from altlas_core.errors import ConfigError, DeviceError, WorkloadError
from altlas_core.event_log import EventLog
from altlas_core.events import RANK_CANCEL, RANK_DEVICE, RANK_SUBMIT, CancelRequested, TaskSubmitted
from altlas_core.faults import Fault, check_gpu_ids
from altlas_core.intake import make_tasks
from altlas_core.model import DeviceSpec, Task, TaskSpec
from altlas_core.result import Result
from altlas_core.rules import RefusedError, shown
from altlas_core.strategies import USER_STRATEGIES
from altlas_core.telemetry import Telemetry
from altlas_core.workloads import Workload

if TYPE_CHECKING:
    from altlas_core.backends.base import Backend

REAL_FAULTS: Final = ("lose_gpu", "return_gpu", "crash_worker", "hang_task")  # the others are about readings


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that may begin: all that can be refused beforehand has been looked at.

    `requests` and `faults`, and the default timeout in `settings`, are times run.time_scale where devices are real.
    """

    settings: Settings
    seed: int
    specs: tuple[DeviceSpec, ...]
    provenance: str
    requests: Sequence[TaskSpec]
    faults: Sequence[Fault]


def run(
    settings: Settings | None = None,
    workload: Workload | None = None,
    seed: int | None = None,
    faults: Sequence[Fault] = (),
    devices: Sequence[DeviceSpec] | None = None,
) -> Result:
    """Play a workload on the machine of the settings and return what happened.

    seed None = the settings' seed. faults = what breaks when. devices = a machine found before (else `discover`).
    Simulated devices alone run in virtual time unless run.pace is set; real ones, and simulated ones beside them, in
    real time, durations, timeouts and submission times multiplied by run.time_scale. Raises AltlasError children
    before anything starts.
    """
    collecting = gc.isenabled()
    gc.disable()  # a run makes next to no garbage before its end; looking for it would double the time of a large one
    try:
        return _run(settings, workload, seed, faults, devices)
    finally:
        if collecting:
            gc.enable()


def prepare(
    settings: Settings | None = None,
    workload: Workload | None = None,
    seed: int | None = None,
    faults: Sequence[Fault] = (),
    devices: Sequence[DeviceSpec] | None = None,
) -> Prepared:
    """Find the devices and check all that was given; see `run`. Raises AltlasError children."""
    if not isinstance(workload, Workload):
        what = "nothing to run" if workload is None else f"{type(workload).__name__} is no workload"
        raise WorkloadError(f"{what}: give a Workload, e.g. Workload.from_records([{{'duration_s': 2.0}}])")
    if not isinstance(settings, Settings | None):
        raise ConfigError(f"{type(settings).__name__} is no settings: give what load_config returns, or None")
    settings = load_settings() if settings is None else settings
    seed = settings.seed if seed is None else _checked_seed(seed)
    specs = _numbered(discover(settings).devices if devices is None else devices)
    provenance = provenance_of(specs)
    requests: Sequence[TaskSpec] = workload.tasks(settings.gpu.workload.batch_size)
    faults = _checked(faults, specs)
    check_pace(settings, provenance)
    check_work(requests, specs)
    if provenance != "simulated":
        settings, requests, faults = _scaled(settings, requests, faults)
    return Prepared(settings, seed, specs, provenance, requests, faults)


def _run(
    settings: Settings | None,
    workload: Workload | None,
    seed: int | None,
    faults: Sequence[Fault],
    devices: Sequence[DeviceSpec] | None,
) -> Result:
    ready = prepare(settings, workload, seed, faults, devices)
    settings, seed, specs = ready.settings, ready.seed, ready.specs
    tasks = make_tasks(ready.requests, settings.gpu, len(specs))
    distributor = Distributor(settings.gpu, specs, seed)
    backend = make_backend(settings, specs, seed)
    log = EventLog(log_header(settings, specs, seed))
    telemetry = Telemetry(distributor, backend, settings.telemetry.interval)
    if ready.provenance == "simulated" and settings.run.pace == 0:
        driver = VirtualDriver(distributor, backend, log, telemetry, settings.gpu.detection.health_check_interval)
        length_s = driver.run(tasks, ready.faults)
    else:
        pace = settings.run.pace if ready.provenance == "simulated" else 1.0
        length_s = _run_in_real_time(settings, distributor, backend, log, telemetry, tasks, ready.faults, pace)
    return make_result(ready, distributor, backend, log, telemetry, tasks, length_s)


def make_result(
    ready: Prepared,
    distributor: Distributor,
    backend: Backend,
    log: EventLog,
    telemetry: Telemetry,
    tasks: Sequence[Task],
    length_s: float,
) -> Result:
    """What a run that is over leaves."""
    kinds = {spec.kind for spec in ready.specs}
    stale = dict(distributor.stale)
    late = getattr(_workers(backend), "late", 0)  # answers of workers that never became facts
    if late:
        stale["late result"] = stale.get("late result", 0) + late
    return Result(
        ready.settings,
        ready.seed,
        "mixed" if len(kinds) > 1 else kinds.pop(),
        ready.provenance,
        ready.specs,
        length_s,
        log,
        telemetry,
        tasks,
        distributor.pool.devices,
        stale,
    )


def _checked_seed(seed: Any) -> int:
    try:
        checked: int = rules_of(Settings)["seed"](seed)
    except RefusedError as problem:
        raise ConfigError(f"seed: {problem}") from None
    return checked


def _numbered(devices: Sequence[DeviceSpec]) -> tuple[DeviceSpec, ...]:
    """The devices with gpu_id 0, 1, 2, ... also where they are some of a larger machine. Raises DeviceError if none."""
    if not devices:
        raise DeviceError("devices: none were given; at least one is needed")
    return tuple(spec if spec.gpu_id == at else replace(spec, gpu_id=at) for at, spec in enumerate(devices))


def check_pace(settings: Settings, provenance: str) -> None:
    """Raise ConfigError for a pace that simulated devices cannot keep beside real ones."""
    if provenance == "mixed" and settings.run.pace not in (0.0, 1.0):
        raise ConfigError(
            f"run.pace: {settings.run.pace:g}: simulated devices beside real ones run in real time; allowed: 1, or 0 "
            "(the default); run.time_scale makes the whole run shorter"
        )


def make_backend(settings: Settings, specs: Sequence[DeviceSpec], seed: int) -> Backend:
    """The backend that these devices need: simulated, worker processes, or both behind one seam."""
    simulated = [spec for spec in specs if spec.simulated]
    real = [spec for spec in specs if not spec.simulated]
    if not real:
        return SimulatedBackend(simulated, settings.gpu.detection.max_temperature)
    workload = settings.gpu.workload
    workers = warm.torch_backend(
        real,
        workload.max_concurrent_tasks_per_gpu,
        seed,
        workload.kill_grace,
        workload.spare_workers,
        workload.heartbeat_timeout,
    )
    if not simulated:
        return workers
    return MixedBackend(specs, SimulatedBackend(simulated, settings.gpu.detection.max_temperature), workers)


def _workers(backend: Backend) -> Backend:
    """The backend of the real devices, where there are any."""
    return backend.real if isinstance(backend, MixedBackend) else backend


def _run_in_real_time(
    settings: Settings,
    distributor: Distributor,
    backend: Backend,
    log: EventLog,
    telemetry: Telemetry,
    tasks: Sequence[Task],
    faults: Sequence[Fault],
    pace: float,
) -> float:
    from altlas_core.drivers.clock import MonotonicClock
    from altlas_core.drivers.realtime import RealtimeDriver

    driver = RealtimeDriver(
        distributor,
        backend,
        clock=MonotonicClock(),
        queue_processing_interval_s=settings.gpu.workload.queue_processing_interval,
        health_check_interval_s=settings.gpu.detection.health_check_interval,
        telemetry=telemetry,
        log=log,
        pace=pace,
    )
    plan: list[tuple[float, int, Any]] = [(task.spec.submit_s, RANK_SUBMIT, TaskSubmitted(task)) for task in tasks]
    plan += [(t.spec.cancel_s, RANK_CANCEL, CancelRequested(t.index)) for t in tasks if t.spec.cancel_s is not None]
    for fault in faults:
        driver.post_at(fault.time_s, RANK_DEVICE, backend.inject, fault)
    return driver.run(plan, close=not warm.is_kept(_workers(backend)))


def _checked(faults: Sequence[Fault], specs: Sequence[DeviceSpec]) -> Sequence[Fault]:
    """The plan with every return of a lost GPU written out. Raises WorkloadError for what this machine cannot play."""
    if not isinstance(faults, Sequence):
        raise WorkloadError(f"faults: {shown(faults)} is no list; allowed: a list of Fault")
    for position, fault in enumerate(faults):
        if not isinstance(fault, Fault):
            raise WorkloadError(f"faults: [{position}]: {shown(fault)} is no fault; allowed: a Fault")
    check_gpu_ids(faults, len(specs))
    for fault in faults:
        if not specs[fault.gpu_id].simulated and fault.kind not in REAL_FAULTS:
            raise WorkloadError(
                f"fault {fault.kind} at {fault.time_s:g} s: GPU {fault.gpu_id} is a real device, whose readings "
                f"cannot be made up; allowed there: {', '.join(REAL_FAULTS)}"
            )
    returns = [Fault(f.end_s, f.gpu_id, "return_gpu") for f in faults if f.kind == "lose_gpu" and f.end_s is not None]
    return [*faults, *returns]


def _scaled(
    settings: Settings, requests: Sequence[TaskSpec], faults: Sequence[Fault]
) -> tuple[Settings, Sequence[TaskSpec], Sequence[Fault]]:
    """In real time: every time of the workload and the fault plan, and the default timeout, times run.time_scale."""
    scale = settings.run.time_scale
    if scale == 1.0:
        return settings, requests, faults

    def times(value: float | None) -> float | None:
        return None if value is None else value * scale

    scaled = [
        replace(
            spec,
            submit_s=spec.submit_s * scale,
            duration_s=times(spec.duration_s),
            timeout_s=times(spec.timeout_s),
            cancel_s=times(spec.cancel_s),
        )
        for spec in requests
    ]
    workload = replace(settings.gpu.workload, timeout=settings.gpu.workload.timeout * scale)
    broken = [replace(f, time_s=f.time_s * scale, duration_s=times(f.duration_s)) for f in faults]
    return replace(settings, gpu=replace(settings.gpu, workload=workload)), scaled, broken


def log_header(settings: Settings, specs: Sequence[DeviceSpec], seed: int) -> dict[str, Any]:
    """What a fresh distributor needs to replay the log: devices, seed, and the settings it reads."""
    gpu = settings.gpu
    detection, workload = gpu.detection, gpu.workload
    return {
        "seed": seed,
        "settings": {
            "gpu.memory_limit_bytes": gpu.memory_limit_bytes,
            "gpu.detection.memory_threshold": detection.memory_threshold,
            "gpu.detection.utilization_threshold": detection.utilization_threshold,
            "gpu.detection.max_temperature": detection.max_temperature,
            "gpu.workload.max_concurrent_tasks_per_gpu": workload.max_concurrent_tasks_per_gpu,
            "gpu.workload.max_queue": workload.max_queue,
            "gpu.workload.priority_aging": workload.priority_aging,
        },
        "devices": [_device_header(spec) for spec in specs],
    }


def _device_header(spec: DeviceSpec) -> dict[str, Any]:
    told = {
        "gpu_id": spec.gpu_id,
        "kind": spec.kind,
        "name": spec.name,
        "memory_total_bytes": spec.memory_total_bytes,
    }
    return told if spec.parts == 1 else {**told, "part": spec.part, "parts": spec.parts}


def load_settings(path: Any = None, overrides: Any = None, environ: Any = None) -> Settings:
    """`load_config` that also knows the strategies registered in this process."""
    return load_config(path, overrides, environ, extra_strategies=tuple(USER_STRATEGIES))
