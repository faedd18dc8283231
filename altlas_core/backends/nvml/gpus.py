"""One look at all NVIDIA GPUs of the machine, through NVML.

A missing or unsupported reading becomes None, a lost GPU ends the reading of that one GPU only, and no error of the
driver reaches a caller as an exception.
"""

from __future__ import annotations

from typing import Any, Final

from altlas_core.backends.machine import Excluded, GpuReading, NvmlReport
from altlas_core.backends.nvml import readings as tell
from altlas_core.backends.nvml.ask import Gpu, GpuGoneError, NvmlError, ask, close_nvml, gpu_at, open_nvml

_LOOKED: Final = "Looked for NVIDIA GPUs: "
_FALLBACK: Final = "; without a GPU, use --backend simulated or --backend cpu."
_PROBLEMS: Final = {
    "NOT_INSTALLED": "the Python package nvidia-ml-py, which reads them, is not installed; run `make install`",
    "LIBRARY_NOT_FOUND": "the driver library libnvidia-ml.so.1 is not there, so no NVIDIA driver is installed, or this "
    "container is not given it; install the driver, or start the container with its GPUs (docker run --gpus all)",
    "DRIVER_NOT_LOADED": "the driver library is there, but the kernel driver is not loaded; load it (modprobe nvidia) "
    "or restart the machine, and check that `nvidia-smi` works",
    "LIB_RM_VERSION_MISMATCH": "the driver library and the loaded kernel driver are of different versions, as after an "
    "update; restart the machine or reload the driver",
    "NO_PERMISSION": "the driver is there but refuses this user; give the user access to /dev/nvidiactl and "
    "/dev/nvidia* (often the group 'video' or 'render')",
    "NO_GPU": "the driver answers and knows of none; check `lspci` and `nvidia-smi`, and that a container is given its "
    "GPUs (docker run --gpus all)",
}


def read_gpus() -> NvmlReport:
    """Read every GPU that NVML knows, in PCI bus order. Never raises: what went wrong is in the report."""
    try:
        open_nvml()
    except NvmlError as error:
        return NvmlReport(problem=_problem("it does not start", error))
    try:
        return _report(int(ask("nvmlDeviceGetCount")))
    except NvmlError as error:
        return NvmlReport(problem=_problem("it does not tell how many GPUs there are", error))
    finally:
        close_nvml()


def _report(count: int) -> NvmlReport:
    outcomes = [_read_index(index) for index in range(count)]
    return NvmlReport(
        gpus=tuple(item for item in outcomes if isinstance(item, GpuReading)),
        excluded=tuple(item for item in outcomes if isinstance(item, Excluded)),
        problem=None if count else _LOOKED + _PROBLEMS["NO_GPU"] + _FALLBACK,
        driver_version=tell.text(_system("nvmlSystemGetDriverVersion")),
        cuda_version=_cuda_version(),
    )


def _problem(what: str, error: NvmlError) -> str:
    known = _PROBLEMS.get(error.code)
    said = f"the driver library is there, but {what} ({error.code}: {error}); check that `nvidia-smi` works"
    return _LOOKED + (known or said) + _FALLBACK


def _system(name: str) -> Any:
    """What is asked about no GPU; None also where a lost GPU makes such calls fail."""
    try:
        return ask(name)
    except NvmlError:
        return None


def _cuda_version() -> str | None:
    number = _system("nvmlSystemGetCudaDriverVersion_v2")  # 12040 means 12.4
    return None if not number else f"{number // 1000}.{number % 1000 // 10}"


def _read_index(index: int) -> GpuReading | Excluded:
    known: dict[str, Any] = {}
    try:
        return _reading(index, _gpu(index), known)
    except GpuGoneError as gone:
        return Excluded(known.get("name") or f"GPU {index} (name not readable)", index, known.get("uuid"), str(gone))


def _gpu(index: int) -> Gpu:
    """Whatever prevents it, this GPU cannot be used: raises GpuGoneError with the reason."""
    try:
        return gpu_at(index)
    except NvmlError as error:
        raise GpuGoneError(f"the driver gives no access to it ({error.code}: {error})") from error


def _reading(index: int, gpu: Gpu, known: dict[str, Any]) -> GpuReading:
    """Everything about one GPU. `known` is filled on the way, for the case that it is lost half-way."""
    known["name"] = tell.text(gpu.read("nvmlDeviceGetName"))
    known["uuid"] = tell.text(gpu.read("nvmlDeviceGetUUID"))
    pci = gpu.read("nvmlDeviceGetPciInfo")
    total, used, free = tell.memory(gpu)
    corrected, uncorrected = tell.ecc_errors(gpu)
    return GpuReading(
        index=index,
        name=known["name"],
        uuid=known["uuid"],
        pci_id=None if pci is None else tell.text(pci.busId),
        compute_capability=gpu.read("nvmlDeviceGetCudaComputeCapability"),
        memory_total_bytes=total,
        memory_used_bytes=used,
        memory_free_bytes=free,
        utilization_pct=tell.utilization_pct(gpu),
        temperature_c=tell.temperature_c(gpu),
        power_w=tell.power_w(gpu),
        power_limit_w=tell.power_limit_w(gpu),
        sm_clock_mhz=tell.sm_clock_mhz(gpu),
        memory_clock_mhz=tell.memory_clock_mhz(gpu),
        throttle_reasons=tell.throttle_reasons(gpu),
        ecc_corrected=corrected,
        ecc_uncorrected=uncorrected,
        recovery_needed=tell.recovery_needed(gpu),
        processes=tell.processes(gpu),
        mig_enabled=tell.mig_enabled(gpu),
    )
