"""How long tasks waited and took, over the time of a run, and how many waited at each time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from altlas_core.figures.style import (
    ALL_AT_ONCE,
    BLUE,
    MOST_POINTS,
    PERCENTILES,
    PRIORITY_MARKS,
    SERIES,
    Figure,
    axis,
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
from altlas_core.model import COMPLETED, PRIORITY_NAMES, Task
from altlas_core.result import Result
from altlas_core.words import seconds_text

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

MOST_MARKS: Final = 1500  # above: how many tasks lie where, instead of a mark each
MOST_STEPS: Final = 2 * MOST_POINTS  # of the queue's depth
FEW_STEPS: Final = 60  # of it beside another figure
CELLS: Final = (100, 40)  # of such a density: over time, over seconds waited
BINS: Final = 60  # of time, for percentiles
FEWEST_IN_ALL: Final = 100  # tasks; below, percentiles over time say nothing


def waits(result: Result, phases: Sequence[tuple[float, str]] = ()) -> Figure:
    """Seconds from submission to the start of the last attempt, over the time of submission, by priority.

    `phases`: (start in seconds, name) of parts of the run.
    """
    import numpy as np

    tasks = [task for task in result.task_list if task.started_s is not None]
    at_s = np.array([task.submitted_s for task in tasks])
    waited = np.array([task.started_s for task in tasks], dtype=np.float64) - at_s
    levels = np.array([task.level for task in tasks], dtype=np.int64)
    present = np.unique(levels).tolist()
    how = ""
    if len(tasks) <= MOST_MARKS:
        traces = [
            _marks(
                PRIORITY_NAMES[level],
                [task for task in tasks if task.level == level],
                at_s[levels == level],
                waited[levels == level],
                "submitted at %{x:.5~g} s, waited %{y:.4~g} s",
            )
            for level in present
        ]
    else:
        density, how = _density(at_s, waited, "waited")
        traces = [density]
        for level in present:
            own = levels == level
            traces += _percentiles(at_s[own], waited[own], (50, 99), PRIORITY_NAMES[level])
    never = len(result.task_list) - len(tasks)
    left_out = f"; {plural(never, 'task')} that never started left out" if never else ""
    shapes, notes = spans(phases)
    return figure(
        traces,
        _waits_finding(waited, levels, present),
        f"Waiting, submission to start, by priority{how}{left_out}; {source(result.provenance)}",
        run_axis(result.virtual_s, "time of submission (s)"),
        axis("waited (s)", rangemode="tozero", zeroline=False),
        key="waits",
        time_axis=True,
        run=run_name(result),
        showlegend=True,
        shapes=shapes,
        annotations=notes,
    )


def _waits_finding(waited: Floats, levels: npt.NDArray[np.int64], present: Sequence[int]) -> str:
    if not len(waited):
        return "No task ever started"
    if not waited.any():
        return "No task had to wait"
    import numpy as np

    middle, late = (seconds_text(float(value), 3) for value in np.percentile(waited, (50, 99)))
    finding = f"Half of the tasks started within {middle} of their submission, 99 % within {late}"
    longest = {PRIORITY_NAMES[level]: seconds_text(float(waited[levels == level].max()), 3) for level in present}
    if len(longest) == 1:
        return f"{finding}, the last one after {next(iter(longest.values()))}"
    return (
        f"{finding}; the longest wait was {', '.join(f'{wait} at {name}' for name, wait in longest.items())} priority"
    )


def latency_over_time(result: Result, phases: Sequence[tuple[float, str]] = ()) -> Figure:
    """Seconds from submission to the end of completed tasks, over the time of that end; with percentiles over time.

    `phases` as for waits.
    """
    import numpy as np

    tasks = [task for task in result.task_list if task.state == COMPLETED]
    at_s = np.array([task.finished_s for task in tasks], dtype=np.float64)
    took = at_s - np.array([task.submitted_s for task in tasks])
    how = ""
    traces: list[dict[str, Any]] = []
    if len(tasks) > MOST_MARKS:
        density, how = _density(at_s, took, "took")
        traces.append(density)
    elif tasks:
        traces.append(_marks("normal", tasks, at_s, took, "ended at %{x:.5~g} s, %{y:.4~g} s after submission"))
        traces[0] |= {"name": "task", "opacity": 0.6}
    if len(tasks) >= FEWEST_IN_ALL:
        traces += _percentiles(at_s, took, tuple(PERCENTILES))
    shapes, notes = spans(phases)
    return figure(
        traces,
        _latency_finding(took),
        f"Latency, submission to end, of completed tasks{how}; {source(result.provenance)}",
        run_axis(result.virtual_s, "time of the end (s)"),
        axis("latency (s)", rangemode="tozero", zeroline=False),
        key="latency_over_time",
        time_axis=True,
        run=run_name(result),
        shapes=shapes,
        annotations=notes,
    )


def _latency_finding(took: Floats) -> str:
    import numpy as np

    if not len(took):
        return "No task completed"
    middle, late, last = (seconds_text(float(value), 3) for value in np.percentile(took, (50, 99, 100)))
    return f"Half of the completed tasks took up to {middle}, 99 % up to {late}, the longest {last}"


def _marks(priority: str, tasks: Sequence[Task], at_s: Floats, seconds: Floats, told: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{priority} priority",
        "x": numbers(at_s),
        "y": numbers(seconds, 4),
        "customdata": [[task.index, task.gpu_id] for task in tasks],
        "marker": {"color": SERIES[priority], "size": 7, "symbol": PRIORITY_MARKS[priority], "opacity": 0.8},
        "hovertemplate": f"task-%{{customdata[0]:06d}}, {priority} priority, GPU %{{customdata[1]}}<br>{told}"
        "<extra></extra>",
    }


def _density(at_s: Floats, seconds: Floats, what: str) -> tuple[dict[str, Any], str]:
    """How many tasks lie in each cell of time and seconds, and words for the subtitle that say so."""
    import numpy as np

    tops = float(at_s.max()) or 1.0, float(seconds.max()) or 1.0
    edges = [np.linspace(0.0, top, count + 1) for top, count in zip(tops, CELLS, strict=True)]  # the last one: exactly
    width, height = tops[0] / CELLS[0], tops[1] / CELLS[1]
    counts = np.histogram2d(at_s, np.maximum(seconds, 0.0), bins=edges)[0].T.astype(np.int64)
    strength = np.where(counts, np.log10(np.maximum(counts, 1)), np.nan)
    return {
        "type": "heatmap",
        "name": "tasks",
        "x0": number(width / 2),
        "dx": number(width, 8),
        "y0": number(height / 2),
        "dy": number(height, 8),
        "z": [numbers(row, 2) for row in strength.tolist()],
        "customdata": [[n or None for n in row] for row in counts.tolist()],
        "colorscale": shades(BLUE, 0.15, 0.55),
        "zmin": 0,
        "showscale": False,
        "showlegend": False,
        "hoverongaps": False,
        "hovertemplate": f"%{{customdata}} tasks {what} about %{{y:.3~g}} s, at about %{{x:.4~g}} s<extra></extra>",
    }, (
        f"; {len(at_s):,} tasks, counted in cells of {seconds_text(width, 2)} by {seconds_text(height, 2)} "
        "(darker: more, by powers of ten)"
    )


def _percentiles(
    at_s: Floats, seconds: Floats, percents: Sequence[int], priority: str | None = None
) -> list[dict[str, Any]]:
    """A line for each percentile over bins of time; colours are those of the priority, if one is given."""
    import numpy as np

    width = float(at_s.max(initial=0.0)) / BINS or 1.0
    bins = np.minimum((at_s / width).astype(np.int64), BINS - 1)
    order = np.lexsort((seconds, bins))
    ordered = seconds[order]
    count = np.bincount(bins, minlength=BINS)
    first = np.cumsum(count) - count
    there = count > 0
    x = numbers(width * (np.arange(BINS) + 0.5)[there])
    lines = []
    for percent in percents:
        ranks = np.ceil(percent / 100 * count[there]).astype(np.int64) - 1  # the nearest rank
        colour, dash = PERCENTILES[percent]
        name = f"p{percent}" if priority is None else f"{priority} p{percent}"
        lines.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": x,
                "y": numbers(ordered[first[there] + ranks], 4),
                "line": {"color": SERIES[priority] if priority else colour, "width": 2.5, "dash": dash},
                "hovertemplate": f"{name}: %{{y:.4~g}} s around %{{x:.4~g}} s<extra></extra>",
            }
        )
    return lines


def queue_depth(result: Result, phases: Sequence[tuple[float, str]] = ()) -> Figure:
    """How many tasks wait, over time: steps between the instants at which that changed. `phases` as for waits."""
    times, depths = waiting_tasks(result)
    most = int(depths.max())
    finding = "Nothing ever had to wait"
    if most:
        finding = (
            f"At most {plural(most, 'task')} waited, at {seconds_text(float(times[depths.argmax()]))}; "
            f"the queue was empty again after {seconds_text(float(times[-1]))}"
        )
    times, depths, how = _highest(times, depths)
    trace = {
        "type": "scatter",
        "mode": "lines",
        "name": "waiting tasks",
        "x": numbers(times),
        "y": depths.tolist(),
        "line": {"color": BLUE, "width": 2, "shape": "hv"},
        "fill": "tozeroy",
        "fillcolor": BLUE + "33",
        "hovertemplate": "%{y:,} waiting<extra></extra>",
    }
    shapes, notes = spans(phases)
    return figure(
        [trace],
        finding,
        f"Queue depth{how}; {source(result.provenance)}",
        run_axis(result.virtual_s),
        axis("waiting tasks", rangemode="tozero"),
        height=300,
        key="queue_depth",
        time_axis=True,
        run=run_name(result),
        hovermode=ALL_AT_ONCE,
        shapes=shapes,
        annotations=notes,
    )


def waiting_tasks(result: Result) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Times and depths: a task waits from its submission, or the end of an attempt that is to be repeated."""
    import numpy as np

    begins = [task.submitted_s for task in result.task_list]
    ends = [task.finished_s for task in result.task_list if not task.attempts and task.finished_s is not None]
    for attempt in result.log.attempts():
        ends.append(attempt.started_s)
        if attempt.ended_s is not None and attempt.number < attempt.task.attempts:
            begins.append(attempt.ended_s)
    instants, places = np.unique(np.array([0.0, *begins, *ends]), return_inverse=True)
    signs = np.repeat([0.0, 1.0, -1.0], [1, len(begins), len(ends)])
    depths = np.cumsum(np.bincount(places, weights=signs)).astype(np.int64)
    changed = np.append(True, depths[1:] != depths[:-1])
    return instants[changed], depths[changed]


def with_waiting(made: Figure, result: Result) -> Figure:
    """The figure with the queue's depth in a few steps beside it: a page may tell a run's time without a figure of it.

    "most": each step is the highest of several.
    """
    times, depths, thinned = _highest(*waiting_tasks(result), FEW_STEPS)
    made["layout"]["meta"]["waiting"] = {"x": numbers(times), "y": depths.tolist(), "most": bool(thinned)}
    return made


def _highest(
    times: Floats, depths: npt.NDArray[np.int64], most: int = MOST_STEPS
) -> tuple[Floats, npt.NDArray[np.int64], str]:
    """At most so many steps: the highest of each, so that no peak is lost; and words that say so."""
    import numpy as np

    if len(times) <= most:
        return times, depths, ""
    edges = np.linspace(0.0, float(times[-1]), most + 1)
    at_edges = depths[np.searchsorted(times, edges, "right") - 1]
    every, values = np.append(edges[:-1], times), np.append(at_edges[:-1], depths)
    order = np.argsort(every, kind="stable")
    highest = np.maximum.reduceat(values[order], np.searchsorted(every[order], edges[:-1]))
    return edges, np.append(highest, at_edges[-1]), f", the most in each of {most} steps of {seconds_text(edges[1], 2)}"
