"""Draws the pages of a run from its data. Pages need nothing but the files beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from altlas_core.report import numbers
from altlas_core.report.cells import Story
from altlas_core.report.outcome import ScenarioOutcome

if TYPE_CHECKING:
    from jinja2 import Environment

PROVENANCE_TEXT: Final = {
    "simulated": "Simulated: times, memory, temperature and power come from the GPU model, not from hardware.",
    "measured": "Measured: times and readings come from the devices named here.",
    "mixed": "Measured and simulated: what real devices did is measured, what simulated GPUs did comes from the GPU "
    "model. Sums and means over all GPUs are of both.",
}
VERDICTS: Final = {"passed": "Passed", "failed": "Failed", "broke": "Broke", "waiting": "Running"}
KEY_METRICS: Final = 4


@dataclass(slots=True)
class RunView:
    """What the pages say of the whole run. `facts` and `settings` are label and value."""

    run_id: str
    started: datetime
    seed: int
    backend: str
    provenance: str
    devices: Sequence[str]
    facts: Sequence[tuple[str, str]]
    settings: Sequence[tuple[str, str]]
    command: str
    time_scale: float
    pace: float
    outcomes: Sequence[ScenarioOutcome]
    titles: dict[str, str] = field(default_factory=dict)
    leads: dict[str, str] = field(default_factory=dict)
    wall_s: float | None = None

    @property
    def status(self) -> str:
        """The worst of the scenarios; "waiting" while one has not ended."""
        present = {outcome.status for outcome in self.outcomes}
        return next(status for status in ("waiting", "broke", "failed", "passed") if status in present)

    @property
    def checks(self) -> int:
        return sum(len(outcome.checks) for outcome in self.outcomes)

    @property
    def checks_passed(self) -> int:
        return sum(outcome.passed_count for outcome in self.outcomes)

    @property
    def broken(self) -> Sequence[ScenarioOutcome]:
        return [outcome for outcome in self.outcomes if outcome.status == "broke"]

    @property
    def clock_note(self) -> str:
        """How the run's seconds relate to real ones, in a sentence; empty where they are the same."""
        if self.provenance == "simulated":
            if self.pace == 0:
                return "Virtual time: waiting costs nothing."
            return f"Played at pace {self.pace:g}: {self.pace:g} simulated seconds per real second."
        if self.time_scale != 1:
            return f"Time scale {self.time_scale:g}: every duration and timeout was multiplied by {self.time_scale:g}."
        return ""


def index_page(run: RunView) -> str:
    """index.html: verdict first, then the scenarios, then what the run ran on."""
    return _render("index.html", run=run)


def scenario_page(run: RunView, outcome: ScenarioOutcome, story: Story, command: str) -> str:
    """One scenario: verdict, failures, figures and tables of its notebook, and how to repeat it."""
    return _render(
        "scenario.html",
        run=run,
        outcome=outcome,
        story=story,
        command=command,
        metrics=numbers.metric_rows(_single(_telling_first(outcome))),
        detailed_metrics=numbers.metric_rows(
            {name: value for name, value in outcome.metrics.items() if name not in _single(outcome.metrics)}
        ),
        parameters=[(name, numbers.value_text(value)) for name, value in outcome.parameters.items()],
    )


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("altlas_core.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"humanize": numbers.humanize, "duration": numbers.duration, "number": numbers.number}
    environment.globals |= {
        "VERDICTS": VERDICTS,
        "PROVENANCE_TEXT": PROVENANCE_TEXT,
        "key_metrics": key_metrics,
        "plural": lambda count, noun: f"{count} {noun}" if count == 1 else f"{count} {noun}s",
    }
    return environment


def key_metrics(outcome: ScenarioOutcome) -> list[tuple[str, str]]:
    """The few figures that stand for a scenario on the index: those it named itself, else its first single ones."""
    return numbers.metric_rows(_single(_telling_first(outcome)))[:KEY_METRICS]


def _single(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that are one value each; the others are tables of their own."""
    return {name: value for name, value in metrics.items() if not isinstance(value, Mapping | list | tuple)}


def _telling_first(outcome: ScenarioOutcome) -> dict[str, Any]:
    """The metrics with the key ones in front (a saved notebook has sorted them by name)."""
    first = {name: outcome.metrics[name] for name in outcome.key_metrics}
    return first | outcome.metrics
