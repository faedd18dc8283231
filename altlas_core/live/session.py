"""A run that can be watched and steered while it goes on: what the live dashboard stands on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

from altlas_core.config import Settings, with_overrides
from altlas_core.drivers.clock import Clock
from altlas_core.errors import ConfigError, DeviceError, StateError, nearest
from altlas_core.experiment import Prepared, load_settings, prepare
from altlas_core.faults import Fault
from altlas_core.live.run import BREAKS, LiveRun
from altlas_core.live.snapshot import Snapshot
from altlas_core.live.watch import gpu_views
from altlas_core.model import CANCELLED, COMPLETED, FAILED, DeviceSpec
from altlas_core.result import Result
from altlas_core.rules import Number, RefusedError, Rule, shown
from altlas_core.strategies import USER_STRATEGIES, check_strategy
from altlas_core.workloads import Workload

CLOSE_S: Final = 5.0  # real: how long `close` waits for a thread
_PACE: Final = Number(0, 1e6, above=True, unit="simulated seconds a second", optional=True)
_RATE: Final = Number(0.1, 100.0)


class LiveSession:
    """The same scheduler as in `run`, with a hand on its clock, its arrivals and its GPUs.

    workload None: an endless mix that keeps three quarters of all slots busy (see arrivals.endless); every strategy
    but single_gpu uses all of them. Nothing runs before `start`. Every method may be called by any thread and returns
    at once, but `close` and `wait`. With simulated devices alone, and as long as nobody changes rate, strategy or GPUs,
    the event log is that of `run` with the same settings, workload and seed, whatever the pace.

    Simulated devices run at the pace `run.pace`, or in real time where that is 0. Real devices cannot be paced or
    stepped; paused, they start nothing more, while tasks go on arriving.

    Raises AltlasError children for what cannot be run, or done now; then nothing has changed.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        workload: Workload | None = None,
        seed: int | None = None,
        faults: Sequence[Fault] = (),
        *,
        clock: Clock | None = None,
    ) -> None:
        """`clock`: real time; None: that of this computer."""
        self._mixed = workload is None
        self._workload = Workload() if workload is None else workload
        self._faults = faults
        self._clock = clock
        self._lock = threading.Lock()  # between those who would start or replace the run
        self._closed = False
        self._old: list[LiveRun] = []  # that may still be about to end
        self._factor = 1.0
        self._settings = load_settings() if settings is None else settings
        ready = prepare(self._settings, self._workload, seed, faults)
        self._seed = ready.seed
        self._strategy = ready.settings.gpu.selection.default_strategy
        self._pace: float | None = ready.settings.run.pace or 1.0
        self._run = self._new_run(ready, 1, 0)

    def _new_run(self, ready: Prepared, number: int, first_change: int) -> LiveRun:
        return LiveRun(ready, self._mixed, self._strategy, self._factor, self._pace, number, first_change, self._clock)

    # --- controls -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, or go on after a pause. Does nothing once the run is over."""
        with self._lock:
            self._check_open()
            self._run.begin()

    def pause(self) -> None:
        """Stand still; on real devices, start nothing more."""
        self._run.pause()

    def step(self) -> None:
        """Play the next instant at which something happens, then stand still. Simulated devices alone."""
        with self._lock:
            self._check_open()
            self._check_pace("step")
            self._run.step()

    def stop(self) -> None:
        """End the run now; what is not final stays open in the result. Does nothing before `start`."""
        with self._lock:
            if self._run.state != "ready":
                self._run.stop()

    def set_pace(self, pace: float | None) -> None:
        """Simulated seconds for each real one; None: as fast as possible. Simulated devices alone."""
        checked = _checked("pace", pace, _PACE)
        with self._lock:
            self._check_pace("pace")
            self._pace = checked
            if self._run.clock:
                self._run.clock.set_pace(checked)

    def set_strategy(self, name: str) -> None:
        """For the tasks that arrive from now on and name none themselves; those that wait keep theirs."""
        with self._lock:
            self._strategy = check_strategy(name, self._settings.gpu.selection.strategies, "strategy")
            self._run.set_strategy(name)

    def set_rate(self, factor: float) -> None:
        """Let tasks arrive so many times as fast as the workload says, 0.1 to 100."""
        checked = _checked("rate", factor, _RATE)
        with self._lock:
            self._factor = checked
            self._run.set_factor(checked)

    def inject(self, kind: str, gpu_id: int | None = None) -> int:
        """Break or mend something, now: one of run.BREAKS. gpu_id None: the busiest GPU that it makes sense for.

        Returns the GPU. Raises DeviceError where it makes no sense, StateError where nothing runs.
        """
        if not isinstance(kind, str) or kind not in BREAKS:
            allowed = ", ".join(BREAKS)
            raise DeviceError(f"{shown(kind)} cannot be done to a GPU; allowed: {allowed}.{nearest(str(kind), BREAKS)}")
        with self._lock:
            if self._run.state not in ("running", "paused"):
                raise StateError(f"{kind}: the run is {self._run.state}; allowed while it runs or is paused")
            return self._run.inject(kind, gpu_id)

    def rebuild(self, devices: str | Sequence[str] | None = None, slots: int | None = None) -> None:
        """Another machine: the run ends, and a fresh one is ready; workload, seed, pace, strategy and rate stay."""
        changes: dict[str, Any] = {}
        if devices is not None:
            changes |= {"gpu.devices": [devices] if isinstance(devices, str) else devices, "gpu.backend": "auto"}
        if slots is not None:
            changes["gpu.workload.max_concurrent_tasks_per_gpu"] = slots
        with self._lock:
            self._check_open()
            settings = with_overrides(self._settings, changes, tuple(USER_STRATEGIES))
            ready, old = prepare(settings, self._workload, self._seed, self._faults), self._run
            fresh = self._new_run(ready, old.number + 1, old.ledger.number + 1)
            old.stop()
            self._settings, self._run = settings, fresh
            self._old = [run for run in [*self._old, old] if not run.over.is_set()]

    def close(self) -> None:
        """End the run, its thread and its workers, and wait until they have ended. May be called twice.

        A thread that has not ended after CLOSE_S, as where a strategy of the user's never returns or a worker is still
        coming up, is left behind: it ends by itself after that, and does not hold up the end of the process.
        """
        with self._lock:
            self._closed = True
            runs = [*self._old, self._run]
            for run in runs:
                run.stop()
        for run in runs:
            run.join(CLOSE_S)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the run is over; whether it is."""
        return self._run.over.wait(timeout_s)

    def _check_open(self) -> None:
        if self._closed:
            raise StateError("this session is closed; make another one")

    def _check_pace(self, what: str) -> None:
        if self._run.clock is None:
            raise ConfigError(f"{what}: real devices run in real time; allowed with simulated devices alone")

    # --- reading --------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """Those of the machine as it is now."""
        return self._settings

    @property
    def result(self) -> Result | None:
        """All that the run left, once it has ended."""
        return self._run.result

    def snapshot(self, since: int = 0) -> Snapshot:
        """The run at this moment, with the attempts that changed since this number. Does not hold the run up."""
        run = self._run
        watch, distributor, ready = run.watch, run.distributor, run.ready
        state = run.state  # first: what is read after it is at least as new
        attempts, next_since = run.ledger.changes(since)
        gpus = gpu_views(distributor, run.telemetry)
        with watch.lock:
            windows, depths, ended = watch.latencies, watch.depths, watch.ended
            p50, p95, p99 = windows.all.percentiles(50, 95, 99)
            return Snapshot(
                state=state,
                error=run.error,
                run=run.number,
                time_s=run.time_s,
                pace=run.clock.pace if run.clock else 1.0,
                can_pace=run.clock is not None,
                provenance=ready.provenance,
                strategy=self._strategy,
                rate_factor=self._factor,
                seed=ready.seed,
                slots=ready.settings.gpu.workload.max_concurrent_tasks_per_gpu,
                device_texts=_texts(self._settings, ready.specs),
                gpus=gpus,
                submitted=watch.submitted,
                queued=distributor.queue.count,
                running=sum(gpu.running for gpu in gpus),
                completed=ended[COMPLETED],
                failed=ended[FAILED],
                cancelled=ended[CANCELLED],
                latency_p50_s=p50,
                latency_p95_s=p95,
                latency_p99_s=p99,
                wait_p50_s=watch.waits.percentiles(50)[0],
                throughput_per_s=windows.recent_per_s(watch.now),
                queue_times_s=list(depths.times_s),
                queue_depths=list(depths.depths),
                latency_times_s=list(windows.ends_s),
                latency_p50_series=list(windows.p50),
                latency_p95_series=list(windows.p95),
                attempts=attempts,
                next_since=next_since,
                news=tuple(watch.news()),
            )


def _checked(name: str, value: Any, rule: Rule) -> Any:
    try:
        return rule(value)
    except RefusedError as problem:
        raise ConfigError(f"{name}: {problem}") from None


def _texts(settings: Settings, specs: Sequence[DeviceSpec]) -> tuple[str, ...]:
    """The machine as gpu.devices would name it."""
    if settings.gpu.devices:
        return settings.gpu.devices
    groups = [(kind, model, len(list(group))) for (kind, model), group in groupby(specs, lambda s: (s.kind, s.model))]
    return tuple(
        f"{count}x {model}" if model else f"cpu:{count}" if kind == "cpu" else kind for kind, model, count in groups
    )
