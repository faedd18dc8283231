"""What NVML says arrives whole, what it does not say is None, and none of its failures becomes an exception."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pynvml
import pytest
from fake_nvml import MIB, SUCCESS, FakeGpu, FakeNvml, gpus, installed

from altlas_core.backends import nvml
from altlas_core.backends.foreign import foreign_memory, foreign_utilization
from altlas_core.backends.machine import GpuProcess, NvmlReport
from altlas_core.model import DeviceSample

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
    "nvmlDeviceGetProcessUtilization",
}


def read(library: FakeNvml | None) -> NvmlReport:
    with installed(library):
        return nvml.read_gpus()


@pytest.fixture
def one_gpu() -> Iterator[tuple[FakeNvml, FakeGpu]]:
    library = FakeNvml(gpus(1))
    with installed(library):
        yield library, library.devices[0]


def test_importing_the_module_loads_no_pynvml() -> None:
    code = "import sys, altlas_core.backends.nvml, altlas_core.backends.discover; print('pynvml' in sys.modules)"
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
    )
    found = read(FakeNvml([gpu])).gpus[0]
    readings = {name: getattr(found, name) for name in found.__slots__ if name not in ("index", "pci_id")}
    assert set(readings.values()) == {None}


def test_a_reading_of_zero_stays_zero() -> None:
    found = read(FakeNvml([FakeGpu(utilization=0, temperature=0, power_mw=0, used_mib=0)])).gpus[0]
    assert (found.utilization_pct, found.temperature_c, found.power_w, found.memory_used_bytes) == (0, 0, 0, 0)


def test_old_drivers_without_the_newer_functions_are_read_by_the_older_ones() -> None:
    missing = ("nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetTemperatureV", "nvmlDeviceGetEnforcedPowerLimit")
    found = read(FakeNvml([FakeGpu(used_mib=100, reserved_mib=5, temperature=41)], missing=missing)).gpus[0]
    assert (found.memory_used_bytes, found.temperature_c, found.power_limit_w) == (105 * MIB, 41.0, 400.0)


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
    assert nvml.sample_gpu(0) == DeviceSample()


def test_detection_leaves_nvml_as_it_found_it() -> None:
    for library in (FakeNvml(), FakeNvml(errors={"nvmlDeviceGetCount_v2": LOST})):
        read(library)
        assert library.initialised == 0


def test_sampling_opens_nvml_once_and_detection_does_not_close_it(one_gpu: tuple[FakeNvml, FakeGpu]) -> None:
    library, _ = one_gpu
    for _ in range(3):
        nvml.sample_gpu(0)
    nvml.read_gpus()
    assert library.initialised == 1
    nvml.close()
    nvml.close()
    assert library.initialised == 0


def test_a_sample_is_found_by_uuid_whatever_the_index() -> None:
    devices = gpus(3)
    devices[2].temperature = 71
    devices[0].errors["nvmlDeviceGetHandleByIndex_v2"] = LOST
    with installed(FakeNvml(devices)):
        assert devices[2].uuid is not None
        sample = nvml.sample_gpu(devices[2].uuid.decode())
    assert sample is not None
    assert sample.temperature_c == 71.0


@pytest.mark.parametrize("function", ["nvmlDeviceGetHandleByUUID", "nvmlDeviceGetUtilizationRates"])
def test_a_lost_gpu_has_no_sample(one_gpu: tuple[FakeNvml, FakeGpu], function: str) -> None:
    _, gpu = one_gpu
    assert gpu.uuid is not None
    assert nvml.sample_gpu(gpu.uuid.decode()) is not None
    gpu.errors[function] = LOST
    assert nvml.sample_gpu(gpu.uuid.decode()) is None


def test_a_uuid_the_driver_no_longer_knows_is_a_lost_gpu(one_gpu: tuple[FakeNvml, FakeGpu]) -> None:
    assert nvml.sample_gpu("GPU-gone") is None


def test_nvml_failing_as_a_whole_is_no_lost_gpu_and_sampling_recovers(one_gpu: tuple[FakeNvml, FakeGpu]) -> None:
    library, _ = one_gpu
    library.errors["nvmlDeviceGetHandleByIndex_v2"] = pynvml.NVML_ERROR_UNINITIALIZED
    assert nvml.sample_gpu(0) == DeviceSample()
    library.errors.clear()
    sample = nvml.sample_gpu(0)
    assert sample is not None
    assert sample.temperature_c == 35.0


def test_foreign_load_is_what_other_processes_hold_and_run(one_gpu: tuple[FakeNvml, FakeGpu]) -> None:
    _, gpu = one_gpu
    gpu.used_mib, gpu.utilization = 3000, 90
    gpu.processes = [(1001, 1000), (1002, 500), (7, 1500)]
    gpu.process_utilization = {1001: 60, 7: 30}
    sample = nvml.sample_gpu(0, {1001, 1002})
    assert sample is not None
    assert sample.memory_used_bytes == 3000 * MIB
    assert sample.foreign_memory_bytes == 1500 * MIB
    assert sample.foreign_utilization_pct == 30.0


def test_idle_neighbours_have_a_foreign_utilization_of_zero_and_unreadable_ones_none(
    one_gpu: tuple[FakeNvml, FakeGpu],
) -> None:
    _, gpu = one_gpu
    gpu.utilization, gpu.processes = 50, [(1001, 1000), (7, 1500)]
    gpu.process_utilization = {}
    sample = nvml.sample_gpu(0, {1001})
    assert sample is not None
    assert sample.foreign_utilization_pct == 0.0
    gpu.process_utilization = None
    sample = nvml.sample_gpu(0, {1001})
    assert sample is not None
    assert sample.foreign_utilization_pct is None


def test_our_own_load_is_not_foreign(one_gpu: tuple[FakeNvml, FakeGpu]) -> None:
    _, gpu = one_gpu
    gpu.used_mib, gpu.utilization, gpu.processes = 2000, 100, [(1001, 2000)]
    sample = nvml.sample_gpu(0, {1001})
    assert sample is not None
    assert (sample.foreign_memory_bytes, sample.foreign_utilization_pct) == (0, 0.0)


def test_before_any_process_of_ours_all_load_is_foreign(one_gpu: tuple[FakeNvml, FakeGpu]) -> None:
    _, gpu = one_gpu
    gpu.used_mib, gpu.utilization, gpu.processes = 2000, 80, []
    sample = nvml.sample_gpu(0)
    assert sample is not None
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


def test_names_may_come_as_bytes_or_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (b"NVIDIA L4", "NVIDIA L4"):
        with installed(FakeNvml()), monkeypatch.context() as patch:
            patch.setattr(pynvml, "nvmlDeviceGetName", lambda handle, name=name: name)
            assert nvml.read_gpus().gpus[0].name == "NVIDIA L4"


def test_a_name_that_is_no_text_costs_only_the_name() -> None:
    found = read(FakeNvml([FakeGpu(name=b"\xff\xfe")])).gpus[0]
    assert found.name is None
    assert found.uuid is not None


def test_the_fake_answers_the_real_pynvml() -> None:
    assert SUCCESS == pynvml.NVML_SUCCESS
    with installed(FakeNvml(gpus(2))):
        pynvml.nvmlInit()
        assert pynvml.nvmlDeviceGetCount() == 2
        handle = pynvml.nvmlDeviceGetHandleByIndex(1)
        assert pynvml.nvmlDeviceGetUUID(handle) == "GPU-00000001-1111-2222-3333-444444444444"
        pynvml.nvmlShutdown()
