"""What ran where and when on so many GPUs, or in so many attempts, that bars could not be told apart: a map of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from altlas_core.figures.outcomes import finding, lost_marks, outcome_of
from altlas_core.figures.style import (
    BLUE,
    MOST_POINTS,
    OUTCOMES,
    PATTERNS,
    PERCENT_BAR,
    Figure,
    axis,
    device_word,
    figure,
    number,
    numbers,
    plural,
    run_axis,
    run_name,
    shades,
    source,
    spans,
)
from altlas_core.figures.waiting import with_waiting
from altlas_core.model import Attempt
from altlas_core.result import Result
from altlas_core.words import seconds_text

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

MOST_ROWS: Final = 128
MOST_MARKS: Final = 1000  # above: neighbours share a mark that counts them
ROW_PX: Final = (4, 24)  # the lowest and the highest row
PLOT_PX: Final = 500
MAP_TOP: Final = 0.76  # of the plot's height; above it the colour scale, then running tasks


@dataclass(frozen=True, slots=True)
class Grid:
    """`gpus` in rows of `per_row`, time until `until_s` in MOST_POINTS bins of `bin_s` seconds."""

    gpus: int
    until_s: float

    @property
    def per_row(self) -> int:
        return math.ceil(self.gpus / MOST_ROWS)

    @property
    def rows(self) -> int:
        return math.ceil(self.gpus / self.per_row)

    @property
    def bin_s(self) -> float:
        return self.until_s / MOST_POINTS


def crowd(
    result: Result,
    attempts: Sequence[Attempt],
    phases: Sequence[tuple[float, str]] = (),
    until_s: float | None = None,
    subject: str = "",
) -> Figure:
    """Share of busy slots by GPUs and time; every attempt that did not finish, and every lost GPU, is a mark on it."""
    end_s = max((a.ended_s for a in attempts if a.ended_s is not None), default=result.virtual_s)
    grid = Grid(len(result.devices), end_s or 1.0)
    slots = _slots(result, grid)
    busy = busy_slots(result, attempts, grid)
    share = 100 * busy / slots[:, None]
    marks, merged = _marks(attempts, grid)
    lost = lost_marks(result, {gpu_id: gpu_id for gpu_id in range(grid.gpus)}, until_s)
    rows_px = min(ROW_PX[1], max(ROW_PX[0], PLOT_PX // grid.rows)) * grid.rows
    parts, notes = spans(phases)
    mean = 100 * float(busy.sum()) / (float(slots.sum()) * MOST_POINTS)
    used = plural(grid.rows, "row") + f" of {grid.per_row}" if grid.per_row > 1 else "a row each"
    made = figure(
        [_running(busy.sum(axis=0), grid), _map(share, grid), *marks, *lost],
        finding(result, attempts, end_s, subject) + f"; slots were busy {mean:.3g} % of the time",
        f"{plural(grid.gpus, device_word(result.backend))} in {used}, {plural(len(attempts), 'attempt')} in "
        f"{MOST_POINTS} bins of {seconds_text(grid.bin_s, 3)}: mean share of busy slots, and above it running tasks; "
        f"attempts that did not finish are marked{merged}; {source(result.provenance)}",
        run_axis(end_s) | {"anchor": "y"},
        axis(
            device_word(result.backend),
            range=[grid.rows * grid.per_row - grid.per_row / 2, -grid.per_row / 2],
            domain=[0, MAP_TOP],
            showgrid=False,
            zeroline=False,
            **({"dtick": 1} if grid.rows <= MOST_ROWS // 8 else {}),
        ),
        height=300 + rows_px,
        key="timeline",
        time_axis=True,
        run=run_name(result),
        yaxis2=axis("running", domain=[MAP_TOP + 0.1, 1], rangemode="tozero", nticks=3, zeroline=False),
        shapes=parts,
        annotations=notes,
    )
    return with_waiting(made, result)


def _slots(result: Result, grid: Grid) -> Floats:
    """How many slots the GPUs of each row have."""
    import numpy as np

    rows = np.arange(grid.gpus) // grid.per_row
    slots = np.array([device.slots for device in result.pool], dtype=np.float64)
    found: Floats = np.bincount(rows, weights=slots, minlength=grid.rows).astype(np.float64)
    return found


def busy_slots(result: Result, attempts: Sequence[Attempt], grid: Grid) -> Floats:
    """Mean number of slots held, by row and bin. An attempt that has its GPU to itself holds all slots of it."""
    import numpy as np

    rows = np.array([a.gpu_id for a in attempts], dtype=np.int64) // grid.per_row
    begin = np.array([a.started_s for a in attempts], dtype=np.float64)
    end = np.array([grid.until_s if a.ended_s is None else a.ended_s for a in attempts], dtype=np.float64)
    held = np.array([result.pool[a.gpu_id].slots if a.solo else 1 for a in attempts], dtype=np.float64)
    busy = _before(rows, end, held, grid) - _before(rows, begin, held, grid)
    return np.maximum(busy, 0.0)  # differences of sums: rounding may leave a little less than nothing


def _before(rows: npt.NDArray[np.int64], times: Floats, weights: Floats, grid: Grid) -> Floats:
    """Of each bin, how much lies before these times: summed over the times of a row, each with its weight."""
    import numpy as np

    width = MOST_POINTS + 1  # the last: at the very end
    place = np.minimum(times / grid.bin_s, MOST_POINTS)
    whole = place.astype(np.int64)
    cells, size = rows * width + whole, grid.rows * width
    inside = np.bincount(cells, weights=weights * (place - whole), minlength=size).reshape(-1, width)
    passed = np.bincount(cells, weights=weights, minlength=size).reshape(-1, width)
    later = np.cumsum(passed[:, ::-1], axis=1)[:, ::-1] - passed  # times in bins after this one
    found: Floats = (inside + later)[:, :MOST_POINTS]
    return found


def _map(share: Floats, grid: Grid) -> dict[str, Any]:
    import numpy as np

    of = "GPU %{y}" if grid.per_row == 1 else f"{grid.per_row} GPUs from GPU %{{y}} on"
    return {
        "type": "heatmap",
        "name": "busy slots",
        "x0": number(grid.bin_s / 2),
        "dx": number(grid.bin_s, 8),
        "y0": 0,
        "dy": grid.per_row,
        "z": np.rint(share).astype(np.int64).tolist(),
        "zmin": 0,
        "zmax": 100,
        "colorscale": shades(BLUE, 0.07, 0.75),
        "colorbar": {**PERCENT_BAR, "y": MAP_TOP},
        "showlegend": False,
        "hovertemplate": f"{of}: %{{z}} % of slots busy<br>around %{{x:.4~g}} s<extra></extra>",
    }


def _running(running: Floats, grid: Grid) -> dict[str, Any]:
    import numpy as np

    return {
        "type": "scatter",
        "mode": "lines",
        "name": "running tasks",
        "showlegend": False,
        "x": numbers((np.arange(MOST_POINTS) + 0.5) * grid.bin_s),
        "y": numbers(running, 4),
        "yaxis": "y2",
        "line": {"color": BLUE, "width": 2, "shape": "hvh"},
        "fill": "tozeroy",
        "fillcolor": BLUE + "33",
        "hovertemplate": "%{y:.4~g} running around %{x:.4~g} s<extra></extra>",
    }


def _marks(attempts: Sequence[Attempt], grid: Grid) -> tuple[list[dict[str, Any]], str]:
    """A trace for each outcome but "finished". Where they are too many, those of neighbouring cells share a mark."""
    ends = [(outcome_of(a), a) for a in attempts if a.outcome != "finished"]
    merge = 0
    while True:
        found: dict[tuple[str, int, int], list[Attempt]] = {}
        for position, (outcome, attempt) in enumerate(ends):
            end_s = grid.until_s if attempt.ended_s is None else attempt.ended_s
            cell = (
                attempt.gpu_id // (grid.per_row * 2 ** (merge // 2)),
                int(end_s / (grid.bin_s * 2 ** (merge - merge // 2))),
            )
            found.setdefault((outcome, *(cell if merge else (position, 0))), []).append(attempt)
        if len(found) <= MOST_MARKS:
            break
        merge += 1
    traces = []
    for outcome, (colour, words) in OUTCOMES.items():
        groups = [own for (name, *_), own in found.items() if name == outcome]
        if groups:
            traces.append(_mark(groups, colour, words, PATTERNS[outcome][1], grid))
    return traces, f", neighbours by one mark ({len(ends):,} by {len(found):,})" if merge else ""


def _mark(groups: Sequence[Sequence[Attempt]], colour: str, words: str, symbol: str, grid: Grid) -> dict[str, Any]:
    first = [own[0] for own in groups]
    more = any(len(own) > 1 for own in groups)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": words,
        "showlegend": True,
        "x": numbers(grid.until_s if a.ended_s is None else a.ended_s for a in first),
        "y": [a.gpu_id for a in first],
        "customdata": [[a.task.index, len(own)] for a, own in zip(first, groups, strict=True)]
        if more
        else [a.task.index for a in first],
        "marker": {"color": colour, "symbol": symbol, "size": 7, "line": {"width": 0.7, "color": "#ffffff"}},
        "hovertemplate": (
            "%{customdata[1]} near here, task-%{customdata[0]:06d} one of them: "
            if more
            else "task-%{customdata:06d}: "
        )
        + f"{words}<br>GPU %{{y}}, at %{{x:.5~g}} s<extra></extra>",
    }
