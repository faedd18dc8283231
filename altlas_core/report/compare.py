"""The page of `altlas compare`: two runs side by side. It needs nothing but the files beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

from altlas_core.errors import ConfigError
from altlas_core.report import folder, pages
from altlas_core.report.cells import DEFAULT_FIGURE_HEIGHT_PX, figure_json
from altlas_core.report.changes import MetricChange
from altlas_core.report.comparison import Comparison, ScenarioTurn
from altlas_core.report.finished import FinishedRun
from altlas_core.report.overlay import Figure, FigurePair, pair_figures, title_of
from altlas_core.report.sanitize import clean_html

OWN_STYLE: Final = "compare.css"
COMPARISONS: Final = Path("comparisons")
MOST_METRICS: Final = 20  # of a scenario, before they are folded
MOST_TOLD: Final = 3  # metrics that got better, and worse, in what to know
_TAG: Final = re.compile(r"<[^>]*>")


@dataclass(slots=True, frozen=True)
class Plot:
    """One drawing. `letter`: whose it is, "" for both. `caption` is HTML, `data` the JSON for plotly.js."""

    letter: str
    caption: str
    label: str
    data: str
    height: int


@dataclass(slots=True, frozen=True)
class FigureView:
    """What the page says of a pair of figures: `plots`, or none where both are the same."""

    title: str
    plots: Sequence[Plot]


@dataclass(slots=True, frozen=True)
class ScenarioView:
    """A scenario on the page."""

    turn: ScenarioTurn
    figures: Sequence[FigureView]

    @property
    def shown(self) -> Sequence[MetricChange]:
        return self.turn.changed[:MOST_METRICS]

    @property
    def folded(self) -> Sequence[MetricChange]:
        return self.turn.changed[MOST_METRICS:]

    @property
    def same_figures(self) -> list[str]:
        return [figure.title for figure in self.figures if not figure.plots]

    @property
    def drawn_figures(self) -> list[FigureView]:
        return [figure for figure in self.figures if figure.plots]


def default_folder(comparison: Comparison) -> Path:
    """Below the working directory: the reports folder holds nothing but runs."""
    return COMPARISONS / f"{comparison.before.run_id}--{comparison.after.run_id}"


def write_page(comparison: Comparison, out: Path) -> Path:
    """Write out/index.html and out/assets/. Raises ConfigError where that cannot be, or a run's folder is meant."""
    if (out / folder.RESULTS).exists():
        raise ConfigError(f"--out {out}: is a run's folder, which stays as it is; give another one")
    try:
        (out / "assets").mkdir(parents=True, exist_ok=True)
        folder.copy_assets(out, [OWN_STYLE])
        folder.write_text(out / "index.html", comparison_page(comparison, out))
    except OSError as error:
        raise ConfigError(
            f"The folder {out} cannot be written: {error.strerror or error}. Choose another one with --out DIR."
        ) from error
    return out / "index.html"


def comparison_page(comparison: Comparison, out: Path) -> str:
    """The page, whose links to the runs are relative to `out`."""
    views = [_scenario(comparison, turn) for turn in comparison.scenarios]
    links = [_link(run, out) for run in (comparison.before, comparison.after)]
    told = {judgement: _told(comparison, judgement) for judgement in ("worse", "better")}
    return pages.comparison_page(comparison=comparison, views=views, links=links, told=told)


def _scenario(comparison: Comparison, turn: ScenarioTurn) -> ScenarioView:
    before, after = (run.figures(turn.name) for run in (comparison.before, comparison.after))
    pairs = pair_figures(before, after, turn.name)
    return ScenarioView(turn, [_figure(pair) for pair in pairs])


def _figure(pair: FigurePair) -> FigureView:
    shown = pair.after or pair.before or {}
    both = pair.before is not None and pair.after is not None
    plots = []
    for letter, figure in pair.plots:
        caption = _caption(letter, figure, both) if letter else _captions(pair)
        layout = {name: value for name, value in figure["layout"].items() if name not in ("title", "width")}
        height = layout.get("height")
        plots.append(
            Plot(
                letter,
                caption,
                " ".join(_TAG.sub(" ", title_of(figure)[0]).split()) or "Figure",
                figure_json({"data": figure["data"], "layout": layout}),
                int(height) if isinstance(height, int | float) else DEFAULT_FIGURE_HEIGHT_PX,
            )
        )
    return FigureView(_TAG.sub(" ", title_of(shown)[0]), plots)


def _captions(pair: FigurePair) -> str:
    """What each found, and once where both found the same."""
    assert pair.before is not None
    assert pair.after is not None
    before, after = title_of(pair.before), title_of(pair.after)
    titles = clean_html(before[0])
    if before[0] != after[0]:
        titles = _lettered("A", before[0]) + _lettered("B", after[0])
    alike = before[1] == after[1]
    return f"{titles} {_subtitle(after[1] if alike else f'A: {before[1]}. B: {after[1]}')}"


def _caption(letter: str, figure: Figure, both: bool) -> str:
    title, subtitle = title_of(figure)
    only = "" if both else f"only in {letter}; "
    return f"{_lettered(letter, title)}{_subtitle(only + subtitle)}"


def _lettered(letter: str, title: str) -> str:
    text = clean_html(title.replace("<br>", " "))
    return f'<span class="whose"><b class="letter">{escape(letter)}</b> <span>{text}</span></span>'


def _subtitle(text: str) -> str:
    return f'<span class="subtitle">{clean_html(text)}</span>' if text else ""


def _told(comparison: Comparison, judgement: str) -> list[tuple[str, MetricChange]]:
    """The metrics that changed most for the better, or the worse, with their scenario: first those of which it is
    sure, then those that are of a whole scenario; none that stayed within the spread."""
    found = [
        (turn.name, change)
        for turn in comparison.scenarios
        for change in turn.changed
        if change.judgement == judgement and change.certainty != "within"
    ]
    return sorted(found, key=lambda one: (not one[1].matters, one[1].name.count("."), -one[1].size))[:MOST_TOLD]


def _link(run: FinishedRun, out: Path) -> str:
    """To the run's own page, from the comparison."""
    return Path(os.path.relpath(run.folder, out.resolve())).as_posix()
