"""How every figure looks and what its colours mean. Figures are plain dicts for plotly.js: plotly is not imported."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from altlas_core.result import Result

Figure = dict[str, Any]

# Told apart with any kind of colour vision (tests/test_figures_palette.py simulates the three kinds of dichromacy), and
# each in contrast of 3 to 1 or more to a light and to a dark page. A figure never tells by colour alone.
BLUE, ORANGE, GREEN, PINK = "#4596dd", "#d47c0f", "#268057", "#bb649a"
VIOLET, YELLOW, RED, GREY = "#7a62c3", "#99915c", "#d42d24", "#676e6e"
PALETTE: Final = (BLUE, ORANGE, GREEN, PINK, VIOLET, YELLOW, RED, GREY)
DASHES: Final = ("solid", "dash", "dot", "dashdot")

OUTCOMES: Final = {  # how an attempt ended: colour and words, the same in every figure
    "finished": (BLUE, "finished"),
    "cancelled": (GREY, "cancelled"),
    "timeout": (ORANGE, "timed out"),
    "task_error": (RED, "raised an error"),
    "out_of_memory": (YELLOW, "ran out of memory"),
    "worker_crashed": (VIOLET, "ended by a worker crash"),
    "worker_replaced": (YELLOW, "moved: worker replaced"),
    "device_lost": (PINK, "lost with their GPU"),
    "open": (GREEN, "not ended"),
}
PATTERNS: Final = {  # beside its colour: the hatching of an outcome's bar, and its mark where there is no room for bars
    "finished": ("", "circle"),
    "cancelled": ("/", "square"),
    "timeout": ("\\", "triangle-up"),
    "task_error": ("x", "x"),
    "out_of_memory": ("+", "cross"),
    "worker_crashed": ("-", "diamond"),
    "worker_replaced": (".", "hexagon"),
    "device_lost": ("|", "triangle-down"),
    "open": ("", "circle-open"),
}
SERIES: Final = {  # the strategies and priorities keep their colours, too
    "single_gpu": BLUE,
    "round_robin": ORANGE,
    "least_loaded": GREEN,
    "memory_optimized": PINK,
    "random": VIOLET,
    "high": PINK,
    "normal": BLUE,
    "low": GREY,
}
PERCENT_BAR: Final = {  # of a colour scale from 0 to 100 %
    "orientation": "h",
    "thickness": 8,
    "len": 0.3,
    "x": 1,
    "xanchor": "right",
    "xpad": 14,
    "ypad": 2,
    "yanchor": "bottom",
    "outlinewidth": 0,
    "tickvals": [0, 100],
    "ticktext": ["0 %", "100 %"],
    "tickfont": {"size": 11},
    "ticklabelposition": "outside top",
}
PRIORITY_MARKS: Final = {"high": "triangle-up", "normal": "circle", "low": "triangle-down"}
PERCENTILES: Final = {50: (BLUE, "solid"), 95: (ORANGE, "dash"), 99: (VIOLET, "dot")}  # colour and dash
INK: Final = "#6f777e"  # readable on white and on near-black
GRID: Final = "rgba(128,138,146,0.25)"
ALL_AT_ONCE: Final = "x unified"  # hovering tells what all lines are at that time
SANS: Final = "system-ui, sans-serif"
MANY_GPUS: Final = 16  # above: the middle and the spread instead of one line each
MOST_POINTS: Final = 240  # of one line, or bins of time
CHARS_PER_LINE: Final = 78  # of a title


def number(value: float | None, digits: int = 5) -> float | int | None:
    """Rounded for the figure's JSON: few characters, no NaN."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 1e15 else rounded


def numbers(values: Iterable[float | None], digits: int = 5) -> list[float | int | None]:
    return [number(value, digits) for value in values]


def run_name(result: Result) -> str:
    """What figures of one run have in common, so that those of a page which show the same run can be read together."""
    return f"{result.virtual_s:.6g} s, {len(result.task_list)} tasks"


