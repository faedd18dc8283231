"""Several runs of one scenario: how certain each metric is, and what differs between the runs over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from altlas_core.figures.style import (
    BLUE,
    GREY,
    MOST_POINTS,
    Figure,
    axis,
    figure,
    number,
    numbers,
    source,
    spans,
    words,
)
from altlas_core.figures.waiting import waiting_tasks
from altlas_core.result import Result
from altlas_core.statistics import Summary, summarize

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

Row = tuple[str, Sequence[float | None], Summary]  # a metric: name, value in each run, both summed up
MOST_METRICS: Final = 12
ROW_PX: Final = 46


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A step function of time: values[i] since the instant before, until times[i] (s). After the last it is 0.

    `most` is its largest value before it was thinned.
    """

    times: Floats
    values: Floats
    most: float

    def at(self, times: Floats) -> Floats:
        import numpy as np

        places = np.searchsorted(self.times, times)
        return np.append(self.values, 0.0)[places]


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """What bands are drawn of: waiting tasks and mean utilization over all GPUs (%), of one run."""

    waiting: Curve
    utilization: Curve


@dataclass(frozen=True, slots=True)
class Kind:
    """A curve that bands can show. `what` is it in a title, `unit` follows a number, `key` names the figure."""

    key: str
    what: str
    axis: str
    unit: str
    top: float | None = None


WAITING: Final = Kind("repeats.queue_depth", "waiting tasks", "waiting tasks", " tasks")
UTILIZATION: Final = Kind("repeats.utilization_pct", "utilization", "mean utilization (%)", " %", 104.0)


def curves(result: Result) -> Curves:
    """The curves of a run, in at most MOST_POINTS steps each."""
    return Curves(_waiting(result), _utilization(result))


def _waiting(result: Result) -> Curve:
    """Means over equal steps of time."""
    import numpy as np

    times, depths = waiting_tasks(result)
    area = np.append(0.0, np.cumsum(depths[:-1] * np.diff(times)))
    edges = np.linspace(0.0, result.virtual_s or 1.0, MOST_POINTS + 1)
    means = np.diff(np.interp(edges, times, area)) / np.diff(edges)
    return Curve(edges[1:], np.maximum(means, 0.0), float(depths.max()))


