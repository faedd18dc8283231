"""The clocks of real GPUs over time: what they ran at, what held them down, and which Xid errors they reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from altlas_core.backends.nvml.xids import words
from altlas_core.figures.style import (
    ALL_AT_ONCE,
    BLUE,
    MANY_GPUS,
    ORANGE,
    PALETTE,
    Figure,
    axis,
    figure,
    numbers,
    run_axis,
    run_name,
    spans,
)
from altlas_core.figures.telemetry import spread_bands, thinned
from altlas_core.result import Result

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

_MOST_XIDS: Final = 4  # named in the figure


def clocks(result: Result, phases: Sequence[tuple[float, str]] = ()) -> Figure | None:
    """SM clock per GPU, marked where it was held down, and Xids as they came; None where no device tells its clock.

    `phases`: (start in seconds, name) of parts of the run.
    """
    import numpy as np

    history, until_s = result.sampled.history, result.virtual_s
    times, mhz = history.series("sm_clock_mhz", until_s)
    told = [place for place in range(len(mhz)) if np.isfinite(mhz[place]).any()]
    if not told:
        return None
    _, held = history.series("throttle_reasons", until_s)
    ids = [history.gpu_ids[place] for place in told]
    mhz, held = mhz[told], np.where(held[told] > 0, 1.0, 0.0)
    finding = _finding(mhz, history.held_down(until_s))
    xids = _xids(*history.series("xid", until_s))
    marks = [*phases, *((time_s, f"Xid {code}") for time_s, _, code in xids[:_MOST_XIDS])]
    at_s, mhz = thinned(times, mhz)
    _, held = thinned(times, held)
    if len(told) > MANY_GPUS:
        traces = spread_bands(at_s, mhz, BLUE, "MHz")
    else:
        traces = [trace for i, gpu_id in enumerate(ids) for trace in _lines(gpu_id, at_s, mhz[i], held[i] > 0)]
    shapes, notes = spans(marks)
    return figure(
        traces,
        finding,
        f"SM clock per GPU; measured{_story(xids, history.gpu_ids)}",
        run_axis(until_s),
        axis("SM clock (MHz)", zeroline=False, rangemode="tozero"),
        height=340,
        key="clocks",
        time_axis=True,
        run=run_name(result),
        hovermode=ALL_AT_ONCE,
        shapes=shapes,
        annotations=notes,
    )


def _finding(mhz: Floats, shares: dict[str, float]) -> str:
    import numpy as np

    low, high = float(np.nanmin(mhz)), float(np.nanmax(mhz))
    ran = f"SM clocks stayed at {low:,.0f} MHz" if low == high else f"SM clocks went from {low:,.0f} to {high:,.0f} MHz"
    if not shares:
        return f"{ran}, never held down"
    worst = sorted(shares.items(), key=lambda item: -item[1])
    return f"{ran}; held down by " + ", ".join(f"{name} {100 * share:.3g} % of the time" for name, share in worst)


def _lines(gpu_id: int, at_s: Floats, mhz: Floats, held: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
    """A GPU's clock, and over it, broad, where it was held down."""
    import numpy as np

    name = f"GPU {gpu_id}"
    x, colour = numbers(at_s), PALETTE[gpu_id % len(PALETTE)]
    line: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "showlegend": True,
        "x": x,
        "y": numbers(mhz, 4),
        "line": {"color": colour, "width": 2, "shape": "hv"},
        "connectgaps": False,
        "hovertemplate": f"%{{y:.4~g}} MHz<extra>{name}</extra>",
    }
    if not held.any():
        return [line]
    broad = {
        **line,
        "name": f"{name} held down",
        "hovertemplate": f"%{{y:.4~g}} MHz<extra>{name} held down</extra>",
        "y": numbers(np.where(held, mhz, np.nan), 4),
        "mode": "lines+markers",
        "marker": {"color": ORANGE, "size": 5},
        "line": {"color": ORANGE, "width": 5, "shape": "hv"},
        "opacity": 0.5,
    }
    return [broad, line]


def _xids(at_s: Floats, codes: Floats) -> list[tuple[float, int, int]]:
    """(time, place of the GPU, Xid) of the first time each Xid was the last one of a GPU; the earliest first."""
    import numpy as np

    found = []
    for place, row in enumerate(codes):
        told = np.isfinite(row)
        for code, first in zip(*np.unique(row[told], return_index=True), strict=True):
            found.append((float(at_s[told][first]), place, int(code)))
    return sorted(found)


def _story(xids: Sequence[tuple[float, int, int]], gpu_ids: Sequence[int]) -> str:
    """The first Xids in words."""
    said = [f"; {words(code)} on GPU {gpu_ids[place]} at {time_s:.3g} s" for time_s, place, code in xids]
    return "".join(said[:_MOST_XIDS]) + (f"; {len(said) - _MOST_XIDS} more" if len(said) > _MOST_XIDS else "")
