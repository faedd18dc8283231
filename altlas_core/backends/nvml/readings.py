"""What NVML tells of one GPU, each reading in the units of this project. A reading that is not told is None, never 0.

Every function raises GpuGoneError where the GPU is lost. What NVML means by its readings:
https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html
"""

from __future__ import annotations

import time
from typing import Any, Final

from altlas_core.backends.machine import GpuProcess
from altlas_core.backends.nvml.ask import Gpu, NvmlError, constant

_UTILIZATION_WINDOW_US: Final = 2_000_000  # the driver renews per-process figures about once a second

# Bits of nvmlClocksEventReasons, named as nvidia-smi names them, that say that the clocks are held down.
THROTTLE_REASONS: Final = {
    0x04: "sw_power_cap",
    0x08: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}
# Idle, application clocks, display clocks: the clocks somebody asked for, or nothing to do. That is no throttling.
_NO_THROTTLING: Final = 0x01 | 0x02 | 0x100

_CORRECTED, _UNCORRECTED, _VOLATILE = 0, 1, 0  # nvmlMemoryErrorType_t; nvmlEccCounterType_t
_CLOCK_SM, _CLOCK_MEMORY = 1, 2  # nvmlClockType_t
_RECOVERY_ACTION: Final = 230  # NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, drivers from 565 on
# nvmlDeviceGpuRecoveryAction_t; draining peer-to-peer traffic and an IMEX domain concern only work across GPUs.
_RECOVERY: Final = {
    1: "a reset of the GPU",
    2: "a restart of the machine",
    4: "the GPU to be drained and reset",
    6: "a reset of the GPU's bus",
    7: "a restart of the system",
}


def text(value: str | bytes | None) -> str | None:
    """Text from NVML, which older bindings give as bytes. Empty means there is none."""
    found = value.decode(errors="replace") if isinstance(value, bytes) else value
    return found.strip() or None if found is not None else None


def memory(gpu: Gpu) -> tuple[int | None, int | None, int | None]:
    """(total, used, free) bytes. Version 2 keeps what the driver reserves for itself out of `used`."""
    info = gpu.read("nvmlDeviceGetMemoryInfo", constant("nvmlMemory_v2"))
    if info is None:
        info = gpu.read("nvmlDeviceGetMemoryInfo")  # drivers before 510 know only this one
    return (None, None, None) if info is None else (int(info.total), int(info.used), int(info.free))


def utilization_pct(gpu: Gpu) -> float | None:
    """The share of the driver's last sample period (1/6 s to 1 s) in which a kernel was running."""
    rates = gpu.read("nvmlDeviceGetUtilizationRates")
    return None if rates is None else float(rates.gpu)


def temperature_c(gpu: Gpu) -> float | None:
    """The GPU core sensor (sensor 0)."""
    value = gpu.read("nvmlDeviceGetTemperatureV", 0)
    if value is None:
        value = gpu.read("nvmlDeviceGetTemperature", 0)  # drivers before 570 know only this one
    return None if value is None else float(value)


def power_w(gpu: Gpu) -> float | None:
    return _watts(gpu.read("nvmlDeviceGetPowerUsage"))


def power_limit_w(gpu: Gpu) -> float | None:
    """The limit in force, else the one that was set."""
    limit = gpu.read("nvmlDeviceGetEnforcedPowerLimit")
    return _watts(limit if limit is not None else gpu.read("nvmlDeviceGetPowerManagementLimit"))


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def sm_clock_mhz(gpu: Gpu) -> float | None:
    return _mhz(gpu.read("nvmlDeviceGetClockInfo", _CLOCK_SM))


def memory_clock_mhz(gpu: Gpu) -> float | None:
    return _mhz(gpu.read("nvmlDeviceGetClockInfo", _CLOCK_MEMORY))


def _mhz(clock: int | None) -> float | None:
    return None if clock is None else float(clock)


def throttle_reasons(gpu: Gpu) -> tuple[str, ...] | None:
    """Why the clocks are held down, by the names of THROTTLE_REASONS; empty: they are not."""
    bits = gpu.read("nvmlDeviceGetCurrentClocksEventReasons")
    if bits is None:
        bits = gpu.read("nvmlDeviceGetCurrentClocksThrottleReasons")  # its name in drivers before 535
    return None if bits is None else reason_names(int(bits))


def reason_names(bits: int) -> tuple[str, ...]:
    """The names of these bits, lowest first; one that is not known here by its number."""
    held = bits & ~_NO_THROTTLING
    if not held:
        return ()
    each = [1 << place for place in range(held.bit_length()) if held >> place & 1]
    return tuple(THROTTLE_REASONS.get(bit, f"{bit:#x}") for bit in each)


def ecc_errors(gpu: Gpu) -> tuple[int | None, int | None]:
    """(corrected, uncorrected) memory errors since the driver was loaded."""
    counts = [gpu.read("nvmlDeviceGetTotalEccErrors", kind, _VOLATILE) for kind in (_CORRECTED, _UNCORRECTED)]
    return counts[0], counts[1]


def processes(gpu: Gpu) -> tuple[GpuProcess, ...] | None:
    """The compute processes that the driver shows us."""
    listed = gpu.read("nvmlDeviceGetComputeRunningProcesses")
    if listed is None:
        return None
    return tuple(GpuProcess(int(item.pid), item.usedGpuMemory) for item in listed)


def process_utilization(gpu: Gpu) -> dict[int, float] | None:
    """Percent of the last moments per pid, processes that ran no kernel left out; None where it cannot be read."""
    since_us = time.time_ns() // 1000 - _UTILIZATION_WINDOW_US  # noqa: TID251 - NVML asks for wall-clock time
    try:
        samples = gpu.ask("nvmlDeviceGetProcessUtilization", since_us)
    except NvmlError as error:
        return {} if error.code == "NOT_FOUND" else None  # NOT_FOUND: no process ran anything
    latest: dict[int, tuple[int, float]] = {}
    for sample in samples:
        latest[sample.pid] = max(latest.get(sample.pid, (0, 0.0)), (sample.timeStamp, float(sample.smUtil)))
    return {pid: percent for pid, (_, percent) in latest.items()}


def recovery_needed(gpu: Gpu) -> str | None:
    """What the driver says must be done before the GPU can be relied on again, in words; None: nothing, or not told."""
    values = gpu.read("nvmlDeviceGetFieldValues", (_RECOVERY_ACTION,))
    if values is None or values[0].nvmlReturn != 0:
        return None
    return _RECOVERY.get(int(values[0].value.uiVal))


def mig_enabled(gpu: Gpu) -> bool | None:
    mode: Any = gpu.read("nvmlDeviceGetMigMode")
    return None if mode is None else mode[0] == 1
