"""`altlas compare`: which runs are meant, and what is said of their checks, metrics and settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finished_runs import broke, check, scenario, write_run

from altlas_core import cli
from altlas_core.report.changes import judge, metric_changes
from altlas_core.report.comparison import Comparison, compare_runs
from altlas_core.report.finished import read_run

HALF = json.dumps(
    {
        "run_id": "x",
        "passed": True,
        "started_at": "2026-05-04",
        "backend": "simulated",
        "devices": [],
        "seed": 1,
        "wall_s": 1,
        "scenarios": {"one": {"passed": True, "metrics": {}, "checks": [{"passed": True}]}},
    }
)
FIRST, SECOND = "20260504-120000-aaaa", "20260504-130000-bbbb"


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "reports"


def compared(reports: Path, before: dict[str, Any], after: dict[str, Any], **overrides: Any) -> Comparison:
    """Of two runs; overrides are settings of the second."""
    runs = [write_run(reports, FIRST, before), write_run(reports, SECOND, after, **overrides)]
    return compare_runs(*(read_run(run) for run in runs))


def changes(before: dict[str, Any], after: dict[str, Any], deterministic: bool = True) -> dict[str, Any]:
    return {own.name: own for own in metric_changes(before, after, deterministic)}


class TestChecks:
    def test_one_that_held_and_fails_makes_it_worse(self, reports: Path) -> None:
        before = scenario([check("a"), check("b"), check("c", False)])
        after = scenario([check("a"), check("b", False), check("c")])
        found = compared(reports, {"one": before}, {"one": after})
        assert (found.verdict, found.exit_status, found.lost, found.gained) == ("worse", 1, 1, 1)
        assert [(own.name, own.turn) for own in found.scenarios[0].checks] == [
            ("b", "lost"),
            ("c", "gained"),
            ("a", "holds"),
        ]
        assert found.checks_text == "1 check held in A and fails in B, 1 check failed in A and holds in B"

    def test_one_that_holds_again_makes_it_better(self, reports: Path) -> None:
        found = compared(reports, {"one": scenario([check("a", False)])}, {"one": scenario([check("a")])})
        assert (found.verdict, found.exit_status) == ("better", 0)

    def test_to_break_is_worse_and_not_to_is_better(self, reports: Path) -> None:
        whole, broken = {"one": scenario([check("a")])}, {"one": scenario([check("a"), broke()])}
        found = compared(reports, whole, broken)
        assert (found.verdict, found.exit_status, found.lost) == ("worse", 1, 1)
        assert [own.name for own in found.scenarios[0].checks] == ["a"]
        back = compare_runs(found.after, found.before)
        assert (back.verdict, back.exit_status) == ("better", 0)

    def test_one_that_fails_in_both_or_is_new_is_no_loss(self, reports: Path) -> None:
        before = {"one": scenario([check("a", False), check("old")])}
        found = compared(reports, before, {"one": scenario([check("a", False), check("new", False)])})
        assert found.exit_status == 0
        assert [own.turn for own in found.scenarios[0].checks] == ["fails", "only in A", "only in B"]
        assert found.verdict == "changed"

    def test_the_same_is_the_same(self, reports: Path) -> None:
        run = {"one": scenario([check("a")], {"makespan_s": 1.5})}
        found = compared(reports, run, run)
        assert (found.verdict, found.exit_status, found.warnings) == ("same", 0, [])
        assert found.text == "no check that held in A fails in B (1 check compared); all 1 metric are the same"


class TestMetrics:
    def test_beyond_the_spread_or_within_it(self) -> None:
        before = scenario(repeats={"p99_s": [1.0, 1.1, 0.9, 1.0], "wait_p50_s": [1.0, 2.0, 3.0], "tasks": [5, 5, 5]})
        after = scenario(repeats={"p99_s": [2.0, 2.1, 1.9, 2.0], "wait_p50_s": [1.5, 2.5, 3.5], "tasks": [5, 5, 5]})
        found = changes(before, after)
        assert {name: own.certainty for name, own in found.items()} == {
            "p99_s": "beyond",
            "wait_p50_s": "within",
            "tasks": "same",
        }
        own = found["p99_s"]
        assert (own.before, own.after, own.judgement, own.matters) == (1.0, 2.0, "worse", True)
        assert own.difference.percent == pytest.approx(100)
        assert own.percent_text == "+100.0 %"
        assert own.certainty_text.startswith("yes: +0.")
        assert "±" in own.before_text
        assert not found["wait_p50_s"].matters

    def test_of_one_run_each_only_a_deterministic_one_tells(self) -> None:
        before, after = scenario(metrics={"makespan_s": 10.0}), scenario(metrics={"makespan_s": 8.0})
        exact = changes(before, after)["makespan_s"]
        assert (exact.certainty, exact.judgement, exact.matters) == ("exact", "better", True)
        assert (exact.change_text, exact.percent_text, exact.certainty_text) == ("−2 s", "−20.0 %", "exact")
        unknown = changes(before, after, deterministic=False)["makespan_s"]
        assert (unknown.certainty, unknown.matters, unknown.certainty_text) == ("unknown", False, "spread unknown")

    def test_the_largest_change_comes_first_and_what_one_lacks_last(self) -> None:
        before = {"a_s": 10.0, "b_s": 10.0, "c_s": 0.0, "same_s": 1.0, "gone_s": 1.0, "which": "x"}
        after = {"a_s": 11.0, "b_s": 5.0, "c_s": 1.0, "same_s": 1.0, "which": "y", "missing_s": None}
        names = list(changes(scenario(metrics=before), scenario(metrics=after)))
        assert set(names[:2]) == {"c_s", "which"}
        assert names[2:] == ["b_s", "a_s", "gone_s", "same_s", "missing_s"]

    def test_a_value_that_went_missing_is_told_as_that(self) -> None:
        own = changes(scenario(metrics={"p99_s": 1.0}), scenario(metrics={"p99_s": None}))["p99_s"]
        assert (own.before_text, own.after_text, own.change_text) == ("1 s", "N/A", "")
        assert own.certainty == "exact"

    @pytest.mark.parametrize(
        ("name", "up"),
        [
            ("makespan_s", "worse"),
            ("strategies.random.p99_s", "worse"),
            ("wait_p95_s", "worse"),
            ("iteration_p50_ms", "worse"),
            ("energy_j", "worse"),
            ("failed", "worse"),
            ("failures.timeout", "worse"),
            ("p99_regret", "worse"),
            ("throughput_tasks_per_s", "better"),
            ("models.small.achieved_tflops", "better"),
            ("utilization_mean_pct", "better"),
            ("jain_index", "better"),
            ("completed", "better"),
            ("tasks", ""),
            ("temperature_max_c", ""),
            ("lower_bound_s", ""),
        ],
    )
    def test_which_way_is_better(self, name: str, up: str) -> None:
        assert judge(name, 0.5) == up
        assert judge(name, -0.5) == {"worse": "better", "better": "worse", "": ""}[up]
        assert judge(name, 0) == ""

    def test_more_of_more_tasks_is_not_better(self) -> None:
        before, after = {"tasks": 10, "completed": 9, "failed": 1}, {"tasks": 20, "completed": 18, "failed": 2}
        found = changes(scenario(metrics=before), scenario(metrics=after))
        assert [found[name].judgement for name in ("completed", "failed")] == ["", ""]
        nested = changes(
            scenario(metrics={"s": {"x": before}}), scenario(metrics={"s": {"x": {**before, "failed": 3}}})
        )
        assert nested["s.x.failed"].judgement == "worse"

    def test_metrics_alone_do_not_fail_a_comparison(self, reports: Path) -> None:
        runs = [{"one": scenario(metrics={"makespan_s": value, "tasks": 4})} for value in (10.0, 20.0)]
        found = compared(reports, *runs)
        assert (found.verdict, found.exit_status) == ("changed", 0)
        assert found.metrics_text == "of 2 metrics, 1 worse"


class TestWhatDiffers:
    def told(self, found: Comparison) -> dict[str, tuple[str, str]]:
        return {own.name: (own.before, own.after) for own in found.differing}

    def test_settings_devices_and_seed(self, reports: Path) -> None:
        run = {"one": scenario(metrics={"makespan_s": 1.0})}
        other = {"one": scenario(metrics={"makespan_s": 2.0})}
        more = {"gpu.devices": ["2x T4"], "seed": 7, "gpu.workload.timeout": 9, "run.export": ["csv"]}
        found = compared(reports, run, other, **more)
        assert self.told(found) == {
            "Devices": ("8x A100-SXM4-80GB", "2x T4"),
            "Seed": ("42", "7"),
            "gpu.workload.timeout": ("300", "9"),
        }
        text = " ".join(found.warnings)
        assert "The devices differ" in text
        assert "run both with --repeat 5" in text  # another seed: chance is in it
        assert "exact" not in text

    def test_of_one_seed_it_says_that_a_difference_is_exact(self, reports: Path) -> None:
        runs = [{"one": scenario(metrics={"makespan_s": value})} for value in (1.0, 2.0)]
        found = compared(reports, *runs, **{"gpu.selection.default_strategy": "random"})
        assert self.told(found) == {"gpu.selection.default_strategy": ("single_gpu", "random")}
        assert ["deterministic" in warning for warning in found.warnings] == [True]

    def test_measured_is_not_simulated(self, reports: Path) -> None:
        runs = [{"one": scenario(metrics={"makespan_s": 1.0}, provenance=kind)} for kind in ("simulated", "measured")]
        found = compared(reports, *runs)
        assert found.warnings[0].startswith("one is simulated in A and measured in B")

    def test_only_common_scenarios_are_compared(self, reports: Path) -> None:
        found = compared(reports, {"one": scenario(), "two": scenario([check("a")])}, {"one": scenario()})
        assert [turn.name for turn in found.scenarios] == ["one"]
        assert found.exit_status == 0
        assert "Only A ran two: not compared." in found.warnings

    def test_a_run_whose_request_is_lost_is_compared_as_far_as_it_is_known(self, reports: Path) -> None:
        runs = [write_run(reports, run_id, {"one": scenario()}) for run_id in (FIRST, SECOND)]
        (runs[0] / "request.json").unlink()
        found = compare_runs(*(read_run(run) for run in runs))
        assert "What A was asked is not known" in found.warnings[0]
        assert found.differing == []


class TestCommand:
    def write(self, reports: Path) -> None:
        entry = scenario([check("a")], {"makespan_s": 1.0})
        write_run(reports, FIRST, {"one": entry})
        write_run(reports, SECOND, {"one": scenario([check("a", False)], {"makespan_s": 2.0})})
        (reports / "latest").symlink_to(SECOND)

    def test_it_writes_a_page_and_says_the_verdict(self, reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.write(reports)
        assert cli.main(["compare", "20260504-12", "latest"]) == 1
        printed = capsys.readouterr().out.splitlines()
        assert printed[0].startswith("WORSE  1 check held in A and fails in B; of 1 metric, 1 worse")
        assert printed[1] == f"comparisons/{FIRST}--{SECOND}/index.html"
        page = Path(printed[1])
        assert sorted(path.name for path in page.parent.iterdir()) == ["assets", "index.html"]
        text = page.read_text().partition("<main")[2].partition("</nav>")[2]
        assert text.index("<h1>Worse") < text.index("What to know") < text.index("What differs") < text.index("Checks<")
        assert f'href="../../reports/{FIRST}/one.html"' in text
        assert sorted(path.name for path in reports.iterdir()) == [FIRST, SECOND, "latest"]
        assert cli.main(["compare", SECOND, FIRST, "--out", "there"]) == 0
        assert Path("there/index.html").is_file()

    def test_for_programs_it_prints_the_comparison(self, reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.write(reports)
        assert cli.main(["compare", str(reports / FIRST), SECOND, "--json"]) == 1
        told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
        assert (told["verdict"], told["checks_lost"]) == ("worse", 1)
        assert (told["before"]["run_id"], told["after"]["run_id"]) == (FIRST, SECOND)
        one = told["scenarios"]["one"]
        assert one["checks"] == [{"name": "a", "before": True, "after": False}]
        assert one["metrics"]["makespan_s"] == {
            "before": 1.0,
            "after": 2.0,
            "change": 1.0,
            "percent": 100.0,
            "beyond_spread": True,
            "certainty": "exact",
            "judgement": "worse",
        }
        assert Path(told["report"]).is_file()

    @pytest.mark.parametrize(
        ("typed", "told"),
        [
            (["20260504", FIRST], "2 runs begin like that"),
            (["nope", FIRST], f"is no run's folder and no run of reports; there are: {SECOND}, {FIRST}"),
            ([FIRST, SECOND, "--out", f"reports/{FIRST}"], "is a run's folder, which stays as it is"),
            ([FIRST, SECOND, "--out", "file"], "The folder file cannot be written"),
            ([FIRST, SECOND, "--reports-dir", "elsewhere"], "no run of elsewhere; there is none"),
        ],
    )
    def test_bad_input_is_one_line(
        self, typed: list[str], told: str, reports: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.write(reports)
        Path("file").write_text("")
        assert cli.main(["compare", *typed]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1

    @pytest.mark.parametrize(
        "content", ["", "[]", "{}", '{"scenarios": {}}', '{"run_id": 1, "scenarios": {"a": 3}}', HALF]
    )
    def test_a_damaged_run_is_named(self, content: str, reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.write(reports)
        (reports / FIRST / "results.json").write_text(content)
        assert cli.main(["compare", FIRST, SECOND]) == 2
        error = capsys.readouterr().err
        assert "cannot be used" in error
        assert error.count("\n") == 1

    def test_a_notebook_that_cannot_be_read_costs_only_its_figures(self, reports: Path) -> None:
        self.write(reports)
        for content in ("no json", "[]", '{"cells": [3]}'):
            (reports / FIRST / "one.ipynb").write_text(content)
            assert cli.main(["compare", FIRST, SECOND]) == 1

    def test_names_are_shown_and_not_obeyed(self, reports: Path) -> None:
        name = "<script>alert(1)</script>"
        figure = {"data": [], "layout": {"title": {"text": name}, "xaxis": {}, "yaxis": {}}}
        write_run(reports, FIRST, {"one": scenario([check(name)], {name: 1.0})}, {"one": [figure]})
        write_run(reports, SECOND, {"one": scenario([check(name, False, name)], {name: 2.0})}, {"one": []})
        assert cli.main(["compare", FIRST, SECOND, "--out", "there"]) == 1
        assert "<script>alert" not in Path("there/index.html").read_text()
