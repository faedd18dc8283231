"""Real runs and their sampler: what it finds reaches the scheduler at once, and all it read is in the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

import altlas_core as altlas
from altlas_core.backends import warm
from altlas_core.backends.nvml.ask import GpuGoneError
from altlas_core.backends.sampling.sampler import Source
from altlas_core.backends.sampling.sources import device_sources
from altlas_core.backends.supervision import backend as backend_module
from altlas_core.model import DeviceSample

OVERRIDES = {
    "gpu.backend": "cpu",
    "gpu.devices": ["cpu:2"],
    "gpu.selection.default_strategy": "round_robin",
    "gpu.workload.max_concurrent_tasks_per_gpu": 1,
    "telemetry.interval": 0.25,
}
SLEEPS = [{"kind": "sleep", "duration_s": 0.25} for _ in range(8)]


@pytest.fixture(scope="module", autouse=True)
def workers() -> Iterator[None]:
    with warm.keep():
        yield


def run(records: Sequence[dict[str, Any]], **overrides: Any) -> altlas.Result:
    settings = altlas.load_config(None, OVERRIDES | overrides, environ={})
    return altlas.run(settings, altlas.Workload.from_records(records))


class Changed:
    """A source of which `change` makes something else after its first reading."""

    def __init__(self, source: Source, change: Callable[[DeviceSample], DeviceSample]) -> None:
        self.gpu_ids = source.gpu_ids
        self._source, self._change, self._reads = source, change, 0

    def read(self, thorough: bool) -> Sequence[DeviceSample]:
        self._reads += 1
        samples = self._source.read(thorough)
        return [self._change(sample) for sample in samples] if self._reads > 2 else samples

    def close(self) -> None:
        self._source.close()


@pytest.fixture
def gpu_0(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[DeviceSample], DeviceSample]], None]:
    """Call it with what becomes of the readings of GPU 0."""

    def becomes(change: Callable[[DeviceSample], DeviceSample]) -> None:
        def sources(*args: Any) -> list[Source]:
            return [
                Changed(source, change) if tuple(source.gpu_ids) == (0,) else source for source in device_sources(*args)
            ]

        monkeypatch.setattr(backend_module, "device_sources", sources)

    return becomes


def test_every_reading_of_a_real_run_is_in_its_result() -> None:
    result = run([{"duration_s": 1.2, "gpu_id": 0}, *SLEEPS[:2]])
    readings = result.sampled.readings_table()
    assert set(readings.gpu_id) == {0, 1}
    assert readings.time_s.is_monotonic_increasing
    assert 0.0 <= readings.time_s.iloc[0] < readings.time_s.iloc[-1] <= result.virtual_s
    assert readings.memory_used_bytes.notna().all()
    assert (readings.processes >= 1).all()
    assert readings.temperature_c.isna().all()  # a CPU device does not tell
    busy = readings[(readings.gpu_id == 0) & (readings.time_s > 0.3)].utilization_pct
    assert busy.max() > readings[readings.gpu_id == 1].utilization_pct.median()
    assert set(result.telemetry.provenance) == {"measured"}


def test_a_fatal_xid_keeps_new_tasks_away_long_before_the_next_health_check(gpu_0: Any) -> None:
    gpu_0(lambda sample: replace(sample, xid=48, problem="Xid 48, double bit ECC error: the GPU needs a reset"))
    result = run(SLEEPS, **{"gpu.detection.health_check_interval": 3600.0})
    assert set(result.tasks.state) == {"COMPLETED"}
    told = [event for event in result.events if event.get("sample", {}).get("problem")]
    assert [(event["gpu_id"], event["sample"]["xid"]) for event in told] == [(0, 48)]
    after = [a for a in result.log.attempts() if a.started_s > told[0]["t"]]
    assert after
    assert {attempt.gpu_id for attempt in after} == {1}
    assert not result.pool[0].healthy
    assert result.pool[0].reason == "Xid 48, double bit ECC error: the GPU needs a reset"
    readings = result.sampled.readings_table()
    assert set(readings[readings.gpu_id == 0].xid.dropna()) == {48}
    assert readings[readings.gpu_id == 1].xid.isna().all()


def test_a_gpu_that_falls_off_the_bus_is_lost_and_its_tasks_run_elsewhere(gpu_0: Any) -> None:
    def gone(_: DeviceSample) -> DeviceSample:
        raise GpuGoneError("Xid 79: it has fallen off the bus; restart the machine")

    gpu_0(gone)
    result = run(SLEEPS, **{"gpu.detection.health_check_interval": 3600.0})
    assert set(result.tasks.state) == {"COMPLETED"}
    (lost,) = [event for event in result.events if event.get("fact") == "DeviceLost"]
    assert (lost["gpu_id"], lost["reason"]) == (0, "Xid 79: it has fallen off the bus; restart the machine")
    assert {a.gpu_id for a in result.log.attempts() if a.started_s > lost["t"]} == {1}
    rows = result.telemetry[(result.telemetry.gpu_id == 0) & (result.telemetry.time_s > lost["t"])]
    assert len(rows)
    assert rows.memory_used_bytes.isna().all()


def test_a_run_of_fewer_devices_after_a_larger_one_is_read_anew() -> None:
    run(SLEEPS[:2])
    result = run(SLEEPS[:2], **{"gpu.devices": ["cpu:1"]})
    assert set(result.sampled.readings_table().gpu_id) == {0}
