"""What a kernel costs on a simulated GPU: the seam behind which the model can become more faithful.

Time is the roofline's: a kernel is bound by arithmetic or by memory, whichever takes longer
(Williams, Waterman, Patterson, "Roofline", CACM 2009). Peak rates are the data sheet's dense FP32 figures.
"""

from __future__ import annotations

from dataclasses import dataclass

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


NO_KERNEL = KernelCost(0.0, 0.0, 0.0, 0.0, 0.0)


def kernel_cost(spec: TaskSpec, gpu: GpuModel) -> KernelCost:
    """seconds = max(FLOPs / peak FP32 rate, bytes moved / memory bandwidth); NO_KERNEL for kinds that run none."""
    kind = KINDS[spec.kind]
    if not kind.kernel:
        return NO_KERNEL
    flops, moved = kind.flops(spec), kind.bytes_moved(spec)
    peak = gpu.peak_flops["fp32"]
    seconds = max(flops / peak, moved / gpu.memory_bandwidth_bytes_per_s)
    intensity = flops / (seconds * peak)
    return KernelCost(seconds, flops, moved, intensity, activity(intensity))
