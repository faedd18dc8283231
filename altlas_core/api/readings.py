"""What the GPUs read now and have read in the last minutes, for the live page, the GPU routes and the metrics.

Written on the driver's thread, once an interval; read by any, always whole.
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any, Final

from altlas_core.backends.base import Backend
from altlas_core.backends.machine import capability_text
from altlas_core.distributor import Distributor
from altlas_core.model import Device, DeviceSample

KEPT: Final = 300  # rounds: five minutes at one a second
SHORTEST_S: Final = 0.25  # between two rounds, of real time: more often nobody looks
NAMES: Final = ("utilization", "memory_used", "temperature", "power_usage")
_NONE: Final = DeviceSample()


@dataclass(slots=True, frozen=True)
class Round:
    """One reading of all devices: columns by gpu_id, in the order of NAMES (percent, bytes, degrees C, W). NaN: none"""

    at: float  # Unix seconds
    columns: tuple[array[float], ...]
    queue_depth: int


class LiveReadings:
    """The driver's telemetry: `sample(now)` every `interval_s` of the run's clock."""

    def __init__(self, distributor: Distributor, backend: Backend, interval_s: float, pace: float) -> None:
        self.interval_s = max(interval_s, SHORTEST_S) * pace
        self.rounds: deque[Round] = deque(maxlen=KEPT)
        self.samples: dict[int, DeviceSample] = {}  # of real devices: all that was read last
        self.watch: Callable[[], None] | None = None  # called after each round
        self._distributor = distributor
        self._backend = backend
        self._record: Callable[..., None] | None = getattr(backend, "record", None)
        self._mean: Callable[[float, int], DeviceSample | None] = getattr(backend, "mean_sample", backend.sample)
        self._real = [device.gpu_id for device in distributor.pool.devices if not device.spec.simulated]

    @property
    def period_s(self) -> float:
        """Real seconds between two rounds."""
        if len(self.rounds) < 2:
            return 1.0
        return (self.rounds[-1].at - self.rounds[0].at) / (len(self.rounds) - 1)

    def sample(self, now: float) -> None:
        columns = tuple(array("d") for _ in NAMES)
        if self._record is not None:
            self._record(now, *columns)
            for gpu_id in self._real:
                self.samples[gpu_id] = self._backend.sample(now, gpu_id) or _NONE
        else:
            for device in self._distributor.pool.devices:
                sample = self.samples[device.gpu_id] = self._mean(now, device.gpu_id) or _NONE
                told = (sample.utilization_pct, sample.memory_used_bytes, sample.temperature_c, sample.power_w)
                for column, reading in zip(columns, told, strict=True):
                    column.append(nan if reading is None else reading)
        at = time.time()
        if self.rounds and 0.0 <= at - self.rounds[-1].at < SHORTEST_S / 2:
            return  # rounds missed while this process was stopped, all made up now: the first says it
        self.rounds.append(Round(at, columns, self._distributor.queue.count))
        if self.watch is not None:
            self.watch()

    def history(self) -> dict[str, Any]:
        """The rounds kept, as GET /telemetry tells them: null where something was not read."""
        rounds = list(self.rounds)
        devices = self._distributor.pool.devices
        return {
            "interval_s": self.period_s,
            "time": [each.at for each in rounds],
            "gpus": [
                {
                    "id": device.gpu_id,
                    **{
                        name: [_told(each.columns[place][device.gpu_id]) for each in rounds]
                        for place, name in enumerate(NAMES)
                    },
                }
                for device in devices
            ],
            "queue_depth": [each.queue_depth for each in rounds],
        }

    def gpus(self, tasks_on: Callable[[int], Sequence[str]]) -> list[dict[str, Any]]:
        """Every GPU as callers get it."""
        last = self.rounds[-1] if self.rounds else None
        return [self.gpu(device, last, tasks_on(device.gpu_id)) for device in self._distributor.pool.devices]

    def gpu(self, device: Device, last: Round | None, tasks: Sequence[str]) -> dict[str, Any]:
        spec = device.spec
        readings: list[float | None] = [None] * len(NAMES)
        if last is not None and not device.lost:
            readings = [_told(column[device.gpu_id]) for column in last.columns]
        utilization, memory_used, temperature, power_usage = readings
        used = None if memory_used is None else int(memory_used)
        capability = None if spec.compute_capability is None else capability_text(spec.compute_capability)
        return {
            "id": device.gpu_id,
            "name": spec.name,
            "uuid": spec.uuid,
            "simulated": spec.simulated,
            "compute_capability": capability,
            "memory_total": spec.memory_total_bytes,
            "memory_used": used,
            "memory_free": None if used is None else max(0, spec.memory_total_bytes - used),
            "utilization": utilization,
            "temperature": temperature,
            "power_usage": power_usage,
            "power_limit": spec.power_limit_w,
            "status": device.state,
            "reason": device.reason,
            "processes": list(tasks),
            "task_count": len(tasks),
            "slots": device.slots,
            "slots_used": device.running,
        }


def _told(value: float) -> float | None:
    return None if isnan(value) else value
