"""What ran where and when: one lane per slot of each GPU; of many, a map (see crowd)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Any, Final

from altlas_core.figures.crowd import crowd
from altlas_core.figures.outcomes import finding, lost_marks, outcome_of
from altlas_core.figures.style import (
    GRID,
    OUTCOMES,
    PATTERNS,
    Figure,
    axis,
    device_word,
    figure,
    label_colour,
    number,
    numbers,
    plural,
    run_axis,
    run_name,
    source,
    spans,
)
from altlas_core.figures.waiting import with_waiting
from altlas_core.model import Attempt
from altlas_core.result import Result
from altlas_core.words import memory_text

MOST_BARS: Final = 2500
LANE_PX, LEAST_LANE_PX, MOST_PX = 9, 3, 620  # a lane's height; all lanes together where they get lower
MOST_LANES: Final = 360
LABEL_PX: Final = 15  # the height of a GPU's name
MOST_LABELS: Final = 60
SHADES: Final = (1.0, 0.8)  # of neighbours in a lane, so that they can be told apart


def timeline(
    result: Result,
    phases: Sequence[tuple[float, str]] = (),
    label: Callable[[Attempt], str] | None = None,
    until_s: float | None = None,
    subject: str = "",
) -> Figure:
    """A bar per attempt, coloured by how it ended, stacked by the slot it held.

    phases: (start in seconds, name) of parts of the run. label: the text on a bar; None = the task's number, where
    there are few. until_s: only attempts that started before. subject: what the title names first. Too many lanes or
    attempts become a map: see crowd.
    """
    shown = [a for a in result.log.attempts() if until_s is None or a.started_s < until_s]
    if len(shown) > MOST_BARS:
        return crowd(result, shown, phases, until_s, subject)
    lanes = lanes_of(shown)
    used: dict[int, int] = {}
    for (gpu_id, _), lane in lanes.items():
        used[gpu_id] = max(used.get(gpu_id, 0), lane + 1)
    if sum(used.values()) + len(used) > MOST_LANES or (not shown and len(result.devices) > MOST_LANES):
        return crowd(result, shown, phases, until_s, subject)
    end_s = max((a.ended_s for a in shown if a.ended_s is not None), default=result.virtual_s)
    idle = len(result.devices) - len(used)
    hidden = idle if 2 * idle >= len(result.devices) and used else 0
    rows = sorted(used) if hidden else [spec.gpu_id for spec in result.devices]
    heights = [used.get(gpu_id, 1) for gpu_id in rows]
    bases = [sum(heights[:position]) + position for position in range(len(heights))]  # one empty lane between GPUs
    if label is None and len(shown) <= MOST_LABELS:
        label = _number_of
    traces = _bars(shown, lanes, dict(zip(rows, bases, strict=True)), end_s, label)
    middles = {gpu: base + (high - 1) / 2 for gpu, base, high in zip(rows, bases, heights, strict=True)}
    parts, notes = spans(phases)
    total = bases[-1] + heights[-1]
    lane_px = max(MOST_PX / total, LEAST_LANE_PX) if total * LANE_PX > MOST_PX else LANE_PX
    every = max(1, math.ceil(LABEL_PX * len(rows) / (lane_px * total)))  # GPUs, where not every one has room for a name
    y = axis(
        "",
        tickvals=list(middles.values())[::every],
        ticktext=[f"GPU {gpu_id}" for gpu_id in rows[::every]],
        range=[total - 0.4, -0.6],
        showgrid=False,
        zeroline=False,
    )
    rules = [
        {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": base - 1,
            "y1": base - 1,
            "line": {"color": GRID, "width": 1},
        }
        for base in bases[1:]
    ]
    made = figure(
        [*traces, *lost_marks(result, middles, until_s)],
        finding(result, shown, end_s, subject),
        "Tasks per GPU and slot"
        + (f", {plural(hidden, 'idle ' + device_word(result.backend))} left out" if hidden else "")
        + f"; {source(result.provenance)}",
        run_axis(end_s),
        y,
        height=max(240, 185 + round(lane_px * total)),
        key="timeline",
        time_axis=True,
        run=run_name(result),
        barmode="overlay",
        bargap=0.12,
        shapes=[*rules, *parts],
        annotations=notes,
        uniformtext={"mode": "hide", "minsize": 9},
    )
    return with_waiting(made, result)


def lanes_of(attempts: Sequence[Attempt]) -> dict[tuple[int, tuple[int, int]], int]:
    """(GPU, (task, attempt)) -> the lowest lane that was free when it started."""
    found: dict[tuple[int, tuple[int, int]], int] = {}
    free: dict[int, list[int]] = {}
    busy: dict[int, list[tuple[float, int]]] = {}
    opened: dict[int, int] = {}
    for attempt in sorted(attempts, key=lambda a: (a.gpu_id, a.started_s, a.task.index)):
        gpu_id = attempt.gpu_id
        running, idle = busy.setdefault(gpu_id, []), free.setdefault(gpu_id, [])
        while running and running[0][0] <= attempt.started_s:
            heappush(idle, heappop(running)[1])
        if not idle:
            heappush(idle, opened.get(gpu_id, 0))
            opened[gpu_id] = opened.get(gpu_id, 0) + 1
        lane = heappop(idle)
        heappush(running, (math.inf if attempt.ended_s is None else attempt.ended_s, lane))
        found[gpu_id, (attempt.task.index, attempt.number)] = lane
    return found


def _gpus(attempts: Sequence[Attempt]) -> list[int]:
    return sorted({attempt.gpu_id for attempt in attempts})


def _bars(
    attempts: Sequence[Attempt],
    lanes: dict[tuple[int, tuple[int, int]], int],
    bases: Mapping[int, int],
    end_s: float,
    label: Callable[[Attempt], str] | None,
) -> list[dict[str, Any]]:
    """One trace per outcome that occurs, in the order of OUTCOMES."""
    shades = _shades(attempts, lanes)
    shortest = end_s / 400  # so that an attempt of no length can still be seen and pointed at
    traces = []
    for outcome, (colour, words) in OUTCOMES.items():
        own = [attempt for attempt in attempts if outcome_of(attempt) == outcome]
        if not own:
            continue
        ends = [end_s if attempt.ended_s is None else attempt.ended_s for attempt in own]
        told, same = _told(own)
        marker: dict[str, Any] = {
            "color": colour,
            "opacity": [shades[a.task.index, a.number] for a in own],
            "line": {"width": 0},
        }
        if PATTERNS[outcome][0]:
            ink = label_colour(colour)
            marker["pattern"] = {
                "shape": PATTERNS[outcome][0],
                "fillmode": "overlay",
                "fgcolor": ink,
                "fgopacity": 0.6,
                "size": 6,
                "solidity": 0.25,
            }
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": words,
                "showlegend": True,
                "base": numbers(attempt.started_s for attempt in own),
                "x": numbers(max(end - a.started_s, shortest) for a, end in zip(own, ends, strict=True)),
                "y": [bases[a.gpu_id] + lanes[a.gpu_id, (a.task.index, a.number)] for a in own],
                "width": 0.86,
                "marker": marker,
                "customdata": [
                    [a.task.index, a.gpu_id, number(end), *more] for a, end, more in zip(own, ends, told, strict=True)
                ],
                "hovertemplate": f"task-%{{customdata[0]:06d}}{same} on GPU %{{customdata[1]}}<br>"
                f"%{{base:.5~g}} to %{{customdata[2]:.5~g}} s, {words}<extra></extra>",
                **(_labels([label(a) for a in own], colour) if label else {}),
            }
        )
    return traces


def _told(attempts: Sequence[Attempt]) -> tuple[list[list[str]], str]:
    """What else there is to say of each, for customdata, and the template of it: in it where it is the same for all."""
    told = [
        f"{f', attempt {a.number}' if a.task.attempts > 1 else ''}: {a.task.spec.kind}, {a.task.spec.priority}, "
        f"{memory_text(a.reserved_bytes)}"
        for a in attempts
    ]
    return ([[]] * len(told), told[0]) if len(set(told)) == 1 else ([[text] for text in told], "%{customdata[3]}")


def _labels(texts: list[str], colour: str) -> dict[str, Any]:
    return {
        "text": texts,
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "textfont": {"color": label_colour(colour)},
    }


def _number_of(attempt: Attempt) -> str:
    return str(attempt.task.index)


def _shades(attempts: Sequence[Attempt], lanes: dict[tuple[int, tuple[int, int]], int]) -> dict[tuple[int, int], float]:
    """Two shades in turn along each lane, by (task, attempt)."""
    found: dict[tuple[int, int], float] = {}
    seen: dict[tuple[int, int], int] = {}
    for attempt in sorted(attempts, key=lambda a: (a.started_s, a.task.index)):
        key = (attempt.task.index, attempt.number)
        lane = (attempt.gpu_id, lanes[attempt.gpu_id, key])
        found[key] = SHADES[seen.get(lane, 0) % len(SHADES)]
        seen[lane] = seen.get(lane, 0) + 1
    return found
