"""What ran where and when: one lane per slot of each GPU, or a crowd's middle and spread."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Any, Final

from altlas_core.figures.style import (
    BLUE,
    GRID,
    MANY_GPUS,
    MOST_POINTS,
    OUTCOMES,
    Figure,
    axis,
    device_word,
    figure,
    number,
    numbers,
    plural,
    seconds_text,
    source,
    spans,
)
from altlas_core.figures.telemetry import spread_bands
from altlas_core.model import GIB, Attempt
from altlas_core.result import Result

MOST_BARS: Final = 1500
LANE_PX: Final = 9
MOST_LABELS: Final = 60
SHADES: Final = (1.0, 0.74)  # of neighbours in a lane, so that they can be told apart


def timeline(
    result: Result,
    phases: Sequence[tuple[float, str]] = (),
    label: Callable[[Attempt], str] | None = None,
    until_s: float | None = None,
) -> Figure:
    """A bar per attempt, coloured by how it ended, stacked by the slot it held.

    phases: (start in seconds, name) of parts of the run. label: the text on a bar; None = the task's number, where
    there are few. until_s: only attempts that started before. Too many GPUs or attempts become a band over all GPUs.
    """
    shown = [a for a in result.log.attempts() if until_s is None or a.started_s < until_s]
    worked = len(_gpus(shown))
    if max(worked, len(result.devices) if not shown else 0) > MANY_GPUS or len(shown) > MOST_BARS:
        return _crowd(result, shown, phases)
    end_s = max((a.ended_s for a in shown if a.ended_s is not None), default=result.virtual_s)
    lanes = lanes_of(shown)
    used = {gpu_id: max(lane for (gpu, _), lane in lanes.items() if gpu == gpu_id) + 1 for gpu_id in _gpus(shown)}
    idle = len(result.devices) - len(used)
    hidden = idle if 2 * idle >= len(result.devices) and used else 0
    rows = sorted(used) if hidden else [spec.gpu_id for spec in result.devices]
    heights = [used.get(gpu_id, 1) for gpu_id in rows]
    bases = [sum(heights[:position]) + position for position in range(len(heights))]  # one empty lane between GPUs
    if label is None and len(shown) <= MOST_LABELS:
        label = _number_of
    traces = _bars(shown, lanes, dict(zip(rows, bases, strict=True)), end_s, label)
    parts, notes = spans(phases)
    total = bases[-1] + heights[-1]
    ticks = [base + (height - 1) / 2 for base, height in zip(bases, heights, strict=True)]
    y = axis(
        "",
        tickvals=ticks,
        ticktext=[f"GPU {gpu_id}" for gpu_id in rows],
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
    return figure(
        traces,
        _finding(result, shown, end_s),
        "Tasks per GPU and slot"
        + (f", {plural(hidden, 'idle ' + device_word(result.backend))} left out" if hidden else "")
        + f"; {source(result.provenance)}",
        axis("time (s)", range=[0, number(end_s * 1.01) or 1], zeroline=False),
        y,
        height=min(760, max(240, 185 + LANE_PX * total)),
        barmode="overlay",
        bargap=0.12,
        shapes=[*rules, *parts],
        annotations=notes,
        uniformtext={"mode": "hide", "minsize": 9},
    )


def outcome_of(attempt: Attempt) -> str:
    """How an attempt ended, as OUTCOMES names it: a stop is told by its reason."""
    if attempt.outcome is None:
        return "open"
    if attempt.outcome == "stopped":
        return "timeout" if attempt.task.error_code == "timeout" else "cancelled"
    return attempt.outcome


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
        rows = [bases[a.gpu_id] + lanes[a.gpu_id, (a.task.index, a.number)] for a in own]
        labels = (
            {"text": [label(a) for a in own], "textposition": "inside", "insidetextanchor": "middle"} if label else {}
        )
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": words,
                "showlegend": True,
                "base": numbers(attempt.started_s for attempt in own),
                "x": numbers(max(end - a.started_s, shortest) for a, end in zip(own, ends, strict=True)),
                "y": rows,
                "width": 0.86,
                "marker": {
                    "color": colour,
                    "opacity": [shades[a.task.index, a.number] for a in own],
                    "line": {"width": 0},
                },
                "hovertext": [_story(a, end) for a, end in zip(own, ends, strict=True)],
                "hovertemplate": f"%{{hovertext}}<br>{words}<extra></extra>",
                "textangle": 0,
                "textfont": {"color": "#ffffff"},
                **labels,
            }
        )
    return traces


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


def _story(attempt: Attempt, end_s: float) -> str:
    task = attempt.task
    again = f", attempt {attempt.number}" if task.attempts > 1 else ""
    return (
        f"{task.task_id}{again}: {task.spec.kind}, {task.spec.priority}, GPU {attempt.gpu_id}<br>"
        f"{attempt.started_s:.5g} to {end_s:.5g} s, {attempt.reserved_bytes / GIB:.3g} GiB"
    )


def _finding(result: Result, attempts: Sequence[Attempt], end_s: float) -> str:
    counts = {outcome: sum(outcome_of(a) == outcome for a in attempts) for outcome in OUTCOMES}
    odd = [f"{count} {OUTCOMES[name][1]}" for name, count in counts.items() if count and name != "finished"]
    tasks = len({attempt.task.index for attempt in attempts})
    gpus = _gpus(attempts)
    what = device_word(result.backend)
    where = f"{len(gpus):,} of {len(result.devices):,} {what}s" if len(result.devices) > 1 else f"one {what}"
    text = f"{plural(tasks, 'task')} on {where} in {seconds_text(end_s)}"
    if not odd:
        return f"{text}, all finished"
    return f"{text}; attempts: {', '.join(odd)}, {counts['finished']} finished"


def _crowd(result: Result, attempts: Sequence[Attempt], phases: Sequence[tuple[float, str]]) -> Figure:
    """Too many for bars: running tasks per GPU, middle and spread over the GPUs."""
    import numpy as np

    shapes, notes = spans(phases)
    count = len(result.devices)
    times = np.linspace(0.0, result.virtual_s or 1.0, MOST_POINTS + 1)
    own: list[list[Attempt]] = [[] for _ in range(count)]
    for attempt in attempts:
        own[attempt.gpu_id].append(attempt)
    starts = [np.sort([a.started_s for a in one]) for one in own]
    ends = [np.sort([math.inf if a.ended_s is None else a.ended_s for a in one]) for one in own]
    running = np.array(
        [
            np.searchsorted(s, times, "right") - np.searchsorted(e, times, "right")
            for s, e in zip(starts, ends, strict=True)
        ]
    )
    return figure(
        spread_bands(times, running, BLUE, "tasks"),
        _finding(result, attempts, result.virtual_s) + f" (middle and spread over {count:,} GPUs)",
        f"Running tasks per GPU; {source(result.provenance)}",
        axis("time (s)", zeroline=False),
        axis("running tasks per GPU", rangemode="tozero"),
        shapes=shapes,
        annotations=notes,
    )
