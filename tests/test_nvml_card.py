"""A GPU as the sampler reads it: by UUID, whole or in parts, with Xids, whose load is whose, and after every mishap."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pynvml
import pytest
from fake_nvml import MIB, FakeGpu, FakeNvml, gpus, installed

from altlas_core.backends.machine import GpuProcess
from altlas_core.backends.nvml import xids
from altlas_core.backends.nvml.ask import GpuGoneError
from altlas_core.backends.nvml.card import GpuCard
from altlas_core.backends.nvml.foreign import foreign_memory, foreign_utilization
from altlas_core.backends.nvml.gpus import read_gpus
from altlas_core.model import GIB, DeviceSample, DeviceSpec

LOST = pynvml.NVML_ERROR_GPU_IS_LOST


def spec_of(gpu: FakeGpu, **changed: Any) -> DeviceSpec:
    assert gpu.uuid is not None
    return replace(DeviceSpec(0, "cuda", "GPU", 80 * GIB, uuid=gpu.uuid.decode()), **changed)


def card_of(gpu: FakeGpu, *ours: int) -> GpuCard:
    return GpuCard([spec_of(gpu)], our_pids=lambda: ours)


def sample_of(gpu: FakeGpu, *ours: int) -> DeviceSample:
    card = card_of(gpu, *ours)
    try:
        (sample,) = card.read(thorough=True)
        return sample
    finally:
        card.close()


@pytest.fixture
def library() -> Iterator[FakeNvml]:
    library = FakeNvml(gpus(1))
    with installed(library):
        yield library
    assert library.initialised == 0, "NVML was left open"
    assert library.event_sets == {}, "an event set was left"


@pytest.fixture
def gpu(library: FakeNvml) -> FakeGpu:
    return library.devices[0]


@pytest.fixture
def card(gpu: FakeGpu) -> Iterator[GpuCard]:
    card = card_of(gpu)
    yield card
    card.close()


# --- readings ---------------------------------------------------------------------------------------------------------


def test_a_sample_holds_every_reading(gpu: FakeGpu) -> None:
    gpu.used_mib, gpu.utilization, gpu.temperature, gpu.power_mw = 3000, 90, 61, 250_000
    gpu.processes, gpu.ecc, gpu.throttle = [(1001, 3000)], (4, 1), 0x40
    assert sample_of(gpu, 1001) == DeviceSample(
        utilization_pct=90.0,
        memory_used_bytes=3000 * MIB,
        temperature_c=61.0,
        power_w=250.0,
        foreign_memory_bytes=0,
        foreign_utilization_pct=0.0,
        sm_clock_mhz=1410.0,
        memory_clock_mhz=1593.0,
        throttle_reasons=("hw_thermal_slowdown",),
        ecc_corrected=4,
        ecc_uncorrected=1,
        processes=1,
    )


def test_between_thorough_readings_the_slow_ones_stay_and_are_not_asked_for(
    library: FakeNvml, gpu: FakeGpu, card: GpuCard
) -> None:
    gpu.ecc, gpu.processes = (4, 0), [(7, 100)]
    card.read(thorough=True)
    library.calls.clear()
    gpu.temperature, gpu.throttle, gpu.sm_clock = 71, 0x04, 900
    gpu.ecc, gpu.processes = (5, 0), []
    (sample,) = card.read(thorough=False)
    assert (sample.temperature_c, sample.throttle_reasons, sample.sm_clock_mhz) == (71.0, ("sw_power_cap",), 900.0)
    assert (sample.ecc_corrected, sample.processes, sample.memory_clock_mhz) == (4, 1, 1593.0)
    assert not {"nvmlDeviceGetTotalEccErrors", "nvmlDeviceGetComputeRunningProcesses_v3"} & set(library.calls)
    (sample,) = card.read(thorough=True)
    assert (sample.ecc_corrected, sample.processes) == (5, 0)


def test_what_is_not_supported_is_asked_once_only(library: FakeNvml, gpu: FakeGpu, card: GpuCard) -> None:
    gpu.power_mw = gpu.ecc = gpu.throttle = None
    card.read(thorough=True)
    library.calls.clear()
    (sample,) = card.read(thorough=True)
    assert (sample.power_w, sample.ecc_corrected, sample.throttle_reasons) == (None, None, None)
    assert not {"nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEccErrors"} & set(library.calls)


def test_a_reading_that_fails_for_a_moment_is_asked_again(gpu: FakeGpu, card: GpuCard) -> None:
    gpu.errors["nvmlDeviceGetPowerUsage"] = pynvml.NVML_ERROR_UNKNOWN
    assert card.read(thorough=True)[0].power_w is None
    gpu.errors.clear()
    assert card.read(thorough=False)[0].power_w == 61.5


def test_a_gpu_is_found_by_uuid_whatever_its_index(library: FakeNvml) -> None:
    library.devices = gpus(3)
    library.devices[2].temperature = 71
    library.devices[0].errors["nvmlDeviceGetHandleByIndex_v2"] = LOST
    assert sample_of(library.devices[2]).temperature_c == 71.0


def test_nvml_is_opened_once_and_detection_does_not_close_it(library: FakeNvml, card: GpuCard) -> None:
    for _ in range(3):
        card.read(thorough=True)
    read_gpus()
    assert library.initialised == 1
    card.close()
    card.close()
    assert library.initialised == 0


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["nvmlDeviceGetHandleByUUID", "nvmlDeviceGetUtilizationRates"])
@pytest.mark.parametrize("code", [LOST, pynvml.NVML_ERROR_RESET_REQUIRED])
def test_a_lost_gpu_is_gone_with_its_reason_and_may_come_back(
    gpu: FakeGpu, card: GpuCard, function: str, code: int
) -> None:
    gpu.errors[function] = code
    with pytest.raises(GpuGoneError, match="reset"):
        card.read(thorough=True)
    gpu.errors.clear()
    assert card.read(thorough=True)[0].temperature_c == 35.0


def test_a_uuid_the_driver_does_not_know_is_a_lost_gpu(library: FakeNvml) -> None:
    card = GpuCard([DeviceSpec(0, "cuda", "GPU", GIB, uuid="GPU-gone")])
    with pytest.raises(GpuGoneError, match="does not know"):
        card.read(thorough=True)


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_UNKNOWN])
def test_nvml_failing_as_a_whole_is_no_lost_gpu_and_readings_come_back(
    library: FakeNvml, card: GpuCard, code: int
) -> None:
    library.errors["nvmlInitWithFlags"] = code
    assert card.read(thorough=True) == [DeviceSample()]
    library.errors.clear()
    assert card.read(thorough=False) == [DeviceSample()]  # opening may take seconds: only a thorough reading does it
    assert card.read(thorough=True)[0].temperature_c == 35.0


def test_nvml_shut_down_by_somebody_else_is_opened_again(library: FakeNvml, card: GpuCard) -> None:
    card.read(thorough=True)
    library.errors["nvmlDeviceGetTemperatureV"] = library.errors["nvmlDeviceGetTemperature"] = (
        pynvml.NVML_ERROR_UNINITIALIZED
    )
    assert card.read(thorough=False)[0].temperature_c is None
    library.errors.clear()
    library.calls.clear()
    assert card.read(thorough=True)[0].temperature_c == 35.0
    assert "nvmlInitWithFlags" in library.calls


def test_without_pynvml_there_are_no_readings(monkeypatch: pytest.MonkeyPatch, card: GpuCard) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert card.read(thorough=True) == [DeviceSample()]


# --- Xids -------------------------------------------------------------------------------------------------------------


def test_an_xid_of_an_application_is_told_and_has_no_consequence(gpu: FakeGpu, card: GpuCard) -> None:
    assert card.read(thorough=True)[0].xid is None
    assert gpu.xids is not None
    gpu.xids += [13, 45]
    (sample,) = card.read(thorough=False)
    assert (sample.xid, sample.problem) == (45, None)


def test_a_fatal_xid_is_a_problem_for_the_rest_of_the_run(gpu: FakeGpu, card: GpuCard) -> None:
    card.read(thorough=True)
    assert gpu.xids is not None
    gpu.xids += [48, 45]
    for _ in range(3):
        (sample,) = card.read(thorough=True)
        assert sample.problem == "Xid 48, double bit ECC error: the GPU needs a reset"
        assert sample.xid == 45


def test_a_gpu_that_fell_off_the_bus_is_gone_and_stays_gone(gpu: FakeGpu, card: GpuCard) -> None:
    card.read(thorough=True)
    assert gpu.xids is not None
    gpu.xids.append(79)
    for _ in range(2):
        with pytest.raises(GpuGoneError, match=r"Xid 79.*fallen off the bus"):
            card.read(thorough=True)


def test_only_what_happens_to_this_gpu_counts(library: FakeNvml) -> None:
    library.devices = gpus(2)
    cards = [card_of(gpu) for gpu in library.devices]
    for card in cards:
        card.read(thorough=True)
    assert library.devices[1].xids is not None
    library.devices[1].xids.append(62)
    problems = [card.read(thorough=False)[0].problem for card in cards]
    assert problems == [None, "Xid 62, internal micro-controller halt: the GPU needs a reset"]
    for card in cards:
        card.close()


@pytest.mark.parametrize("function", ["nvmlEventSetCreate", "nvmlDeviceRegisterEvents", "nvmlEventSetWait_v2"])
@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_NO_PERMISSION, pynvml.NVML_ERROR_NOT_SUPPORTED, LOST])
def test_where_events_are_refused_there_is_no_xid_and_everything_else(
    library: FakeNvml, gpu: FakeGpu, card: GpuCard, function: str, code: int
) -> None:
    library.errors[function] = code
    assert gpu.xids is not None
    gpu.xids.append(48)
    (sample,) = card.read(thorough=True)
    assert (sample.xid, sample.problem, sample.temperature_c) == (None, None, 35.0)
    if function != "nvmlEventSetWait_v2":
        assert "nvmlEventSetWait_v2" not in library.calls  # not asked again and again


def test_a_gpu_that_reports_without_end_does_not_hold_up_the_reading(gpu: FakeGpu, card: GpuCard) -> None:
    card.read(thorough=True)
    gpu.xids = [31] * 1000
    assert card.read(thorough=False)[0].xid == 31
    assert len(gpu.xids) > 900


def test_what_the_driver_asks_for_is_a_problem_until_it_is_done(gpu: FakeGpu, card: GpuCard) -> None:
    gpu.recovery = pynvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET
    assert card.read(thorough=True)[0].problem == "the driver asks for a reset of the GPU"
    assert card.read(thorough=False)[0].problem is not None
    gpu.recovery = pynvml.NVML_GPU_RECOVERY_ACTION_DRAIN_P2P
    assert card.read(thorough=True)[0].problem is None


def test_no_xid_is_both_fatal_and_harmless() -> None:
    assert not xids.NEEDS_RESET.keys() & xids.OTHERS.keys()
    assert xids.FALLEN_OFF_THE_BUS not in xids.NEEDS_RESET
    for code in (13, 31, 43, 45, 63, 92, 94):
        assert xids.problem_of(code) is None
    assert xids.words(45) == "Xid 45 (channels torn down)"
    assert xids.words(999) == "Xid 999"


# --- one GPU as several devices ---------------------------------------------------------------------------------------


def parts_of(gpu: FakeGpu, count: int, pids: dict[int, int], *ours: int) -> GpuCard:
    specs = [spec_of(gpu, gpu_id=part, part=part, parts=count) for part in range(count)]
    return GpuCard(specs, pids.get, lambda: {*pids.values(), *ours})


def test_parts_share_the_readings_of_the_card_which_is_read_once(library: FakeNvml, gpu: FakeGpu) -> None:
    gpu.utilization, gpu.temperature = 80, 66
    card = parts_of(gpu, 4, {})
    samples = card.read(thorough=True)
    assert [(s.utilization_pct, s.temperature_c, s.power_w, s.sm_clock_mhz) for s in samples] == [
        (80.0, 66.0, 61.5, 1410.0)
    ] * 4
    assert library.calls.count("nvmlDeviceGetPowerUsage") == 1
    card.close()


def test_the_memory_of_a_part_is_that_of_its_own_worker_or_not_told(gpu: FakeGpu) -> None:
    gpu.used_mib, gpu.processes = 6500, [(1001, 1000), (1002, 5000), (1003, None)]
    card = parts_of(gpu, 4, {0: 1001, 1: 1002, 2: 1003, 3: 1004})
    told = [sample.memory_used_bytes for sample in card.read(thorough=True)]
    assert told == [1000 * MIB, 5000 * MIB, None, None]
    gpu.processes = [(1001, 1500), (1002, 5000)]
    assert card.read(thorough=False)[0].memory_used_bytes == 1500 * MIB  # in every round
    card.close()


def test_siblings_are_not_foreign_and_what_others_hold_is_borne_in_equal_shares(gpu: FakeGpu) -> None:
    gpu.used_mib, gpu.utilization = 7000, 90
    gpu.processes, gpu.process_utilization = [(1001, 1000), (1002, 5000), (7, 1000)], {1001: 40, 1002: 35, 7: 15}
    card = parts_of(gpu, 2, {0: 1001, 1: 1002})
    for sample in card.read(thorough=True):
        assert (sample.foreign_memory_bytes, sample.foreign_utilization_pct) == (500 * MIB, 15.0)
    gpu.processes, gpu.process_utilization = [(1001, 1000), (1002, 5000)], {1001: 40, 1002: 35}
    for sample in card.read(thorough=True):
        assert (sample.foreign_memory_bytes, sample.foreign_utilization_pct) == (0, 0.0)
    card.close()


# --- whose load it is -------------------------------------------------------------------------------------------------


def test_foreign_load_is_what_other_processes_hold_and_run(gpu: FakeGpu) -> None:
    gpu.used_mib, gpu.utilization = 3000, 90
    gpu.processes = [(1001, 1000), (1002, 500), (7, 1500)]
    gpu.process_utilization = {1001: 60, 7: 30}
    sample = sample_of(gpu, 1001, 1002)
    assert sample.memory_used_bytes == 3000 * MIB
    assert sample.foreign_memory_bytes == 1500 * MIB
    assert sample.foreign_utilization_pct == 30.0


def test_idle_neighbours_have_a_foreign_utilization_of_zero_and_unreadable_ones_none(gpu: FakeGpu) -> None:
    gpu.utilization, gpu.processes = 50, [(1001, 1000), (7, 1500)]
    gpu.process_utilization = {}
    assert sample_of(gpu, 1001).foreign_utilization_pct == 0.0
    gpu.process_utilization = None
    assert sample_of(gpu, 1001).foreign_utilization_pct is None


def test_our_own_load_is_not_foreign(gpu: FakeGpu) -> None:
    gpu.used_mib, gpu.utilization, gpu.processes = 2000, 100, [(1001, 2000)]
    sample = sample_of(gpu, 1001)
    assert (sample.foreign_memory_bytes, sample.foreign_utilization_pct) == (0, 0.0)


def test_before_any_process_of_ours_all_load_is_foreign(gpu: FakeGpu) -> None:
    gpu.used_mib, gpu.utilization, gpu.processes = 2000, 80, []
    sample = sample_of(gpu)
    assert (sample.foreign_memory_bytes, sample.foreign_utilization_pct) == (2000 * MIB, 80.0)


OURS = frozenset({1001})


@pytest.mark.parametrize(
    ("processes", "used_mib", "foreign_mib"),
    [
        (None, 5000, None),  # the driver does not list processes
        ([], 5000, None),  # memory is in use, yet nobody is listed: the list is hidden
        ([], 5, 0),  # nothing is there, ours have not yet used the GPU
        ([(1001, None), (7, 100)], 5000, 100),  # ours need no figure
        ([(1001, 400), (7, None)], 5000, None),  # the container case: no memory per process
        ([(999_999_999, 4000)], 4000, None),  # a pid of the host: it may be ours under another number
    ],
)
def test_foreign_memory_is_none_where_it_cannot_be_told(
    processes: list[tuple[int, int | None]] | None, used_mib: int, foreign_mib: int | None
) -> None:
    listed = None
    if processes is not None:
        listed = [GpuProcess(pid, None if mib is None else mib * MIB) for pid, mib in processes]
    found = foreign_memory(listed, used_mib * MIB, OURS)
    assert found == (None if foreign_mib is None else foreign_mib * MIB)


def test_a_neighbour_in_our_pid_namespace_is_foreign_before_ours_are_listed() -> None:
    listed = [GpuProcess(os.getpid(), 100)]
    assert foreign_memory(listed, 100, OURS) == 100
    assert foreign_utilization(listed, 42.0, OURS, 100, dict) == 42.0
