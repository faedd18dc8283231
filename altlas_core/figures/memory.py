"""Memory that tasks reserved beside what they really used, where a real device measured it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from altlas_core.figures.style import BLUE, GREY, Figure, axis, figure, number, numbers, words

_MIB_BELOW_GIB: Final = 0.1  # where nothing is larger, MiB are easier to read


def memory_use(
    works: Sequence[str], reserved_gib: Sequence[float], used_gib: Sequence[float], provenance: str
) -> Figure:
    """Two bars for each kind of work: reserved by all that ran at a time in a worker, and used by them at the peak."""
    share = max(
        (100 * used / reserved for used, reserved in zip(used_gib, reserved_gib, strict=True) if reserved), default=0.0
    )
    small = max([*reserved_gib, *used_gib], default=0.0) < _MIB_BELOW_GIB
    unit, factor = ("MiB", 1024.0) if small else ("GiB", 1.0)
    bars = [
        {
            "type": "bar",
            "name": name,
            "x": [words(work) for work in works],
            "y": numbers(factor * value for value in values),
            "marker": {"color": colour, "line": {"width": 0}},
            "text": [f"{number(factor * value, 3)}" for value in values],
            "textposition": "outside",
            "cliponaxis": False,
            "hovertemplate": f"%{{x}}: %{{y:.4g}} {unit} {name}<extra></extra>",
        }
        for name, values, colour in (("reserved", reserved_gib, GREY), ("used at the peak", used_gib, BLUE))
    ]
    return figure(
        bars,
        f"Tasks used at most {share:.0f} % of the memory that was reserved for them",
        f"The most at one time in a worker, all of its tasks together; {provenance}",
        axis("", showgrid=False),
        axis(f"memory ({unit})", rangemode="tozero"),
        height=340,
        barmode="group",
        bargap=0.35,
    )
