"""One live run: the distributor and the real-time driver of every run, on a thread of their own."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple

from altlas_core.distributor import Distributor
from altlas_core.drivers.clock import Clock, MonotonicClock
from altlas_core.drivers.realtime import RealtimeDriver
from altlas_core.errors import AltlasError, DeviceError
from altlas_core.events import RANK_DEVICE, DeviceSampled, Fact
from altlas_core.experiment import REAL_FAULTS, Prepared, log_header, make_backend, make_result
from altlas_core.faults import Fault
from altlas_core.live.arrivals import Arrivals, tasks_of
from altlas_core.live.clock import SteeredClock
from altlas_core.live.ledger import Ledger
from altlas_core.live.snapshot import State
from altlas_core.live.watch import LiveLog, Watch
from altlas_core.model import Device
from altlas_core.result import Result
from altlas_core.rules import RefusedError, whole
from altlas_core.telemetry import Telemetry

HEAT_C: Final = 15.0  # over the limit, for a GPU that is made to overheat
COOL_C: Final = 1.0  # a GPU that is "at least 1 C hot" is as hot as its own work makes it


class Break(NamedTuple):
    """Something that can be done to a device by hand: to which ones (`hot`: those overheated so), else why not."""

    fits: Callable[[Device, Collection[int]], bool]
    why_not: str


BREAKS: Final = {
    "lose_gpu": Break(lambda device, hot: not device.lost, "is lost already"),
    "return_gpu": Break(lambda device, hot: device.lost, "is not lost"),
    "overheat": Break(lambda device, hot: not device.lost, "is lost"),
    "cool_down": Break(lambda device, hot: device.gpu_id in hot, "was not made to overheat"),
    "hang_task": Break(lambda device, hot: device.running > 0, "runs nothing that could hang"),
    "crash_worker": Break(lambda device, hot: not device.lost, "is lost"),
}


class LiveRun:
    """Plays once, from `begin` until it is over or `stop`. Every method may be called by any thread.

    With simulated devices alone its clock is steered; beside real ones time goes on, and a pause starts nothing more.
    `real` is the clock behind it all. `number` and `first_change` say which run of a session it is, and where the
    numbers of its attempts' changes begin.
    """

    def __init__(
        self,
        ready: Prepared,
        mixed: bool,
        strategy: str,
        factor: float,
        pace: float | None,
        number: int,
        first_change: int,
        real: Clock | None = None,
    ) -> None:
        real = real or MonotonicClock()
        settings = ready.settings
        self.ready = ready
        self.number = number
        self.clock = SteeredClock(real, pace) if ready.provenance == "simulated" else None
        self.result: Result | None = None
        self.error: str | None = None
        self.over = threading.Event()
        self.distributor = Distributor(settings.gpu, ready.specs, ready.seed)
        self._backend = make_backend(settings, ready.specs, ready.seed)
        self._log = LiveLog(log_header(settings, ready.specs, ready.seed))
        self._log.looked = self._looked
        self.watch = Watch(self.distributor, self._log)
        self.ledger = Ledger(self._log.started, first_change)
        self.telemetry = Telemetry(self.distributor, self._backend, settings.telemetry.interval)
        self._driver = RealtimeDriver(
            self.distributor,
            self._backend,
            clock=self.clock or real,
            # A steered clock is woken by all that can happen, so nothing is to be looked for meanwhile.
            queue_processing_interval_s=math.inf if self.clock else settings.gpu.workload.queue_processing_interval,
            health_check_interval_s=settings.gpu.detection.health_check_interval,
            telemetry=self.telemetry,
            log=self._log,
        )
        for fault in ready.faults:
            self._driver.post_at(fault.time_s, RANK_DEVICE, self._inject, fault)
        self._arrivals = Arrivals(tasks_of(ready, mixed), strategy, factor, self._driver.post_at)
        self._arrivals.begin()
        self._thread: threading.Thread | None = None
        self._draining = False
        self._seen = 0  # entries of the log when the step was asked for
        self._hot: set[int] = set()  # GPUs that were made to overheat

    # --- steering -------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        if self.over.is_set():
            return "failed" if self.error else "ended"
        if self._thread is None:
            return "ready"
        return "paused" if (self.clock.stands if self.clock else self._draining) else "running"

    @property
    def time_s(self) -> float:
        """On the run's clock."""
        if self.result is not None:
            return self.result.virtual_s
        return self.clock.monotonic() if self.clock and not self.error else self.watch.now

    def begin(self) -> None:
        """Start, or go on."""
        if self.clock:
            self.clock.run()
        elif self._draining:
            self._draining = False
            self._driver.resume()
        self._start_thread()

    def pause(self) -> None:
        if self.clock:
            self.clock.pause()
        elif self._thread is not None and not self._draining:
            self._draining = True
            self._driver.drain()

    def step(self) -> None:
        """To the next instant at which something happens, and stand there. With a steered clock alone."""
        assert self.clock is not None
        self._seen = len(self._log.entries)
        self.clock.step()
        self._start_thread()

    def stop(self) -> None:
        """End as soon as possible; a run that was not begun never will."""
        if self._thread is None:
            self.over.set()
        self._driver.stop()

    def join(self, timeout_s: float) -> None:
        if self._thread is not None:
            self._thread.join(timeout_s)

    def set_strategy(self, name: str) -> None:
        self._arrivals.strategy = name
        self.watch.note(self.time_s, f"strategy {name} for what arrives from now on")

    def set_factor(self, factor: float) -> None:
        def due(now: float, _: None) -> None:
            self._arrivals.set_factor(now, factor)
            self.watch.note(now, f"tasks arrive {factor:g} times as fast as at first")

        if self._thread is None:
            due(0.0, None)
        else:
            self._driver.call(due, None)

    # --- breaking -------------------------------------------------------------------------------------------------

    def inject(self, kind: str, gpu_id: int | None) -> int:
        """Break or mend something of a GPU (None: the busiest it can be done to); returns which. Raises DeviceError."""
        devices = self.distributor.pool.devices
        if gpu_id is None:
            able = [device for device in devices if self._why_not(kind, device) is None]
            if not able:
                raise DeviceError(f"{kind}: there is no GPU to do it to; GPU 0 {self._why_not(kind, devices[0])}")
            gpu_id = max(able, key=lambda device: (device.running, -device.gpu_id)).gpu_id
        else:
            gpu_id = _checked_id(kind, gpu_id, len(devices))
            if why_not := self._why_not(kind, devices[gpu_id]):
                raise DeviceError(f"{kind}: GPU {gpu_id} {why_not}")
        if kind == "overheat":
            self._hot.add(gpu_id)
        elif kind == "cool_down":
            self._hot.discard(gpu_id)
        self._driver.call(self._break, (kind, gpu_id))
        return gpu_id

    def _why_not(self, kind: str, device: Device) -> str | None:
        """Why this cannot be done to this device; None: it can."""
        if not device.spec.simulated and kind not in REAL_FAULTS:
            return f"is a real device, whose readings cannot be made up; allowed there: {', '.join(REAL_FAULTS)}"
        fits, why_not = BREAKS[kind]
        return None if fits(device, self._hot) else why_not

    def _break(self, now: float, what: tuple[str, int]) -> Fact | None:
        """On the driver's thread. What only readings tell is read at once, not at the next health check."""
        kind, gpu_id = what
        if kind not in ("overheat", "cool_down"):
            return self._inject(now, Fault(now, gpu_id, kind))
        limit_c = self.ready.settings.gpu.detection.max_temperature
        value_c = min(200.0, limit_c + HEAT_C) if kind == "overheat" else COOL_C
        self._backend.inject(now, Fault(now, gpu_id, "overheat", value=value_c))
        sample = self._backend.sample(now, gpu_id)
        return None if sample is None else DeviceSampled(gpu_id, sample)

    def _inject(self, now: float, fault: Fault) -> Fact | None:
        """On the driver's thread. A hang is no fact of the log, so it is told here."""
        if fault.kind == "hang_task" and self.distributor.pool.devices[fault.gpu_id].running:
            self.watch.note(now, f"GPU {fault.gpu_id}: what started last there makes no more progress")
        return self._backend.inject(now, fault)

    # --- its thread -----------------------------------------------------------------------------------------------

    def _start_thread(self) -> None:
        if self._thread is None and not self.over.is_set():
            self._thread = threading.Thread(target=self._play, name="altlas-live", daemon=True)
            self._thread.start()

    def _play(self) -> None:
        try:
            length_s = self._driver.run(more=self._arrivals.more)
            self._looked(length_s)
            tasks = list(self.distributor.tasks.values())
            self.result = make_result(
                self.ready, self.distributor, self._backend, self._log, self.telemetry, tasks, length_s
            )
        except AltlasError as error:
            self.error = str(error)
        except BaseException as error:  # a fault of ours, or of a strategy of the user's: to be shown, not lost
            self.error = f"{type(error).__name__}: {error}"
        finally:
            self.over.set()

    def _looked(self, now: float) -> None:
        self.watch.look(now)
        if self.clock and self.clock.stepping and len(self._log.entries) > self._seen:
            self.clock.stepped()


def _checked_id(kind: str, gpu_id: Any, count: int) -> int:
    try:
        checked: int = whole(0, count - 1)(gpu_id)
    except RefusedError as problem:
        raise DeviceError(f"{kind}: GPU {problem}") from None
    return checked
