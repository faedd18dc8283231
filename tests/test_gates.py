"""Rules of --fail-if: what is refused before anything starts, and what becomes of a scenario that breaks one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import result_cell

from altlas_core import cli
from altlas_core.errors import ConfigError
from altlas_core.report.gates import Gate, judge, judge_unanswered, parse_gates, rules_about
from altlas_core.report.outcome import CheckResult, ScenarioOutcome

SCENARIOS = ("own_workload", "performance")
HOLDS = CheckResult("all tasks complete", True, "20", "20")


def outcome(name: str = "own_workload", **metrics: Any) -> ScenarioOutcome:
    return ScenarioOutcome(name, "passed", [HOLDS], metrics)


def judged(rule: str, found: ScenarioOutcome | None = None) -> ScenarioOutcome:
    found = outcome(p99_s=2.31) if found is None else found
    judge(found, parse_gates([rule], SCENARIOS))
    return found


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("p99_s > 2", Gate(None, "p99_s", ">", 2.0)),
        ("p99_s>=2.5e-3", Gate(None, "p99_s", ">=", 0.0025)),
        (" own_workload:p99_s != -1 ", Gate("own_workload", "p99_s", "!=", -1.0)),
        (
            "performance: strategies.random.makespan_s <0.1",
            Gate("performance", "strategies.random.makespan_s", "<", 0.1),
        ),
        ("by size.a b == 3", Gate(None, "by size.a b", "==", 3.0)),
    ],
)
def test_a_rule_is_read_and_written_again(text: str, gate: Gate) -> None:
    assert parse_gates([text, text], SCENARIOS) == (gate,)
    assert parse_gates([str(gate)], SCENARIOS) == (gate,)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("p99_s", "is no rule; allowed: [SCENARIO:]METRIC OP NUMBER"),
        ("", "is no rule"),
        ("> 2", "is no rule"),
        ("p99_s > 2 s", "is no rule"),
        ("p99_s => 2", "'=>' is no comparison; allowed: [SCENARIO:]METRIC OP NUMBER with OP one of > >= < <= == !="),
        ("p99_s = 2", "'=' is no comparison"),
        ("p99_s > two", "'two' is no number"),
        ("p99_s > nan", "'nan' is no number"),
        ("p99_s > inf", "'inf' is no number"),
        (
            "own_wrkload:p99_s > 2",
            "this run has no scenario 'own_wrkload'; it has: own_workload, performance. Did you mean 'own_workload'?",
        ),
    ],
)
def test_a_bad_rule_is_refused_in_one_line(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as problem:
        parse_gates([text], SCENARIOS)
    assert f"--fail-if '{text}'" in str(problem.value)
    assert told in str(problem.value)
    assert "\n" not in str(problem.value)


def test_a_rule_that_is_broken_is_one_more_check_that_fails() -> None:
    found = judged("p99_s > 2")
    assert found.status == "failed"
    assert found.checks[0] is HOLDS
    check = found.checks[1]
    assert (check.name, check.passed) == ("gate: p99_s > 2", False)
    assert (check.expected, check.observed) == ("p99_s <= 2", "p99_s = 2.31")
    assert check.advice
    assert rules_about(found) == ["p99_s > 2"]


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        ("p99_s > 2.31", True),
        ("p99_s >= 2.31", False),
        ("p99_s < 2.31", True),
        ("p99_s <= 2.31", False),
        ("p99_s == 2.31", False),
        ("p99_s != 2.31", True),
        ("performance:p99_s > 1", None),
    ],
)
def test_every_comparison(rule: str, holds: bool | None) -> None:
    found = judged(rule)
    assert found.status == ("failed" if holds is False else "passed")
    assert [check.passed for check in found.checks[1:]] == ([] if holds is None else [holds])


def test_what_was_observed_never_contradicts_the_verdict() -> None:
    assert judged("p99_s > 2", outcome(p99_s=2.0000000001)).checks[1].observed == "p99_s = 2.0000000001"
    assert judged("p99_s > 2", outcome(p99_s=63.67182999999999)).checks[1].observed == "p99_s = 63.6718"


def test_of_several_runs_the_mean_is_judged() -> None:
    found = outcome(strategies={"random": {"p99_s": 1.0}})
    summary = {"n": 5, "mean": 2.25, "stdev": 0.1, "ci95_low": 2.1, "ci95_high": 2.4, "min": 1.0, "max": 2.5}
    found.repeats = {"count": 5, "metrics": {"strategies.random.p99_s": summary}}
    check = judged("strategies.random.p99_s > 2", found).checks[1]
    assert not check.passed
    assert check.observed == "strategies.random.p99_s = 2.25 (mean of 5 runs, 1 to 2.5)"


def test_a_mean_over_fewer_runs_than_were_made_fails() -> None:
    found = outcome(p99_s=None)
    summary = {"n": 3, "mean": 1.0, "stdev": 0.0, "ci95_low": 1.0, "ci95_high": 1.0, "min": 1.0, "max": 1.0}
    found.repeats = {"count": 5, "metrics": {"p99_s": summary}}
    check = judged("p99_s > 2", found).checks[1]
    assert (check.passed, check.observed) == (False, "p99_s = N/A in 2 runs (mean of 3 runs, 1 to 1)")


def test_a_value_that_is_missing_fails() -> None:
    check = judged("p99_s > 2", outcome(p99_s=None)).checks[1]
    assert (check.passed, check.observed) == (False, "p99_s = N/A")
    assert check.advice
    assert judged("best > 2", outcome(best="random")).checks[1].observed == "best is no number"


def test_a_metric_that_the_named_scenario_lacks_fails_and_the_nearest_is_told() -> None:
    check = judged("own_workload:p98_s > 2").checks[1]
    assert (check.passed, check.observed) == (False, "own_workload has no such metric")
    assert check.advice == "Did you mean 'p99_s'? There are: p99_s."


class TestMetricThatNoScenarioHas:
    gates = parse_gates(["p98_s > 2", "tasks < 1"], SCENARIOS)

    def test_it_fails_the_first_scenario(self) -> None:
        runs = [outcome("performance", tasks=3), outcome(p99_s=1.0)]
        for run in runs:
            judge(run, self.gates)
        assert [run.status for run in runs] == ["passed", "passed"]
        assert judge_unanswered(runs, self.gates) == {"performance"}
        assert [run.status for run in runs] == ["failed", "passed"]
        assert runs[0].checks[-1].name == "gate: p98_s > 2"
        assert runs[0].checks[-1].observed == "no scenario of this run has it"
        assert (runs[0].checks[-1].advice or "").startswith("Did you mean 'p99_s'?")

    def test_it_may_have_been_in_a_scenario_that_broke(self) -> None:
        broke = ScenarioOutcome("own_workload", "broke")
        judge(broke, parse_gates(["own_workload:p99_s > 2"], SCENARIOS))
        assert broke.checks == []
        assert judge_unanswered([outcome("performance", tasks=3), broke], self.gates) == set()

    def test_an_answer_that_held_is_one(self) -> None:
        run = judged("tasks < 1", outcome(tasks=3))
        assert judge_unanswered([run], parse_gates(["tasks < 1"], SCENARIOS)) == set()


@pytest.mark.notebooks
def test_altlas_run_fails_by_a_rule_and_tells_it_everywhere(
    notebooks: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notebooks(1, "first", result_cell("first", metrics={"p99_s": 2.31}))
    notebooks(2, "second", result_cell("second", metrics={"tasks": 4}))
    reports = ["--reports-dir", str(tmp_path / "reports"), "--backend", "simulated"]
    rules = ["--fail-if", "p99_s > 2", "--fail-if", "first:p99_s < 1", "--fail-if", "p98_s > 1"]
    assert cli.main(["run", *reports, *rules]) == 1
    printed = capsys.readouterr().out
    assert "first: gate: p99_s > 2: expected p99_s <= 2; observed p99_s = 2.31" in printed
    folder = (tmp_path / "reports" / "latest").resolve()
    results = json.loads((folder / "results.json").read_text())
    checks = {check["name"]: check["passed"] for check in results["scenarios"]["first"]["checks"]}
    assert checks == {
        "ids are unique": True,
        "gate: p99_s > 2": False,
        "gate: p99_s < 1": True,
        "gate: p98_s > 1": False,
    }
    assert results["scenarios"]["second"]["passed"]
    assert results["passed"] is False
    cases = ElementTree.parse(folder / "junit.xml").getroot().iter("testcase")
    assert {case.attrib["name"]: len(case) for case in cases if case.attrib["classname"] == "first"} == {
        "ids are unique": 0,
        "gate: p99_s > 2": 1,
        "gate: p99_s < 1": 0,
        "gate: p98_s > 1": 1,
    }
    page = (folder / "first.html").read_text()
    assert page.index("What failed") < page.index("gate: p98_s &gt; 1")
    assert "--fail-if &#39;first:p99_s &lt; 1&#39;" in (folder / "index.html").read_text()
    assert "--fail-if &#39;p99_s &lt; 1&#39;" in page
    assert "--fail-if" not in (folder / "second.html").read_text()
    assert cli.main(["run", *reports[:2], "--resume", folder.name]) == 1  # nothing is missing, and the rules still hold


def test_nothing_starts_where_a_rule_is_bad(
    notebooks: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notebooks(1, "first", result_cell("first"))
    reports = tmp_path / "reports"
    assert cli.main(["run", "--reports-dir", str(reports), "--fail-if", "frist:p99_s > 2"]) == 2
    assert "Did you mean 'first'?" in capsys.readouterr().err
    assert not reports.exists()
