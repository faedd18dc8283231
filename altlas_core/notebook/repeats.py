"""How a notebook shows what several runs of its scenario say together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from altlas_core.figures.repeats import UTILIZATION, WAITING, Curve, Curves, Kind, band, certainty, curves, over_time
from altlas_core.notebook.display import MOST_ROWS, display, show, show_table
from altlas_core.scenarios.common import ScenarioResult
from altlas_core.scenarios.repeats import Repeats

MOST_BANDS: Final = 2  # of each kind: those in which the runs differ most
SAME: Final = 1e-6  # curves that differ by less are the same

Seen = dict[str, Curves]  # by the label of the run inside the scenario


def observe(result: ScenarioResult) -> Seen:
    """What is kept of a run to draw bands of."""
    return {label: curves(run) for label, run in result.runs.items()}


def which_runs(repeats: Repeats[Seen]) -> str:
    """ "5 runs (seeds 42 to 46)", "5 runs (seed 42, warm-up left out)"."""
    return f"{repeats.count} runs ({repeats.which}{', warm-up left out' if repeats.warm_up else ''})"


def show_repeats(repeats: Repeats[Seen], result: ScenarioResult) -> None:
    """Show the metrics that vary as table and figure, those that do not in a line, and bands over time."""
    display(
        {
            "text/markdown": f"## Over {which_runs(repeats)}\n\n{_introduction(repeats)}",
            "text/plain": f"Over {which_runs(repeats)}: {_introduction(repeats)}",
        }
    )
    varying = repeats.varying()
    if varying:
        _show_metrics(repeats, varying, result.provenance)
    _show_bands(repeats, WAITING, result)
    _show_bands(repeats, UTILIZATION, result)


def _introduction(repeats: Repeats[Seen]) -> str:
    every, constant = len(repeats.metrics), len(repeats.metrics) - len(repeats.varying())
    told = f"{constant:,} of {every:,} metrics are the same in all of them."
    if constant == every:
        seeded = "" if repeats.seeds is None else ": chance changed nothing that they measure"
        told = f"All {every:,} metrics are the same in all of them{seeded}."
    return f"{repeats.warm_up_text} What is above is the first of them ({repeats.runs[0].label}). {told}"


def _show_metrics(repeats: Repeats[Seen], names: Sequence[str], provenance: str) -> None:
    import pandas as pd

    summaries = [repeats.metrics[name] for name in names]
    columns = {
        "metric": list(names),
        "mean": [own.mean for own in summaries],
        "± (95 % interval)": [own.half_width for own in summaries],
        "standard deviation": [own.stdev for own in summaries],
        "min": [own.min for own in summaries],
        "max": [own.max for own in summaries],
    }
    if any(own.n < repeats.count for own in summaries):
        columns["runs with a value"] = [own.n for own in summaries]
    show_table(pd.DataFrame(columns))
    if len(names) > MOST_ROWS:
        display({"text/plain": "All of them are in results.json, under repeats."})
    rows = [(name, repeats.values(name), repeats.metrics[name]) for name in names]
    drawn = certainty(rows, which_runs(repeats), provenance)
    if drawn is not None:
        show(drawn)


def _show_bands(repeats: Repeats[Seen], kind: Kind, result: ScenarioResult) -> None:
    """The parts in which the runs differ most; in a line, how many others differ or do not."""
    own = {label: _of(repeats, kind, label) for label in repeats.runs[0].seen}
    widest = {label: band(parts).widest for label, parts in own.items()}
    differ = sorted((label for label in own if widest[label] > SAME), key=lambda label: -widest[label])
    for label in differ[:MOST_BANDS]:
        phases = [(phase.begin_s, phase.label) for phase in result.phases.get(label, ())]
        show(over_time(label, kind, own[label], which_runs(repeats), result.provenance, phases))
    same = [label for label in own if label not in differ]
    told = []
    if same:
        of = f" of {', '.join(same)}" if differ else ""
        told.append(f"the same in all {repeats.count} runs{of}")
    if differ[MOST_BANDS:]:
        told.append(f"not drawn, as runs differ less there: {', '.join(differ[MOST_BANDS:])}")
    if told:
        display({"text/plain": f"{kind.what.capitalize()} over time: {'; '.join(told)}"})


def _of(repeats: Repeats[Seen], kind: Kind, label: str) -> list[Curve]:
    seen = [run.seen[label] for run in repeats.runs if label in run.seen]
    return [own.waiting if kind is WAITING else own.utilization for own in seen]
