"""All that is asked of NVML, the NVIDIA driver's management library, is asked here, through the one function `_ask`.

A missing or unsupported reading becomes None, a lost GPU ends the reading of that one GPU only, and no error of the
driver reaches a caller as an exception. pynvml (package nvidia-ml-py) is imported on first use.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Final

from altlas_core.backends.foreign import foreign_memory, foreign_utilization
from altlas_core.backends.machine import Excluded, GpuProcess, GpuReading, NvmlReport
from altlas_core.model import DeviceSample

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
_GONE: Final = {
    "GPU_IS_LOST": "it is lost: the driver cannot reach it any more; look for Xid messages in the kernel log (dmesg), "
    "then reset the GPU or restart the machine",
    "RESET_REQUIRED": "it needs a reset before it can be used: run `nvidia-smi --gpu-reset` or restart the machine",
    "GPU_NOT_FOUND": "the driver does not find it any more; check it in `nvidia-smi` and restart the machine",
}
_UTILIZATION_WINDOW_US: Final = 2_000_000  # the driver renews per-process figures about once a second


class _NvmlError(Exception):
    """What NVML answered instead of a reading: its error by name ("GPU_IS_LOST") and in words."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class _GpuGoneError(Exception):
    """This one GPU does not answer any more. The message is the reason, for a person."""


class _Open:
    """Whether NVML is kept initialised for samples, and in which process: after a fork it has to be done again."""

    lock = threading.Lock()
    in_pid: int | None = None


def _ask(name: str, *args: Any) -> Any:
    """The one door to NVML: the answer of pynvml's function `name`; raises _NvmlError for everything that can fail."""
    try:
        import pynvml
    except ImportError as error:
        raise _NvmlError("NOT_INSTALLED", str(error)) from error
    try:
        return getattr(pynvml, name)(*args)
    except pynvml.NVMLError as error:
        raise _NvmlError(_code_name(pynvml, error.value), str(error)) from error
    except Exception as error:
        # An older pynvml or library without this function, an answer that is not text, a broken installation.
        raise _NvmlError("FUNCTION_NOT_FOUND", f"{type(error).__name__}: {error}") from error


def _code_name(pynvml: Any, value: int) -> str:
    prefix = "NVML_ERROR_"
    for name in dir(pynvml):
        if name.startswith(prefix) and getattr(pynvml, name) == value:
            return name[len(prefix) :]
    return f"code {value}"


def _read(name: str, *args: Any) -> Any:
    """One reading of one GPU, or None where there is none. Raises _GpuGoneError where the GPU is lost."""
    try:
        return _ask(name, *args)
    except _NvmlError as error:
        if error.code in _GONE:
            raise _GpuGoneError(_GONE[error.code]) from error
        if error.code == "UNINITIALIZED":
            _forget()  # somebody in this process shut NVML down: the next look opens it again
        return None


def open_for_samples() -> None:
    """Keep NVML initialised from now until `close`: a start can take seconds. Raises _NvmlError."""
    with _Open.lock:
        if _Open.in_pid != os.getpid():
            _ask("nvmlInit")
            _Open.in_pid = os.getpid()


def _forget() -> None:
    _Open.in_pid = None


def close() -> None:
    """Let go of NVML after sampling. May be called at any time, more than once; the next sample opens it again."""
    with _Open.lock:
        if _Open.in_pid == os.getpid():
            _shut_down()
        _forget()


def _shut_down() -> None:
    with contextlib.suppress(_NvmlError):  # there may be nothing left to let go of
        _ask("nvmlShutdown")


def read_gpus() -> NvmlReport:
    """Read every GPU that NVML knows, in PCI bus order. Never raises: what went wrong is in the report."""
    try:
        _ask("nvmlInit")  # NVML counts its users: this does not disturb one that samples
    except _NvmlError as error:
        return NvmlReport(problem=_problem("it does not start", error))
    try:
        return _report(int(_ask("nvmlDeviceGetCount")))
    except _NvmlError as error:
        return NvmlReport(problem=_problem("it does not tell how many GPUs there are", error))
    finally:
        _shut_down()


