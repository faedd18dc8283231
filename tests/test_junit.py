"""junit.xml: one case per check, and what Jenkins and GitLab ask of such a file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest

from altlas_core.report.files import RAN_TO_ITS_END, all_checks, junit_xml, scenario_json
from altlas_core.report.outcome import CheckResult, ScenarioOutcome

GOOD = CheckResult("ids are unique", True, "8", "8")
BAD = CheckResult("nothing is lost", False, "0 <tasks>", "3 & more")
GATE = CheckResult("p99_s > 2", False, "not more than 2", "3.1")
STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

# The common schema (jenkins-junit.xsd; GitLab reads a part of it): element -> attributes that must be and that may be.
NUMBERS = {"tests", "failures", "errors", "skipped"}
SCHEMA = {
    "testsuites": (set(), {"name", "time", *NUMBERS}),
    "testsuite": ({"name", "tests"}, {"time", "timestamp", "hostname", "id", "package", *NUMBERS}),
    "testcase": ({"name"}, {"classname", "time", "assertions", "status"}),
    "failure": (set(), {"message", "type"}),
    "error": (set(), {"message", "type"}),
    "skipped": (set(), {"message"}),
}
CHILDREN = {"testsuites": {"testsuite"}, "testsuite": {"testcase"}, "testcase": {"failure", "error", "skipped"}}


@pytest.fixture
def root() -> ElementTree.Element:
    outcomes = [
        ScenarioOutcome("good", "passed", [GOOD], wall_s=1.5),
        ScenarioOutcome("bad", "failed", [GOOD, BAD, GATE], wall_s=2.0),
        ScenarioOutcome("broke", "broke", [GOOD], wall_s=3.0, error="did not end within 3 s (--notebook-deadline)"),
        ScenarioOutcome("never", "broke", wall_s=0.0, error="not run: the run was interrupted", ran=False),
    ]
    text = junit_xml(outcomes, "20260102-030405-abcd", STARTED)
    return ElementTree.fromstring(text.encode())


def wrong(element: ElementTree.Element) -> Iterator[str]:
    """What a file must not be by the schema."""
    needed, allowed = SCHEMA[element.tag]
    given = set(element.attrib)
    yield from (f"{element.tag} lacks {name}" for name in needed - given)
    yield from (f"{element.tag} has {name}" for name in given - needed - allowed)
    for name in NUMBERS & given:
        if not re.fullmatch(r"\d+", element.attrib[name]):
            yield f"{element.tag} {name}"
    if not re.fullmatch(r"\d+(\.\d+)?", element.attrib.get("time", "0")):
        yield f"{element.tag} time"
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", element.attrib.get("timestamp", "2026-01-01T00:00:00")):
        yield f"{element.tag} timestamp"
    if element.tag == "testcase" and len(element) > 1:
        yield "a case has several outcomes"
    for child in element:
        if child.tag not in CHILDREN.get(element.tag, set()):
            yield f"{child.tag} in {element.tag}"
        else:
            yield from wrong(child)


def test_the_file_is_what_its_schema_says(root: ElementTree.Element) -> None:
    assert list(wrong(root)) == []
    names = [(case.attrib["classname"], case.attrib["name"]) for case in root.iter("testcase")]
    assert len(names) == len(set(names))


def test_counts_and_times_add_up(root: ElementTree.Element) -> None:
    for name, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        for suite in root:
            assert suite.attrib[name] == str(len(list(suite.iter(tag))))
        assert root.attrib[name] == str(len(list(root.iter(tag))))
    assert [suite.attrib["time"] for suite in root] == ["1.500", "2.000", "3.000", "0.000"]
    assert root.attrib["time"] == "6.500"


def test_every_check_of_results_json_is_a_case(root: ElementTree.Element) -> None:
    outcome = ScenarioOutcome("bad", "failed", [GOOD, BAD, GATE], wall_s=2.0)
    told = [check["name"] for check in scenario_json(outcome, "simulated")["checks"]]
    assert [case.attrib["name"] for case in root.findall("testsuite[@name='bad']/testcase")] == told
    assert [check.name for check in all_checks(outcome)] == told


def test_a_failed_check_a_broken_and_a_skipped_scenario_are_told_apart(root: ElementTree.Element) -> None:
    marks = {
        (suite.attrib["name"], case.attrib["name"]): (case[0].tag, case[0].attrib["message"])
        for suite in root
        for case in suite
        if len(case)
    }
    ended = "expected a whole result; observed did not end within 3 s (--notebook-deadline)"
    assert marks == {
        ("bad", BAD.name): ("failure", "expected 0 <tasks>; observed 3 & more"),
        ("bad", GATE.name): ("failure", "expected not more than 2; observed 3.1"),
        ("broke", RAN_TO_ITS_END): ("error", ended),
        ("never", RAN_TO_ITS_END): ("skipped", "not run: the run was interrupted"),
    }


def test_any_text_can_stand_in_it() -> None:
    check = CheckResult("a\x00b <&>", False, "\x1b[1m", "\ud800")
    text = junit_xml([ScenarioOutcome("x", "failed", [check])], "run", STARTED)
    assert ElementTree.fromstring(text.encode())[0][0].attrib["name"] == "a\ufffdb <&>"
