"""Figures of two runs over each other: in one plot where they share their axes, else one under the other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Final

from altlas_core.figures.style import GREY, INK, PALETTE

Figure = Mapping[str, Any]
Traces = list[dict[str, Any]]

LETTERS: Final = ("A", "B")
# Where lines of one plot have the same colour they keep their dashes in A, and in B get these.
DASH_OF_B: Final = {"solid": "dash", "dash": "longdashdot", "dot": "dashdot", "dashdot": "longdash"}
RELATIVE: Final = frozenset(("repeats.certainty",))  # figures whose zero is of one run only
MOST_LABELLED: Final = 4  # series of bars, of both runs together
_SEEN: Final = ("type", "name", "x", "y", "z", "base", "text", "error_x", "error_y")
_PLACED: Final = ("type", "text", "x", "y", "x0", "x1", "y0", "y1", "xref", "yref")  # what a shape or note says
_AXIS_MUST_MATCH: Final = ("type", "tickvals", "ticktext", "side", "overlaying")


@dataclass(slots=True)
class FigurePair:
    """A figure of both runs, or of one. `plots`: (letter, figure), "" for one of both; none where they are the same."""

    before: Figure | None
    after: Figure | None
    plots: Sequence[tuple[str, Figure]] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return self.before is not None and self.after is not None and not self.plots


def pair_figures(before: Sequence[Figure], after: Sequence[Figure], name: str) -> list[FigurePair]:
    """Match figures by what they draw (layout.meta.figure) and how often that came before; in the order of A.

    `name`: the scenario's, so that what is drawn over the time of one run in it is read together, and nothing else.
    """
    named = [dict(_named(figures)) for figures in (before, after)]
    pairs = []
    for key in dict.fromkeys([*named[0], *named[1]]):
        pair = FigurePair(named[0].get(key), named[1].get(key))
        pair.plots = _plots(pair, name)
        pairs.append(pair)
    return pairs


def title_of(figure: Figure) -> tuple[str, str]:
    """Title and subtitle."""
    title = figure.get("layout", {}).get("title") or {}
    if isinstance(title, str):
        return title, ""
    return str(title.get("text") or ""), str((title.get("subtitle") or {}).get("text") or "")


def _named(figures: Sequence[Figure]) -> Iterator[tuple[tuple[str, int], Figure]]:
    seen: dict[str, int] = {}
    for figure in figures:
        key = str((figure.get("layout", {}).get("meta") or {}).get("figure", ""))
        seen[key] = seen.get(key, 0) + 1
        yield (key, seen[key]), figure


def _plots(pair: FigurePair, name: str) -> list[tuple[str, Figure]]:
    if pair.before is None or pair.after is None:
        letter, only = ("B", pair.after) if pair.before is None else ("A", pair.before)
        return [] if only is None else [(letter, {**only, "layout": _of_run(only["layout"], name, letter)})]
    if _drawn(pair.before) == _drawn(pair.after):
        return []
    first, second = deepcopy(dict(pair.before)), deepcopy(dict(pair.after))
    _share_ranges(first["layout"], second["layout"])
    run = (first["layout"].get("meta") or {}).get("run", "")
    for letter, own in zip(LETTERS, (first, second), strict=True):
        own["layout"] = _of_run(own["layout"], name, letter, run)
    if _fit(first, second):
        return [("", _together(first, second))]
    _share_colours(first["data"], second["data"])
    return [("A", first), ("B", second)]


def _of_run(layout: Mapping[str, Any], name: str, letter: str, run: str = "") -> dict[str, Any]:
    """The layout with the name of the run whose time it shows, as the pages' script reads it."""
    meta = layout.get("meta") or {}
    return {**layout, "meta": {**meta, "run": f"{letter} {name} {run or meta.get('run', '')}"}}


def _drawn(figure: Figure) -> str:
    """What is to be seen of it, without its title and how it looks."""
    traces = [{name: trace[name] for name in _SEEN if name in trace} for trace in figure["data"]]
    notes = [_placed(note) for name in ("shapes", "annotations") for note in figure["layout"].get(name) or []]
    return json.dumps([traces, notes], sort_keys=True)