def _report(count: int) -> NvmlReport:
    outcomes = [_read_index(index) for index in range(count)]
    return NvmlReport(
        gpus=tuple(item for item in outcomes if isinstance(item, GpuReading)),
        excluded=tuple(item for item in outcomes if isinstance(item, Excluded)),
        problem=None if count else _LOOKED + _PROBLEMS["NO_GPU"] + _FALLBACK,
        driver_version=_system(lambda: _text(_read("nvmlSystemGetDriverVersion"))),
        cuda_version=_system(_cuda_version),
    )


def _problem(what: str, error: _NvmlError) -> str:
    known = _PROBLEMS.get(error.code)
    said = f"the driver library is there, but {what} ({error.code}: {error}); check that `nvidia-smi` works"
    return _LOOKED + (known or said) + _FALLBACK


def _system(read: Callable[[], str | None]) -> str | None:
    try:
        return read()
    except _GpuGoneError:  # a lost GPU can make calls fail that ask about no GPU
        return None


def _cuda_version() -> str | None:
    number = _read("nvmlSystemGetCudaDriverVersion_v2")  # 12040 means 12.4
    return None if not number else f"{number // 1000}.{number % 1000 // 10}"


def _read_index(index: int) -> GpuReading | Excluded:
    known: dict[str, Any] = {}
    try:
        return _reading(index, _handle("nvmlDeviceGetHandleByIndex", index), known)
    except _GpuGoneError as gone:
        return Excluded(known.get("name") or f"GPU {index} (name not readable)", index, known.get("uuid"), str(gone))


def _handle(name: str, *args: Any) -> Any:
    """The handle of a GPU. Whatever prevents it, this GPU cannot be used: raises _GpuGoneError with the reason."""
    try:
        return _ask(name, *args)
    except _NvmlError as error:
        reason = _GONE.get(error.code) or f"the driver gives no access to it ({error.code}: {error})"
        raise _GpuGoneError(reason) from error


def _reading(index: int, handle: Any, known: dict[str, Any]) -> GpuReading:
    """Everything about one GPU. `known` is filled on the way, for the case that it is lost half-way."""
    known["name"] = _text(_read("nvmlDeviceGetName", handle))
    known["uuid"] = _text(_read("nvmlDeviceGetUUID", handle))
    pci = _read("nvmlDeviceGetPciInfo", handle)
    total, used, free = _memory(handle)
    mig = _read("nvmlDeviceGetMigMode", handle)
    return GpuReading(
        index=index,
        name=known["name"],
        uuid=known["uuid"],
        pci_id=None if pci is None else _text(pci.busId),
        compute_capability=_read("nvmlDeviceGetCudaComputeCapability", handle),
        memory_total_bytes=total,
        memory_used_bytes=used,
        memory_free_bytes=free,
        utilization_pct=_utilization(handle),
        temperature_c=_temperature(handle),
        power_w=_watts(_read("nvmlDeviceGetPowerUsage", handle)),
        power_limit_w=_power_limit(handle),
        processes=_processes(handle),
        mig_enabled=None if mig is None else mig[0] == 1,
    )


