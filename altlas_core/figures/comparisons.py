"""Comparisons: strategies, models, numbers of GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from altlas_core.backends.topology import link_between
from altlas_core.figures.style import (
    GREEN,
    GREY,
    MANY_GPUS,
    PALETTE,
    PERCENTILES,
    Figure,
    axis,
    figure,
    number,
    numbers,
    plural,
    series_colour,
    source,
    words,
)


def balance(counts: Mapping[str, Sequence[int]], provenance: str) -> Figure:
    """Tasks per GPU under each strategy; `counts` by strategy, one number per GPU. Many GPUs: sorted shares."""
    gpus = len(next(iter(counts.values())))
    used = {name: sum(count > 0 for count in own) for name, own in counts.items()}
    widest, narrowest = max(used, key=lambda name: used[name]), min(used, key=lambda name: used[name])
    finding = f"{words(narrowest)} used {plural(used[narrowest], 'GPU')}, {words(widest)} {used[widest]:,} of {gpus:,}"
    traces = []
    for position, (name, own) in enumerate(counts.items()):
        colour = series_colour(name, position)
        if gpus > MANY_GPUS:
            ranked = sorted(own, reverse=True)
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": words(name),
                    "x": list(range(1, gpus + 1)),
                    "y": ranked,
                    "line": {"color": colour, "width": 2, "shape": "hv"},
                    "hovertemplate": f"{words(name)}: rank %{{x}}, %{{y}} tasks<extra></extra>",
                }
            )
        else:
            traces.append(
                {
                    "type": "bar",
                    "name": words(name),
                    "x": [f"GPU {gpu_id}" for gpu_id in range(gpus)],
                    "y": list(own),
                    "marker": {"color": colour, "line": {"width": 0}},
                    "hovertemplate": f"{words(name)}: %{{y}} tasks on %{{x}}<extra></extra>",
                }
            )
    title = "GPUs from the fullest to the emptiest" if gpus > MANY_GPUS else ""
    return figure(
        traces,
        finding + (" (GPUs ranked)" if gpus > MANY_GPUS else ""),
        f"Tasks per GPU by strategy; {source(provenance)}",
        axis(title, showgrid=False),
        axis("tasks", rangemode="tozero"),
        key="balance",
        barmode="group",
        bargap=0.25,
    )


def makespans(measured: Mapping[str, float], bounds: Mapping[str, float], provenance: str) -> Figure:
    """Makespan of each strategy, beside that of a list scheduler where `bounds` has it; both in seconds."""
    names = list(measured)
    best, worst = min(names, key=lambda n: measured[n]), max(names, key=lambda n: measured[n])
    if measured[best] == measured[worst]:
        finding = f"Every strategy needed {measured[best]:.4g} s"
    else:
        finding = f"{words(worst)} needed {measured[worst]:.4g} s, {words(best)} {measured[best]:.4g} s"
    same = bool(bounds) and all(measured[name] == bounds[name] for name in names)
    finding += ", exactly as list scheduling does" if same else ""
    labels = [words(name) for name in names]
    bars = {
        "type": "bar",
        "name": "makespan",
        "x": labels,
        "y": numbers(measured.values()),
        "marker": {"color": [series_colour(name, i) for i, name in enumerate(names)], "line": {"width": 0}},
        "text": [f"{measured[name]:.4g} s" for name in names],
        "textposition": "outside",
        "cliponaxis": False,
        "hovertemplate": "%{x}: %{y:.5~g} s<extra></extra>",
    }
    marks = {
        "type": "scatter",
        "mode": "markers",
        "name": "list scheduling",
        "x": labels,
        "y": numbers(bounds.get(name) for name in names),
        "marker": {"symbol": "line-ew", "size": 34, "line": {"width": 3, "color": GREY}, "color": GREY},
        "hovertemplate": "list scheduling: %{y:.5~g} s<extra></extra>",
    }
    return figure(
        [bars, marks] if bounds else [bars],
        finding,
        f"Time until the last task ends; {source(provenance)}",
        axis("", showgrid=False),
        axis("makespan (s)", rangemode="tozero"),
        height=340,
        key="makespans",
        bargap=0.45,
    )


def throughput(tflops: Mapping[str, Mapping[str, float]], peak_tflops: float | None, provenance: str) -> Figure:
    """TFLOP/s of each model (outer) under each load (inner)."""
    loads = list(dict.fromkeys(load for own in tflops.values() for load in own))
    models = list(tflops)
    best = max(((rate, model, load) for model, own in tflops.items() for load, rate in own.items()))
    finding = f"Most work per second: {best[0]:.4g} TFLOP/s, {words(best[1])} under {words(best[2])}"
    if peak_tflops:
        finding += f", {100 * best[0] / peak_tflops:.3g} % of the machine's FP32 peak"
    traces = [
        {
            "type": "bar",
            "name": words(load),
            "x": [words(model) for model in models],
            "y": numbers((tflops[model].get(load) for model in models), 4),
            "marker": {"color": GREY if load == "alone" else series_colour(load, position), "line": {"width": 0}},
            "hovertemplate": f"{words(load)}, %{{x}}<br>%{{y:.4~g}} TFLOP/s<extra></extra>",
        }
        for position, load in enumerate(loads)
    ]
    return figure(
        traces,
        finding,
        f"FP32 arithmetic per second by model and load; {source(provenance)}",
        axis("", showgrid=False),
        axis("TFLOP/s", rangemode="tozero"),
        key="throughput",
        barmode="group",
        bargap=0.25,
    )


def scaling(speedups: Mapping[str, Mapping[int, float]], provenance: str) -> Figure:
    """Speedup of the same work over numbers of GPUs, by model; the dashed line is the ideal."""
    counts = sorted({count for own in speedups.values() for count in own})
    most = counts[-1]
    lowest = min(own[most] / most for own in speedups.values())
    finding = (
        f"The same work on {most} GPUs: {lowest * most:.3g} times as fast, {100 * lowest:.3g} % efficiency"
        if most > 1
        else "One GPU: nothing to scale over"
    )
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "ideal",
            "x": counts,
            "y": counts,
            "line": {"color": GREY, "width": 1.5, "dash": "dash"},
            "hoverinfo": "skip",
        }
    ]
    curves: dict[tuple[Any, ...], list[str]] = {}
    for model, own in speedups.items():
        curves.setdefault(tuple(number(own[count], 4) for count in counts), []).append(model)
    for position, (points, models) in enumerate(curves.items()):
        label = ", ".join(words(model) for model in models)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers+text",
                "name": label,
                "x": counts,
                "y": list(points),
                "text": [f"{100 * p / n:.4g} %" if n > 1 else "" for p, n in zip(points, counts, strict=True)],
                "textposition": "top left" if not position else "bottom right",
                "cliponaxis": False,
                "customdata": [number(100 * point / count, 4) for point, count in zip(points, counts, strict=True)],
                "line": {"color": PALETTE[position % len(PALETTE)], "width": 2.5},
                "marker": {"size": 9},
                "hovertemplate": f"{label} on %{{x}} GPUs<br>%{{y:.4~g}} times as fast<br>"
                "efficiency %{customdata} %<extra></extra>",
            }
        )
    return figure(
        traces,
        finding,
        f"Speedup over one GPU, and efficiency (strong scaling); {source(provenance)}",
        axis("GPUs", type="log", tickvals=counts, range=_log_range(counts)),
        axis("speedup", type="log", tickvals=counts, range=_log_range(counts)),
        key="scaling",
        showlegend=True,
    )


def _log_range(counts: Sequence[int]) -> list[float]:
    from math import log10

    return [-0.06, round(log10(counts[-1]) + 0.08, 4)]


def iteration_times(percentiles_ms: Mapping[str, Mapping[int, float | None]], how: str, provenance: str) -> Figure:
    """p50, p95, p99 of an iteration in milliseconds, by model. `how` says what they are percentiles of."""
    traces: list[dict[str, Any]] = []
    models = [words(model) for model in percentiles_ms]
    for percent, (colour, _) in PERCENTILES.items():
        values = [own[percent] for own in percentiles_ms.values()]
        traces.append(
            {
                "type": "bar",
                "name": f"p{percent}",
                "x": models,
                "y": numbers(values, 4),
                "marker": {"color": colour, "line": {"width": 0}},
                "text": ["" if value is None else f"{value:.3g}" for value in values],
                "textposition": "outside",
                "cliponaxis": False,
                "hovertemplate": f"%{{x}}: p{percent} %{{y:.4~g}} ms<extra></extra>",
            }
        )
    known = [(own[50], model) for model, own in percentiles_ms.items() if own[50] is not None]
    slowest = max(known, default=None)
    finding = "No iteration was timed"
    if slowest is not None:
        finding = f"One iteration of {words(slowest[1])} takes {slowest[0]:.4g} ms when alone (median)"
    return figure(
        traces,
        finding,
        f"{how}; {source(provenance)}",
        axis("", showgrid=False),
        axis("time per iteration (ms)", type="log", dtick=1, tickformat="~g", range=_decades(percentiles_ms)),
        height=340,
        key="iteration_times",
        barmode="group",
        bargap=0.35,
    )


def _decades(percentiles_ms: Mapping[str, Mapping[int, float | None]]) -> list[int]:
    """Whole powers of ten around all values, one more below so that the smallest bar can be seen."""
    from math import ceil, floor, log10

    values = [value for own in percentiles_ms.values() for value in own.values() if value]
    return [floor(log10(min(values))) - 1, ceil(log10(max(values)) + 0.2)] if values else [-3, 0]


def links(topology: Mapping[str, Any], gpus: int) -> Figure:
    """How each pair of GPUs meets, for the first MANY_GPUS of them."""
    shown = min(gpus, MANY_GPUS)
    names = [f"GPU {gpu_id}" for gpu_id in range(shown)]
    kinds = [[link_between(dict(topology), row, column) for column in range(shown)] for row in range(shown)]
    levels = {"same": None, "PCIe": 0, "NVLink": 1}
    pairs = shown * (shown - 1) // 2
    linked = sum(kind == "NVLink" for row in kinds for kind in row) // 2
    finding = f"{linked} of {plural(pairs, 'pair')} of GPUs are joined by NVLink, the rest by PCIe"
    if pairs and linked == pairs:
        finding = f"All {plural(pairs, 'pair')} of GPUs are joined by NVLink"
    elif not linked:
        finding = f"All {plural(pairs, 'pair')} of GPUs meet over PCIe" if pairs else "One GPU: no links"
    if gpus > shown:
        finding += f" (first {shown} of {gpus:,} GPUs)"
    heat = {
        "type": "heatmap",
        "x": names,
        "y": names,
        "z": [[levels[kind] for kind in row] for row in kinds],
        "text": kinds,
        "xgap": 2,
        "ygap": 2,
        "zmin": 0,
        "zmax": 1,
        "showscale": False,
        "colorscale": [[0, GREY + "66"], [1, GREEN]],
        "hovertemplate": "%{x} and %{y}: %{text}<extra></extra>",
    }
    keys = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [None],
            "y": [None],
            "name": name,
            "marker": {"symbol": "square", "size": 12, "color": colour},
        }
        for name, colour in (("NVLink", GREEN), ("PCIe", GREY + "66"))
    ]
    return figure(
        [heat, *keys],
        finding,
        "Links between GPUs; assumed from the models, not measured",
        axis("", showgrid=False, zeroline=False, type="category"),
        axis("", showgrid=False, zeroline=False, type="category", autorange="reversed"),
        height=170 + 26 * shown,
        key="links",
        showlegend=True,
    )
