"""What became of one scenario, read from its executed notebook, and of the whole run."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

RESULT_MIME: Final = "application/vnd.altlas.result+json"
PROVENANCES: Final = ("measured", "simulated", "mixed")

Status = Literal["passed", "failed", "broke", "waiting"]


@dataclass(slots=True, frozen=True)
class CheckResult:
    """One check. `advice` is what to do where it failed, if the scenario said so."""

    name: str
    passed: bool
    expected: str
    observed: str
    advice: str | None = None


@dataclass(slots=True)
class ScenarioOutcome:
    """`key_metrics` names those that tell most, in that order.

    `error` says in one line why there is no (whole) result; then `status` is "broke". Times are seconds. `repeats` sums
    up several runs of the scenario (count, warm_up, seeds, metrics); None where there was one. `ran`: it was begun.
    `exports` are files it has written, as paths inside the run's folder.
    """

    name: str
    status: Status = "waiting"
    checks: list[CheckResult] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    key_metrics: list[str] = field(default_factory=list)
    provenance: str | None = None
    wall_s: float | None = None
    virtual_s: float | None = None
    event_log_sha256: str | None = None
    repeats: dict[str, Any] | None = None
    error: str | None = None
    ran: bool = True
    exports: list[str] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    @property
    def failures(self) -> list[CheckResult]:
        return [check for check in self.checks if not check.passed]

    @property
    def passed_count(self) -> int:
        return sum(check.passed for check in self.checks)


def read_outcome(
    name: str, notebook: Mapping[str, Any] | None, error: str | None, wall_s: float, event_log: Path
) -> ScenarioOutcome:
    """Judge an executed notebook (None: nothing could be saved) by the result bundle in its outputs.

    It passed only if it ran to its end, every check passed, and the event log on disk is the one that was hashed.
    """
    outcome = ScenarioOutcome(name, wall_s=wall_s)
    bundle = _bundle(notebook) if notebook is not None else None
    problem = error
    if bundle is not None:
        problem = problem or _fill(outcome, bundle) or _wrong_log(outcome, event_log)
        if error:
            _fill(outcome, bundle)
    elif not problem:
        problem = "the notebook ended without handing over a result"
    outcome.error = problem
    if problem:
        outcome.status = "broke"
    else:
        outcome.status = "failed" if outcome.failures else "passed"
    return outcome


def _bundle(notebook: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The last result bundle among the outputs."""
    found = None
    for cell in notebook.get("cells", []):
        for output in cell.get("outputs", []):
            data = output.get("data", {}).get(RESULT_MIME)
            if isinstance(data, str | list):
                data = json.loads("".join(data))
            if isinstance(data, Mapping):
                found = data
    return found


def _fill(outcome: ScenarioOutcome, bundle: Mapping[str, Any]) -> str | None:
    """Copy the bundle into the outcome; return what is wrong with it, if anything."""
    try:
        if bundle["scenario"] != outcome.name:
            return f"the notebook handed over the result of '{bundle['scenario']}', not of '{outcome.name}'"
        outcome.checks = [_check(item) for item in bundle["checks"]]
        outcome.metrics = {name: _number_or_none(value) for name, value in bundle["metrics"].items()}
        outcome.key_metrics = [str(key) for key in bundle.get("key_metrics") or () if key in outcome.metrics]
        outcome.provenance = bundle["provenance"]
        virtual_s, digest = bundle.get("virtual_s"), bundle.get("event_log_sha256")
        outcome.virtual_s = None if virtual_s is None else float(virtual_s)
        outcome.event_log_sha256 = None if digest is None else str(digest)
        repeats = bundle.get("repeats")
        outcome.repeats = None if repeats is None else dict(_number_or_none(repeats))
        passed = bool(bundle["passed"])
    except (KeyError, TypeError, ValueError) as error:
        return f"the result the notebook handed over is not whole ({type(error).__name__}: {error})"
    if outcome.provenance not in PROVENANCES:
        return f"the result's provenance is {outcome.provenance!r}; allowed: {', '.join(PROVENANCES)}"
    if not outcome.checks:
        return "the scenario made no check, so nothing was shown"
    if passed == bool(outcome.failures):
        return "the result contradicts itself: its verdict does not follow from its checks"
    return None


def _number_or_none(value: Any) -> Any:
    """A kernel sends NaN and the infinities as texts; they are missing values here, at any depth."""
    if isinstance(value, Mapping):
        return {name: _number_or_none(item) for name, item in value.items()}
    return None if isinstance(value, str) and value in ("nan", "inf", "-inf") else value


def _check(item: Mapping[str, Any]) -> CheckResult:
    if not isinstance(item["passed"], bool):
        raise TypeError(f"the check {item['name']!r} says neither true nor false")
    advice = item.get("advice")
    return CheckResult(
        str(item["name"]),
        item["passed"],
        str(item["expected"]),
        str(item["observed"]),
        None if advice is None else str(advice),
    )


def _wrong_log(outcome: ScenarioOutcome, event_log: Path) -> str | None:
    if outcome.event_log_sha256 is None:
        return None
    if not event_log.is_file():
        return f"the scenario wrote no event log ({event_log.name})"
    with event_log.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != outcome.event_log_sha256:
        told = f"{outcome.event_log_sha256[:12]}…"
        return f"the event log on disk is not the one of the result: sha256 {digest[:12]}… instead of {told}"
    return None


def plain_json(value: Any) -> Any:
    """A copy that strict JSON can hold: NaN and infinities become null, unknown objects their text."""
    if isinstance(value, Mapping):
        return {str(name): plain_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)
