"""The sampler: when it reads and what that may cost, what it says of a device, and what is kept. Time is made up."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import pytest
from fake_nvml import FakeNvml, gpus, installed

from altlas_core.backends.nvml.ask import GpuGoneError
from altlas_core.backends.sampling import sources as sampler_sources
from altlas_core.backends.sampling.history import FIELDS, History
from altlas_core.backends.sampling.sampler import BUDGET, STALE_S, Sampler, Source
from altlas_core.backends.sampling.sources import WorkerUsage, cpu_seconds, device_sources, family_size
from altlas_core.model import GIB, DeviceSample, DeviceSpec

FOREVER_S = 60.0  # for what must happen at once


class Clock:
    """Time passes only while somebody waits, or as a source says that its reading takes. Ends the sampler after
    `rounds` rounds."""

    def __init__(self, rounds: int) -> None:
        self.now = 1000.0
        self.cpu_s = 5.0
        self.waits: list[float] = []
        self._rounds = rounds

    def monotonic(self) -> float:
        return self.now

    def cpu(self) -> float:
        return self.cpu_s

    def wait(self, stop: threading.Event, timeout_s: float) -> bool:
        self._rounds -= 1
        if self._rounds <= 0 or stop.is_set():
            return True
        self.waits.append(timeout_s)
        self.now += timeout_s
        return False


class Script:
    """A source that says what `says(round)` returns or raises; a reading takes `cost_s` of wall and CPU time."""

    def __init__(
        self,
        clock: Clock,
        says: Callable[[int], DeviceSample | str] = lambda _: DeviceSample(),
        cost_s: float = 0.0,
        thorough_cost_s: float = 0.0,
        gpu_ids: Sequence[int] = (0,),
    ) -> None:
        self.gpu_ids = gpu_ids
        self.reads: list[tuple[float, bool]] = []
        self.closed = 0
        self._clock, self._says, self._costs = clock, says, (cost_s, thorough_cost_s)

    def read(self, thorough: bool) -> list[DeviceSample]:
        said = self._says(len(self.reads))
        self.reads.append((self._clock.now - 1000.0, thorough))
        cost_s = self._costs[0] + self._costs[1] * thorough
        self._clock.now += cost_s
        self._clock.cpu_s += cost_s
        if isinstance(said, str):
            raise GpuGoneError(said)
        return [said] * len(self.gpu_ids)

    def close(self) -> None:
        self.closed += 1


class Heard:
    """What the sampler called back."""

    def __init__(self) -> None:
        self.lost: list[tuple[int, str]] = []
        self.problems: list[tuple[int, str | None]] = []

    def on_lost(self, gpu_id: int, reason: str) -> None:
        self.lost.append((gpu_id, reason))

    def on_problem(self, gpu_id: int, sample: DeviceSample) -> None:
        self.problems.append((gpu_id, sample.problem))


def played(clock: Clock, *sources: Source) -> tuple[Sampler, Heard]:
    """A sampler that has run all rounds of the clock."""
    heard = Heard()
    history = History([gpu_id for source in sources for gpu_id in source.gpu_ids])
    sampler = Sampler(sources, history, heard.on_lost, heard.on_problem, clock=clock)
    sampler.start()
    sampler._thread.join(FOREVER_S)
    assert not sampler._thread.is_alive()
    return sampler, heard


# --- when it reads, and what it costs ---------------------------------------------------------------------------------


def test_ten_times_a_second_and_thoroughly_every_second_from_the_first_on() -> None:
    clock = Clock(32)
    source = Script(clock)
    played(clock, source)
    times = [at_s for at_s, _ in source.reads]
    assert times == pytest.approx([i / 10 for i in range(32)])
    thorough = [at_s for at_s, thorough in source.reads if thorough]
    assert len(thorough) in (3, 4)  # sums of tenths: the one at 3 s may come at 3.1
    assert thorough[0] == 0.0
    assert all(1.0 <= b - a < 1.15 for a, b in pairwise(thorough))


def test_the_time_a_reading_takes_is_part_of_the_interval() -> None:
    clock = Clock(5)
    source = Script(clock)
    slow = _sleeping(clock, 0.03)
    played(clock, source, slow)
    assert clock.waits == pytest.approx([0.1, 0.07, 0.07, 0.07])


def _sleeping(clock: Clock, seconds: float) -> Script:
    """A source that waits for its device and uses no CPU."""
    source = Script(clock, gpu_ids=[1])
    read = source.read

    def slowly(thorough: bool) -> list[DeviceSample]:
        clock.now += seconds
        return read(thorough)

    source.read = slowly  # type: ignore[method-assign]
    return source


@pytest.mark.parametrize(("cost_s", "thorough_cost_s"), [(0.0005, 0.002), (0.004, 0.0), (0.002, 0.02), (0.5, 0.0)])
def test_the_cost_stays_within_the_budget_whatever_a_reading_takes(cost_s: float, thorough_cost_s: float) -> None:
    clock = Clock(400)
    sampler, _ = played(clock, Script(clock, cost_s=cost_s, thorough_cost_s=thorough_cost_s))
    assert 0.0 < sampler.cpu_share <= BUDGET * 1.05


def test_what_costs_little_is_not_put_off_and_cheap_rounds_save_for_a_thorough_one() -> None:
    clock = Clock(100)
    source = Script(clock, cost_s=0.0004, thorough_cost_s=0.004)  # 0.8 % of a core
    played(clock, source)
    assert source.reads[-1][0] == pytest.approx(9.9, rel=0.02)


def test_every_device_was_read_when_start_returns_and_close_closes_the_sources() -> None:
    clock = Clock(1)
    source = Script(clock, lambda _: DeviceSample(temperature_c=40.0))
    history = History([0])
    sampler = Sampler([source], history, Heard().on_lost, Heard().on_problem)  # the real clock
    assert sampler.latest(0, 0.0) == DeviceSample()
    sampler.start()
    try:
        sample = sampler.latest(0, 0.0)
        assert sample is not None
        assert sample.temperature_c == 40.0
    finally:
        sampler.close()
        sampler.close()
    assert not sampler._thread.is_alive()
    assert source.closed == 1
    assert sampler.cpu_share < 0.5


def test_one_that_was_never_started_can_be_closed() -> None:
    Sampler([], History([]), Heard().on_lost, Heard().on_problem).close()


# --- what it says of a device -----------------------------------------------------------------------------------------


def test_the_latest_is_the_last_reading() -> None:
    clock = Clock(3)
    sampler, _ = played(clock, Script(clock, lambda i: DeviceSample(temperature_c=40.0 + i)))
    sample = sampler.latest(0, 1.0)
    assert sample is not None
    assert sample.temperature_c == 42.0


def test_a_reading_too_old_is_none_any_more() -> None:
    clock = Clock(3)
    sampler, _ = played(clock, Script(clock, lambda _: DeviceSample(temperature_c=40.0)))
    clock.now += STALE_S - 0.1
    assert sampler.latest(0, 1.0) == DeviceSample(temperature_c=40.0)
    clock.now += 0.2
    assert sampler.latest(0, 1.0) == DeviceSample()


def test_the_mean_is_of_utilization_and_power_since_the_call_before() -> None:
    clock = Clock(4)

    def says(i: int) -> DeviceSample:
        return DeviceSample(utilization_pct=[None, 10.0, 20.0, 60.0][i], power_w=100.0 + i, temperature_c=40.0 + i)

    sampler, _ = played(clock, Script(clock, says))
    sample = sampler.mean(0, 1.0)
    assert sample == DeviceSample(utilization_pct=30.0, power_w=101.5, temperature_c=43.0)
    assert sampler.mean(0, 1.0) == says(3)  # nothing new: the last reading


def test_one_device_that_is_lost_is_reported_once_and_the_others_are_read_on() -> None:
    clock = Clock(40)
    broken = Script(clock, lambda i: "it is lost: look at it" if i >= 2 else DeviceSample(), gpu_ids=[0, 1])
    well = Script(clock, gpu_ids=[2])
    sampler, heard = played(clock, broken, well)
    assert heard.lost == [(0, "it is lost: look at it"), (1, "it is lost: look at it")]
    assert [sampler.latest(gpu_id, 9.0) for gpu_id in range(3)] == [None, None, DeviceSample()]
    assert sampler.mean(0, 9.0) is None
    assert len(well.reads) == 40
    after = [(at_s, thorough) for at_s, thorough in broken.reads if at_s > 0.25]
    assert 2 <= len(after) <= 4  # now and then, in case it is back
    assert all(thorough for _, thorough in after)


def test_a_device_that_is_back_has_readings_again_and_can_be_lost_again() -> None:
    clock = Clock(40)
    source = Script(clock, lambda i: "gone" if i in (2, 5) else DeviceSample(temperature_c=float(i)))
    sampler, heard = played(clock, source)
    assert heard.lost == [(0, "gone")] * 2
    sample = sampler.latest(0, 9.0)
    assert sample is not None
    assert sample.temperature_c == len(source.reads) - 1


def test_a_problem_is_told_when_it_begins() -> None:
    clock = Clock(9)
    problems = {3: "Xid 48", 4: "Xid 48", 7: "Xid 62"}
    _, heard = played(clock, Script(clock, lambda i: DeviceSample(problem=problems.get(i))))
    assert heard.problems == [(0, "Xid 48"), (0, "Xid 62")]


def test_a_gpu_in_parts_is_read_once_for_all() -> None:
    clock = Clock(3)
    source = Script(clock, lambda _: DeviceSample(power_w=7.0), gpu_ids=[3, 4])
    sampler, _ = played(clock, source)
    assert [sampler.latest(gpu_id, 0.0) for gpu_id in (3, 4)] == [DeviceSample(power_w=7.0)] * 2
    assert len(source.reads) == 3


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_every_round_is_a_row_per_device_on_the_clock_of_the_run() -> None:
    clock = Clock(11)
    full = DeviceSample(
        utilization_pct=50.0,
        memory_used_bytes=2**40 + 1,
        throttle_reasons=("sw_power_cap", "hw_slowdown"),
        ecc_corrected=3,
        xid=45,
    )
    sampler, _ = played(
        clock,
        Script(clock, lambda i: full if i % 2 else DeviceSample(throttle_reasons=())),
        Script(clock, lambda i: "gone" if i > 4 else DeviceSample(), gpu_ids=[1]),
    )
    sampler.latest(0, now=0.75)  # at 1.0 s after the first round: the run began 0.25 s after it
    sampler.latest(0, now=0.5)  # said late: does not count
    table = sampler.history.table(until_s=0.5)
    assert list(table.columns) == ["time_s", "gpu_id", *FIELDS]
    assert list(table.gpu_id) == [0, 1] * 5
    assert list(table.time_s[::2]) == pytest.approx([0.05, 0.15, 0.25, 0.35, 0.45])
    told = table[(table.gpu_id == 0) & table.xid.notna()]
    assert list(told.memory_used_bytes) == [2**40 + 1] * len(told)
    assert set(told.throttle_reasons) == {"sw_power_cap, hw_slowdown"}
    assert list(table[table.gpu_id == 0].throttle_reasons) == ["sw_power_cap, hw_slowdown", ""] * 2 + [
        "sw_power_cap, hw_slowdown"
    ]
    gone = table[(table.gpu_id == 1) & (table.time_s > 0.3)]
    assert len(gone)
    assert gone[list(FIELDS)].isna().all(axis=None)
    assert str(table.memory_used_bytes.dtype) == str(table.ecc_corrected.dtype) == "Int64"


def test_before_the_first_look_of_a_run_times_count_from_the_first_reading() -> None:
    history = History([0])
    history.add(7.0, {0: DeviceSample(power_w=1.0)})
    history.add(7.5, {0: DeviceSample(power_w=2.0)})
    times_s, values = history.series("power_w", math.inf)
    assert list(times_s) == [0.0, 0.5]
    assert values.tolist() == [[1.0, 2.0]]


def test_throttle_reasons_are_counted_in_a_series() -> None:
    history = History([0])
    for i, reasons in enumerate([(), None, ("a",), ("a", "b"), ()]):
        history.add(float(i), {0: DeviceSample(throttle_reasons=reasons)})
    _, values = history.series("throttle_reasons", math.inf)
    assert [None if math.isnan(value) else value for value in values[0]] == [0.0, None, 1.0, 2.0, 0.0]


def test_a_long_run_keeps_less_of_each_second_and_stays_small() -> None:
    history = History([0, 1], max_rows=64)
    for i in range(1000):
        history.add(float(i), {0: DeviceSample(power_w=float(i)), 1: DeviceSample(power_w=-float(i))})
    table = history.table(math.inf)
    assert 32 <= len(table) <= 64
    assert list(table.power_w[::2]) == list(table.time_s[::2])  # still the readings of their time
    assert list(table.power_w[1::2]) == [-time_s for time_s in table.time_s[::2]]
    steps = set(table.time_s[::2].diff().dropna())
    assert len(steps) == 1
    assert table.time_s.iloc[-1] > 900


def test_nothing_read_is_an_empty_table_with_its_columns() -> None:
    for history in (History([]), History([0])):
        table = history.table(math.inf)
        assert len(table) == 0
        assert list(table.columns) == ["time_s", "gpu_id", *FIELDS]


# --- what it reads ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def busy() -> Iterator[subprocess.Popen[bytes]]:
    """A process that computes, and has a child that sleeps."""
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read()'], stdin=subprocess.PIPE)\n"
        "print('up', flush=True)\n"
        "while True: pass\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def cpu_spec(gpu_id: int = 0, cores: int = 1) -> DeviceSpec:
    return DeviceSpec(gpu_id, "cpu", "CPU", GIB, cores=cores)


def test_a_cpu_device_tells_of_its_worker_and_of_nothing_else(busy: subprocess.Popen[bytes]) -> None:
    source = WorkerUsage(cpu_spec(), lambda _: busy.pid)
    (first,) = source.read(thorough=True)
    assert first.utilization_pct is None  # of no time
    assert first.processes == 2
    assert first.memory_used_bytes is not None
    assert first.memory_used_bytes > 2**20
    before = cpu_seconds(busy.pid)
    while cpu_seconds(busy.pid) < before + 0.02:
        pass
    (sample,) = source.read(thorough=False)
    assert sample.utilization_pct is not None
    assert 0.0 < sample.utilization_pct <= 100.0
    told = {"utilization_pct", "memory_used_bytes", "processes"}
    assert {name for name in DeviceSample.__slots__ if getattr(sample, name) is not None} == told


@pytest.mark.parametrize(("cores", "cpu_s", "percent"), [(1, 0.5, 25.0), (4, 6.0, 75.0), (2, 4.001, 100.0)])
def test_utilization_is_the_share_of_the_cores_of_the_device(
    monkeypatch: pytest.MonkeyPatch, cores: int, cpu_s: float, percent: float
) -> None:
    moments = iter([(10.0, 100.0), (12.0, 100.0 + cpu_s)])
    now = next(moments)
    monkeypatch.setattr(sampler_sources, "cpu_seconds", lambda pid: now[1])
    source = WorkerUsage(cpu_spec(cores=cores), lambda _: os.getpid(), lambda: now[0])
    source.read(thorough=True)
    now = next(moments)
    assert source.read(thorough=False)[0].utilization_pct == percent


def test_a_worker_that_is_not_there_is_no_lost_device_and_another_is_read_anew(busy: subprocess.Popen[bytes]) -> None:
    pid: list[int | None] = [None]
    source = WorkerUsage(cpu_spec(), lambda _: pid[0])
    assert source.read(thorough=True) == [DeviceSample()]
    pid[0] = busy.pid
    assert source.read(thorough=False)[0].processes == 2
    pid[0] = os.getpid()  # replaced between two readings
    (sample,) = source.read(thorough=False)
    assert sample.utilization_pct is None
    assert sample.memory_used_bytes is not None
    pid[0] = 2**22 + 1  # no such process
    assert source.read(thorough=False) == [DeviceSample()]


def test_the_cpu_clock_of_a_process_is_the_one_it_reads_itself() -> None:
    before = time.process_time()
    seen = cpu_seconds(os.getpid())
    assert before <= seen <= time.process_time()
    with pytest.raises(OSError, match="Invalid argument"):
        cpu_seconds(2**22 + 1)
    assert family_size(2**22 + 1) is None


def test_parts_of_a_gpu_are_one_source_and_cpu_devices_one_each() -> None:
    specs = [DeviceSpec(i, "cuda", "GPU", GIB, uuid=f"GPU-{uuid}", parts=2) for i, uuid in enumerate("abab")]
    specs += [cpu_spec(4), cpu_spec(5)]
    sources = device_sources(specs, lambda _: None, frozenset)
    assert [tuple(source.gpu_ids) for source in sources] == [(0, 2), (1, 3), (4,), (5,)]


def test_gpus_are_read_through_nvml_and_closed(busy: subprocess.Popen[bytes]) -> None:
    library = FakeNvml(gpus(2, temperature=44))
    with installed(library):
        specs = [
            DeviceSpec(i, "cuda", "GPU", GIB, uuid=gpu.uuid.decode())
            for i, gpu in enumerate(library.devices)
            if gpu.uuid
        ]
        clock = Clock(12)
        library.devices[1].errors["nvmlDeviceGetTemperatureV"] = 15
        sampler, heard = played(clock, *device_sources(specs, lambda _: None, frozenset))
        sample = sampler.latest(0, 1.0)
        assert sample is not None
        assert sample.temperature_c == 44.0
        assert sampler.latest(1, 1.0) is None
        assert [gpu_id for gpu_id, _ in heard.lost] == [1]
    assert library.initialised == 0
    assert library.event_sets == {}
