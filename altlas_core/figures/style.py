"""How every figure looks and what its colours mean. Figures are plain dicts for plotly.js: plotly is not imported."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

Figure = dict[str, Any]

# Okabe and Ito's colours, told apart with any kind of colour vision, in tones that hold on a light and a dark page.
BLUE, ORANGE, GREEN, PINK = "#3b82c4", "#e08a1e", "#1a9e77", "#cc6ba0"
VIOLET, YELLOW, RED, GREY = "#8a6fd1", "#c9a227", "#d1553b", "#6b8794"
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
SERIES: Final = {  # the strategies keep their colours, too
    "single_gpu": BLUE,
    "round_robin": ORANGE,
    "least_loaded": GREEN,
    "memory_optimized": PINK,
    "random": VIOLET,
}
INK: Final = "#7b858c"  # readable on white and on near-black
GRID: Final = "rgba(128,138,146,0.25)"
SANS: Final = "system-ui, sans-serif"
MANY_GPUS: Final = 16  # above: the middle and the spread instead of one line each
MOST_POINTS: Final = 240  # of one line
CHARS_PER_LINE: Final = 78  # of a title


def number(value: float | None, digits: int = 5) -> float | int | None:
    """Rounded for the figure's JSON: few characters, no NaN."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 1e15 else rounded


def numbers(values: Iterable[float | None], digits: int = 5) -> list[float | int | None]:
    return [number(value, digits) for value in values]


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


def figure(
    data: Sequence[dict[str, Any]],
    title: str,
    subtitle: str,
    x: dict[str, Any],
    y: dict[str, Any],
    height: int = 380,
    **layout: Any,
) -> Figure:
    """A figure whose title is its finding; the subtitle says where the numbers come from."""
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
    """Long titles in lines: plotly does not break them."""
    import textwrap

    return "<br>".join(textwrap.wrap(title, CHARS_PER_LINE))


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


def seconds_text(value: float) -> str:
    return f"{value:.4g} s"