def _utilization(result: Result) -> Curve:
    """Mean over the GPUs that answered; NaN where none did."""
    import numpy as np

    sampled = result.sampled
    values = np.frombuffer(sampled.utilization_pct, dtype=np.float64).reshape(-1, len(result.devices))
    times = np.frombuffer(sampled.queue_time_s, dtype=np.float64)
    known = np.isfinite(values)
    count = known.sum(axis=1)
    means = np.where(known, values, 0.0).sum(axis=1) / np.where(count, count, np.nan)
    step = max(1, -(-len(times) // MOST_POINTS))
    groups = np.arange(0, len(times), step)
    thin = np.add.reduceat(means, groups) / np.diff(np.append(groups, len(times))) if len(times) else means
    ends = np.minimum(groups + step, len(times)) - 1
    return Curve(times[ends], thin, float(np.nanmax(means, initial=0.0)))


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """Curves of several runs on one grid of times: their mean, least and greatest at each."""

    times: Floats
    mean: Floats
    low: Floats
    high: Floats
    same_length: bool

    @property
    def widest(self) -> float:
        """The most by which two runs differ at one time."""
        return float((self.high - self.low).max(initial=0.0))


def band(own: Sequence[Curve]) -> Band:
    """Runs that have ended count as 0: nothing waits, nothing runs. Where no reading is, a run is left out."""
    import numpy as np

    ends = [float(curve.times[-1]) if len(curve.times) else 0.0 for curve in own]
    edges = np.linspace(0.0, max(ends), MOST_POINTS + 1)
    times = (edges[1:] + edges[:-1]) / 2
    values = np.array([curve.at(times) for curve in own])
    known = np.isfinite(values).any(axis=0)
    times, values = times[known], values[:, known]
    if not len(times):
        return Band(times, times, times, times, True)
    same = max(ends) - min(ends) <= 1e-9 * max(ends)
    return Band(times, np.nanmean(values, axis=0), np.nanmin(values, axis=0), np.nanmax(values, axis=0), same)


def over_time(
    run: str, kind: Kind, own: Sequence[Curve], which: str, provenance: str, phases: Sequence[tuple[float, str]] = ()
) -> Figure:
    """Mean of the runs and the band between the least and the greatest of them; `which` says which runs they are.

    `phases`: (start in seconds, name) of parts of the run.
    """
    drawn = band(own)
    peaks = summarize(curve.most for curve in own)
    name = words(run).capitalize()
    if kind is WAITING:
        finding = (
            f"{name}: at most {_known(peaks)} tasks wait at a time; two runs differ by up to {_short(drawn.widest)}"
        )
    else:
        finding = f"{name}: {kind.what} differs between two runs by up to {_short(drawn.widest)} percentage points"
    ended = "" if drawn.same_length else "; a run that has ended counts as 0"
    x = numbers(drawn.times)
    shade = {
        "type": "scatter",
        "mode": "lines",
        "name": "least to greatest of the runs",
        "fill": "toself",
        "fillcolor": BLUE + "40",
        "x": x + x[::-1],
        "y": numbers(drawn.high, 4) + numbers(drawn.low, 4)[::-1],
        "line": {"width": 0},
        "hoverinfo": "skip",
    }
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": "mean of the runs",
        "x": x,
        "y": numbers(drawn.mean, 4),
        "customdata": [list(pair) for pair in zip(numbers(drawn.low, 4), numbers(drawn.high, 4), strict=True)],
        "line": {"color": BLUE, "width": 2.5},
        "hovertemplate": f"mean %{{y:.4g}}{kind.unit}, from %{{customdata[0]:.4g}} to %{{customdata[1]:.4g}}"
        f" at %{{x:.4g}} s<extra></extra>",
    }
    shapes, notes = spans(phases if len(phases) > 1 else ())
    end = float(drawn.times[-1]) if len(drawn.times) else 1.0
    top: dict[str, Any] = {"rangemode": "tozero"} if kind.top is None else {"range": [-2, kind.top]}
    return figure(
        [shade, line],
        finding,
        f"Mean, and band from the least to the greatest of {which}{ended}; {source(provenance)}",
        axis("time (s)", range=[0, number(end * 1.01)], zeroline=False),
        axis(kind.axis, zeroline=False, **top),
        height=320,
        key=kind.key,
        time_axis=True,
        run=run,
        shapes=shapes,
        annotations=notes,
    )


def _known(summary: Summary) -> str:
    """The mean and what it is known to: "14.2 ± 1.1"."""
    half = summary.half_width
    return _short(summary.mean, 3) + (f" {_within(half)}" if half else "")


def _short(value: float | None, digits: int = 2) -> str:
    return f"{number(value, digits):,}"


def _within(half: float) -> str:
    return f"± {_short(half)}"


def certainty(rows: Sequence[Row], which: str, provenance: str) -> Figure | None:
    """Each metric's mean and 95 % interval, and its runs, as percent of that mean; None where nothing can be drawn.

    `rows`: name, value in each run, and summary; of many the first MOST_METRICS are drawn.
    """
    drawn = [row for row in rows if row[2].mean and row[2].stdev is not None][:MOST_METRICS]
    if not drawn:
        return None
    heights = range(len(drawn) - 1, -1, -1)
    left = "" if len(drawn) == len(rows) else f" ({len(drawn)} of the {len(rows)} metrics that vary)"
    means = {
        "type": "scatter",
        "mode": "markers",
        "name": "mean and 95 % confidence interval",
        "x": [0] * len(drawn),
        "y": list(heights),
        "error_x": {
            "type": "data",
            "array": numbers((_percent(own.half_width, own) for _, _, own in drawn), 4),
            "color": BLUE,
            "thickness": 2.5,
            "width": 7,
        },
        "text": [f"{name}: {own.mean:.5g} ± {own.half_width:.3g}" for name, _, own in drawn],
        "marker": {"color": BLUE, "size": 10},
        "hovertemplate": "%{text}<extra></extra>",
    }
    return figure(
        [_each_run(drawn, heights), means],
        _most_and_least_certain(drawn),
        f"Relative to the mean of {which}{left}; {source(provenance)}",
        axis("difference from the mean (%)", zeroline=True),
        axis("", showticklabels=False, showgrid=False, zeroline=False, range=[-0.5, len(drawn) - 0.3]),
        height=170 + ROW_PX * len(drawn),
        key="repeats.certainty",
        annotations=[_label(name, height) for height, (name, _, _) in zip(heights, drawn, strict=True)],
    )


def _percent(value: float | None, own: Summary) -> float:
    return 100 * (value or 0.0) / abs(own.mean or 1.0)


def _most_and_least_certain(drawn: Sequence[Row]) -> str:
    ordered = sorted((_percent(own.half_width, own), name) for name, _, own in drawn)
    (least, certain), (most, uncertain) = ordered[0], ordered[-1]
    if len(ordered) == 1:
        return f"{certain} is known to {_within(least)} % of its mean"
    return f"{certain} is known to {_within(least)} % of its mean, {uncertain} only to {_within(most)} %"


def _each_run(drawn: Sequence[Row], heights: Sequence[int]) -> dict[str, Any]:
    points = [
        (_percent(value - (own.mean or 0.0), own), height, f"{name}: {value:.5g} in run {place}")
        for height, (name, values, own) in zip(heights, drawn, strict=True)
        for place, value in enumerate(values, 1)
        if value is not None
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "each run",
        "x": numbers((x for x, _, _ in points), 4),
        "y": [y for _, y, _ in points],
        "text": [text for _, _, text in points],
        "marker": {"color": GREY, "size": 8, "symbol": "circle-open", "line": {"width": 1.5}},
        "hovertemplate": "%{text} (%{x:+.3g} %)<extra></extra>",
    }


def _label(text: str, height: int) -> dict[str, Any]:
    """A metric's name over its row, inside the plot: beside it, long names would leave a narrow page no room."""
    return {
        "xref": "paper",
        "x": 0,
        "xanchor": "left",
        "y": height + 0.26,
        "yanchor": "bottom",
        "text": text,
        "showarrow": False,
        "font": {"size": 12},
    }
