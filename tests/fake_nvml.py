"""A fake of the driver's C library (libnvidia-ml.so.1) for machines without a GPU. The real pynvml runs on top of it.

pynvml loads the driver only where `pynvml.nvmlLib` is None, so an object with the C functions as attributes, put there
before the first nvmlInit, serves every client unmodified. Each function fills the ctypes arguments it is given and
returns an NVML error code; any of them can be made to fail, for all GPUs or for one.
"""

# ruff: noqa: N802 - the functions have the names of the C library

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pynvml

SUCCESS = 0
MIB = 1024**2
NOT_AVAILABLE = (1 << 64) - 1  # what the driver writes where a process's memory is not told


@dataclass
class FakeGpu:
    """What the fake driver says of one GPU; None makes the reading unsupported. Units are NVML's own (mW, MiB)."""

    name: bytes | None = b"NVIDIA A100-SXM4-80GB"
    uuid: bytes | None = b"GPU-00000000-0000-0000-0000-000000000000"
    bus: int = 1
    capability: tuple[int, int] | None = (8, 0)
    total_mib: int | None = 81920
    reserved_mib: int = 600
    used_mib: int = 0
    utilization: int | None = 0
    temperature: int | None = 35
    power_mw: int | None = 61_500
    limit_mw: int | None = 400_000
    processes: list[tuple[int, int | None]] | None = field(default_factory=list)  # (pid, MiB or None)
    process_utilization: dict[int, int] | None = None
    mig: int | None = None
    sm_clock: int | None = 1410
    memory_clock: int | None = 1593
    throttle: int | None = 0  # bits of nvmlClocksEventReasons
    ecc: tuple[int, int] | None = (0, 0)  # corrected, uncorrected
    recovery: int | None = None  # nvmlDeviceGpuRecoveryAction_t
    xids: list[int] | None = field(default_factory=list)  # not yet fetched; None: events are not supported
    errors: dict[str, int] = field(default_factory=dict)  # C function -> error code it returns


def gpus(count: int, **values: Any) -> list[FakeGpu]:
    """`count` GPUs with different UUIDs and PCI buses, alike in everything else."""
    uuids = [f"GPU-{i:08x}-1111-2222-3333-444444444444".encode() for i in range(count)]
    return [FakeGpu(uuid=uuid, bus=i + 1, **values) for i, uuid in enumerate(uuids)]


