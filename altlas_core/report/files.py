"""What programs read of a run: results.json and junit.xml."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
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
    if outcome.repeats is not None:
        entry["repeats"] = outcome.repeats
    plain = plain_json(entry)
    assert isinstance(plain, dict)
    return plain


def junit_xml(outcomes: Sequence[ScenarioOutcome], run_id: str, started: datetime) -> str:
    """One test suite per scenario, one test case per check; times are of suites, as nobody measures a check.

    A scenario that broke has an error, one that was never begun is skipped.
    """
    root = ElementTree.Element("testsuites", name=run_id)
    total: Counter[str] = Counter()
    for outcome in outcomes:
        suite = ElementTree.SubElement(root, "testsuite", name=outcome.name)
        checks = all_checks(outcome)
        counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0) | {"tests": len(checks)}
        for check in checks:
            case = ElementTree.SubElement(suite, "testcase", classname=outcome.name, name=_clean(check.name))
            if not check.passed:
                counts[_mark(case, check, outcome.ran)] += 1
        suite.attrib.update({name: str(count) for name, count in counts.items()})
        suite.attrib["time"] = f"{outcome.wall_s or 0:.3f}"
        suite.attrib["timestamp"] = f"{started.astimezone(UTC):%Y-%m-%dT%H:%M:%S}"  # its schema knows no time zone
        total.update(counts)
    root.attrib.update({name: str(total[name]) for name in ("tests", "failures", "errors", "skipped")})
    root.attrib["time"] = f"{sum(outcome.wall_s or 0 for outcome in outcomes):.3f}"
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _mark(case: ElementTree.Element, check: CheckResult, ran: bool) -> str:
    """Say in a test case why it did not pass; returns the count it belongs to."""
    if check.name != RAN_TO_ITS_END:
        tag, count, kind = "failure", "failures", "check"
    elif ran:
        tag, count, kind = "error", "errors", "notebook"
    else:
        ElementTree.SubElement(case, "skipped", message=_clean(check.observed))
        return "skipped"
    message = _clean(f"expected {check.expected}; observed {check.observed}")
    ElementTree.SubElement(case, tag, message=message, type=kind).text = message
    return count


def _clean(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)
