"""Memory: what GPUs have and offer to tasks, and what tasks reserved beside what they really used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from altlas_core.figures.style import BLUE, GREY, MANY_GPUS, Figure, axis, figure, number, numbers, words
from altlas_core.model import GIB
from altlas_core.result import Result
from altlas_core.words import memory_unit


def memory_use(
    works: Sequence[str], reserved_gib: Sequence[float], used_gib: Sequence[float], provenance: str
) -> Figure:
    """Two bars for each kind of work: reserved by all that ran at a time in a worker, and used by them at the peak."""
    share = max(
        (100 * used / reserved for used, reserved in zip(used_gib, reserved_gib, strict=True) if reserved), default=0.0
    )
    unit, of_unit = memory_unit(max([*reserved_gib, *used_gib], default=0.0) * GIB)
    factor = GIB / of_unit
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
            "hovertemplate": f"%{{x}}: %{{y:.4~g}} {unit} {name}<extra></extra>",
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
        key="memory_use",
        barmode="group",
        bargap=0.35,
    )


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
            _stack("offered to tasks", labels, offered, BLUE, ""),
            _stack("kept free (memory_threshold, memory_limit_bytes)", labels, rest, GREY, "/"),
        ],
        f"{kinds}: {total_gib:,.0f} GiB for tasks in all",
        f"Memory of each {'kind of GPU' if many else 'GPU'}; " + _SIZES_FROM[result.provenance],
        axis("", showgrid=False),
        axis("memory (GiB)"),
        height=320,
        key="memory_bars",
        barmode="stack",
    )


def _stack(name: str, labels: list[str], values: list[float], colour: str, pattern: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": name,
        "x": labels,
        "y": numbers(values, 4),
        "marker": {"color": colour, "line": {"width": 0}, "pattern": {"shape": pattern, "solidity": 0.2}},
        "hovertemplate": f"%{{x}}<br>%{{y:.4~g}} GiB {name}<extra></extra>",
    }
