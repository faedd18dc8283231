"""From device requests to devices: simulated, CPU and CUDA. Each builder says what it left out and why."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from altlas_core.backends.cuda_visible import select_visible
from altlas_core.backends.host import Host
from altlas_core.backends.machine import Excluded, GpuReading, NvmlReport, capability_text
from altlas_core.device_names import DeviceRequest, part_name
from altlas_core.errors import DeviceError
from altlas_core.gpu_model.catalog import GpuModel
from altlas_core.model import GIB, DeviceSpec

# Names of simulated GPUs are made from their model and place in this namespace, so they are the same on every machine.
_SIMULATED = uuid.uuid5(uuid.NAMESPACE_URL, "altlas:simulated-gpu")
_PCI_BUSES = 255  # bus 0 is left to the host
# Each has a worker of its own: torch takes some 200 MiB, on a GPU its context, workspaces and kernels some 500 MiB.
LEAST_PART_BYTES: Final = {"cuda": GIB, "cpu": GIB // 4}


def capability_tuple(value: float) -> tuple[int, int]:
    """A setting such as 7.5 or 10.0 as (major, minor), so that 10.0 is more than 9.0 and 7.5 more than 7.0."""
    major, minor = divmod(round(value * 10), 10)
    return major, minor


def too_old(capability: tuple[int, int] | None, minimum: float) -> str | None:
    """The reason to leave a GPU out, or None. One that cannot be read is no reason."""
    least = capability_tuple(minimum)
    if capability is None or capability >= least:
        return None
    return (
        f"compute capability {capability_text(capability)} is under gpu.detection.min_compute_capability "
        f"{capability_text(least)}"
    )


def simulated_devices(models: Sequence[GpuModel], minimum: float) -> tuple[list[DeviceSpec], list[Excluded]]:
    """One device per model, in order; `index` and identity follow the place in `models`, gpu_id what remains."""
    kept: list[DeviceSpec] = []
    excluded: list[Excluded] = []
    for index, model in enumerate(models):
        reason = too_old(model.compute_capability, minimum)
        if reason is None:
            kept.append(_simulated(len(kept), index, model))
        else:
            excluded.append(Excluded(model.name, index, _simulated_uuid(model.name, index), reason))
    return kept, excluded


def _simulated(gpu_id: int, index: int, model: GpuModel) -> DeviceSpec:
    return DeviceSpec(
        gpu_id=gpu_id,
        kind="simulated",
        name=model.name,
        memory_total_bytes=model.memory_total_bytes,
        model=model.name,
        index=index,
        uuid=_simulated_uuid(model.name, index),
        pci_id=f"{index // _PCI_BUSES:08X}:{index % _PCI_BUSES + 1:02X}:00.0",
        compute_capability=model.compute_capability,
        power_limit_w=model.power_limit_w,
    )


def _simulated_uuid(name: str, index: int) -> str:
    return f"GPU-sim-{uuid.uuid5(_SIMULATED, f'{name}/{index}')}"


def cpu_devices(requests: Sequence[DeviceRequest], host: Host) -> list[DeviceSpec]:
    """The CPU devices that are asked for; they share the host's cores and memory evenly. gpu_id counts from 0.

    While there are enough, each has cores of its own; else each has one, by turns. `index` counts devices, whole ones;
    the parts of one have all of its cores. Raises DeviceError for a device or part that would be too small.
    """
    wanted = [request for request in requests for _ in range(request.count or 1)]
    count, specs = len(wanted), list[DeviceSpec]()
    least = LEAST_PART_BYTES["cpu"]
    if host.memory_bytes // count < least:
        raise DeviceError(
            f"gpu.devices: {count} CPU devices would have {host.memory_bytes / count / GIB:.2g} GiB each of this "
            f"computer's {host.memory_bytes / GIB:.1f} GiB, and need {least / GIB:g} GiB at least; allowed here: at "
            f"most {max(1, host.memory_bytes // least)}."
        )
    cores = max(1, host.cores // count)
    for index, request in enumerate(wanted):
        ours = None
        if host.cpu_ids is not None:
            ours = tuple(sorted(host.cpu_ids[(index * cores + core) % len(host.cpu_ids)] for core in range(cores)))
        whole = DeviceSpec(
            gpu_id=0,
            kind="cpu",
            name=host.cpu_name,
            memory_total_bytes=host.memory_bytes // count,
            index=index,
            uuid=f"CPU-{index}",
            cores=cores,
            cpu_ids=ours,
        )
        specs += _split(whole, request)
    return [replace(spec, gpu_id=gpu_id) for gpu_id, spec in enumerate(specs)]


def _split(spec: DeviceSpec, request: DeviceRequest) -> list[DeviceSpec]:
    """A real device as the parts asked for, each with its share of the memory and all the rest. Raises DeviceError."""
    parts = request.split
    if parts == 1:
        return [spec]
    share, least = spec.memory_total_bytes // parts, LEAST_PART_BYTES[spec.kind]
    if share < least:
        most = spec.memory_total_bytes // least
        allowed = f"at most {replace(request, split=most)}" if most > 1 else f"{replace(request, split=1)}, unsplit"
        raise DeviceError(
            f"gpu.devices: {request}: a part of {spec.name} would have {share / GIB:.3g} of its "
            f"{spec.memory_total_bytes / GIB:.1f} GiB, and needs {least / GIB:g} GiB at least; allowed here: {allowed}."
        )
    return [
        replace(spec, name=part_name(spec.name, part, parts), memory_total_bytes=share, part=part, parts=parts)
        for part in range(parts)
    ]


@dataclass(slots=True)
class CudaGpus:
    """The machine's real GPUs sorted into usable (by CUDA index) and not. `remarks` are sentences."""

    usable: dict[int, tuple[DeviceSpec, GpuReading]] = field(default_factory=dict)
    excluded: list[Excluded] = field(default_factory=list)
    refused: dict[int, Excluded] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def cuda_gpus(report: NvmlReport, minimum: float, environ: Mapping[str, str]) -> CudaGpus:
    """What NVML reported, as CUDA numbers it: CUDA_VISIBLE_DEVICES decides which and in what order.

    In `excluded` the index is that of `nvidia-smi`; `refused` has those that are visible to CUDA, by CUDA index.
    """
    seen: dict[int, GpuReading | Excluded] = {item.index: item for item in report.gpus}
    seen.update({item.index: item for item in report.excluded})
    order = sorted(seen)
    visible_value = environ.get("CUDA_VISIBLE_DEVICES")
    positions, remark = select_visible([seen[index].uuid for index in order], visible_value)
    found = CudaGpus(remarks=[remark] if remark and seen else [])
    for cuda_index, position in enumerate(positions):
        _sort_in(found, cuda_index, seen[order[position]], report.driver_version, minimum)
    visible = {order[position] for position in positions}
    hidden = f"hidden by CUDA_VISIBLE_DEVICES={visible_value!r}"
    for item in (seen[index] for index in order if index not in visible):
        found.excluded.append(item if isinstance(item, Excluded) else _excluded(item, hidden))
    found.excluded.sort(key=lambda item: item.index)
    found.remarks += _order_remark(report, visible_value, environ)
    return found


