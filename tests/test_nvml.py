"""What NVML says arrives whole, what it does not say is None, and none of its failures becomes an exception."""

from __future__ import annotations

import subprocess
import sys

import pynvml
import pytest
from fake_nvml import MIB, SUCCESS, FakeGpu, FakeNvml, gpus, installed

from altlas_core.backends.machine import GpuProcess, NvmlReport
from altlas_core.backends.nvml import gpus as nvml
from altlas_core.backends.nvml.readings import THROTTLE_REASONS, reason_names

LOST = pynvml.NVML_ERROR_GPU_IS_LOST
PER_GPU = [
    name.removeprefix("_")
    for name in vars(FakeNvml)
    if name.startswith("_nvmlDevice") and name not in ("_nvmlDeviceGetCount_v2", "_nvmlDeviceGetHandleByUUID")
]
# What comes first stands in for these: they are asked only where it is missing, or only when sampling.
ONLY_SOMETIMES = {
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetPowerManagementLimit",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
    "nvmlDeviceGetProcessUtilization",
    "nvmlDeviceRegisterEvents",
}


def read(library: FakeNvml | None) -> NvmlReport:
    with installed(library):
        return nvml.read_gpus()


def test_importing_the_module_loads_no_pynvml() -> None:
    code = "import sys, altlas_core.backends.nvml.gpus, altlas_core.backends.discover; print('pynvml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_reading_of_a_gpu_arrives_with_its_unit() -> None:
    gpu = FakeGpu(
        name=b"NVIDIA H200",
        uuid=b"GPU-abc",
        bus=0x65,
        capability=(9, 0),
        total_mib=143771,
        reserved_mib=600,
        used_mib=1000,
        utilization=37,
        temperature=54,
        power_mw=312_400,
        limit_mw=700_000,
        processes=[(10, 900), (11, None)],
        mig=0,
        sm_clock=1980,
        memory_clock=2619,
        throttle=pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonGpuIdle,
        ecc=(12, 1),
        recovery=pynvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET,
    )
    report = read(FakeNvml([gpu]))
    found = report.gpus[0]
    assert (found.index, found.name, found.uuid) == (0, "NVIDIA H200", "GPU-abc")
    assert (found.pci_id, found.compute_capability, found.mig_enabled) == ("00000000:65:00.0", (9, 0), False)
    assert found.memory_total_bytes == 143771 * MIB
    assert found.memory_used_bytes == 1000 * MIB
    assert found.memory_free_bytes == (143771 - 1600) * MIB
    assert (found.utilization_pct, found.temperature_c) == (37.0, 54.0)
    assert (found.power_w, found.power_limit_w) == (312.4, 700.0)
    assert (found.sm_clock_mhz, found.memory_clock_mhz) == (1980.0, 2619.0)
    assert found.throttle_reasons == ("sw_power_cap",)
    assert (found.ecc_corrected, found.ecc_uncorrected) == (12, 1)
    assert found.recovery_needed == "a reset of the GPU"
    assert found.processes == (GpuProcess(10, 900 * MIB), GpuProcess(11, None))
    assert (report.driver_version, report.cuda_version, report.problem) == ("550.54.14", "12.4", None)


def test_unsupported_readings_are_none_and_never_zero() -> None:
    gpu = FakeGpu(
        name=None,
        uuid=None,
        capability=None,
        total_mib=None,
        utilization=None,
        temperature=None,
        power_mw=None,
        limit_mw=None,
        processes=None,
        sm_clock=None,
        memory_clock=None,
        throttle=None,
        ecc=None,
    )
    found = read(FakeNvml([gpu])).gpus[0]
    readings = {name: getattr(found, name) for name in found.__slots__ if name not in ("index", "pci_id")}
    assert set(readings.values()) == {None}


