"""Distributions: what share of all tasks had ended how soon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from altlas_core.figures.style import (
    DASHES,
    Figure,
    axis,
    figure,
    number,
    numbers,
    series_colour,
    source,
    words,
)
from altlas_core.model import PRIORITIES
from altlas_core.words import seconds_text

MOST_STEPS: Final = 200  # of one curve


def latencies(seconds: Mapping[str, Sequence[float]], provenance: str) -> Figure:
    """Share of tasks that had ended so long after their submission, by strategy (an empirical distribution)."""
    curves: dict[tuple[float, ...], list[str]] = {}
    for name, values in seconds.items():
        if values:
            curves.setdefault(tuple(sorted(values)), []).append(name)
    traces = []
    for position, (ordered, names) in enumerate(curves.items()):
        label = ", ".join(words(name) for name in names)
        x, y = _steps(ordered)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": label,
                "x": x,
                "y": y,
                "line": {
                    "color": series_colour(names[0], position),
                    "width": 2.5,
                    "dash": DASHES[position % len(DASHES)],
                    "shape": "hv" if len(x) < MOST_STEPS // 2 else "linear",
                },
                "hovertemplate": f"{label}<br>%{{y:.3~g}} % within %{{x:.4~g}} s<extra></extra>",
            }
        )
    many = any(len(ordered) > MOST_STEPS for ordered in curves)
    how = f"; about {MOST_STEPS} points of each curve, most of them at its slow end" if many else ""
    slowest = max(curves, key=lambda ordered: ordered[-1], default=())
    fastest = min(curves, key=lambda ordered: ordered[-1], default=())
    finding = f"Every task had ended within {seconds_text(fastest[-1])}" if fastest else "No task completed"
    if slowest != fastest:
        finding += f"{_under(curves[fastest])}, within {seconds_text(slowest[-1])}{_under(curves[slowest])}"
    return figure(
        traces,
        finding,
        f"Latency, submission to end, as a share of all tasks{how}; {source(provenance)}",
        axis("latency (s)", range=[0, number(1.05 * max((o[-1] for o in curves), default=1.0))], zeroline=False),
        axis("tasks ended (%)", range=[0, 103]),
        key="latencies",
        showlegend=True,
    )


def _under(names: Sequence[str]) -> str:
    """ " under round robin", or " at high priority"."""
    listed = ", ".join(words(name) for name in names)
    return f" at {listed} priority" if set(names) <= PRIORITIES.keys() else f" under {listed}"


def _steps(ordered: Sequence[float]) -> tuple[list[Any], list[Any]]:
    """Points of the distribution's curve, each value once, thinned where there are many."""
    count = len(ordered)
    points = {value: 100 * (rank + 1) / count for rank, value in enumerate(ordered)}
    values = list(points)
    kept = values if len(values) <= MOST_STEPS else [values[place] for place in _places(len(values))]
    return numbers([0.0, *kept]), numbers([0.0, *(points[value] for value in kept)], 4)


def _places(count: int) -> list[int]:
    """Of `count` values in order, which are drawn: closer together near the slowest, where a tail would be cut off."""
    half = MOST_STEPS // 2
    even = {round(step * (count - 1) / half) for step in range(half + 1)}
    tail = {count - 1 - int((count / 2) ** (step / half)) for step in range(half)}
    return sorted(even | {max(0, place) for place in tail})
