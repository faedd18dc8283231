"""One workload under several strategies: makespan against its yardsticks, waiting, regret, energy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from altlas_core.figures.style import (
    GREY,
    INK,
    PERCENTILES,
    Figure,
    axis,
    figure,
    number,
    numbers,
    series_colour,
    source,
    words,
)
from altlas_core.words import seconds_text

Rows = Mapping[str, Mapping[str, Any]]  # strategy -> its metrics
EQUAL: Final = 0.0005  # shares that differ by less are told as equal
CLEARLY: Final = 1.5  # from here on a quotient is told as "times"
FULL_COLOUR: Final = 1.0  # a regret from here on is drawn in the darkest tone
TONES: Final = [  # of a regret from -FULL_COLOUR (not known) over 0 (the best found), opaque: dark words hold on each
    [0, "#c9ced2"],
    [0.49, "#c9ced2"],
    [0.5, "#cfe6db"],
    [0.55, "#f3e3cb"],
    [1, "#e0a050"],
]
_SHOWN: Final = {  # regret -> the metric it is of, and what that is called
    "makespan_regret": ("makespan_s", "makespan"),
    "wait_p50_regret": ("wait_p50_s", "median wait"),
    "wait_p95_regret": ("wait_p95_s", "wait p95"),
    "p99_regret": ("p99_s", "latency p99"),
    "energy_regret": ("energy_j", "energy"),
}


def strategy_makespans(rows: Rows, lower_bound_s: float, offline_s: float | None, provenance: str) -> Figure:
    """Makespan of each strategy, the shortest on top; lines for the bound and for the schedule made offline."""
    names = sorted(rows, key=lambda name: float(rows[name]["makespan_s"]), reverse=True)
    spans = [float(rows[name]["makespan_s"]) for name in names]
    bars = {
        "type": "bar",
        "orientation": "h",
        "name": "makespan",
        "showlegend": False,
        "y": [_narrow(name) for name in names],
        "x": numbers(spans),
        "marker": {"color": [series_colour(name, at) for at, name in enumerate(names)], "line": {"width": 0}},
        "text": [seconds_text(span) for span in spans],
        "textposition": "outside",
        "cliponaxis": False,
        "hovertemplate": "%{y}: %{x:.5g} s<extra></extra>",
    }
    marks = [
        _upright(value, f"{text}: {seconds_text(value)}", colour, dash, [_narrow(names[0]), _narrow(names[-1])])
        for value, text, colour, dash in (
            (lower_bound_s, "lower bound", GREY, "dot"),
            (offline_s, "offline, every length known", INK, "dash"),
        )
        if value is not None
    ]
    return figure(
        [bars, *marks],
        finding(rows),
        f"Time until the last task ends; {source(provenance)}",
        axis("makespan (s)", range=[0, number(1.22 * max(spans))]),
        axis("", showgrid=False),
        height=210 + 38 * len(names),
        key="strategy_makespans",
        showlegend=True,
        bargap=0.4,
    )


def _upright(value: float, name: str, colour: str, dash: str, ends: list[str]) -> dict[str, Any]:
    """A line over all bars, between the two at the ends."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [number(value)] * 2,
        "y": ends,
        "line": {"color": colour, "width": 2.5, "dash": dash},
        "hovertemplate": f"{name}<extra></extra>",
    }


def finding(rows: Rows) -> str:
    """Who is first, and how much longer the last and the others take."""
    ranked = sorted(rows, key=lambda name: float(rows[name]["makespan_s"]))
    spans = {name: float(rows[name]["makespan_s"]) for name in ranked}
    best, last = ranked[0], ranked[-1]
    if not spans[best] or spans[last] / spans[best] - 1 < EQUAL:
        return f"Every strategy needs {seconds_text(spans[best])}"
    text = f"{words(best)} ends first; {words(last)} takes {_longer(spans[last] / spans[best])}"
    others = [spans[name] / spans[best] for name in ranked[1:-1]]
    if not others:
        return text
    second = words(ranked[-2])
    if others[-1] - 1 < EQUAL:
        return f"{text}, {'the others' if len(others) > 1 else second} as long as the first"
    most = _longer(others[-1])
    return f"{text}, the others up to {most} ({second})" if len(others) > 1 else f"{text}, {second} {most}"