def _placed(note: Mapping[str, Any]) -> list[Any]:
    return [note.get(name) for name in _PLACED]


def _axes(layout: Mapping[str, Any]) -> list[str]:
    return [name for name in layout if name.startswith(("xaxis", "yaxis"))]


def _fit(first: Figure, second: Figure) -> bool:
    """Whether both can stand in one plot: lines, points and bars that begin at zero, on the same axes and parts."""
    if first["layout"]["meta"].get("figure") in RELATIVE:
        return False
    if any(_stands_alone(trace) for figure in (first, second) for trace in figure["data"]):
        return False
    layouts = first["layout"], second["layout"]
    if _parts_of_run(layouts[0]) != _parts_of_run(layouts[1]):
        return False
    if set(_axes(layouts[0])) != set(_axes(layouts[1])):
        return False
    return all(_axis_identity(layouts[0][name]) == _axis_identity(layouts[1][name]) for name in _axes(layouts[0]))


def _parts_of_run(layout: Mapping[str, Any]) -> list[Any]:
    """The names over the plot, each where its part of the run begins: those of two runs would stand on each other."""
    return [_placed(note) for note in layout.get("annotations") or [] if note.get("yref") == "paper"]


def _stands_alone(trace: Mapping[str, Any]) -> bool:
    kind = trace.get("type", "scatter")
    return kind not in ("scatter", "scattergl", "bar") or (kind == "bar" and "base" in trace)


def _axis_identity(axis: Mapping[str, Any]) -> list[Any]:
    title = axis.get("title")
    return [title.get("text") if isinstance(title, Mapping) else title, *(axis.get(name) for name in _AXIS_MUST_MATCH)]


