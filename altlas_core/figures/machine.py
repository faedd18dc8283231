"""The machine as a grid of its GPUs: how each stood at one time, or over a whole run."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, Final

from altlas_core.backends.topology import ranges_text
from altlas_core.figures.outcomes import lost_at
from altlas_core.figures.style import (
    BLUE,
    ORANGE,
    PERCENT_BAR,
    PINK,
    Figure,
    axis,
    device_word,
    figure,
    number,
    plural,
    run_name,
    shades,
    source,
)
from altlas_core.model import GIB, LOST, UNHEALTHY
from altlas_core.result import Result
from altlas_core.words import seconds_text

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

COLUMNS: Final = ("utilization_pct", "memory_used_bytes", "temperature_c", "power_w")
FEW, MANY = 16, 64  # GPUs: up to the first all readings are written on each, up to the second its utilization
ALARMS: Final = {LOST: ("x", PINK), UNHEALTHY: ("triangle-up-open", ORANGE)}


def machine(result: Result, at_s: float | None = None) -> Figure:
    """Utilization, memory, temperature, power and health of each GPU, at the last sample until `at_s` seconds.

    None: of the whole run, mean utilization and power, the most memory and the highest temperature, health at its end.
    """
    readings = _readings(result, at_s)
    states = _states(result, at_s)
    gpus = len(result.devices)
    columns = 4 if gpus <= FEW else 8 if gpus <= MANY else math.ceil(math.sqrt(1.6 * gpus))
    columns = min(columns, gpus)
    rows = math.ceil(gpus / columns)
    share = [None if state == LOST else number(value, 3) for value, state in zip(readings[0], states, strict=True)]
    told = [
        [gpu_id, *(number(value, 3) for value in (use, memory / GIB, warmth, watts)), size, state]
        for gpu_id, (use, memory, warmth, watts), size, state in zip(
            range(gpus),
            readings.T.tolist(),
            [number(spec.memory_total_bytes / GIB, 3) for spec in result.devices],
            states,
            strict=True,
        )
    ]
    heat = {
        "type": "heatmap",
        "z": _in_rows(share, columns, rows),
        "customdata": _in_rows(told, columns, rows),
        "xgap": 3 if gpus <= MANY else 1,
        "ygap": 3 if gpus <= MANY else 1,
        "zmin": 0,
        "zmax": 100,
        "colorscale": shades(BLUE, 0.07, 0.55),
        "colorbar": {**PERCENT_BAR, "y": 1},
        "hovertemplate": "GPU %{customdata[0]}: %{customdata[6]}<br>busy %{customdata[1]} %<br>"
        "memory %{customdata[2]} of %{customdata[5]} GiB<br>%{customdata[3]} °C, %{customdata[4]} W<extra></extra>",
    }
    how = (
        f"at {seconds_text(at_s)}" if at_s is not None else "mean utilization and power, highest memory and temperature"
    )
    return figure(
        [heat, *_words(told, columns), *_alarms(states, columns)],
        _finding(result, readings[0], states, at_s),
        f"Each {device_word(result.backend)} of the machine, {how}; {source(result.provenance)}",
        axis("", visible=False, range=[-0.5, columns - 0.5]),
        axis("", visible=False, range=[rows - 0.5, -0.5]),
        height=140 + rows * (84 if gpus <= FEW else 46 if gpus <= MANY else 18),
        key="machine",
        run=run_name(result),
    )


def _readings(result: Result, at_s: float | None) -> Floats:
    """COLUMNS by GPU; NaN where nothing was read."""
    import numpy as np

    sampled, gpus = result.sampled, len(result.devices)
    own = np.array([np.frombuffer(getattr(sampled, name), dtype=np.float64).reshape(-1, gpus) for name in COLUMNS])
    if not own.shape[1]:
        return np.full((len(COLUMNS), gpus), np.nan)
    if at_s is not None:
        times = np.frombuffer(sampled.queue_time_s, dtype=np.float64)
        found: Floats = own[:, max(0, int(np.searchsorted(times, at_s, "right")) - 1)]
        return found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a mean of gaps is a gap
        means, peaks = np.nanmean(own, axis=1), np.nanmax(own, axis=1)
    return np.array([means[0], peaks[1], peaks[2], means[3]])


def _states(result: Result, at_s: float | None) -> list[str]:
    """Health of each GPU: LOST, over a threshold, or how it stands otherwise."""
    if at_s is None:
        return [str(device.state) for device in result.pool]
    lost = lost_at(result, at_s)
    return [LOST if device.gpu_id in lost else "healthy" for device in result.pool]


def _in_rows(values: list[Any], columns: int, rows: int) -> list[list[Any]]:
    padded = values + [None] * (columns * rows - len(values))
    return [padded[at : at + columns] for at in range(0, len(padded), columns)]


def _words(told: list[list[Any]], columns: int) -> list[dict[str, Any]]:
    """What is written on each GPU, where there is room."""
    if len(told) > MANY:
        return []
    texts = []
    for gpu_id, use, memory, warmth, _, size, state in told:
        lines = [f"<b>GPU {gpu_id}</b>" if len(told) <= FEW else f"{gpu_id}"]
        if state == LOST:
            lines.append(LOST)
        else:
            lines.append("N/A" if use is None else f"{use:.0f} %")
            if len(told) <= FEW:
                lines += [] if memory is None else [f"{memory:.3g} of {size:.3g} GiB"]
                lines += [] if warmth is None else [f"{warmth:.0f} °C"]
        texts.append("<br>".join(lines))
    return [
        {
            "type": "scatter",
            "mode": "text",
            "x": [gpu_id % columns for gpu_id in range(len(told))],
            "y": [gpu_id // columns for gpu_id in range(len(told))],
            "text": texts,
            "textfont": {"size": 12 if len(told) <= FEW else 11},
            "hoverinfo": "skip",
            "showlegend": False,
        }
    ]


def _alarms(states: list[str], columns: int) -> list[dict[str, Any]]:
    """A mark on each GPU that is lost or unhealthy, beside the words."""
    traces = []
    for state, (symbol, colour) in ALARMS.items():
        own = [gpu_id for gpu_id, found in enumerate(states) if found == state]
        if own:
            small = len(states) > MANY
            shift = 0.0 if small else 0.36
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": state.lower(),
                    "showlegend": True,
                    "x": [number(gpu_id % columns + shift) for gpu_id in own],
                    "y": [number(gpu_id // columns - shift) for gpu_id in own],
                    "marker": {
                        "symbol": symbol,
                        "size": 8 if small else 12,
                        "color": colour,
                        "line": {"width": 3, "color": colour},
                    },
                    "hoverinfo": "skip",
                }
            )
    return traces


def _finding(result: Result, use: Floats, states: list[str], at_s: float | None) -> str:
    import numpy as np

    device = device_word(result.backend)
    known = use[np.isfinite(use)]
    alarms = []
    for state in ALARMS:
        own = [gpu_id for gpu_id, found in enumerate(states) if found == state]
        if own:
            ids = ranges_text(own).replace(",", ", ")
            alarms.append(f"{device}{'s' if len(own) > 1 else ''} {ids} {state.lower()}")
    if not len(known):
        told = f"No {device} told its utilization"
    elif at_s is not None:
        busy = f"{int((known > 0).sum()):,} of {plural(len(states), device)} at work at {seconds_text(at_s)}"
        told = f"{busy}, busy {known.mean():.3g} % on average"
    else:
        told = f"{plural(len(states), device)} busy {known.mean():.3g} % of {seconds_text(result.virtual_s)}"
        if len(known) > 1:
            told += f", from {known.min():.3g} % to {known.max():.3g} %"
    return "; ".join([told, *alarms])
