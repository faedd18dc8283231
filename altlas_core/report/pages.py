"""Draws the pages of a run from its data. Pages need nothing but the files beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from altlas_core.figures.style import OUTCOMES
from altlas_core.report import numbers
from altlas_core.report.cells import Link, Story
from altlas_core.report.files import scenario_json
from altlas_core.report.history import EarlierRun, earlier_run, trends
from altlas_core.report.outcome import ScenarioOutcome
from altlas_core.scenarios import SCENARIOS

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
MOST_FINDINGS: Final = 2  # of a scenario on the index
ALIKE: Final = 0.8  # of the words of the shorter of two findings, numbers aside: they say the same
_SUBJECT: Final = re.compile(r"^[^;,]*?: ")
_TROUBLE: Final = tuple(words for name, (_, words) in OUTCOMES.items() if name != "finished")
RECENT_RUNS: Final = 8  # of the history, before it is folded


@dataclass(slots=True)
class RunView:
    """What the pages say of the whole run. `facts` and `settings` are label and value; `history` holds earlier runs,
    newest first.
    """

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
    findings: dict[str, Sequence[Link]] = field(default_factory=dict)
    history: Sequence[EarlierRun] = ()
    wall_s: float | None = None

    def title_of(self, scenario: str) -> str:
        """Its notebook's title, once that has run."""
        return self.titles.get(scenario) or scenario_title(scenario)

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
    """index.html: verdict first, then the scenarios, then earlier runs and what the run ran on."""
    ended = [outcome for outcome in run.outcomes if outcome.status != "waiting"]
    keys = [f"{outcome.name}.{name}" for outcome in ended for name in _key_names(outcome)]
    moved, unchanged = trends([_this_run(run), *run.history], keys) if run.history else ([], 0)
    return _render("index.html", run=run, trends=moved, unchanged=unchanged)


def scenario_page(run: RunView, outcome: ScenarioOutcome, story: Story, command: str) -> str:
    """One scenario: verdict, failures, what its figures found, the figures and tables, and how to repeat it."""
    single = _single(_telling_first(outcome))
    detailed = {name: value for name, value in outcome.metrics.items() if name not in single}
    return _render(
        "scenario.html",
        run=run,
        outcome=outcome,
        story=story,
        command=command,
        metrics=numbers.tiles(single, outcome.repeats),
        detailed_metrics=numbers.tiles(detailed, outcome.repeats),
        parameters=[(name, numbers.value_text(value)) for name, value in outcome.parameters.items()],
    )


def repeats_note(repeats: Mapping[str, Any]) -> str:
    """How many runs the figures with a spread are of, and which, in a sentence or two."""
    count, warm_up, seeds = repeats["count"], repeats.get("warm_up") or 0, repeats.get("seeds")
    of = f" (seeds {seeds[0]} to {seeds[-1]})" if seeds and len(seeds) > 1 else ""
    before = f" after {warm_up} to warm up, which do not count" if warm_up else ", with no warm-up to leave out"
    return (
        f"Over {count} runs{of}{before}. a ± b is their mean and half the width of its 95 % confidence interval; "
        "without ± the number is of the first run."
    )


def _this_run(run: RunView) -> EarlierRun:
    ended = [outcome for outcome in run.outcomes if outcome.status != "waiting"]
    return earlier_run(
        {
            "run_id": run.run_id,
            "passed": run.status == "passed",
            "started_at": run.started.isoformat(),
            "backend": run.backend,
            "devices": run.devices,
            "seed": run.seed,
            "wall_s": run.wall_s or 0.0,
            "scenarios": {outcome.name: scenario_json(outcome, run.provenance) for outcome in ended},
        }
    )


def watch_page(run: RunView, address: str, path: str) -> str:
    """The live page of a run. `address`, `path`: of its index.html on disk, which stays when the server is gone."""
    return _render("watch.html", run=run, address=address, path=path)


def comparison_page(**values: Any) -> str:
    """Two runs side by side; see compare.py for what it is drawn from."""
    return _render("compare.html", **values)


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
    environment.filters |= {
        "humanize": numbers.humanize,
        "scenario_title": scenario_title,
        "duration": numbers.duration,
        "number": numbers.number,
    }
    environment.globals |= {
        "VERDICTS": VERDICTS,
        "PROVENANCE_TEXT": PROVENANCE_TEXT,
        "RECENT_RUNS": RECENT_RUNS,
        "key_metrics": key_metrics,
        "trouble_first": trouble_first,
        "most_telling": most_telling,
        "repeats_note": repeats_note,
        "plural": lambda count, noun: f"{count} {noun}" if count == 1 else f"{count} {noun}s",
    }
    return environment


def key_metrics(outcome: ScenarioOutcome) -> list[numbers.Tile]:
    """The few figures that stand for a scenario on the index: those it named itself, else its first single ones."""
    return numbers.tiles({name: outcome.metrics[name] for name in _key_names(outcome)}, outcome.repeats)


def scenario_title(name: str) -> str:
    scenario = SCENARIOS.get(name)
    return scenario.title if scenario else numbers.humanize(name)


def trouble_first(findings: Sequence[Link]) -> list[Link]:
    """Findings that tell of failures and losses before those of what went well; else as they come."""
    return sorted(findings, key=lambda finding: not any(words in finding.text for words in _TROUBLE))


def most_telling(findings: Sequence[Link]) -> list[Link]:
    """The few findings that stand for a scenario on the index: trouble first, nothing twice."""
    told: list[Link] = []
    for finding in trouble_first(findings):
        if not any(_alike(finding.text, other.text) for other in told):
            told.append(finding)
    return told[:MOST_FINDINGS]


def _alike(one: str, other: str) -> bool:
    """Whether two titles say the same but for their numbers and the subject that they name first."""
    said = (_SUBJECT.sub("", text).split() for text in (one, other))
    first, second = ({word for word in words if not word[0].isdigit()} for words in said)
    return len(first & second) >= ALIKE * min(len(first), len(second))


def _key_names(outcome: ScenarioOutcome) -> list[str]:
    return list(_single(_telling_first(outcome)))[:KEY_METRICS]


def _single(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that are one value each; the others are tables of their own."""
    return {name: value for name, value in metrics.items() if not isinstance(value, Mapping | list | tuple)}


def _telling_first(outcome: ScenarioOutcome) -> dict[str, Any]:
    """The metrics with the key ones in front (a saved notebook has sorted them by name)."""
    first = {name: outcome.metrics[name] for name in outcome.key_metrics}
    return first | outcome.metrics
