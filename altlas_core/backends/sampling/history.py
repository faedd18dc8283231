"""Readings of real devices at the rate they were taken, for one run. Bounded: when full, its resolution is halved."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from altlas_core.model import DeviceSample

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    Floats = npt.NDArray[np.float64]

MAX_ROWS: Final = 500_000  # about 55 MB: one device at 10 Hz for 14 hours
NOT_READ: Final = float("nan")
FIELDS: Final = (  # of a sample, in the order of the table
    "utilization_pct",
    "memory_used_bytes",
    "temperature_c",
    "power_w",
    "sm_clock_mhz",
    "memory_clock_mhz",
    "throttle_reasons",
    "ecc_corrected",
    "ecc_uncorrected",
    "xid",
    "processes",
    "foreign_utilization_pct",
    "foreign_memory_bytes",
)
_WHOLE: Final = ("memory_used_bytes", "ecc_corrected", "ecc_uncorrected", "xid", "processes", "foreign_memory_bytes")
_fields: Final = attrgetter(*FIELDS)
_REASONS: Final = FIELDS.index("throttle_reasons")


class History:
    """Rounds of readings, a row for each of `gpu_ids`. Written by the sampler's thread, read by any.

    Times are the sampler's clock until `align` has said what the run's clock shows.
    """

    def __init__(self, gpu_ids: Sequence[int], max_rows: int = MAX_ROWS) -> None:
        self.gpu_ids = tuple(gpu_ids)
        self._max_rows = max_rows
        self._lock = threading.Lock()
        self._times_s = array("d")  # of each round
        self._rows = array("d")  # of each round, each GPU: FIELDS
        self._reasons: dict[tuple[str, ...], float] = {(): 0.0}  # as the number that stands for them in _rows
        self._began_s: float | None = None
        self._step = 1  # one round of so many is kept
        self._rounds = 0  # so far

    def add(self, at_s: float, samples: Mapping[int, DeviceSample | None]) -> None:
        """A round of readings; a device that gave none leaves a gap."""
        kept = self._rounds % self._step == 0
        self._rounds += 1
        if not kept:
            return
        with self._lock:
            self._times_s.append(at_s)
            for gpu_id in self.gpu_ids:
                self._rows.extend(self._numbers(samples.get(gpu_id)))
            if len(self._times_s) * len(self.gpu_ids) >= self._max_rows:
                self._thin()

    def _numbers(self, sample: DeviceSample | None) -> list[float]:
        if sample is None:
            return [NOT_READ] * len(FIELDS)
        values = list(_fields(sample))
        reasons = values[_REASONS]
        if reasons is not None:
            values[_REASONS] = self._reasons.setdefault(reasons, float(len(self._reasons)))
        return [NOT_READ if value is None else value for value in values]

    def _thin(self) -> None:
        """Drop every second round, and take half as many from now on."""
        self._step *= 2
        width = len(self.gpu_ids) * len(FIELDS)
        kept = array("d")
        for start in range(0, len(self._rows), 2 * width):
            kept.extend(self._rows[start : start + width])
        self._rows = kept
        self._times_s = self._times_s[::2]

    def align(self, now: float, at_s: float) -> None:
        """The run's clock showed `now` just before the sampler's showed `at_s`. Said often, the closest pair counts."""
        began_s = at_s - now
        if self._began_s is None or began_s < self._began_s:
            self._began_s = began_s

    def series(self, field: str, until_s: float) -> tuple[Floats, Floats]:
        """(times, values of shape (GPUs, times)) of one of FIELDS, from the run's start to `until_s`; NaN: not read.

        Of throttle_reasons: how many.
        """
        import numpy as np

        times_s, rows, reasons = self._copy(until_s)
        values = rows[:, :, FIELDS.index(field)].T
        if field == "throttle_reasons":
            values = np.array([*(float(len(names)) for names in reasons), NOT_READ])[_places(values)]
        return times_s, values

    def held_down(self, until_s: float) -> dict[str, float]:
        """For each throttle reason that was ever given, the share of readings that gave it, of those that told."""
        import numpy as np

        _, rows, reasons = self._copy(until_s)
        codes = rows[:, :, _REASONS]
        told = codes[np.isfinite(codes)].astype(np.intp)
        shares: dict[str, float] = {}
        for names, count in zip(reasons, np.bincount(told, minlength=len(reasons)), strict=True):
            for name in names if count else ():
                shares[name] = shares.get(name, 0.0) + float(count) / len(told)
        return shares

    def table(self, until_s: float) -> pd.DataFrame:
        """One row per (time, device) of the run's first `until_s` seconds: time_s, gpu_id and FIELDS.

        throttle_reasons is text, "" = none; a missing reading is missing, never 0.
        """
        import numpy as np
        import pandas as pd

        times_s, rows, reasons = self._copy(until_s)
        flat = rows.reshape(-1, len(FIELDS))
        texts = np.array([*(", ".join(names) for names in reasons), None], dtype=object)
        columns: dict[str, Any] = {
            "time_s": np.repeat(times_s, len(self.gpu_ids)),
            "gpu_id": np.tile(np.array(self.gpu_ids, dtype=np.int64), len(times_s)),
        }
        for place, name in enumerate(FIELDS):
            values = flat[:, place].copy()
            if name == "throttle_reasons":
                columns[name] = pd.Series(texts[_places(values)], dtype="object")
            else:
                columns[name] = pd.array(values, dtype="Float64").astype("Int64") if name in _WHOLE else values
        return pd.DataFrame(columns)

    def _copy(self, until_s: float) -> tuple[Floats, Floats, list[tuple[str, ...]]]:
        """Times on the run's clock, rows of shape (times, GPUs, FIELDS), what its numbers of reasons mean."""
        import numpy as np

        with self._lock:
            times_s, rows = np.array(self._times_s, dtype=np.float64), np.array(self._rows, dtype=np.float64)
            reasons = list(self._reasons)
        if len(times_s):
            times_s = times_s - (times_s[0] if self._began_s is None else self._began_s)
        inside = (times_s >= 0.0) & (times_s <= until_s)
        return times_s[inside], rows.reshape(len(inside), len(self.gpu_ids), len(FIELDS))[inside], reasons


def _places(codes: Floats) -> npt.NDArray[np.intp]:
    """Numbers of reasons as places in a list that ends with what stands for a gap."""
    import numpy as np

    return np.where(np.isnan(codes), -1.0, codes).astype(np.intp)
