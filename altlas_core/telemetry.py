"""Readings over time, in columns: (time, GPU) rows and a queue-depth series. No object is kept per reading.

Of real devices there is also what their sampler read at its own, higher rate: see `readings_table`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from altlas_core.backends.sampling.history import History
from altlas_core.distributor import Distributor
from altlas_core.model import DeviceSample

if TYPE_CHECKING:
    import pandas as pd

    from altlas_core.backends.base import Backend

MAX_ROWS = 8_000_000  # about 350 MB; beyond it every second reading is dropped, and half as many are taken from then on
NOT_READ = float("nan")  # in the columns; None in the tables
PROVENANCES = ("measured", "simulated")
_LOST = DeviceSample()
_COLUMNS = (
    "time_s",
    "gpu_id",
    "utilization_pct",
    "memory_used_bytes",
    "temperature_c",
    "power_w",
    "running_tasks",
)


class Telemetry:
    """Samples every device at `interval_s` of the run's clock. Columns hold NaN where a reading is missing.

    A run so long that MAX_ROWS is reached is thinned: `interval_s` doubles.

    A backend may have `record`, which fills in the readings of all devices at once; `mean_sample`, as `sample` but with
    utilization and power as means since the call before; and `history`, all that its sampler reads in this run.
    """

    def __init__(self, distributor: Distributor, backend: Backend, interval_s: float) -> None:
        self.interval_s = interval_s
        self._distributor = distributor
        self._sample: Callable[[float, int], DeviceSample | None] = getattr(backend, "mean_sample", backend.sample)
        self._record: Callable[..., None] = getattr(backend, "record", self._record_each)
        self.history: History = getattr(backend, "history", None) or History(())
        devices = distributor.pool.devices
        self._gpu_ids = array("i", [device.gpu_id for device in devices])
        self.time_s = array("d")
        self.gpu_id = array("i")
        self.utilization_pct = array("d")
        self.memory_used_bytes = array("d")
        self.temperature_c = array("d")
        self.power_w = array("d")
        self.running_tasks = array("i")
        self.queue_time_s = array("d")
        self.queue_depth = array("q")

    def sample(self, now: float) -> None:
        """Read every device once: one row each."""
        devices = self._distributor.pool.devices
        self.time_s.extend([now] * len(devices))
        self.gpu_id += self._gpu_ids
        self._record(now, self.utilization_pct, self.memory_used_bytes, self.temperature_c, self.power_w)
        self.running_tasks.extend([device.running for device in devices])
        self.queue_time_s.append(now)
        self.queue_depth.append(self._distributor.queue.count)
        if len(self.time_s) >= MAX_ROWS and len(self.queue_time_s) % 2 == 0:
            self._thin(len(devices))

    def _thin(self, width: int) -> None:
        """Halve the resolution of what was read so far, and of what will be."""
        self.interval_s *= 2
        for name in (*_COLUMNS, "queue_time_s", "queue_depth"):
            column = getattr(self, name)
            step = 1 if name.startswith("queue") else width
            kept = array(column.typecode)
            for start in range(0, len(column), 2 * step):
                kept.extend(column[start : start + step])
            setattr(self, name, kept)

    def _record_each(self, now: float, *columns: array[float]) -> None:
        """Devices that are read one at a time."""
        for gpu_id in self._gpu_ids:
            sample = self._sample(now, gpu_id) or _LOST
            readings = (sample.utilization_pct, sample.memory_used_bytes, sample.temperature_c, sample.power_w)
            for column, reading in zip(columns, readings, strict=True):
                column.append(NOT_READ if reading is None else reading)

    def table(self) -> pd.DataFrame:
        """One row per (time, GPU): time_s, gpu_id, utilization_pct, memory_used_bytes, temperature_c, power_w,
        running_tasks, provenance ("measured" or "simulated"). A missing reading is missing (NaN, <NA>), never 0."""
        import numpy as np
        import pandas as pd

        def column(values: array[Any], dtype: Any) -> Any:
            return np.frombuffer(values, dtype=dtype).copy() if len(values) else np.empty(0, dtype=dtype)

        gpu_ids = column(self.gpu_id, np.int32)
        of = [
            PROVENANCES.index("simulated" if d.spec.simulated else "measured") for d in self._distributor.pool.devices
        ]
        provenance = np.array(of, dtype=np.int8)[gpu_ids]
        memory = pd.array(column(self.memory_used_bytes, np.float64), dtype="Float64")
        return pd.DataFrame(
            {
                "time_s": column(self.time_s, np.float64),
                "gpu_id": gpu_ids.astype(np.int64),
                "utilization_pct": column(self.utilization_pct, np.float64),
                "memory_used_bytes": memory.astype("Int64"),
                "temperature_c": column(self.temperature_c, np.float64),
                "power_w": column(self.power_w, np.float64),
                "running_tasks": column(self.running_tasks, np.int32).astype(np.int64),
                "provenance": pd.Categorical.from_codes(provenance, categories=pd.Index(PROVENANCES)),
            }
        )

    def readings_table(self) -> pd.DataFrame:
        """All that was read of the real devices, ten times a second where that costs little: see History.table.

        time_s is the run's clock. Empty where all devices are simulated.
        """
        return self.history.table(self.queue_time_s[-1] if len(self.queue_time_s) else 0.0)

    def queue_table(self) -> pd.DataFrame:
        """Queue depth over time: time_s, queued_tasks."""
        import pandas as pd

        return pd.DataFrame({"time_s": list(self.queue_time_s), "queued_tasks": list(self.queue_depth)})