def test_a_reading_of_zero_stays_zero() -> None:
    found = read(FakeNvml([FakeGpu(utilization=0, temperature=0, power_mw=0, used_mib=0, sm_clock=0)])).gpus[0]
    assert (found.utilization_pct, found.temperature_c, found.power_w, found.memory_used_bytes) == (0, 0, 0, 0)
    assert (found.sm_clock_mhz, found.throttle_reasons, found.ecc_corrected, found.ecc_uncorrected) == (0, (), 0, 0)


def test_old_drivers_without_the_newer_functions_are_read_by_the_older_ones() -> None:
    missing = ("nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetTemperatureV", "nvmlDeviceGetEnforcedPowerLimit")
    missing += ("nvmlDeviceGetCurrentClocksEventReasons",)
    gpu = FakeGpu(used_mib=100, reserved_mib=5, temperature=41, throttle=0x40)
    found = read(FakeNvml([gpu], missing=missing)).gpus[0]
    assert (found.memory_used_bytes, found.temperature_c, found.power_limit_w) == (105 * MIB, 41.0, 400.0)
    assert found.throttle_reasons == ("hw_thermal_slowdown",)


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_UNKNOWN, 4711])
@pytest.mark.parametrize("function", sorted(set(PER_GPU) - {"nvmlDeviceGetHandleByIndex_v2"}))
def test_no_failing_reading_costs_the_gpu(function: str, code: int) -> None:
    report = read(FakeNvml([FakeGpu(errors={function: code}), FakeGpu(uuid=b"GPU-2")]))
    assert [gpu.index for gpu in report.gpus] == [0, 1]
    assert report.excluded == ()


@pytest.mark.parametrize("function", sorted(set(PER_GPU) - ONLY_SOMETIMES))
def test_a_gpu_lost_at_any_call_is_excluded_with_its_reason_and_loses_no_other(function: str) -> None:
    devices = gpus(3)
    devices[1].errors[function] = LOST
    report = read(FakeNvml(devices))
    assert [gpu.index for gpu in report.gpus] == [0, 2]
    (lost,) = report.excluded
    assert lost.index == 1
    assert "lost" in lost.reason
    assert "reset" in lost.reason
    assert report.problem is None


def test_a_gpu_lost_half_way_keeps_the_name_and_uuid_that_were_read() -> None:
    (lost,) = read(FakeNvml([FakeGpu(errors={"nvmlDeviceGetPowerUsage": LOST})])).excluded
    assert (lost.name, lost.uuid) == ("NVIDIA A100-SXM4-80GB", "GPU-00000000-0000-0000-0000-000000000000")


def test_a_gpu_whose_handle_is_refused_is_excluded_with_what_the_driver_said() -> None:
    devices = gpus(2)
    devices[0].errors["nvmlDeviceGetHandleByIndex_v2"] = pynvml.NVML_ERROR_NO_PERMISSION
    report = read(FakeNvml(devices))
    assert [gpu.index for gpu in report.gpus] == [1]
    assert "NO_PERMISSION" in report.excluded[0].reason
    assert "name not readable" in report.excluded[0].name


@pytest.mark.parametrize(
    ("library", "words"),
    [
        (FakeNvml(errors={"nvmlInitWithFlags": pynvml.NVML_ERROR_DRIVER_NOT_LOADED}), ["not loaded", "modprobe"]),
        (FakeNvml(errors={"nvmlInitWithFlags": pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH}), ["different versions"]),
        (FakeNvml(errors={"nvmlInitWithFlags": pynvml.NVML_ERROR_NO_PERMISSION}), ["refuses", "/dev/nvidia"]),
        (FakeNvml(errors={"nvmlInitWithFlags": pynvml.NVML_ERROR_UNKNOWN}), ["does not start", "UNKNOWN"]),
        (FakeNvml(errors={"nvmlInitWithFlags": 4711}), ["does not start", "4711"]),
        (FakeNvml(missing=("nvmlInitWithFlags",)), ["does not start", "FUNCTION_NOT_FOUND"]),
        (FakeNvml(errors={"nvmlDeviceGetCount_v2": pynvml.NVML_ERROR_UNKNOWN}), ["how many GPUs", "nvidia-smi"]),
        (FakeNvml(errors={"nvmlDeviceGetCount_v2": LOST}), ["how many GPUs", "GPU_IS_LOST"]),
        (FakeNvml([]), ["knows of none", "lspci"]),
    ],
)
def test_nvml_that_fails_as_a_whole_is_one_sentence_with_what_to_do(library: FakeNvml, words: list[str]) -> None:
    report = read(library)
    assert report.gpus == ()
    assert report.problem is not None
    for word in ["Looked for NVIDIA GPUs", "--backend simulated", *words]:
        assert word in report.problem
    assert "Traceback" not in report.problem
    assert "\n" not in report.problem
    assert report.problem.count(". ") == 0


