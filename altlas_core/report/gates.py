"""Rules of --fail-if: a metric that must not be so, judged as one more check of each scenario that has it.

    [SCENARIO:]METRIC OP NUMBER        own_workload:p99_s > 2

METRIC is a name in results.json, nested ones by their dotted path; OP one of > >= < <= == !=.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from altlas_core.errors import ConfigError, nearest
from altlas_core.report.environment import flat
from altlas_core.report.numbers import number
from altlas_core.report.outcome import CheckResult, ScenarioOutcome
from altlas_core.statistics import flat_numbers

NAMED: Final = "gate: "  # how the name of its check begins
GRAMMAR: Final = "[SCENARIO:]METRIC OP NUMBER with OP one of > >= < <= == !=, as in 'p99_s > 2'"
OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
NOTHING_TO_JUDGE: Final = (
    "There was nothing to measure: give the scenario work that leaves this figure, or make the rule about another one."
)
_OPPOSITE: Final = {">": "<=", ">=": "<", "<": ">=", "<=": ">", "==": "!=", "!=": "=="}
_RULE: Final = re.compile(r"(?:([^\s:<>=!]+):)?\s*([^\s:<>=!](?:[^:<>=!]*[^\s:<>=!])?)\s*([<>=!]+)\s*(\S+)")


@dataclass(slots=True, frozen=True)
class Gate:
    """`scenario` None: every scenario of the run that has the metric."""

    scenario: str | None
    metric: str
    op: str
    limit: float

    def __str__(self) -> str:
        """The rule as --fail-if takes it."""
        return f"{self.scenario}:{self.rule}" if self.scenario else self.rule

    @property
    def rule(self) -> str:
        return f"{self.metric} {self.op} {_text(self.limit)}"

    @property
    def wanted(self) -> str:
        return f"{self.metric} {_OPPOSITE[self.op]} {_text(self.limit)}"


def parse_gates(texts: Iterable[str], scenarios: Sequence[str]) -> tuple[Gate, ...]:
    """The rules, each once. `scenarios`: those of the run. Raises ConfigError with one line."""
    return tuple(dict.fromkeys(_parsed(text.strip(), scenarios) for text in texts))


def _parsed(text: str, scenarios: Sequence[str]) -> Gate:
    found = _RULE.fullmatch(text)
    if found is None:
        raise ConfigError(f"--fail-if '{text}': is no rule; allowed: {GRAMMAR}")
    scenario, metric, op, limit = found.groups()
    if op not in OPERATORS:
        raise ConfigError(f"--fail-if '{text}': '{op}' is no comparison; allowed: {GRAMMAR}")
    if scenario is not None and scenario not in scenarios:
        known = ", ".join(scenarios)
        raise ConfigError(
            f"--fail-if '{text}': this run has no scenario '{scenario}'; it has: {known}.{nearest(scenario, scenarios)}"
        )
    try:
        value = float(limit)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"--fail-if '{text}': '{limit}' is no number; allowed: {GRAMMAR}")
    return Gate(scenario, metric, op, value)


def judge(outcome: ScenarioOutcome, gates: Iterable[Gate]) -> None:
    """Give a scenario that ran to its end a check for each rule that is about it. One that broke has its verdict."""
    if outcome.status == "broke":
        return
    metrics = flat(outcome.metrics)
    for gate in gates:
        if gate.scenario == outcome.name or (gate.scenario is None and gate.metric in metrics):
            _add(outcome, _check(gate, outcome))


def judge_unanswered(outcomes: Sequence[ScenarioOutcome], gates: Iterable[Gate]) -> set[str]:
    """A rule about a metric that no scenario has fails the first of them. Returns the scenarios that this changed.

    Nothing where one broke: the run is no success anyway, and the metric may have been there.
    """
    if any(outcome.status not in ("passed", "failed") for outcome in outcomes):
        return set()
    answered = {check.name for outcome in outcomes for check in outcome.checks}
    known = dict.fromkeys(name for outcome in outcomes for name in flat(outcome.metrics))
    open_gates = [gate for gate in gates if f"{NAMED}{gate.rule}" not in answered]
    for gate in open_gates:
        _add(outcomes[0], _no_such_metric(gate, known, "no scenario of this run has it"))
    return {outcomes[0].name} if open_gates else set()


def rules_about(outcome: ScenarioOutcome) -> list[str]:
    """The rules that a scenario was judged by, for the command that repeats it."""
    return [check.name.removeprefix(NAMED) for check in outcome.checks if check.name.startswith(NAMED)]


def _add(outcome: ScenarioOutcome, check: CheckResult) -> None:
    if any(other.name == check.name for other in outcome.checks):
        return
    outcome.checks.append(check)
    if not check.passed:
        outcome.status = "failed"


def _check(gate: Gate, outcome: ScenarioOutcome) -> CheckResult:
    metrics = flat(outcome.metrics)
    if gate.metric not in metrics:
        return _no_such_metric(gate, metrics, f"{outcome.name} has no such metric")
    value, of = flat_numbers(outcome.metrics).get(gate.metric), ""
    summary = (outcome.repeats or {}).get("metrics", {}).get(gate.metric)
    if summary and summary["mean"] is not None:
        value = float(summary["mean"])
        of = f" (mean of {summary['n']} runs, {number(summary['min'])} to {number(summary['max'])})"
        if summary["n"] < (outcome.repeats or {})["count"]:
            missing = f"{gate.metric} = N/A in {(outcome.repeats or {})['count'] - summary['n']} runs{of}"
            return CheckResult(f"{NAMED}{gate.rule}", False, gate.wanted, missing, NOTHING_TO_JUDGE)
    if value is None or not math.isfinite(value):
        observed = f"{gate.metric} = N/A" if metrics[gate.metric] is None else f"{gate.metric} is no number"
        return CheckResult(f"{NAMED}{gate.rule}", False, gate.wanted, observed, NOTHING_TO_JUDGE)
    passed = not OPERATORS[gate.op](value, gate.limit)
    advice = None if passed else f"--fail-if '{gate}' says so: change what was measured, or the rule."
    return CheckResult(f"{NAMED}{gate.rule}", passed, gate.wanted, f"{gate.metric} = {_told(value, gate)}{of}", advice)


def _no_such_metric(gate: Gate, names: Iterable[str], observed: str) -> CheckResult:
    close = nearest(gate.metric, names)
    hint = f"{close.strip()} " if close else ""
    advice = f"{hint}There are: {', '.join(names) or 'none'}."
    return CheckResult(f"{NAMED}{gate.rule}", False, gate.wanted, observed, advice)


def _told(value: float, gate: Gate) -> str:
    """Six digits, or all of them where fewer would be judged otherwise."""
    few = float(f"{value:.6g}")
    judged = OPERATORS[gate.op]
    return _text(few if judged(few, gate.limit) == judged(value, gate.limit) else value)


def _text(value: float) -> str:
    """As short as it can be without being another number."""
    return repr(value).removesuffix(".0")
