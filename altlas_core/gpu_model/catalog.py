"""The GPUs that can be simulated: their figures, where each comes from, and finding one by what a user types."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from altlas_core.errors import DeviceError, nearest
from altlas_core.gpu_model.catalog_data import BOARDS, SOURCES

if TYPE_CHECKING:
    from collections.abc import Mapping

MIB: Final = 2**20
RATES: Final = ("fp32", "tf32", "fp16", "bf16")


@dataclass(frozen=True, slots=True)
class GpuModel:
    """One board. None = no good source. Bytes, bytes/s and FLOP/s in units of one; W, MHz, degrees C.

    aliases: names NVML reports, and shorter ones. memory_total_bytes: as NVML reports it. peak_flops: dense rate by
    number format, only those the board has. idle_w: the middle of the range quoted. nvlink_bytes_per_s: both directions
    together. sources: field (for a rate its format) -> key in SOURCES.
    """

    name: str
    family: str
    aliases: tuple[str, ...]
    memory_total_bytes: int
    memory_bandwidth_bytes_per_s: float
    peak_flops: Mapping[str, float]
    compute_capability: tuple[int, int]
    power_limit_w: float
    sm_count: int
    boost_mhz: float
    pcie: str
    sources: Mapping[str, str]
    idle_w: float | None = None
    memory_reserved_bytes: int | None = None
    nvlink_bytes_per_s: float | None = None
    l2_bytes: int | None = None
    base_mhz: float | None = None
    tensor_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_limit_min_w: float | None = None
    slowdown_c: float | None = None
    shutdown_c: float | None = None
    max_operating_c: float | None = None
    memory_max_c: float | None = None

    @property
    def idle_w_or_estimate(self) -> float:
        """Idle power. Where it has no source: the median share of the power limit of the boards that have one."""
        return self.idle_w if self.idle_w is not None else self.power_limit_w * _median_idle_share()

    @property
    def slowdown_c_or_estimate(self) -> float:
        """Temperature at which it throttles. Where it has no source: the median of the boards that have one."""
        return self.slowdown_c if self.slowdown_c is not None else _median_slowdown_c()

    @property
    def estimates(self) -> Mapping[str, str]:
        """Figures a model has to use although they have no source: field -> how each was made."""
        found = {}
        if self.idle_w is None:
            found["idle_w"] = f"estimate: {_median_idle_share():.3f} of the power limit, the median of the other boards"
        if self.slowdown_c is None:
            found["slowdown_c"] = f"estimate: {_median_slowdown_c():g} degrees C, the median of the other boards"
        return found

    def source(self, field: str) -> str:
        """Where a figure comes from, in words: a source, an estimate, or "no source"."""
        key = self.sources.get(field)
        return SOURCES[key] if key else self.estimates.get(field, "no source")


# field of GpuModel -> (key in the data, factor to units of one)
_SCALED: Final = {
    "memory_total_bytes": ("memory_mib", MIB),
    "memory_reserved_bytes": ("memory_reserved_mib", MIB),
    "memory_bandwidth_bytes_per_s": ("memory_gbs", 1e9),
    "nvlink_bytes_per_s": ("nvlink_gbs", 1e9),
    "l2_bytes": ("l2_mb", MIB),
    "power_limit_w": ("tdp_w", 1.0),
} | {
    name: (name, 1.0)
    for name in (
        "base_mhz",
        "boost_mhz",
        "tensor_clock_mhz",
        "memory_clock_mhz",
        "power_limit_min_w",
        "slowdown_c",
        "shutdown_c",
        "max_operating_c",
        "memory_max_c",
    )
}


def _gpu_model(name: str, facts: Mapping[str, Any]) -> GpuModel:
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for field, (key, factor) in _SCALED.items():
        if key in facts:
            value, sources[field] = facts[key]
            values[field] = int(value * factor) if field.endswith("_bytes") else value * factor
    for field in ("sm_count", "pcie", "compute_capability"):
        values[field], sources[field] = facts[field]
    if "idle_w" in facts:
        (low, high), sources["idle_w"] = facts["idle_w"]
        values["idle_w"] = (low + high) / 2
    rates = {rate: facts[f"{rate}_tflops"] for rate in RATES if f"{rate}_tflops" in facts}
    sources.update({rate: source for rate, (_, source) in rates.items()})
    return GpuModel(
        name=name,
        family=facts["family"],
        aliases=facts["aliases"],
        peak_flops=MappingProxyType({rate: value * 1e12 for rate, (value, _) in rates.items()}),
        sources=MappingProxyType(sources),
        **values,
    )


CATALOG: Final[Mapping[str, GpuModel]] = MappingProxyType(
    {name: _gpu_model(name, facts) for name, facts in BOARDS.items()}
)


@cache
def _median_idle_share() -> float:
    from statistics import median  # costs import time, and is needed for a few boards only

    return median(gpu.idle_w / gpu.power_limit_w for gpu in CATALOG.values() if gpu.idle_w is not None)


@cache
def _median_slowdown_c() -> float:
    from statistics import median

    return median(gpu.slowdown_c for gpu in CATALOG.values() if gpu.slowdown_c is not None)


def find_model(name: str) -> GpuModel:
    """The board of that name, NVML name or family prefix (its largest), whatever the case. Raises DeviceError."""
    wanted = _folded(name)
    exact = _by_folded_name().get(wanted)
    if exact:
        return exact
    fits = [gpu for gpu in CATALOG.values() if wanted and gpu.name.casefold().startswith(wanted)]
    families = sorted({gpu.family for gpu in fits})
    if len(families) > 1:
        names = ", ".join(gpu.name for gpu in fits)
        raise DeviceError(f"GPU name '{name}' fits several families: {', '.join(families)}. Give one of: {names}.")
    if fits:
        return max(fits, key=lambda gpu: gpu.memory_total_bytes)
    known = [*CATALOG, *(alias for gpu in CATALOG.values() for alias in gpu.aliases)]
    hint = nearest(name.strip(), known)
    raise DeviceError(f"unknown GPU name '{name[:80]}'; allowed: {', '.join(CATALOG)}.{hint}")


def model_of_nvml_name(name: str) -> GpuModel | None:
    """The board that NVML calls so, or None. Unlike find_model it never guesses: an L40 is no L40S."""
    return _by_folded_name().get(_folded(name))


def _folded(name: str) -> str:
    """Case, and blanks or underscores in place of hyphens, do not matter."""
    return re.sub(r"[\s_-]+", "-", name.strip()).casefold()


@cache
def _by_folded_name() -> dict[str, GpuModel]:
    return {_folded(alias): gpu for gpu in CATALOG.values() for alias in (gpu.name, *gpu.aliases)}
