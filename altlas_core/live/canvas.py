"""What the figure of the live dashboard is made of: its traces, empty, its axes, and where they are."""

from __future__ import annotations

from typing import Any, Final

from altlas_core.figures.style import BLUE, INK, OUTCOMES, PATTERNS, PERCENTILES, SANS, axis, shades
from altlas_core.live.bars import RUNNING
from altlas_core.live.crowd import shared_rows

ORDER: Final = (RUNNING, *[name for name in OUTCOMES if name != RUNNING])  # of the timeline's traces
HEAT: Final = 0  # places of the traces
BARS: Final = 1
QUEUE: Final = BARS + len(ORDER)
P50: Final = QUEUE + 1
MOST_LABELS: Final = 16  # GPUs named on the axis
_TOP_PX, _BOTTOM_PX, _GAP_PX, _SMALL_PX = 48, 46, 88, 130
_BETWEEN: Final = 0.09  # of the width, between two plots side by side


def traces() -> list[dict[str, Any]]:
    """Busy slots, bars by outcome, the queue, two percentiles of the latency."""
    heat: dict[str, Any] = {
        "type": "heatmap",
        "visible": False,
        "colorscale": shades(BLUE, 0.07, 0.85),
        "zmin": 0,
        "hovertemplate": "GPU %{y:.0f} at %{x:.4g} s: %{z} slots busy<extra></extra>",
        "colorbar": {"title": {"text": "busy slots"}, "thickness": 10, "len": 0.4, "y": 1, "yanchor": "top"},
    }
    queue = {
        "type": "scatter",
        "mode": "lines",
        "name": "waiting tasks",
        "showlegend": False,
        "line": {"color": BLUE, "width": 2, "shape": "hv"},
        "fill": "tozeroy",
        "fillcolor": BLUE + "33",
        "hovertemplate": "%{y} waiting at %{x:.4g} s<extra></extra>",
        "xaxis": "x2",
        "yaxis": "y2",
    }
    return [heat, *(_bar_trace(outcome) for outcome in ORDER), queue, _percentile(50), _percentile(95)]


def _bar_trace(outcome: str) -> dict[str, Any]:
    colour, words = OUTCOMES[outcome]
    plain = outcome in (RUNNING, "finished")
    return {
        "type": "scatter",
        "mode": "lines" if plain else "lines+markers",  # what went wrong has a mark of its own, not a colour alone
        "name": "running" if outcome == RUNNING else words,
        "visible": False,
        "line": {"color": colour, "width": 4},
        "marker": {"color": colour, "symbol": PATTERNS[outcome][1], "size": 7},
        "hovertemplate": f"task %{{customdata}} on GPU %{{y:.0f}}, {words}<br>%{{x:.5g}} s<extra></extra>",
    }


def _percentile(percent: int) -> dict[str, Any]:
    colour, dash = PERCENTILES[percent]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"p{percent}",
        "legend": "legend2",
        "line": {"color": colour, "width": 2, "dash": dash},
        "hovertemplate": f"p{percent} %{{y:.4g}} s at %{{x:.4g}} s<extra></extra>",
        "xaxis": "x3",
        "yaxis": "y3",
        "connectgaps": True,
    }


def layout(gpus: int, slots: int, wide: bool) -> dict[str, Any]:
    """The whole layout, for a machine and a width of the page."""
    legend: dict[str, Any] = {"orientation": "h", "yanchor": "bottom", "xanchor": "right", "bgcolor": "rgba(0,0,0,0)"}
    legend |= {"itemclick": False, "itemdoubleclick": False}
    made: dict[str, Any] = {
        "template": {"layout": {}},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": SANS, "size": 12, "color": INK},
        "margin": {"l": 58, "r": 14, "t": _TOP_PX, "b": _BOTTOM_PX},
        "hovermode": "closest",
        "dragmode": False,
        "autosize": True,
        "showlegend": True,
        "legend": legend,
        "legend2": dict(legend),
        "uirevision": "altlas",
        "xaxis": axis("time (s)", zeroline=False, anchor="y"),
        "yaxis": axis("", zeroline=False, showgrid=False, anchor="x"),
        "xaxis2": axis("time (s)", zeroline=False, anchor="y2"),
        "yaxis2": axis("", rangemode="tozero", anchor="x2", nticks=5),
        "xaxis3": axis("time (s)", zeroline=False, anchor="y3"),
        "yaxis3": axis("", rangemode="tozero", anchor="x3", nticks=5),
        "annotations": [
            _title("", "x domain", "y domain"),
            _title("Waiting tasks", "x2 domain", "y2 domain"),
            _title("Latency of completed tasks (s)", "x3 domain", "y3 domain"),
        ],
    }
    for name, value in {**places(gpus, wide), **machine_axis(gpus, slots)}.items():
        within, _, last = name.rpartition(".")
        (made[within] if within else made)[last] = value
    return made


def _title(text: str, xref: str, yref: str) -> dict[str, Any]:
    return {
        "text": text,
        "xref": xref,
        "yref": yref,
        "x": 0,
        "y": 1,
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 4,
        "showarrow": False,
        "font": {"size": 13.5},
    }


def places(gpus: int, wide: bool) -> dict[str, Any]:
    """Where the three plots are, as changes of the layout: two side by side below the first, or all in a column."""
    tall = 240 if gpus <= 4 else 300 if gpus <= MOST_LABELS else 420
    inner = tall + (1 if wide else 2) * (_GAP_PX + _SMALL_PX)
    small, gap = _SMALL_PX / inner, _GAP_PX / inner
    left, right = ([0.0, 0.5 - _BETWEEN / 2], [0.5 + _BETWEEN / 2, 1.0]) if wide else ([0.0, 1.0], [0.0, 1.0])
    latency = [0.0, small]
    queue = latency if wide else [small + gap, 2 * small + gap]
    return {
        "height": _TOP_PX + inner + _BOTTOM_PX,
        "yaxis.domain": [1 - tall / inner, 1.0],
        "xaxis2.domain": left,
        "yaxis2.domain": queue,
        "xaxis3.domain": right,
        "yaxis3.domain": latency,
        "legend.x": 1.0,
        "legend.y": 1 + 2 / inner if wide else 1 + 22 / inner,
        "legend2.x": 1.0,
        "legend2.y": latency[1] + (2 if wide else 22) / inner,
    }


def machine_axis(gpus: int, slots: int) -> dict[str, Any]:
    """The GPUs on the axis of the timeline, from the top, as changes of the layout."""
    step = -(-gpus // MOST_LABELS)
    named = list(range(0, gpus, step))
    return {
        "yaxis.range": [gpus - 0.5, -0.5],
        "yaxis.tickvals": named,
        "yaxis.ticktext": [f"GPU {gpu}" for gpu in named],
    }


def bar_width_px(gpus: int, slots: int) -> float:
    """Of a lane, so that there is a little room between two."""
    tall = 240 if gpus <= 4 else 300 if gpus <= MOST_LABELS else 420
    return max(1.0, min(14.0, 0.74 * 0.84 * tall / max(1, gpus * slots)))


def timeline_title(gpus: int, crowded: bool) -> str:
    if not crowded:
        return "Tasks by GPU and slot"
    share = shared_rows(gpus)
    return "Busy slots by GPU" + (f" (a row: the mean of {share} GPUs)" if share > 1 else "")