class FakeNvml:
    """The library. `errors` maps a C function to the code it returns; `missing` are functions it does not have."""

    def __init__(
        self,
        devices: list[FakeGpu] | None = None,
        errors: dict[str, int] | None = None,
        missing: tuple[str, ...] = (),
        driver: bytes = b"550.54.14",
        cuda: int = 12040,
    ) -> None:
        self.devices = devices if devices is not None else gpus(1)
        self.errors = errors or {}
        self.missing = missing
        self.driver = driver
        self.cuda = cuda
        self.calls: list[str] = []
        self.event_sets: dict[int, list[FakeGpu]] = {}  # by address
        self.initialised = 0

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("nvml") or name in self.missing or not hasattr(FakeNvml, "_" + name):
            raise AttributeError(name)
        return _CFunction(self, name)

    # --- the library itself: arguments as the C functions have them ---

    def _nvmlInitWithFlags(self, flags: Any) -> int:
        self.initialised += 1
        return SUCCESS

    def _nvmlShutdown(self) -> int:
        self.initialised -= 1
        return SUCCESS

    def _nvmlErrorString(self, code: Any) -> bytes:
        return b"fake error %d" % code

    def _nvmlSystemGetDriverVersion(self, buffer: Any, size: Any) -> int:
        buffer.value = self.driver
        return SUCCESS

    def _nvmlSystemGetCudaDriverVersion_v2(self, out: Any) -> int:
        out._obj.value = self.cuda
        return SUCCESS

    def _nvmlDeviceGetCount_v2(self, out: Any) -> int:
        out._obj.value = len(self.devices)
        return SUCCESS

    def _nvmlDeviceGetHandleByIndex_v2(self, index: Any, out: Any) -> int:
        return self._handle(index.value, out, "nvmlDeviceGetHandleByIndex_v2")

    def _nvmlDeviceGetHandleByUUID(self, uuid: Any, out: Any) -> int:
        found = [i for i, gpu in enumerate(self.devices) if gpu.uuid == uuid.value]
        if not found:
            return int(pynvml.NVML_ERROR_NOT_FOUND)
        return self._handle(found[0], out, "nvmlDeviceGetHandleByUUID")

    def _handle(self, index: int, out: Any, function: str) -> int:
        code = self.devices[index].errors.get(function, SUCCESS)
        if code == SUCCESS:
            # A handle is an opaque pointer: ours is the address index + 1, since NULL is none.
            pointed = pynvml.c_nvmlDevice_t
            out._obj.contents = pointed._type_.from_address(0x1000 * (index + 1))
        return code

    # --- events ---

    def _nvmlEventSetCreate(self, out: Any) -> int:
        address = 0x1000 * (1 + self.calls.count("nvmlEventSetCreate"))
        self.event_sets[address] = []
        out._obj.contents = pynvml.c_nvmlEventSet_t._type_.from_address(address)
        return SUCCESS

    def _nvmlDeviceRegisterEvents(self, gpu: FakeGpu, types: Any, events: Any) -> int:
        if gpu.xids is None:
            return _unsupported()
        assert types.value == pynvml.nvmlEventTypeXidCriticalError
        self.event_sets[_address(events)].append(gpu)
        return SUCCESS

    def _nvmlEventSetWait_v2(self, events: Any, out: Any, timeout_ms: Any) -> int:
        assert timeout_ms.value == 0  # nothing may wait here
        for gpu in self.event_sets[_address(events)]:
            if gpu.xids:
                out._obj.eventType, out._obj.eventData = pynvml.nvmlEventTypeXidCriticalError, gpu.xids.pop(0)
                return SUCCESS
        return int(pynvml.NVML_ERROR_TIMEOUT)

    def _nvmlEventSetFree(self, events: Any) -> int:
        del self.event_sets[_address(events)]
        return SUCCESS

    # --- one GPU: `gpu` is found from the handle by _CFunction ---

    def _nvmlDeviceGetName(self, gpu: FakeGpu, buffer: Any, size: Any) -> int:
        return _fill(buffer, gpu.name)

    def _nvmlDeviceGetUUID(self, gpu: FakeGpu, buffer: Any, size: Any) -> int:
        return _fill(buffer, gpu.uuid)

    def _nvmlDeviceGetPciInfo_v3(self, gpu: FakeGpu, out: Any) -> int:
        out._obj.busId = f"00000000:{gpu.bus:02X}:00.0".encode()
        return SUCCESS

    def _nvmlDeviceGetCudaComputeCapability(self, gpu: FakeGpu, major: Any, minor: Any) -> int:
        if gpu.capability is None:
            return _unsupported()
        major._obj.value, minor._obj.value = gpu.capability
        return SUCCESS

    def _nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu, out: Any) -> int:
        if gpu.total_mib is None:
            return _unsupported()
        memory = out._obj
        memory.total = gpu.total_mib * MIB
        memory.used = (gpu.used_mib + gpu.reserved_mib) * MIB
        memory.free = memory.total - memory.used
        return SUCCESS

    def _nvmlDeviceGetMemoryInfo_v2(self, gpu: FakeGpu, out: Any) -> int:
        if gpu.total_mib is None:
            return _unsupported()
        memory = out._obj
        memory.total = gpu.total_mib * MIB
        memory.reserved = gpu.reserved_mib * MIB
        memory.used = gpu.used_mib * MIB
        memory.free = memory.total - memory.used - memory.reserved
        return SUCCESS

    def _nvmlDeviceGetUtilizationRates(self, gpu: FakeGpu, out: Any) -> int:
        if gpu.utilization is None:
            return _unsupported()
        out._obj.gpu = gpu.utilization
        return SUCCESS

    def _nvmlDeviceGetTemperatureV(self, gpu: FakeGpu, out: Any) -> int:
        if gpu.temperature is None:
            return _unsupported()
        out._obj.temperature = gpu.temperature
        return SUCCESS

    def _nvmlDeviceGetTemperature(self, gpu: FakeGpu, sensor: Any, out: Any) -> int:
        return _number(out, gpu.temperature)

    def _nvmlDeviceGetPowerUsage(self, gpu: FakeGpu, out: Any) -> int:
        return _number(out, gpu.power_mw)

    def _nvmlDeviceGetEnforcedPowerLimit(self, gpu: FakeGpu, out: Any) -> int:
        return _number(out, gpu.limit_mw)

    def _nvmlDeviceGetPowerManagementLimit(self, gpu: FakeGpu, out: Any) -> int:
        return _number(out, gpu.limit_mw)

    def _nvmlDeviceGetClockInfo(self, gpu: FakeGpu, kind: Any, out: Any) -> int:
        clocks = {pynvml.NVML_CLOCK_SM: gpu.sm_clock, pynvml.NVML_CLOCK_MEM: gpu.memory_clock}
        return _number(out, clocks[kind.value])

    def _nvmlDeviceGetCurrentClocksEventReasons(self, gpu: FakeGpu, out: Any) -> int:
        return _number(out, gpu.throttle)

    def _nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: FakeGpu, out: Any) -> int:
        return _number(out, gpu.throttle)

    def _nvmlDeviceGetTotalEccErrors(self, gpu: FakeGpu, kind: Any, counter: Any, out: Any) -> int:
        assert counter.value == pynvml.NVML_VOLATILE_ECC
        return _number(out, None if gpu.ecc is None else gpu.ecc[kind.value])

    def _nvmlDeviceGetFieldValues(self, gpu: FakeGpu, count: Any, out: Any) -> int:
        for place in range(count.value):
            value = out._obj[place]
            known = value.fieldId == pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION and gpu.recovery is not None
            value.nvmlReturn = SUCCESS if known else _unsupported()
            value.value.uiVal = 1 if gpu.recovery is None else gpu.recovery  # what stands beside an error says nothing
        return SUCCESS

    def _nvmlDeviceGetMigMode(self, gpu: FakeGpu, current: Any, pending: Any) -> int:
        return _number(current, gpu.mig)

    def _nvmlDeviceGetComputeRunningProcesses_v3(self, gpu: FakeGpu, count: Any, array: Any) -> int:
        if gpu.processes is None:
            return _unsupported()
        room, count._obj.value = count._obj.value, len(gpu.processes)
        if array is None or room < len(gpu.processes):
            return int(pynvml.NVML_ERROR_INSUFFICIENT_SIZE) if gpu.processes else SUCCESS
        for slot, (pid, mib) in zip(array, gpu.processes, strict=False):
            slot.pid = pid
            slot.usedGpuMemory = NOT_AVAILABLE if mib is None else mib * MIB
        return SUCCESS

    def _nvmlDeviceGetProcessUtilization(self, gpu: FakeGpu, array: Any, count: Any, since: Any) -> int:
        if gpu.process_utilization is None:
            return _unsupported()
        if not gpu.process_utilization:
            return int(pynvml.NVML_ERROR_NOT_FOUND)
        count._obj.value = len(gpu.process_utilization)
        if array is None:
            return int(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
        for slot, (pid, percent) in zip(array, gpu.process_utilization.items(), strict=True):
            slot.pid, slot.smUtil, slot.timeStamp = pid, percent, since.value + 1
        return SUCCESS


class _CFunction:
    """A C function of the fake: counts the call, fails where told to, else hands over to FakeNvml's method."""

    def __init__(self, library: FakeNvml, name: str) -> None:
        self.library, self.name = library, name
        self.restype: Any = None  # pynvml sets it on some functions

    def __call__(self, *args: Any) -> Any:
        self.library.calls.append(self.name)
        code = self.library.errors.get(self.name, SUCCESS)
        if code != SUCCESS:
            return code
        method = getattr(self.library, "_" + self.name)
        if args and isinstance(args[0], pynvml.c_nvmlDevice_t):
            gpu = self.library.devices[_address(args[0]) // 0x1000 - 1]
            code = gpu.errors.get(self.name, SUCCESS)
            return code if code != SUCCESS else method(gpu, *args[1:])
        return method(*args)


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _unsupported() -> int:
    return int(pynvml.NVML_ERROR_NOT_SUPPORTED)


def _fill(buffer: Any, value: bytes | None) -> int:
    if value is None:
        return _unsupported()
    buffer.value = value
    return SUCCESS


def _number(out: Any, value: int | None) -> int:
    if value is None:
        return _unsupported()
    out._obj.value = value
    return SUCCESS


@contextmanager
def installed(library: FakeNvml | None) -> Iterator[FakeNvml | None]:
    """pynvml talks to `library` inside the block (None: no driver library is there), and forgets it afterwards."""
    before = pynvml.nvmlLib, dict(pynvml._nvmlGetFunctionPointer_cache)
    pynvml._nvmlGetFunctionPointer_cache.clear()
    pynvml.nvmlLib = library
    try:
        yield library
    finally:
        pynvml._nvmlGetFunctionPointer_cache.clear()
        pynvml.nvmlLib = before[0]
        pynvml._nvmlGetFunctionPointer_cache.update(before[1])