def _longer(factor: float) -> str:
    return f"{factor:.1f} times as long" if factor >= CLEARLY else f"{_percent(factor - 1)} longer"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def strategy_waits(rows: Rows, provenance: str) -> Figure:
    """Median and p95 of waiting, p99 of latency, by strategy."""
    shown = (
        ("wait_p50_s", "wait, median", PERCENTILES[50][0]),
        ("wait_p95_s", "wait, p95", PERCENTILES[95][0]),
        ("p99_s", "latency, p99", PERCENTILES[99][0]),
    )
    names = list(rows)
    traces = [
        {
            "type": "bar",
            "name": called,
            "x": [_narrow(name) for name in names],
            "y": numbers((rows[name][metric] for name in names), 4),
            "marker": {"color": colour, "line": {"width": 0}},
            "text": [_seconds(rows[name][metric]) for name in names],
            "textposition": "outside",
            "cliponaxis": False,
            "hovertemplate": f"%{{x}}: {called} %{{y:.4g}} s<extra></extra>",
        }
        for metric, called, colour in shown
    ]
    known = {name: float(rows[name]["wait_p95_s"]) for name in names if rows[name]["wait_p95_s"] is not None}
    told = "No task started"
    if known:
        least, most = min(known, key=lambda n: known[n]), max(known, key=lambda n: known[n])
        told = f"19 of 20 tasks start within {seconds_text(known[least], 3)} under {words(least)}"
        told += (
            f", within {seconds_text(known[most], 3)} under {words(most)}"
            if known[most] > known[least]
            else " and all others"
        )
    return figure(
        traces,
        told,
        f"Waiting, submission to start, and latency, submission to end; {source(provenance)}",
        axis("", showgrid=False),
        axis("seconds", rangemode="tozero"),
        key="strategy_waits",
        barmode="group",
        bargap=0.3,
        uniformtext={"mode": "hide", "minsize": 9},
    )


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def regrets(rows: Rows, provenance: str) -> Figure:
    """How far each strategy is from the best found, by metric: a square each, the darker the farther."""
    metrics = [name for name in _SHOWN if any(row.get(name) is not None for row in rows.values())]
    names = sorted(rows, key=lambda name: float(rows[name]["makespan_s"]), reverse=True)
    heat = {
        "type": "heatmap",
        "x": [_SHOWN[metric][1] for metric in metrics],
        "y": [_narrow(name) for name in names],
        "z": [[_tone(rows[name], metric) for metric in metrics] for name in names],
        "text": [[_regret(rows[name], metric) for metric in metrics] for name in names],
        "texttemplate": "%{text}",
        "textfont": {"size": 12, "color": "#1b1f23"},
        "zmin": -FULL_COLOUR,
        "zmax": FULL_COLOUR,
        "xgap": 3,
        "ygap": 3,
        "showscale": False,
        "colorscale": TONES,
        "hovertemplate": "%{y}, %{x}: %{text}<extra></extra>",
    }
    return figure(
        [heat],
        _most_often_best(rows, metrics),
        f"Regret: value / best found - 1, in seconds where the best is 0; {source(provenance)}",
        axis("", showgrid=False, type="category"),
        axis("", showgrid=False, type="category"),
        height=170 + 38 * len(names),
        key="strategy_regrets",
    )


def _most_often_best(rows: Rows, metrics: list[str]) -> str:
    """Who is best in most metrics; of equals, who has the least regret in all."""
    far = {
        name: [share for metric in metrics if (share := _far(row, metric)) is not None] for name, row in rows.items()
    }
    wins = {name: sum(share < EQUAL for share in shares) for name, shares in far.items()}
    if all(count == len(metrics) for count in wins.values()):
        return "Every strategy does equally well"
    best = min(rows, key=lambda name: (-wins[name], sum(far[name])))
    return f"Most often best: {words(best)}, in {wins[best]} of {len(metrics)} metrics"


def _regret(row: Mapping[str, Any], name: str) -> str:
    """In percent; in seconds where the best found is 0."""
    share, value = row.get(name), row.get(_SHOWN[name][0])
    if share is None:
        return "N/A" if value is None else f"+{value:.2g} s"
    return _percent(share) if share < FULL_COLOUR else f"{100 * share:,.0f} %"


def _far(row: Mapping[str, Any], name: str) -> float | None:
    """The regret. Where the best found is 0, the seconds over it count as such; None where there is no value."""
    share = row.get(name)
    return share if share is not None else row.get(_SHOWN[name][0])


def _tone(row: Mapping[str, Any], name: str) -> float | None:
    """Where in TONES."""
    far = _far(row, name)
    return -FULL_COLOUR if far is None else number(min(far, FULL_COLOUR), 3)


def _narrow(name: str) -> str:
    """A word a line: on a telephone long names would leave no room for what is drawn."""
    return words(name).replace(" ", "<br>")


def strategy_energy(rows: Rows, provenance: str) -> Figure | None:
    """Energy of the whole machine from the first submission to the last end; None where no device tells its power."""
    energy = {name: float(row["energy_j"]) for name, row in rows.items() if row["energy_j"] is not None}
    if not energy:
        return None
    least, most = min(energy, key=lambda n: energy[n]), max(energy, key=lambda n: energy[n])
    told = "Every strategy needs the same energy"
    if energy[least] and energy[most] / energy[least] - 1 >= EQUAL:
        told = f"{words(least)} needs least energy; {words(most)} {_percent(energy[most] / energy[least] - 1)} more"
    names = list(energy)
    bars = {
        "type": "bar",
        "name": "energy",
        "x": [_narrow(name) for name in names],
        "y": numbers((value / 1000 for value in energy.values()), 4),
        "marker": {"color": [series_colour(name, at) for at, name in enumerate(names)], "line": {"width": 0}},
        "text": [f"{value / 1000:.3g} kJ" for value in energy.values()],
        "textposition": "outside",
        "cliponaxis": False,
        "hovertemplate": "%{x}: %{y:.4g} kJ<extra></extra>",
    }
    return figure(
        [bars],
        told,
        f"Power over the whole run, all devices, idle ones too; {source(provenance)}",
        axis("", showgrid=False),
        axis("energy (kJ)", rangemode="tozero"),
        height=340,
        key="strategy_energy",
        bargap=0.45,
    )


def named(made: Figure, name: str) -> Figure:
    """The figure of one strategy's run, which its title names first."""
    title = made["layout"]["title"]
    title["text"] = f"{words(name)}: {title['text']}"
    return made
