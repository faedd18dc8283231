"""Telemetry of devices that are read one at a time: means over the interval, all that was read, what was measured."""

from __future__ import annotations

import math
from typing import Any

from altlas_core.backends.sampling.history import FIELDS, History
from altlas_core.config import load_config
from altlas_core.distributor import Distributor
from altlas_core.model import GIB, DeviceSample, DeviceSpec
from altlas_core.telemetry import Telemetry

SPECS = (
    DeviceSpec(0, "cpu", "CPU", GIB, cores=1),
    DeviceSpec(1, "simulated", "T4", GIB, model="T4"),
    DeviceSpec(2, "cuda", "GPU", GIB),
)


class Plain:
    """A backend that tells what it is asked."""

    def sample(self, now: float, gpu_id: int) -> DeviceSample | None:
        return None if gpu_id == 2 else DeviceSample(utilization_pct=1.0, temperature_c=now)


class Sampled(Plain):
    """One with a sampler."""

    def __init__(self) -> None:
        self.history = History([0, 2])

    def mean_sample(self, now: float, gpu_id: int) -> DeviceSample | None:
        return DeviceSample(utilization_pct=50.0 + gpu_id)


def telemetry_of(backend: Any) -> Telemetry:
    settings = load_config(None, {}, environ={})
    return Telemetry(Distributor(settings.gpu, SPECS, 1), backend, 1.0)


def test_each_row_says_whether_it_was_measured_or_simulated() -> None:
    telemetry = telemetry_of(Plain())
    telemetry.sample(0.0)
    telemetry.sample(1.0)
    table = telemetry.table()
    assert list(table.provenance) == ["measured", "simulated", "measured"] * 2
    assert list(table.columns)[-1] == "provenance"
    assert table.provenance.memory_usage(index=False) < 8 * len(table) + 300  # not a text for each row


def test_a_device_that_does_not_answer_has_no_readings() -> None:
    telemetry = telemetry_of(Plain())
    telemetry.sample(3.0)
    table = telemetry.table()
    assert list(table.temperature_c[:2]) == [3.0, 3.0]
    assert math.isnan(table.utilization_pct[2])


def test_where_the_backend_has_means_they_are_what_is_kept() -> None:
    telemetry = telemetry_of(Sampled())
    telemetry.sample(0.0)
    assert list(telemetry.table().utilization_pct) == [50.0, 51.0, 52.0]


def test_all_readings_of_the_run_and_none_after_it_are_there_at_their_own_rate() -> None:
    backend = Sampled()
    telemetry = telemetry_of(backend)
    backend.history.align(0.0, 100.0)
    for i in range(-5, 40):  # devices are read before the run begins, and on after its end
        backend.history.add(100.0 + i / 10, {0: DeviceSample(power_w=float(i)), 2: None})
    telemetry.sample(0.0)
    telemetry.sample(1.05)
    table = telemetry.readings_table()
    assert list(table[table.gpu_id == 0].power_w) == [float(i) for i in range(11)]
    assert table[table.gpu_id == 2][list(FIELDS)].isna().all(axis=None)
    backend.history = History([0])  # of the next run
    assert len(telemetry.readings_table()) == len(table)


def test_without_a_sampler_there_are_no_such_readings() -> None:
    for telemetry in (telemetry_of(Plain()), telemetry_of(Sampled())):
        table = telemetry.readings_table()
        assert len(table) == 0
        assert list(table.columns) == ["time_s", "gpu_id", *FIELDS]
