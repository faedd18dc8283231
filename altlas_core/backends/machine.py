"""What was found on a machine: its devices, what was left out of it and why. Plain data, no look at any hardware."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from altlas_core.model import DeviceSpec


@dataclass(slots=True, frozen=True)
class Excluded:
    """A device that is there (or was) but takes no part, and why. `index` counts within its kind."""

    name: str
    index: int
    uuid: str | None
    reason: str


@dataclass(slots=True, frozen=True)
class GpuProcess:
    """A compute process on a GPU. `memory_bytes` is None where the driver does not tell."""

    pid: int
    memory_bytes: int | None


@dataclass(slots=True, frozen=True)
class GpuReading:
    """All that NVML said of one GPU at one moment. A reading that is missing or unsupported is None, never 0.

    `index` is NVML's (PCI bus order). Utilization is percent of the past sample period in which a kernel was running,
    power watts, temperature degrees Celsius, memory bytes; `memory_used_bytes` leaves out what the driver reserves
    for itself where the driver tells the two apart. Clocks are MHz; `throttle_reasons` says why they are held down
    (empty: they are not). The ECC counts are of memory errors since the driver was loaded. `recovery_needed` is what
    the driver asks for before the GPU can be relied on again. `processes` are the compute processes NVML shows to us.
    """

    index: int
    name: str | None = None
    uuid: str | None = None
    pci_id: str | None = None
    compute_capability: tuple[int, int] | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    utilization_pct: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    throttle_reasons: tuple[str, ...] | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    recovery_needed: str | None = None
    processes: tuple[GpuProcess, ...] | None = None
    mig_enabled: bool | None = None


@dataclass(slots=True, frozen=True)
class NvmlReport:
    """One look at all GPUs through NVML.

    `problem` is None, or one sentence saying what was looked for, what was found and what to do; there are no GPUs
    then. `excluded` are those that did not answer. Versions are None where they could not be read.
    """

    gpus: tuple[GpuReading, ...] = ()
    excluded: tuple[Excluded, ...] = ()
    problem: str | None = None
    driver_version: str | None = None
    cuda_version: str | None = None


def provenance_of(devices: Iterable[DeviceSpec]) -> str:
    """Where figures of these devices come from: "measured", "simulated", or "mixed" where there are both."""
    kinds = {"simulated" if spec.simulated else "measured" for spec in devices}
    return "mixed" if len(kinds) > 1 else kinds.pop()


@dataclass(slots=True, frozen=True)
class Machine:
    """The devices of a run, gpu_id 0, 1, 2, ... in order, and how they came to be chosen.

    `backend` is "cuda", "cpu", "simulated", or "mixed" where there are devices of several kinds. `statements` are full
    sentences on what was looked for and found. `readings` has one entry per device where NVML was asked (None for a
    device that is no GPU), else it is empty. `topology` (simulated machines only) is described in topology.py.
    """

    backend: str
    devices: tuple[DeviceSpec, ...]
    excluded: tuple[Excluded, ...] = ()
    statements: tuple[str, ...] = ()
    driver_version: str | None = None
    cuda_version: str | None = None
    topology: dict[str, Any] | None = None
    readings: tuple[GpuReading | None, ...] = ()

    @property
    def provenance(self) -> str:
        return provenance_of(self.devices)

    def to_json(self) -> dict[str, Any]:
        """The whole of it as JSON-able data, names as in the dataclasses (units in the names)."""
        readings: Iterable[GpuReading | None] = self.readings or (None,) * len(self.devices)
        pairs = zip(self.devices, readings, strict=True)
        return {
            "backend": self.backend,
            "devices": [{**_plain(spec), "reading": reading and _plain(reading)} for spec, reading in pairs],
            "excluded": [_plain(item) for item in self.excluded],
            "statements": list(self.statements),
            "driver_version": self.driver_version,
            "cuda_version": self.cuda_version,
            "topology": self.topology,
        }


def _plain(item: DeviceSpec | Excluded | GpuReading) -> dict[str, Any]:
    data = asdict(item)
    capability = data.get("compute_capability")
    if capability is not None:
        data["compute_capability"] = capability_text(capability)
    if data.get("processes") is not None:
        data["processes"] = list(data["processes"])
    return data


def capability_text(capability: tuple[int, int] | None) -> str:
    """(8, 0) -> "8.0"; None -> "N/A"."""
    return "N/A" if capability is None else f"{capability[0]}.{capability[1]}"
