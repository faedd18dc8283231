"""Reads all real devices, in a thread of its own, as often as ten times a second, and keeps what they said.

    sources = device_sources(specs, pid_of, our_pids)       # sampler_sources.py
    history = History([spec.gpu_id for spec in specs])      # one per run; Telemetry makes Result.readings of it
    sampler = Sampler(sources, history, on_lost, on_problem)
    sampler.start()                     # returns when every device was read once
    sampler.latest(gpu_id, now)         # DeviceSample, or None where the device no longer answers: Backend.sample
    sampler.mean(gpu_id, now)           # the same, utilization and power as means since the call before: for Telemetry
    sampler.cpu_share                   # what it costs, as a share of one core
    sampler.close()

`latest` and `mean` are for one thread, the driver's; they take no lock and never wait. on_lost(gpu_id, reason) and
on_problem(gpu_id, sample) are called in the sampler's thread: when a device stops answering, and when a reading first
says why it takes no more work (a fatal Xid), so that nobody waits for the next health check.

The cost is bounded by construction: a round that took more CPU time than its share of BUDGET allows puts off the next.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final, Protocol

from altlas_core.backends.nvml.ask import GpuGoneError
from altlas_core.backends.sampling.history import History
from altlas_core.model import DeviceSample

INTERVAL_S: Final = 0.1
THOROUGH_INTERVAL_S: Final = 1.0  # for what is slow to read or changes slowly
BUDGET: Final = 0.009  # of a core: less than 1 %, the last round included
CREDIT_S: Final = BUDGET * THOROUGH_INTERVAL_S  # CPU time that cheap rounds may save for a thorough one
STALE_S: Final = 5.0  # an older reading is none: the driver of some device hangs
_FIRST_ROUND_S: Final = 30.0  # opening NVML where nobody used the GPUs takes seconds
_GOODBYE_S: Final = 2.0
_MOST_IN_A_MEAN: Final = 1000


class Source(Protocol):
    """Something that tells readings of one or more devices. Only the sampler's thread calls it."""

    @property
    def gpu_ids(self) -> Sequence[int]:
        """The devices it tells of."""
        ...

    def read(self, thorough: bool) -> Sequence[DeviceSample]:
        """A sample for each of `gpu_ids`. Raises GpuGoneError, with the reason, where they do not answer any more."""
        ...

    def close(self) -> None:
        """Let go of what reading took. May be called twice."""
        ...


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        ...

    def cpu(self) -> float:
        """CPU seconds of the calling thread."""
        ...

    def wait(self, stop: threading.Event, timeout_s: float) -> bool:
        """Whether `stop` was set within the timeout."""
        ...


class _SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()  # noqa: TID251 - readings have times

    def cpu(self) -> float:
        return time.thread_time()

    def wait(self, stop: threading.Event, timeout_s: float) -> bool:
        return stop.wait(timeout_s)


class Sampler:
    """See above. `interval_s` is the shortest time from one round to the next."""

    def __init__(
        self,
        sources: Iterable[Source],
        history: History,
        on_lost: Callable[[int, str], None],
        on_problem: Callable[[int, DeviceSample], None],
        interval_s: float = INTERVAL_S,
        clock: Clock | None = None,
    ) -> None:
        self.history = history
        self._sources = tuple(sources)
        self._on_lost = on_lost
        self._on_problem = on_problem
        self._interval_s = interval_s
        self._clock: Clock = clock or _SystemClock()
        self._latest: dict[int, DeviceSample | None] = {}
        self._recent: dict[int, deque[tuple[float | None, float | None]]] = {}
        for gpu_id in (gpu_id for source in self._sources for gpu_id in source.gpu_ids):
            self._latest[gpu_id] = DeviceSample()
            self._recent[gpu_id] = deque(maxlen=_MOST_IN_A_MEAN)
        self._gone: set[Source] = set()
        self._read_at_s = self._clock.monotonic()
        self._cost = (0.0, 0.0)  # CPU seconds, of so many seconds
        self._stop = threading.Event()
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._run, name="altlas-sampler", daemon=True)

    # --- for the driver's thread ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; every device has been read once when this returns (or NVML hangs, and they have no readings)."""
        self._thread.start()
        self._first.wait(_FIRST_ROUND_S)

    def close(self) -> None:
        """End the thread. May be called twice."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(_GOODBYE_S)  # it may hang in the GPU's driver; it ends with the process then

    @property
    def cpu_share(self) -> float:
        """CPU time of the thread since its first round, as a share of one core."""
        cpu_s, wall_s = self._cost
        return cpu_s / wall_s if wall_s > 0.0 else 0.0

    def latest(self, gpu_id: int, now: float) -> DeviceSample | None:
        """The last reading; None where the device no longer answers. `now` is what the run's clock shows."""
        at_s = self._clock.monotonic()
        self.history.align(now, at_s)
        sample = self._latest[gpu_id]
        if sample is not None and at_s - self._read_at_s > STALE_S:
            return DeviceSample()
        return sample

    def mean(self, gpu_id: int, now: float) -> DeviceSample | None:
        """The last reading, with utilization and power as means of those since the call before."""
        sample = self.latest(gpu_id, now)
        recent = self._recent[gpu_id]
        taken = [recent.popleft() for _ in range(len(recent))]
        if sample is None or len(taken) < 2:
            return sample
        busy, watts = zip(*taken, strict=True)
        return replace(sample, utilization_pct=_mean(busy), power_w=_mean(watts))

    # --- its own thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        clock = self._clock
        try:
            thorough_at_s = clock.monotonic()
            self._round(thorough=True)
            self._first.set()
            spent_s, looked_s, credit_s = clock.cpu(), clock.monotonic(), 0.0
            began_s, began_cpu_s = looked_s, spent_s
            wait_s = self._interval_s
            while not clock.wait(self._stop, wait_s):
                now_s = clock.monotonic()
                thorough = now_s - thorough_at_s >= THOROUGH_INTERVAL_S
                if thorough:
                    thorough_at_s = now_s
                self._round(thorough)
                cpu_s = clock.cpu()
                credit_s = min(CREDIT_S, credit_s + BUDGET * (now_s - looked_s)) - (cpu_s - spent_s)
                spent_s, looked_s = cpu_s, now_s
                self._cost = cpu_s - began_cpu_s, now_s - began_s
                passed_s = clock.monotonic() - now_s
                wait_s = max(self._interval_s - passed_s, -credit_s / BUDGET, 0.0)
        finally:
            self._first.set()
            for source in self._sources:
                source.close()

    def _round(self, thorough: bool) -> None:
        """Read every device; one that did not answer the last time only now and then."""
        for source in self._sources:
            if thorough or source not in self._gone:
                self._read(source, thorough)
        self._read_at_s = at_s = self._clock.monotonic()
        self.history.add(at_s, self._latest)

    def _read(self, source: Source, thorough: bool) -> None:
        try:
            samples = source.read(thorough)
        except GpuGoneError as gone:
            self._lose(source, str(gone))
            return
        self._gone.discard(source)
        for gpu_id, sample in zip(source.gpu_ids, samples, strict=True):
            before, self._latest[gpu_id] = self._latest[gpu_id], sample
            self._recent[gpu_id].append((sample.utilization_pct, sample.power_w))
            if sample.problem is not None and (before is None or before.problem is None):
                self._on_problem(gpu_id, sample)

    def _lose(self, source: Source, reason: str) -> None:
        if source in self._gone:
            return
        self._gone.add(source)
        for gpu_id in source.gpu_ids:
            self._latest[gpu_id] = None
            self._on_lost(gpu_id, reason)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