def test_no_driver_library_is_told_apart_from_a_failing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(pynvml, "CDLL", no_library)
    report = read(None)
    assert report.problem is not None
    assert "libnvidia-ml.so.1 is not there" in report.problem


def test_pynvml_not_installed_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    report = nvml.read_gpus()
    assert report.problem is not None
    assert "nvidia-ml-py" in report.problem


def test_detection_leaves_nvml_as_it_found_it() -> None:
    for library in (FakeNvml(), FakeNvml(errors={"nvmlDeviceGetCount_v2": LOST})):
        read(library)
        assert library.initialised == 0


def test_names_may_come_as_bytes_or_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (b"NVIDIA L4", "NVIDIA L4"):
        with installed(FakeNvml()), monkeypatch.context() as patch:
            patch.setattr(pynvml, "nvmlDeviceGetName", lambda handle, name=name: name)
            assert nvml.read_gpus().gpus[0].name == "NVIDIA L4"


def test_a_name_that_is_no_text_costs_only_the_name() -> None:
    found = read(FakeNvml([FakeGpu(name=b"\xff\xfe")])).gpus[0]
    assert found.name is None
    assert found.uuid is not None


def test_what_somebody_asked_for_and_idling_are_no_throttling() -> None:
    asked_for = (
        pynvml.nvmlClocksEventReasonGpuIdle
        | pynvml.nvmlClocksEventReasonApplicationsClocksSetting
        | pynvml.nvmlClocksEventReasonDisplayClockSetting
    )
    assert reason_names(asked_for) == ()
    assert reason_names(pynvml.nvmlClocksEventReasonNone) == ()


def test_every_other_reason_that_nvml_knows_has_the_name_it_has_there() -> None:
    prefix = "nvmlClocksEventReason"
    no_throttling = "None All GpuIdle ApplicationsClocksSetting UserDefinedClocks DisplayClockSetting".split()
    known = [name.removeprefix(prefix) for name in dir(pynvml) if name.startswith(prefix)]
    others = [name for name in known if name not in no_throttling]
    assert len(others) == len(THROTTLE_REASONS)
    for name in others:
        (told,) = reason_names(getattr(pynvml, prefix + name))
        assert told.replace("_", "") == name.lower()


def test_several_reasons_come_together_and_one_not_known_by_its_number() -> None:
    assert reason_names(0x20 | 0x04 | 0x1000 | 0x01) == ("sw_power_cap", "sw_thermal_slowdown", "0x1000")
    assert len(reason_names(sum(THROTTLE_REASONS))) == len(THROTTLE_REASONS)


def test_the_fake_answers_the_real_pynvml() -> None:
    assert SUCCESS == pynvml.NVML_SUCCESS
    with installed(FakeNvml(gpus(2))):
        pynvml.nvmlInit()
        assert pynvml.nvmlDeviceGetCount() == 2
        handle = pynvml.nvmlDeviceGetHandleByIndex(1)
        assert pynvml.nvmlDeviceGetUUID(handle) == "GPU-00000001-1111-2222-3333-444444444444"
        pynvml.nvmlShutdown()