def _sort_in(found: CudaGpus, cuda_index: int, item: GpuReading | Excluded, driver: str | None, minimum: float) -> None:
    left_out = item if isinstance(item, Excluded) else None
    if isinstance(item, GpuReading):
        reason = _unusable(item, minimum)
        if reason is None and item.memory_total_bytes is not None:
            found.usable[cuda_index] = (_cuda(cuda_index, item, item.memory_total_bytes, driver), item)
            return
        left_out = _excluded(item, reason or "")
    assert left_out is not None
    found.refused[cuda_index] = left_out
    found.excluded.append(left_out)


def _unusable(gpu: GpuReading, minimum: float) -> str | None:
    if gpu.mig_enabled:
        return "MIG mode is on and MIG instances are not handled yet: turn it off (nvidia-smi -mig 0) to use this GPU"
    if gpu.memory_total_bytes is None:
        return "its memory size cannot be read, so nothing could be placed on it"
    return too_old(gpu.compute_capability, minimum)


def _cuda(index: int, gpu: GpuReading, memory_total_bytes: int, driver: str | None) -> DeviceSpec:
    return DeviceSpec(
        gpu_id=index,
        kind="cuda",
        name=gpu.name or "NVIDIA GPU",
        memory_total_bytes=memory_total_bytes,
        index=index,
        uuid=gpu.uuid,
        pci_id=gpu.pci_id,
        compute_capability=gpu.compute_capability,
        power_limit_w=gpu.power_limit_w,
        driver_version=driver,
    )


def _excluded(gpu: GpuReading, reason: str) -> Excluded:
    return Excluded(gpu.name or "NVIDIA GPU", gpu.index, gpu.uuid, reason)


def _order_remark(report: NvmlReport, visible: str | None, environ: Mapping[str, str]) -> list[str]:
    """GPU numbers mean the same in CUDA only where CUDA is told to count by PCI bus, or all GPUs are alike."""
    by_number = visible is None or not visible.strip().startswith(("GPU-", "MIG-"))
    mixed = len({gpu.name for gpu in report.gpus}) > 1
    if not (mixed and by_number) or environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return []
    return ["GPU numbers here follow the PCI bus, as in nvidia-smi (CUDA_DEVICE_ORDER=PCI_BUS_ID, set for workers)."]


def choose_cuda(found: CudaGpus, request: DeviceRequest) -> list[DeviceSpec]:
    """The GPU of the request's CUDA index (None = all usable, by index), in its parts; gpu_id is still to be given.

    Raises DeviceError for one that is not there or not usable, and for a part that would be too small.
    """
    index = request.index
    if index is not None and index not in found.usable:
        why = f"is left out: {found.refused[index].reason}" if index in found.refused else "is not there"
        raise DeviceError(f"gpu.devices: cuda:{index} {why}. {usable_text(found)}")
    wanted = sorted(found.usable) if index is None else [index]
    return [part for at in wanted for part in _split(found.usable[at][0], request)]


def usable_text(found: CudaGpus) -> str:
    """Such as: Usable here: cuda:0 (NVIDIA T4)."""
    listed = ", ".join(f"cuda:{index} ({found.usable[index][0].name})" for index in sorted(found.usable))
    return f"Usable here: {listed}." if listed else "No GPU is usable here."
