"""Readings over time: a line per GPU, or middle and spread of many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from altlas_core.backends.topology import ranges_text
from altlas_core.figures.style import (
    ALL_AT_ONCE,
    BLUE,
    DASHES,
    GREY,
    MANY_GPUS,
    MOST_POINTS,
    PALETTE,
    Figure,
    axis,
    device_word,
    figure,
    number,
    numbers,
    plural,
    run_axis,
    run_name,
    source,
    spans,
)
from altlas_core.model import GIB
from altlas_core.result import Result
from altlas_core.words import memory_text, memory_unit

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

# column of the telemetry -> (what it is, unit, factor to it)
READINGS: Final = {
    "utilization_pct": ("utilization", "%", 1.0),
    "memory_used_bytes": ("memory in use", "GiB", 1.0 / GIB),
    "temperature_c": ("temperature", "°C", 1.0),
    "power_w": ("power", "W", 1.0),
}


# How a reading holds between two samples: a mean over the period that ended, a state until the next, or a slow change.
SHAPES: Final = {"utilization_pct": "vh", "power_w": "vh", "memory_used_bytes": "hv", "temperature_c": "linear"}


def readings(result: Result, column: str, phases: Sequence[tuple[float, str]] = ()) -> Figure:
    """One of READINGS over time, per GPU. A GPU that does not answer leaves a gap, never a zero.

    GPUs with the same readings share a line. `phases`: (start in seconds, name) of parts of the run.
    """
    import numpy as np

    what, unit, factor = READINGS[column]
    sampled = result.sampled
    gpus = len(result.devices)
    values = np.frombuffer(getattr(sampled, column), dtype=np.float64).reshape(-1, gpus).T
    if column == "memory_used_bytes":
        unit, of_unit = memory_unit(float(np.nan_to_num(values).max(initial=0.0)))
        factor = 1.0 / of_unit
    values = values * factor
    times = np.frombuffer(sampled.queue_time_s, dtype=np.float64)
    finding = _finding(what, unit, values, device_word(result.backend))
    samples = len(times)
    times, values = thinned(times, values)
    how = f"; each point the mean of {-(-samples // MOST_POINTS)} samples" if len(times) < samples else ""
    if gpus > MANY_GPUS:
        traces = spread_bands(times, values, BLUE, unit)
        finding += f" (middle and spread over {gpus:,} GPUs)"
    else:
        traces = [_line(gpu_ids, times, values, unit, SHAPES[column]) for gpu_ids in _alike(values)]
    top: dict[str, Any] = {"range": [-2, 104]} if column == "utilization_pct" else {"rangemode": "tozero"}
    limit = _limit(result, column, factor)
    drawn = values[np.isfinite(values)]
    shapes, notes = spans(phases)
    if limit is not None and len(drawn) and float(drawn.max()) > 0.5 * limit[0]:
        shape, note = limit_line(*limit)
        shapes.append(shape)
        notes.append(note)
        top = {"range": [0, number(1.14 * max(limit[0], float(drawn.max())))]}
    return figure(
        traces,
        finding,
        f"{what.capitalize()} per GPU{how}; {source(result.provenance)}",
        run_axis(result.virtual_s),
        axis(f"{what} ({unit})", zeroline=False, **top),
        height=340,
        key=f"readings.{column}",
        time_axis=True,
        run=run_name(result),
        hovermode=ALL_AT_ONCE,
        shapes=shapes,
        annotations=notes,
    )


def _finding(what: str, unit: str, values: Floats, device: str) -> str:
    import numpy as np

    known = values[np.isfinite(values)]
    if not len(known):
        return f"No reading of {what} on this machine"
    if what == "utilization":
        worked = np.nan_to_num(values).max(axis=1) > 0
        if not worked.any():
            return f"No {device} was busy at any sample"
        mean = np.nanmean(values[worked])
        return (
            f"{plural(int(worked.sum()), device)} of {len(values):,} had work; these were busy {mean:.3g} % of the time"
        )
    low, high = _number(known.min()), _number(known.max())
    return (
        f"{what.capitalize()} per {device} "
        + (f"stayed at {high}" if low == high else f"went from {low} to {high}")
        + f" {unit}"
    )


def _number(value: float) -> str:
    """Three digits, but whole numbers whole."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _limit(result: Result, column: str, factor: float) -> tuple[float, str] | None:
    """The line that a reading of equal GPUs is not to pass, times `factor`, and its name, where there is one."""
    if column == "temperature_c":
        most = result.settings.gpu.detection.max_temperature
        return most, f"max_temperature {most:g} °C"
    offered = {device.capacity_bytes for device in result.pool}
    if column == "memory_used_bytes" and len(offered) == 1:
        size = offered.pop()
        return size * factor, f"offered to tasks: {memory_text(size)}"
    limits = {spec.power_limit_w for spec in result.devices}
    if column == "power_w" and len(limits) == 1 and None not in limits:
        watts = float(limits.pop() or 0.0)
        return watts, f"power limit {watts:g} W"
    return None