def _text(value: str | bytes | None) -> str | None:
    """Text from NVML, which older bindings give as bytes. Empty means there is none."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    return text.strip() or None if text is not None else None


def _memory(handle: Any) -> tuple[int | None, int | None, int | None]:
    """(total, used, free) bytes. Version 2 keeps what the driver reserves for itself out of `used`."""
    import pynvml

    info = _read("nvmlDeviceGetMemoryInfo", handle, getattr(pynvml, "nvmlMemory_v2", None))
    if info is None:
        info = _read("nvmlDeviceGetMemoryInfo", handle)  # drivers before 510 know only this one
    return (None, None, None) if info is None else (int(info.total), int(info.used), int(info.free))


def _utilization(handle: Any) -> float | None:
    rates = _read("nvmlDeviceGetUtilizationRates", handle)
    return None if rates is None else float(rates.gpu)


def _temperature(handle: Any) -> float | None:
    """Degrees Celsius of the GPU core sensor (sensor 0)."""
    value = _read("nvmlDeviceGetTemperatureV", handle, 0)
    if value is None:
        value = _read("nvmlDeviceGetTemperature", handle, 0)  # drivers before 570 know only this one
    return None if value is None else float(value)


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _power_limit(handle: Any) -> float | None:
    """The limit in force, else the one that was set."""
    limit = _read("nvmlDeviceGetEnforcedPowerLimit", handle)
    return _watts(limit if limit is not None else _read("nvmlDeviceGetPowerManagementLimit", handle))


def _processes(handle: Any) -> tuple[GpuProcess, ...] | None:
    listed = _read("nvmlDeviceGetComputeRunningProcesses", handle)
    if listed is None:
        return None
    return tuple(GpuProcess(int(item.pid), item.usedGpuMemory) for item in listed)


def _process_utilization(handle: Any) -> dict[int, float] | None:
    """Percent of the last moments per pid, processes that ran no kernel left out; None where it cannot be read."""
    since_us = time.time_ns() // 1000 - _UTILIZATION_WINDOW_US  # noqa: TID251 - NVML asks for wall-clock time
    try:
        samples = _ask("nvmlDeviceGetProcessUtilization", handle, since_us)
    except _NvmlError as error:
        if error.code in _GONE:
            raise _GpuGoneError(_GONE[error.code]) from error
        return {} if error.code == "NOT_FOUND" else None  # NOT_FOUND: no process ran anything
    latest: dict[int, tuple[int, float]] = {}
    for sample in samples:
        latest[sample.pid] = max(latest.get(sample.pid, (0, 0.0)), (sample.timeStamp, float(sample.smUtil)))
    return {pid: percent for pid, (_, percent) in latest.items()}


def sample_gpu(gpu: int | str, our_pids: Collection[int] = ()) -> DeviceSample | None:
    """The readings of one GPU now, given by UUID (safe when another GPU is lost) or NVML index.

    `our_pids` are the processes whose load is ours; the `foreign_` values are the rest, None where the driver does
    not tell whose it is. Returns None where the GPU is lost. Where NVML itself fails every reading is None: a GPU is
    not called lost because its readings are.
    """
    try:
        open_for_samples()
    except _NvmlError:
        return DeviceSample()
    try:
        return _sample(_sample_handle(gpu), frozenset(our_pids))
    except _GpuGoneError:
        return None


def _sample_handle(gpu: int | str) -> Any:
    """The handle, or None where NVML as a whole does not answer. Raises _GpuGoneError."""
    name = "nvmlDeviceGetHandleByIndex" if isinstance(gpu, int) else "nvmlDeviceGetHandleByUUID"
    try:
        return _ask(name, gpu)
    except _NvmlError as error:
        if error.code in _GONE or error.code in ("NOT_FOUND", "INVALID_ARGUMENT"):
            raise _GpuGoneError(_GONE.get(error.code, "the driver does not know it")) from error
        if error.code == "UNINITIALIZED":
            _forget()
        return None


def _sample(handle: Any, our_pids: frozenset[int]) -> DeviceSample:
    if handle is None:
        return DeviceSample()
    _, used, _ = _memory(handle)
    utilization = _utilization(handle)
    processes = _processes(handle)
    memory = foreign_memory(processes, used, our_pids)
    share = foreign_utilization(processes, utilization, our_pids, used, lambda: _process_utilization(handle))
    return DeviceSample(
        utilization_pct=utilization,
        memory_used_bytes=used,
        temperature_c=_temperature(handle),
        power_w=_watts(_read("nvmlDeviceGetPowerUsage", handle)),
        foreign_memory_bytes=memory,
        foreign_utilization_pct=share,
    )
