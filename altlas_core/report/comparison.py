"""Two runs side by side: what differs between them, what became of their checks and metrics, and a verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

from altlas_core.report.changes import MetricChange, metric_changes
from altlas_core.report.differing import Differing, about_chance, differences, repeats_to_the_bit, warnings_of
from altlas_core.report.files import RAN_TO_ITS_END
from altlas_core.report.finished import BROKE, FinishedRun

Turn = Literal["lost", "gained", "fails", "holds", "only in A", "only in B"]
Verdict = Literal["worse", "better", "changed", "same"]

TURNS: Final = {  # what became of a check, in the order in which it matters
    "lost": "held, fails now",
    "fails": "fails in both",
    "gained": "failed, holds now",
    "only in A": "only in A",
    "only in B": "only in B",
    "holds": "holds in both",
}


@dataclass(slots=True, frozen=True)
class CheckTurn:
    """One check in both runs: as results.json has it, None where a run lacks it."""

    name: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None

    @property
    def turn(self) -> Turn:
        if self.before is None or self.after is None:
            return "only in B" if self.before is None else "only in A"
        if self.before["passed"] == self.after["passed"]:
            return "holds" if self.after["passed"] else "fails"
        return "gained" if self.after["passed"] else "lost"

    @property
    def text(self) -> str:
        return TURNS[self.turn]


@dataclass(frozen=True)
class ScenarioTurn:
    """A scenario that both runs have; each status is passed, failed or broke."""

    name: str
    before: str
    after: str
    checks: Sequence[CheckTurn]
    metrics: Sequence[MetricChange]

    def turned(self, *turns: Turn) -> list[CheckTurn]:
        return [check for check in self.checks if check.turn in turns]

    @cached_property
    def differing(self) -> list[CheckTurn]:
        return [check for check in self.checks if check.turn != "holds"]

    @cached_property
    def changed(self) -> list[MetricChange]:
        return [change for change in self.metrics if change.certainty != "same"]

    def that_matter(self, judgement: str) -> list[MetricChange]:
        return [change for change in self.changed if change.matters and change.judgement == judgement]

    @property
    def lost(self) -> int:
        """Checks that held and do not hold any more; to break is one, too."""
        return len(self.turned("lost")) + (self.after == BROKE != self.before)

    @property
    def gained(self) -> int:
        return len(self.turned("gained")) + (self.before == BROKE != self.after)


@dataclass(frozen=True)
class Comparison:
    """`before` is called A, `after` B. `differing` holds what differs between the runs themselves."""

    before: FinishedRun
    after: FinishedRun
    differing: Sequence[Differing]
    warnings: Sequence[str]
    scenarios: Sequence[ScenarioTurn]

    @property
    def lost(self) -> int:
        return sum(scenario.lost for scenario in self.scenarios)

    @property
    def gained(self) -> int:
        return sum(scenario.gained for scenario in self.scenarios)

    @property
    def checks(self) -> int:
        return sum(len(scenario.checks) for scenario in self.scenarios)

    @cached_property
    def metrics(self) -> Counter[str]:
        """How many are "better" or "worse" by more than chance, "within" the spread, of "unknown" spread, "same"."""
        every = [change for scenario in self.scenarios for change in scenario.metrics]
        return Counter(change.judgement if change.matters else str(change.certainty) for change in every)

    @property
    def verdict(self) -> Verdict:
        if self.lost or self.gained:
            return "worse" if self.lost else "better"
        moved = any(change.certainty != "within" for scenario in self.scenarios for change in scenario.changed)
        turned = any(scenario.turned("only in A", "only in B") for scenario in self.scenarios)
        return "changed" if moved or turned else "same"

    @property
    def exit_status(self) -> int:
        """1 where a check that held in A does not hold in B."""
        return 1 if self.lost else 0

    @property
    def checks_text(self) -> str:
        if not self.lost and not self.gained:
            failing = sum(len(scenario.turned("fails")) for scenario in self.scenarios)
            if failing:
                return f"{_count(failing, 'check')} {_verb(failing, 'fail')} in both runs, no other fails in B"
            return f"no check that held in A fails in B ({_count(self.checks, 'check')} compared)"
        told = []
        if self.lost:
            told.append(f"{_count(self.lost, 'check')} held in A and {_verb(self.lost, 'fail')} in B")
        if self.gained:
            told.append(f"{_count(self.gained, 'check')} failed in A and {_verb(self.gained, 'hold')} in B")
        return ", ".join(told)

    @property
    def metrics_text(self) -> str:
        """How many metrics changed and how, in one clause."""
        words = {
            "worse": "worse",
            "better": "better",
            "exact": "changed, neither better nor worse",
            "beyond": "changed beyond the spread, neither better nor worse",
            "within": "changed within the spread",
            "unknown": "changed (by chance or not is unknown)",
        }
        told = [f"{self.metrics[name]:,} {text}" for name, text in words.items() if self.metrics[name]]
        every = sum(self.metrics.values())
        if not told:
            return f"all {_count(every, 'metric')} are the same" if every else "no metric to compare"
        return f"of {_count(every, 'metric')}, {', '.join(told)}"

    @property
    def text(self) -> str:
        """The verdict in one line."""
        return f"{self.checks_text}; {self.metrics_text}"

    def to_json(self) -> dict[str, Any]:
        """For programs. `beyond_spread` is null where the spread is unknown."""
        return {
            "before": {"run_id": self.before.run_id, "folder": str(self.before.folder)},
            "after": {"run_id": self.after.run_id, "folder": str(self.after.folder)},
            "verdict": self.verdict,
            "text": self.text,
            "checks_lost": self.lost,
            "checks_gained": self.gained,
            "warnings": list(self.warnings),
            "differences": [{"name": own.name, "before": own.before, "after": own.after} for own in self.differing],
            "scenarios": {scenario.name: _scenario_json(scenario) for scenario in self.scenarios},
        }


def compare_runs(before: FinishedRun, after: FinishedRun) -> Comparison:
    """What changed from `before` to `after`."""
    both = [name for name in before.scenarios if name in after.scenarios]
    turns = [
        ScenarioTurn(
            name,
            before.status(name) or "",
            after.status(name) or "",
            _checks(before.scenarios[name]["checks"], after.scenarios[name]["checks"]),
            metric_changes(before.scenarios[name], after.scenarios[name], repeats_to_the_bit(before, after, name)),
        )
        for name in both
    ]
    moved = any(turn.changed for turn in turns)
    warnings = warnings_of(before, after, both) + (about_chance(before, after, both) if moved else [])
    return Comparison(before, after, differences(before, after), warnings, turns)


def _checks(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[CheckTurn]:
    """What matters first. That a notebook broke is told by its status."""
    own = [{check["name"]: check for check in checks if check["name"] != RAN_TO_ITS_END} for checks in (before, after)]
    found = [CheckTurn(name, own[0].get(name), own[1].get(name)) for name in dict.fromkeys([*own[0], *own[1]])]
    return sorted(found, key=lambda check: list(TURNS).index(check.turn))


def _scenario_json(scenario: ScenarioTurn) -> dict[str, Any]:
    beyond = {"beyond": True, "exact": True, "within": False, "same": False}
    return {
        "before": scenario.before,
        "after": scenario.after,
        "checks": [
            {"name": check.name, "before": _held(check.before), "after": _held(check.after)}
            for check in scenario.checks
        ],
        "metrics": {
            change.name: {
                "before": change.before,
                "after": change.after,
                "change": change.difference and change.difference.absolute,
                "percent": change.difference and change.difference.percent,
                "beyond_spread": beyond.get(change.certainty),
                "certainty": change.certainty,
                "judgement": change.judgement or None,
            }
            for change in scenario.metrics
        },
    }


def _held(check: Mapping[str, Any] | None) -> bool | None:
    return None if check is None else bool(check["passed"])


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _verb(count: int, verb: str) -> str:
    return f"{verb}s" if count == 1 else verb