def shades(colour: str, least: float, most: float) -> list[list[Any]]:
    """A colour scale by opacity, from `least` to `most`: whatever the page behind it, more is stronger."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return [[0, f"rgba({red},{green},{blue},{least:g})"], [1, f"rgba({red},{green},{blue},{most:g})"]]


def label_colour(colour: str) -> str:
    """Black or white, what can be read better on the colour."""
    channels = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.179 else "#ffffff"  # where both contrasts are the same (WCAG 2.2)


def series_colour(name: str, position: int) -> str:
    return SERIES.get(name, PALETTE[position % len(PALETTE)])


def axis(title: str, **more: Any) -> dict[str, Any]:
    return {
        "title": {"text": title, "font": {"size": 13}, "standoff": 8},
        "gridcolor": GRID,
        "linecolor": GRID,
        "zerolinecolor": GRID,
        "automargin": True,
        **more,
    }


def run_axis(until_s: float, title: str = "time (s)") -> dict[str, Any]:
    """The time of a run, from 0 to a little beyond its end, so that figures of one run stand under each other."""
    told = {"text": "%{x:.4~g} s"}
    return axis(title, range=[0, number((until_s or 1) * 1.01)], zeroline=False, unifiedhovertitle=told)


def figure(
    data: Sequence[dict[str, Any]],
    title: str,
    subtitle: str,
    x: dict[str, Any],
    y: dict[str, Any],
    height: int = 380,
    *,
    key: str,
    time_axis: bool = False,
    run: str | None = None,
    **layout: Any,
) -> Figure:
    """A figure whose title is its finding; the subtitle says where the numbers come from.

    key: what is drawn, the same in every run, so that figures of two runs can be laid over each other. time_axis: x is
    the time of a run in seconds. run: see run_name.
    """
    shown = len([trace for trace in data if trace.get("showlegend", True) and "name" in trace])
    head: dict[str, Any] = {
        "text": _wrapped(title),
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "y": 1,
        "yref": "container",
        "yanchor": "top",
        "font": {"size": 16},
        "subtitle": {"text": subtitle, "font": {"size": 12}},
    }
    extra_lines = head["text"].count("<br>")
    head["pad"] = {"t": 14 + 16 * extra_lines}  # the first of several lines would stand above the figure
    notes = [note["text"].count("<br>") + 1 for note in layout.get("annotations", ()) if note.get("y") == 1]
    top = 64 + 32 * extra_lines + 13 * max(notes, default=0)
    plot = max(40, height - top - 76)
    return {
        "data": list(data),
        "layout": {
            "meta": {"figure": key, "time_axis": time_axis, **({"run": run} if run is not None else {})},
            "title": head,
            "xaxis": x,
            "yaxis": y,
            "height": height,
            "template": {"layout": {"colorway": list(PALETTE)}},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": SANS, "size": 13, "color": INK},
            "margin": {"l": 64, "r": 24, "t": top, "b": 52},
            "hovermode": "closest",
            "showlegend": shown > 1,
            "legend": {"orientation": "h", "x": 0, "y": -round(46 / plot, 3), "yanchor": "top"},
            **layout,
        },
    }


def _wrapped(title: str) -> str:
    """Long titles in lines, for plotly does not break them; a number stays with its unit."""
    import re
    import textwrap

    held = re.sub(r"(?<=\d) (?=\S{1,3}\b|[%°])", "\u00a0", title)
    return "<br>".join(textwrap.wrap(held, CHARS_PER_LINE)).replace("\u00a0", " ")


def spans(phases: Iterable[tuple[float, str]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Shapes and notes that name the parts of a run: (start in seconds, name), on a thin line over the whole height."""
    shapes, notes = [], []
    for start_s, name in phases:
        x = number(start_s)
        line = {"color": GRID, "width": 1.5, "dash": "dot"}
        shapes.append(
            {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": x, "x1": x, "line": line, "layer": "below"}
        )
        notes.append(
            {
                "x": x,
                "xanchor": "left",
                "yref": "paper",
                "y": 1,
                "yanchor": "bottom",
                "showarrow": False,
                "text": "<br>".join(words(name).split()),
                "align": "left",
                "font": {"size": 10.5},
            }
        )
    return shapes, notes


def words(name: str) -> str:
    """A name from the settings as people read it."""
    return name.replace("_", " ").replace("gpu", "GPU") if name.islower() else name


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def device_word(backend: str) -> str:
    """What a device is called in a title, by the kind of the run's devices."""
    return {"cpu": "CPU device", "mixed": "device"}.get(backend, "GPU")


def source(provenance: str) -> str:
    """Where the figures drawn come from, in words."""
    return "measured and simulated" if provenance == "mixed" else provenance
