"""Readings over time, in columns: (time, GPU) rows and a queue-depth series. No object is kept per reading."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

from altlas_core.distributor import Distributor
from altlas_core.model import DeviceSample

if TYPE_CHECKING:
    import pandas as pd

    from altlas_core.backends.base import Backend

NOT_READ = float("nan")  # in the columns; None in the tables
_LOST = DeviceSample()


class Telemetry:
    """Samples every device at `interval_s` of the run's clock. Columns hold NaN where a reading is missing."""

    def __init__(self, distributor: Distributor, backend: Backend, interval_s: float) -> None:
        self.interval_s = interval_s
        self._distributor = distributor
        self._backend = backend
        self._mark = getattr(backend, "mark", None)
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
        """Read every device once."""
        backend, mark = self._backend, self._mark
        for device in self._distributor.pool.devices:
            gpu_id = device.gpu_id
            sample = backend.sample(now, gpu_id)
            if sample is None:
                sample = _LOST
            elif mark is not None:
                mark(now, gpu_id, sample)
            self.time_s.append(now)
            self.gpu_id.append(gpu_id)
            self.utilization_pct.append(NOT_READ if sample.utilization_pct is None else sample.utilization_pct)
            self.memory_used_bytes.append(NOT_READ if sample.memory_used_bytes is None else sample.memory_used_bytes)
            self.temperature_c.append(NOT_READ if sample.temperature_c is None else sample.temperature_c)
            self.power_w.append(NOT_READ if sample.power_w is None else sample.power_w)
            self.running_tasks.append(device.running)
        self.queue_time_s.append(now)
        self.queue_depth.append(self._distributor.queue.count)

    def table(self) -> pd.DataFrame:
        """One row per (time, GPU): time_s, gpu_id, utilization_pct, memory_used_bytes, temperature_c, power_w,
        running_tasks. A missing reading is missing (NaN, <NA>), never 0."""
        import numpy as np
        import pandas as pd

        def column(values: array[Any], dtype: Any) -> Any:
            return np.frombuffer(values, dtype=dtype).copy() if len(values) else np.empty(0, dtype=dtype)

        memory = pd.array(column(self.memory_used_bytes, np.float64), dtype="Float64")
        return pd.DataFrame(
            {
                "time_s": column(self.time_s, np.float64),
                "gpu_id": column(self.gpu_id, np.int32).astype(np.int64),
                "utilization_pct": column(self.utilization_pct, np.float64),
                "memory_used_bytes": memory.astype("Int64"),
                "temperature_c": column(self.temperature_c, np.float64),
                "power_w": column(self.power_w, np.float64),
                "running_tasks": column(self.running_tasks, np.int32).astype(np.int64),
            }
        )

    def queue_table(self) -> pd.DataFrame:
        """Queue depth over time: time_s, queued_tasks."""
        import pandas as pd

        return pd.DataFrame({"time_s": list(self.queue_time_s), "queued_tasks": list(self.queue_depth)})