def _share_ranges(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Axes with numbers for a range show what both show; where only one has them, none is set. Timelines keep their
    own lanes."""
    for name in set(_axes(first)) & set(_axes(second)):
        one, other = first[name], second[name]
        if "tickvals" in one and one.get("tickvals") != other.get("tickvals"):
            continue
        ranges = [axis.get("range") for axis in (one, other)]
        if all(isinstance(span, list) and all(isinstance(end, int | float) for end in span) for span in ranges):
            low = min(min(span) for span in ranges)
            high = max(max(span) for span in ranges)
            one["range"] = other["range"] = [low, high] if ranges[0][0] <= ranges[0][1] else [high, low]
        elif ranges != [None, None] and ranges[0] != ranges[1]:
            one.pop("range", None)
            other.pop("range", None)


def _share_colours(first: Traces, second: Traces) -> None:
    """The same colour is the same value in both of two maps."""
    for one, other in zip(first, second, strict=False):
        if all(isinstance(own.get(end), int | float) for own in (one, other) for end in ("zmin", "zmax")):
            one["zmin"] = other["zmin"] = min(one["zmin"], other["zmin"])
            one["zmax"] = other["zmax"] = max(one["zmax"], other["zmax"])


# --- in one plot ------------------------------------------------------------------------------------------------------


def _together(first: dict[str, Any], second: dict[str, Any]) -> Figure:
    colours: dict[str, str] = {}
    own = [_coloured(figure, colours) for figure in (first, second)]
    for letter, traces in zip(LETTERS, own, strict=True):
        _name(traces, letter)
    _dash(*own)
    for trace in own[1]:
        (_as_bar_of_b if trace.get("type") == "bar" else _as_line_of_b)(trace)
    traces = [trace for pair in _neighbours(*own) for trace in pair]
    layout = {**first["layout"], "showlegend": True}
    layout["height"] = max(figure["layout"].get("height", 0) for figure in (first, second)) or None
    bars = [trace for trace in traces if trace.get("type") == "bar"]
    if bars:
        _side_by_side(layout, bars)
    for name in ("shapes", "annotations"):
        layout[name] = _of_both(first["layout"].get(name) or [], second["layout"].get(name) or [])
    return {"data": traces, "layout": layout}


def _coloured(figure: Figure, colours: dict[str, str]) -> Traces:
    """The traces with every colour said, that of a series the same in both runs."""
    colourway = figure["layout"].get("template", {}).get("layout", {}).get("colorway") or PALETTE
    traces: Traces = figure["data"]
    for position, trace in enumerate(traces):
        name = str(trace.get("name", position))
        for part in _parts(trace):
            style = trace.setdefault(part, {})
            colour = style.get("color", colourway[position % len(colourway)])
            if isinstance(colour, str):
                style["color"] = colours.setdefault(f"{part} {name}", colour)
    return traces


def _parts(trace: Mapping[str, Any]) -> list[str]:
    if trace.get("type") == "bar":
        return ["marker"]
    mode = trace.get("mode", "lines")
    return [part for part, word in (("line", "lines"), ("marker", "markers")) if word in mode]


def _name(traces: Traces, letter: str) -> None:
    """Whose each is, in the legend and beside what the pointer is on."""
    shown = [trace for trace in traces if trace.get("showlegend", True) and "name" in trace]
    for trace in traces:
        name = trace.get("name")
        trace["name"] = f"{name} · {letter}" if name else letter
        trace["showlegend"] = trace in shown
        template = trace.get("hovertemplate")
        if isinstance(template, str):
            trace["hovertemplate"] = template.replace("<extra></extra>", f"<extra>{letter}</extra>")
    if not shown and traces:
        traces[0]["showlegend"] = True


def _dash(first: Traces, second: Traces) -> None:
    """Solid lines are of A, dashed ones of B, where colours alone tell the series apart."""
    lines = [[trace["line"] for trace in traces if "line" in trace and _is_line(trace)] for traces in (first, second)]
    greys = {INK: GREY}
    hues = [[greys.get(line.get("color"), line.get("color")) for line in own] for own in lines]
    by_colour = all(len(set(own)) == len(own) for own in hues)
    for line in lines[0]:
        line["dash"] = "solid" if by_colour else line.get("dash", "solid")
    for line in lines[1]:
        line["dash"] = "dash" if by_colour else DASH_OF_B.get(line.get("dash", "solid"), "dash")


def _is_line(trace: Mapping[str, Any]) -> bool:
    return trace.get("type", "scatter") != "bar" and "lines" in trace.get("mode", "lines")


def _as_line_of_b(trace: dict[str, Any]) -> None:
    """Open marks, no filling that would hide A."""
    if trace.get("fill", "none") != "none":
        trace["fill"] = "none"
    if _is_line(trace):
        trace["line"]["width"] = trace["line"].get("width", 2) or 1  # what was a filling's edge
    marker = trace.get("marker")
    if isinstance(marker, dict) and isinstance(marker.get("symbol", "circle"), str):
        symbol = str(marker.get("symbol", "circle"))
        marker["symbol"] = symbol if symbol.endswith("-open") else f"{symbol}-open"
    if "text" in trace.get("mode", ""):
        trace["mode"] = trace["mode"].replace("+text", "")


def _as_bar_of_b(trace: dict[str, Any]) -> None:
    trace["marker"]["pattern"] = {"shape": "/", "fillmode": "replace", "size": 6, "solidity": 0.45}


def _neighbours(first: Traces, second: Traces) -> list[Traces]:
    """Each series of A with that of B beside it, so that bars of one series stand together."""
    if len(first) == len(second):
        return [[one, other] for one, other in zip(first, second, strict=True)]
    return [first, second]


def _side_by_side(layout: dict[str, Any], bars: Traces) -> None:
    stacked = layout.get("barmode") in ("stack", "relative")
    if not stacked:
        layout["barmode"] = "group"
    for trace in bars:
        trace.pop("width", None)
        trace.pop("offset", None)
        if stacked:
            trace["offsetgroup"] = trace["name"][-1]
        if len(bars) > MOST_LABELLED:  # their labels would stand on each other
            trace.pop("text", None)


def _of_both(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Lines and notes of A, and those of B that are not the same; these say so."""
    there = [_placed(note) for note in first]
    added = [note for note in second if _placed(note) not in there]
    return [*first, *({**note, "text": f"{note['text']} (B)"} if "text" in note else note for note in added)]
