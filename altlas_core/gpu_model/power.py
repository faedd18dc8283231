"""What running kernels cost in watts and degrees on a simulated GPU: one simple formula each, stated as assumptions.

Power: idle + (limit - idle) * busy share * (0.4 + 0.6 * intensity), with intensity the mean share of peak arithmetic of
the kernels running: a memory-bound kernel still draws a good part of the limit.
Temperature: approaches its steady value exponentially (one thermal mass), steady value linear in power from
IDLE_TEMPERATURE_C at idle power to FULL_LOAD_TEMPERATURE_C at the power limit, never above the point where cooling and
clocks hold it (the GPU's own slowdown point, and max_temperature of the settings).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from typing import Final

from altlas_core.gpu_model.catalog import GpuModel

IDLE_TEMPERATURE_C: Final = 30.0  # assumption: air-cooled server, inlet about 22 C
FULL_LOAD_TEMPERATURE_C: Final = 74.0  # assumption: 10 C or so under the 83 to 88 C the makers allow
TIME_CONSTANT_S: Final = 25.0  # assumption: die and heat sink, about 90 % of the way in a minute
BUSY_SHARE: Final = 0.4  # assumption: share of the dynamic power a kernel draws whatever its arithmetic
COOLING_MARGIN_C: Final = 5.0


def activity(intensity: float) -> float:
    """Share of the dynamic power (limit - idle) that a kernel of this arithmetic intensity (0 to 1) draws."""
    return BUSY_SHARE + (1.0 - BUSY_SHARE) * intensity


@dataclass(slots=True, frozen=True)
class ThermalModel:
    """Watts and degrees of one GPU. `hottest_c` is the most its own work can heat it to."""

    idle_w: float
    dynamic_w: float
    idle_c: float
    hottest_c: float

    def watts(self, active: float) -> float:
        """Mean power over a period; `active` is the period's mean of busy * (0.4 + 0.6 * intensity)."""
        return self.idle_w + self.dynamic_w * active

    def steady_c(self, active: float) -> float:
        """Where the temperature would settle at this activity, degrees C."""
        settled_c = self.idle_c + (FULL_LOAD_TEMPERATURE_C - self.idle_c) * active
        return settled_c if settled_c < self.hottest_c else self.hottest_c

    def after(self, seconds: float, start_c: float, active: float) -> float:
        """The temperature after `seconds` of this activity, degrees C."""
        steady = self.steady_c(active)
        return steady + (start_c - steady) * decay_over(seconds)


def decay_over(seconds: float) -> float:
    """What is left after `seconds` of a distance from the steady temperature, as a share of it."""
    return exp(-seconds / TIME_CONSTANT_S)


def thermal_model(gpu: GpuModel, max_temperature_c: float) -> ThermalModel:
    """A catalog GPU's thermal model under a machine whose cooling is set up for `max_temperature_c`."""
    idle_w, slowdown = gpu.idle_w_or_estimate, gpu.slowdown_c_or_estimate
    idle_c = min(IDLE_TEMPERATURE_C, max_temperature_c)
    hottest_c = max(idle_c, min(slowdown - COOLING_MARGIN_C, max_temperature_c))
    return ThermalModel(idle_w, gpu.power_limit_w - idle_w, idle_c, hottest_c)
