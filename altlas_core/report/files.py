"""What programs read of a run: results.json and junit.xml."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from altlas_core.report.outcome import CheckResult, ScenarioOutcome, plain_json

_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
RAN_TO_ITS_END = "the notebook ran to its end"


def all_checks(outcome: ScenarioOutcome) -> list[CheckResult]:
    """The scenario's checks, and where it broke, that as one more."""
    if outcome.error is None:
        return outcome.checks
    return [*outcome.checks, CheckResult(RAN_TO_ITS_END, False, "a whole result", outcome.error)]


def scenario_json(outcome: ScenarioOutcome, provenance: str) -> dict[str, Any]:
    """One entry of results.json's `scenarios`; `provenance` is the run's, for a scenario that left no result."""
    checks = [
        {"name": check.name, "passed": check.passed, "expected": check.expected, "observed": check.observed}
        for check in all_checks(outcome)
    ]
    entry = {
        "passed": outcome.passed,
        "wall_s": None if outcome.wall_s is None else round(outcome.wall_s, 3),
        "virtual_s": outcome.virtual_s,
        "provenance": outcome.provenance or provenance,
        "checks": checks,
        "metrics": outcome.metrics,
        "event_log_sha256": outcome.event_log_sha256,
    }
    plain = plain_json(entry)
    assert isinstance(plain, dict)
    return plain


def junit_xml(outcomes: Sequence[ScenarioOutcome], run_id: str, started_at: str) -> str:
    """One test suite per scenario, one test case per check."""
    root = ElementTree.Element("testsuites", name=run_id)
    total = {"tests": 0, "failures": 0, "errors": 0}
    for outcome in outcomes:
        checks = all_checks(outcome)
        errors = 1 if outcome.error is not None else 0
        counts = {"tests": len(checks), "failures": len(outcome.failures), "errors": errors}
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=outcome.name,
            timestamp=started_at,
            time=f"{outcome.wall_s or 0:.3f}",
            skipped="0",
        )
        suite.attrib.update({name: str(count) for name, count in counts.items()})
        for check in checks:
            case = ElementTree.SubElement(suite, "testcase", classname=outcome.name, name=_clean(check.name))
            if not check.passed:
                kind = "error" if check.name == RAN_TO_ITS_END else "failure"
                message = _clean(f"expected {check.expected}; observed {check.observed}")
                ElementTree.SubElement(case, kind, message=message).text = message
        for name, count in counts.items():
            total[name] += count
    root.attrib.update({name: str(count) for name, count in total.items()})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _clean(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)
