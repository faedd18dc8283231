"""How long tasks took, by priority."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from altlas_core.figures.style import Figure, axis, figure, number, numbers, series_colour, source
from altlas_core.words import seconds_text

MOST_STEPS: Final = 200  # of one distribution's curve


def latency_by_priority(seconds: Mapping[str, Sequence[float]], provenance: str) -> Figure:
    """Share of each priority's completed tasks that had ended so long after their submission."""
    known = {name: sorted(values) for name, values in seconds.items() if values}
    traces = []
    for position, (name, ordered) in enumerate(known.items()):
        step = max(1, -(-len(ordered) // MOST_STEPS))
        ranks = [*range(0, len(ordered), step), len(ordered) - 1]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{name} priority",
                "x": numbers([ordered[0], *(ordered[rank] for rank in ranks)]),
                "y": numbers([0.0, *(100 * (rank + 1) / len(ordered) for rank in ranks)], 4),
                "line": {"color": series_colour(name, position), "width": 2.5, "shape": "hv"},
                "hovertemplate": f"{name} priority<br>%{{y:.3~g}} % within %{{x:,.4~r}} s<extra></extra>",
            }
        )
    longest = max((ordered[-1] for ordered in known.values()), default=1.0)
    return figure(
        traces,
        _finding(known),
        f"Latency, submission to end, as a share of a priority's completed tasks; {source(provenance)}",
        axis("latency (s)", range=[0, number(1.05 * longest) or 1], zeroline=False),
        axis("tasks ended (%)", range=[0, 103]),
        key="latency_by_priority",
        showlegend=True,
    )


def _finding(known: Mapping[str, Sequence[float]]) -> str:
    if not known:
        return "No task completed"
    late = {name: ordered[-(-95 * len(ordered) // 100) - 1] for name, ordered in known.items()}
    parts = [f"{seconds_text(value, 3)} ({name})" for name, value in late.items()]
    return f"19 of 20 tasks end within {', '.join(parts)} of their submission"