def limit_line(value: float, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A dashed line over the whole width, and the words on it."""
    line = {"color": GREY, "width": 1.5, "dash": "dash"}
    y = number(value)
    shape = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": line}
    note = {
        "xref": "paper",
        "x": 1,
        "xanchor": "right",
        "y": y,
        "yanchor": "bottom",
        "text": text,
        "showarrow": False,
        "font": {"size": 11},
    }
    return shape, note


def _alike(values: Floats) -> list[list[int]]:
    """The GPUs in groups with the same readings."""
    groups: dict[bytes, list[int]] = {}
    for gpu_id, own in enumerate(values):
        groups.setdefault(own.tobytes(), []).append(gpu_id)
    return list(groups.values())


def _line(gpu_ids: Sequence[int], times: Floats, values: Floats, unit: str, shape: str) -> dict[str, Any]:
    first = gpu_ids[0]
    name = ("GPU " if len(gpu_ids) == 1 else "GPUs ") + ranges_text(gpu_ids)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "showlegend": True,
        "x": numbers(times),
        "y": numbers(values[first], 4),
        "line": {
            "color": PALETTE[first % len(PALETTE)],
            "width": 2,
            "shape": shape,
            "dash": DASHES[first // len(PALETTE) % len(DASHES)],
        },
        "connectgaps": False,
        "hovertemplate": f"%{{y:.4~g}} {unit}<extra>{name}</extra>",
    }


def thinned(times: Floats, values: Floats) -> tuple[Floats, Floats]:
    """At most MOST_POINTS samples: means of neighbours, each at the time of its last."""
    import warnings

    import numpy as np

    step = -(-len(times) // MOST_POINTS)
    if step <= 1:
        return times, values
    whole = len(times) // step * step
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a mean of gaps is a gap
        means = np.nanmean(values[:, :whole].reshape(len(values), -1, step), axis=2)
    return times[step - 1 : whole : step], means


def spread_bands(times: Floats, values: Any, colour: str, unit: str) -> list[dict[str, Any]]:
    """Over many GPUs: all of them, the middle 80 %, and the median."""
    import warnings

    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        low, ten, middle, ninety, high = (np.nanpercentile(values, p, axis=0) for p in (0, 10, 50, 90, 100))
    x = numbers(times)
    bands: list[dict[str, Any]] = []
    for name, below, above, alpha in (("all GPUs", low, high, "26"), ("middle 80 %", ten, ninety, "4d")):
        bands.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "fill": "toself",
                "fillcolor": colour + alpha,
                "x": x + x[::-1],
                "y": numbers(above, 4) + numbers(below, 4)[::-1],
                "line": {"width": 0},
                "hoverinfo": "skip",
            }
        )
    bands.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "median",
            "x": x,
            "y": numbers(middle, 4),
            "line": {"color": colour, "width": 2.5},
            "customdata": [list(own) for own in zip(*(numbers(v, 3) for v in (ten, ninety, low, high)), strict=True)],
            "hovertemplate": f"%{{y:.4~g}} {unit}<br>middle 80 %: %{{customdata[0]}} to %{{customdata[1]}}<br>"
            "all: %{customdata[2]} to %{customdata[3]}<extra>median</extra>",
        }
    )
    return bands
