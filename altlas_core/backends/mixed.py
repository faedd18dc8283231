"""Simulated and real devices in one pool: each call goes to the backend of the device it is about."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from math import nan
from typing import Any, Final

from altlas_core.backends.base import Backend, Mailbox
from altlas_core.backends.simulated import SimulatedBackend
from altlas_core.events import Fact
from altlas_core.faults import Fault
from altlas_core.model import Attempt, DeviceSample, DeviceSpec

_LOST: Final = DeviceSample()


class MixedBackend:
    """Implements backends.base.Backend over two others, whose devices have the gpu_ids of the pool."""

    def __init__(self, devices: Sequence[DeviceSpec], simulated: SimulatedBackend, real: Backend) -> None:
        self._simulated = simulated
        self.real = real
        self._devices = tuple(devices)
        self._of: list[Backend] = [simulated if spec.simulated else real for spec in devices]
        self._mean_sample: Callable[[float, int], DeviceSample | None] = getattr(real, "mean_sample", real.sample)
        self._poll: Callable[[float], None] | None = getattr(real, "poll", None)
        self._flush: Callable[[], None] | None = getattr(real, "flush", None)

    def devices(self) -> Sequence[DeviceSpec]:
        return self._devices

    @property
    def history(self) -> Any:
        """All that was read of the real devices (see Telemetry); None where their backend keeps none."""
        return getattr(self.real, "history", None)

    def open(self, mailbox: Mailbox) -> None:
        self._simulated.open(mailbox)
        self.real.open(mailbox)

    def close(self) -> None:
        self.real.close()
        self._simulated.close()

    def start(self, now: float, attempt: Attempt) -> None:
        self._of[attempt.gpu_id].start(now, attempt)

    def stop(self, now: float, attempt: Attempt, reason: str) -> None:
        self._of[attempt.gpu_id].stop(now, attempt, reason)

    def sample(self, now: float, gpu_id: int) -> DeviceSample | None:
        return self._of[gpu_id].sample(now, gpu_id)

    def record(self, now: float, *columns: array[float]) -> None:
        """Append a reading of every device to these columns, in the order of the pool; NaN where there is none.

        The columns are those of SimulatedBackend.record, whose means over time begin anew here.
        """
        apart = [array("d") for _ in columns]
        self._simulated.record(now, *apart)
        simulated = zip(*apart, strict=True)
        for gpu_id, backend in enumerate(self._of):
            readings = next(simulated) if backend is self._simulated else self._read(now, gpu_id)
            for column, reading in zip(columns, readings, strict=True):
                column.append(nan if reading is None else reading)

    def _read(self, now: float, gpu_id: int) -> tuple[float | None, ...]:
        sample = self._mean_sample(now, gpu_id) or _LOST
        return sample.utilization_pct, sample.memory_used_bytes, sample.temperature_c, sample.power_w

    def inject(self, now: float, fault: Fault) -> Fact | None:
        return self._of[fault.gpu_id].inject(now, fault)

    def poll(self, now: float) -> None:
        if self._poll is not None:
            self._poll(now)

    def flush(self) -> None:
        if self._flush is not None:
            self._flush()
