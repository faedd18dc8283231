"""Readings over time: a line per GPU, or middle and spread of many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from altlas_core.backends.topology import ranges_text
from altlas_core.figures.style import (
    BLUE,
    DASHES,
    GREY,
    MANY_GPUS,
    MOST_POINTS,
    ORANGE,
    PALETTE,
    Figure,
    axis,
    device_word,
    figure,
    number,
    numbers,
    plural,
    source,
    spans,
)
from altlas_core.model import GIB
from altlas_core.result import Result

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
    values = np.frombuffer(getattr(sampled, column), dtype=np.float64).reshape(-1, gpus).T * factor
    times = np.frombuffer(sampled.queue_time_s, dtype=np.float64)
    finding = _finding(what, unit, values, device_word(result.backend))
    times, values = thinned(times, values)
    if gpus > MANY_GPUS:
        traces = spread_bands(times, values, BLUE, unit)
        finding += f" (middle and spread over {gpus:,} GPUs)"
    else:
        traces = [_line(gpu_ids, times, values, unit, SHAPES[column]) for gpu_ids in _alike(values)]
    top: dict[str, Any] = {"range": [-2, 104]} if column == "utilization_pct" else {"rangemode": "tozero"}
    limit = _limit(result, column)
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
        f"{what.capitalize()} per GPU; {source(result.provenance)}",
        axis("time (s)", range=[0, number((result.virtual_s or 1) * 1.01)], zeroline=False),
        axis(f"{what} ({unit})", zeroline=False, **top),
        height=340,
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
    return f"{what.capitalize()} per {device} went from {_number(known.min())} to {_number(known.max())} {unit}"


def _number(value: float) -> str:
    """Three digits, but whole numbers whole."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _limit(result: Result, column: str) -> tuple[float, str] | None:
    """The line that a reading of equal GPUs is not to pass, where there is one."""
    if column == "temperature_c":
        most = result.settings.gpu.detection.max_temperature
        return most, f"max_temperature {most:g} °C"
    offered = {device.capacity_bytes for device in result.pool}
    if column == "memory_used_bytes" and len(offered) == 1:
        size = offered.pop() / GIB
        return size, f"offered to tasks: {size:.3g} GiB"
    limits = {spec.power_limit_w for spec in result.devices}
    if column == "power_w" and len(limits) == 1 and None not in limits:
        watts = float(limits.pop() or 0.0)
        return watts, f"power limit {watts:g} W"
    return None


def limit_line(value: float, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A dashed line over the whole width, and the words on it."""
    line = {"color": ORANGE, "width": 1.5, "dash": "dash"}
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
        "font": {"size": 11, "color": ORANGE},
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
        "hovertemplate": f"{name}<br>%{{y:.4g}} {unit} at %{{x:.4g}} s<extra></extra>",
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
    bands = []
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
            "hovertemplate": f"median %{{y:.4g}} {unit} at %{{x:.4g}} s<extra></extra>",
        }
    )
    return bands


def queue_depth(result: Result, phases: Sequence[tuple[float, str]] = ()) -> Figure:
    """How many tasks wait, over time: steps between the instants at which that changed. `phases` as for readings."""
    times, depths = _waiting(result)
    most = max(depths, default=0)
    finding = (
        f"At most {plural(most, 'task')} waited; the queue was empty again after {times[-1]:.4g} s"
        if most
        else "Nothing ever had to wait"
    )
    step = max(1, -(-len(times) // (4 * MOST_POINTS)))
    trace = {
        "type": "scatter",
        "mode": "lines",
        "name": "waiting tasks",
        "x": numbers(times[::step] + ([times[-1]] if step > 1 else [])),
        "y": depths[::step] + ([depths[-1]] if step > 1 else []),
        "line": {"color": BLUE, "width": 2, "shape": "hv"},
        "fill": "tozeroy",
        "fillcolor": BLUE + "33",
        "hovertemplate": "%{y} waiting at %{x:.4g} s<extra></extra>",
    }
    shapes, notes = spans(phases)
    return figure(
        [trace],
        finding,
        f"Queue depth; {source(result.provenance)}",
        axis("time (s)", range=[0, number((result.virtual_s or 1) * 1.01)], zeroline=False),
        axis("waiting tasks", rangemode="tozero"),
        height=300,
        shapes=shapes,
        annotations=notes,
    )


def _waiting(result: Result) -> tuple[list[float], list[int]]:
    """Times and depths: a task waits from its submission, or the end of an attempt that is to be repeated."""
    changes: dict[float, int] = {}
    attempts = result.log.attempts()
    for task in result.task_list:
        changes[task.submitted_s] = changes.get(task.submitted_s, 0) + 1
        if task.attempts == 0 and task.finished_s is not None:
            changes[task.finished_s] = changes.get(task.finished_s, 0) - 1
    for attempt in attempts:
        changes[attempt.started_s] = changes.get(attempt.started_s, 0) - 1
        if attempt.number < attempt.task.attempts and attempt.ended_s is not None:
            changes[attempt.ended_s] = changes.get(attempt.ended_s, 0) + 1
    times, depths, depth = [0.0], [0], 0
    for time_s in sorted(changes):
        depth += changes[time_s]
        if time_s == times[-1]:
            depths[-1] = depth
        elif depth != depths[-1]:
            times.append(time_s)
            depths.append(depth)
    return times, depths


_SIZES_FROM: Final = {
    "simulated": "from the GPU catalog",
    "measured": "as the device reports it",
    "mixed": "of simulated GPUs from the GPU catalog, else as the device reports it",
}


def memory_bars(result: Result) -> Figure:
    """What each GPU has, and what of it tasks may reserve. Many GPUs: one bar per kind."""
    names: dict[tuple[str, int, int], int] = {}
    labels, offered, rest = [], [], []
    many = len(result.devices) > MANY_GPUS
    for spec, device in zip(result.devices, result.pool, strict=True):
        key = (spec.model or spec.kind, spec.memory_total_bytes, device.capacity_bytes)
        names[key] = names.get(key, 0) + 1
        if not many:
            labels.append(f"GPU {spec.gpu_id}")
            offered.append(device.capacity_bytes / GIB)
            rest.append((spec.memory_total_bytes - device.capacity_bytes) / GIB)
    if many:
        for (name, total, capacity), count in names.items():
            labels.append(f"{count:,} x {name}")
            offered.append(capacity / GIB)
            rest.append((total - capacity) / GIB)
    total_gib = sum(device.capacity_bytes for device in result.pool) / GIB
    kinds = ", ".join(f"{count:,} x {name}" for (name, _, _), count in names.items())
    return figure(
        [
            _stack("offered to tasks", labels, offered, BLUE),
            _stack("kept free (memory_threshold, memory_limit_bytes)", labels, rest, GREY + "66"),
        ],
        f"{kinds}: {total_gib:,.0f} GiB for tasks in all",
        f"Memory of each {'kind of GPU' if many else 'GPU'}; " + _SIZES_FROM[result.provenance],
        axis("", showgrid=False),
        axis("memory (GiB)"),
        height=320,
        barmode="stack",
    )


def _stack(name: str, labels: list[str], values: list[float], colour: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": name,
        "x": labels,
        "y": numbers(values, 4),
        "marker": {"color": colour, "line": {"width": 0}},
        "hovertemplate": f"%{{x}}<br>%{{y:.4g}} GiB {name}<extra></extra>",
    }
