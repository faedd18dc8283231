"""What a kernel costs on a simulated GPU: the seam behind which the model can become more faithful.

Time is the roofline's: a kernel is bound by arithmetic or by memory, whichever takes longer
(Williams, Waterman, Patterson, "Roofline", CACM 2009). Peak rates are the data sheet's dense figures of the number
format. What goes over the link to the host takes the link's time, one way after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from altlas_core.gpu_model.catalog import GpuModel
from altlas_core.gpu_model.power import activity
from altlas_core.kinds import KINDS
from altlas_core.model import TaskSpec


@dataclass(slots=True, frozen=True)
class KernelCost:
    """One kernel alone on one GPU. `intensity` (0 to 1) is its share of the GPU's peak arithmetic rate, `activity`
    (0 to 1) the share of the GPU's dynamic power it draws."""

    seconds: float
    flops: float
    bytes_moved: float
    intensity: float
    activity: float


# PCI Express Base Specification: per lane, by generation.
_TRANSFERS_PER_S: Final = {"3.0": 8e9, "4.0": 16e9, "5.0": 32e9}

NO_KERNEL = KernelCost(0.0, 0.0, 0.0, 0.0, 0.0)


def link_bytes_per_s(pcie: str) -> float:
    """One way over a PCI Express link such as "4.0 x16": transfers/s x lanes / 8, less the 128b/130b coding."""
    generation, _, lanes = pcie.partition(" x")
    return _TRANSFERS_PER_S[generation] * int(lanes) / 8 * 128 / 130


def kernel_cost(spec: TaskSpec, gpu: GpuModel) -> KernelCost:
    """seconds = max(FLOPs / peak rate of the format, bytes moved / memory bandwidth); NO_KERNEL for kinds without one.

    Bytes that cross the link take bytes / link rate instead. The board must have the format (see check_work).
    """
    kind = KINDS[spec.kind]
    if not kind.kernel:
        return NO_KERNEL
    flops, moved = kind.flops(spec), kind.bytes_moved(spec)
    link = kind.link_bytes(spec)
    peak = gpu.peak_flops[spec.dtype]
    seconds = max(flops / peak, (moved - link) / gpu.memory_bandwidth_bytes_per_s)
    if link:
        seconds += link / link_bytes_per_s(gpu.pcie)
    intensity = flops / (seconds * peak)
    return KernelCost(seconds, flops, moved, intensity, activity(intensity))
