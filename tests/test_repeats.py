"""A scenario run several times: which runs, what must hold in all, what they say together, and how it is shown."""

from __future__ import annotations

import gc
import json
import math
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import run as run_suite

import altlas_core as altlas
from altlas_core.config import Settings, load_config
from altlas_core.config_schema import MAX_SEED
from altlas_core.errors import ConfigError, DeviceError
from altlas_core.figures import repeats as figures
from altlas_core.figures.repeats import UTILIZATION, WAITING, Curve, band, certainty, curves, over_time
from altlas_core.figures.style import MOST_POINTS
from altlas_core.model import Check
from altlas_core.notebook import display, repeats, session
from altlas_core.result import Result
from altlas_core.scenarios import SCENARIOS, Scenario
from altlas_core.scenarios.common import ScenarioResult
from altlas_core.scenarios.repeats import Repeats, run_repeated
from altlas_core.statistics import summarize

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
VARIES = "strategies.random.jain_index"  # in concurrent_processing, by the seed


def settings(repeat: int, **overrides: Any) -> Settings:
    changed = {name.replace("__", "."): value for name, value in overrides.items()}
    return load_config(None, {"gpu.backend": "simulated", "run.repeat": repeat, **changed}, environ={})


@dataclass(frozen=True, slots=True)
class Staged(Scenario):
    """A scenario whose runs come from a list: what each checks and measures. `calls` has the seed of every run."""

    results: tuple[Any, ...] = ()
    calls: Any = None
    provenance: str = "simulated"

    def run(self, settings: Settings) -> ScenarioResult:
        staged = self.results[len(self.calls)]
        self.calls.append(settings.seed)
        if isinstance(staged, Exception):
            raise staged
        result = SCENARIOS["gpu_detection"].run(replace(settings, run=replace(settings.run, repeat=1)))
        return replace(result, provenance=self.provenance, **staged)


def staged(*results: Any, provenance: str = "simulated") -> Staged:
    return Staged("gpu_detection", "", "", "detection", results=results, calls=[], provenance=provenance)


def passing(**metrics: Any) -> dict[str, Any]:
    return {"checks": [Check("it holds", True, "yes", "yes")], "metrics": metrics, "advice": {"it holds": "nothing"}}


def failing(observed: str, expected: str = "yes", advice: str = "") -> dict[str, Any]:
    made = passing()
    return {**made, "checks": [Check("it holds", False, expected, observed)], "advice": {"it holds": advice}}


def repeated(scenario: Scenario, count: int, **overrides: Any) -> tuple[ScenarioResult, Repeats[Any]]:
    result, found = run_repeated(scenario, settings(count, **overrides), repeats.observe)
    assert found is not None
    return result, found


# --- which runs ---------------------------------------------------------------------------------------------------


def test_simulated_runs_have_the_seeds_that_follow_and_the_first_is_shown() -> None:
    scenario = SCENARIOS["concurrent_processing"]
    result, found = repeated(scenario, 3, seed=7)
    alone = [scenario.run(settings(1, seed=seed)) for seed in (7, 8, 9)]
    indices = [one.metrics["strategies"]["random"]["jain_index"] for one in alone]
    assert found.values(VARIES) == indices
    assert found.metrics[VARIES] == summarize(indices)
    assert len(set(indices)) > 1
    assert result.event_log_sha256 == alone[0].event_log_sha256
    assert result.metrics == alone[0].metrics
    assert result.virtual_s == alone[0].virtual_s
    assert [check.name for check in result.checks] == [check.name for check in alone[0].checks]
    assert found.to_json()["seeds"] == [7, 8, 9]
    assert found.to_json()["warm_up"] == 0


@pytest.mark.parametrize("provenance", ["measured", "mixed"])
def test_real_runs_keep_the_seed_and_leave_out_one_warm_up(provenance: str) -> None:
    scenario = staged(passing(x=100.0), passing(x=1.0), passing(x=2.0), passing(x=6.0), provenance=provenance)
    result, found = repeated(scenario, 3, seed=7)
    assert scenario.calls == [7, 7, 7, 7]
    assert result.metrics == {"x": 1.0}
    assert found.to_json()["metrics"]["x"] == {
        "n": 3, "mean": 3.0, "stdev": pytest.approx(math.sqrt(7)), "min": 1.0, "max": 6.0,
        "ci95_low": pytest.approx(3 - 4.302652730 * math.sqrt(7 / 3)),
        "ci95_high": pytest.approx(3 + 4.302652730 * math.sqrt(7 / 3)),
    }  # fmt: skip
    assert {name: found.to_json()[name] for name in ("count", "warm_up", "seeds")} == {
        "count": 3, "warm_up": 1, "seeds": None,
    }  # fmt: skip


def test_one_run_is_just_that() -> None:
    result, found = run_repeated(SCENARIOS["gpu_detection"], settings(1), repeats.observe)
    assert found is None
    assert result.to_json() == SCENARIOS["gpu_detection"].run(settings(1)).to_json()


def test_runs_after_the_first_do_not_stay_in_memory() -> None:
    alive: list[weakref.ref[Result]] = []

    def observe(result: ScenarioResult) -> None:
        alive.extend(weakref.ref(run) for run in result.runs.values())

    result, _ = run_repeated(SCENARIOS["concurrent_processing"], settings(4), observe)
    gc.collect()
    parts = len(result.runs)
    assert [reference() is not None for reference in alive] == [True] * parts + [False] * 3 * parts


def test_a_run_that_breaks_says_which_it_was() -> None:
    with pytest.raises(DeviceError, match=r"^seed 43, of 3 runs: GPU 0 fell off$"):
        repeated(staged(passing(), DeviceError("GPU 0 fell off")), 3)


def test_seeds_that_would_be_too_large_are_refused_before_anything_runs() -> None:
    scenario = staged(passing())
    with pytest.raises(ConfigError, match=r"run\.repeat 2"):
        repeated(scenario, 2, seed=MAX_SEED)
    assert scenario.calls == []


# --- checks over all of them --------------------------------------------------------------------------------------


def test_a_check_that_holds_says_in_how_many_runs() -> None:
    result, _ = repeated(SCENARIOS["concurrent_processing"], 3)
    observed = {check.name: check.observed for check in result.checks}
    assert observed["limited: all tasks complete"] == "holds in all 3 runs (seed 42: 20 of 20)"
    assert observed["times are in order"] == "holds in all 3 runs"


def test_a_check_that_fails_once_fails_and_tells_where_and_what_to_do() -> None:
    scenario = staged(passing(), failing("no", advice="mend it"), passing(), failing("half", expected="all of it"))
    result, _ = repeated(scenario, 4)
    assert result.checks == [
        Check("it holds", False, "yes", "fails in 2 of 4 runs; seed 43: no; seed 45: half (expected all of it)")
    ]
    assert result.advice == {"it holds": "mend it"}
    assert not result.passed


def test_what_fails_in_the_warm_up_only_is_left_out_too() -> None:
    result, _ = repeated(staged(failing("cold"), passing(), passing(), provenance="measured"), 2)
    assert result.passed


def test_many_failures_are_told_shortly() -> None:
    result, _ = repeated(staged(*[failing("no") for _ in range(40)]), 40)
    assert result.checks[0].observed.startswith("fails in 40 of 40 runs; seed 42: no; ")
    assert result.checks[0].observed.endswith("seed 51: no; and 30 more")


def test_a_check_that_only_some_runs_make_says_so() -> None:
    other = {**passing(), "checks": [Check("another", True, "yes", "yes")]}
    result, _ = repeated(staged(passing(), other), 2)
    assert [check.observed for check in result.checks] == [
        "holds in the 1 of 2 runs that made it (seed 42: yes)",
        "holds in the 1 of 2 runs that made it (seed 43: yes)",
    ]


# --- metrics over all of them -------------------------------------------------------------------------------------


def test_metrics_that_vary_come_key_metrics_first_then_the_least_certain() -> None:
    runs = [passing(a=1.0, deep={"b": 1.0}, devices=i, same=5, text="x", gone=None) for i in (8, 9)]
    runs[1]["metrics"].update(a=1.1, deep={"b": 2.0})
    _, found = repeated(staged(*runs), 2)
    assert found.varying() == ["devices", "deep.b", "a"]
    assert list(found.metrics) == ["a", "deep.b", "devices", "same"]


def test_a_metric_that_a_run_lacks_is_counted_where_it_is() -> None:
    _, found = repeated(staged(passing(x=1.0), passing(x=None), passing()), 3)
    assert found.metrics["x"].n == 1
    assert found.varying() == ["x"]


# --- curves and bands ---------------------------------------------------------------------------------------------


def queue_of_three(**more: Any) -> Result:
    """One slot, three tasks of 2 s at once: two wait for 2 s, one for 2 s more; then nothing for a while, then one."""
    asked = altlas.load_config(None, {"gpu.devices": "1x T4", "gpu.workload.max_concurrent_tasks_per_gpu": 1}, {})
    records = [{"duration_s": 2.0}] * 3 + [{"duration_s": 2.0, "submit_s": 10.0, **more}]
    return altlas.run(asked, altlas.Workload.from_records(records))


def test_the_curve_of_waiting_tasks_is_exact_where_it_is_constant_and_loses_no_waiting() -> None:
    result = queue_of_three()
    waiting = curves(result).waiting
    assert list(waiting.at(np.array([1.0, 3.0, 5.0, 11.0, 99.0]))) == pytest.approx([2.0, 1.0, 0.0, 0.0, 0.0])
    assert waiting.most == 2
    steps = np.diff(np.concatenate([[0.0], waiting.times]))
    waits = [task.started_s - task.submitted_s for task in result.task_list if task.started_s is not None]
    assert float((steps * waiting.values).sum()) == pytest.approx(sum(waits))


def test_a_task_that_is_tried_again_waits_again_and_one_that_never_starts_waits_until_its_end() -> None:
    asked = altlas.load_config(None, {"gpu.devices": "1x T4", "gpu.workload.max_concurrent_tasks_per_gpu": 1}, {})
    records: list[dict[str, Any]] = [
        {"kind": "raise_error", "duration_s": 1.0, "retry_count": 1, "priority": "low"},
        {"duration_s": 4.0, "submit_s": 0.5},
        {"duration_s": 4.0, "submit_s": 0.5, "cancel_s": 3.0},
    ]
    waiting = curves(altlas.run(asked, altlas.Workload.from_records(records))).waiting
    assert list(waiting.at(np.array([0.2, 0.8, 2.0, 4.0, 5.5]))) == pytest.approx([0.0, 2.0, 2.0, 1.0, 0.0])


def test_utilization_is_the_mean_of_the_gpus() -> None:
    asked = altlas.load_config(None, {"gpu.devices": "4x T4"}, {})
    utilization = curves(altlas.run(asked, altlas.Workload.from_records([{"duration_s": 4.0}]))).utilization
    assert list(utilization.at(np.array([0.5, 3.5, 9.0]))) == [25.0, 25.0, 0.0]


def test_long_runs_are_thinned() -> None:
    asked = altlas.load_config(None, {"gpu.devices": "1x T4", "telemetry.interval": 0.1}, {})
    own = curves(altlas.run(asked, altlas.Workload.from_records([{"duration_s": 100.0}])))
    assert len(own.utilization.times) <= MOST_POINTS
    assert own.utilization.at(np.array([50.0]))[0] == pytest.approx(100.0)


def curve(*values: float, step_s: float = 1.0) -> Curve:
    return Curve(step_s * np.arange(1, len(values) + 1), np.array(values), max(values))


def test_a_band_goes_from_the_least_to_the_greatest_and_what_has_ended_counts_as_0() -> None:
    drawn = band([curve(4.0, 4.0, 4.0, 4.0), curve(2.0, 2.0)])
    first, last = drawn.times < 2, drawn.times > 2
    assert set(drawn.mean[first]) == {3.0}
    assert set(drawn.low[first]) == {2.0}
    assert set(drawn.high[first]) == {4.0}
    assert set(drawn.low[last]) == {0.0}
    assert set(drawn.mean[last]) == {2.0}
    assert drawn.widest == 4.0
    assert not drawn.same_length


def test_where_one_run_has_no_reading_the_others_count() -> None:
    drawn = band([curve(math.nan, 50.0, math.nan), curve(10.0, 30.0, math.nan)])
    assert drawn.times.max() < 2
    assert {*drawn.mean[drawn.times < 1]} == {10.0}
    assert {*drawn.mean[drawn.times > 1]} == {40.0}


@pytest.mark.parametrize("kind", [WAITING, UTILIZATION])
def test_band_figures_are_valid_and_say_what_the_band_is(kind: figures.Kind) -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")
    figure = over_time("all_at_once", kind, [curve(4.0, 2.0), curve(2.0)], "2 runs (seeds 1 to 2)", "simulated")
    graph_objects.Figure(figure)
    subtitle = figure["layout"]["title"]["subtitle"]["text"]
    assert "from the least to the greatest of 2 runs (seeds 1 to 2); a run that has ended counts as 0" in subtitle
    assert figure["layout"]["meta"]["figure"] == kind.key
    assert "by up to 2" in figure["layout"]["title"]["text"]
    assert len(json.dumps(figure)) < 20_000


# --- certainty ----------------------------------------------------------------------------------------------------


def test_metrics_are_drawn_relative_to_their_mean_with_every_run() -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")
    rows = [(name, own, summarize(own)) for name, own in (("a_s", [9.0, 10.0, 11.0]), ("loss", [-1.0, -1.0, -4.0]))]
    figure = certainty(rows, "3 runs (seeds 1 to 3)", "simulated")
    assert figure is not None
    graph_objects.Figure(figure)
    each, means = figure["data"]
    assert "e+" not in figure["layout"]["title"]["text"]
    assert each["x"] == [-10, 0, 10, 50, 50, -100]
    assert means["error_x"]["array"][0] == pytest.approx(10 * 4.302652730 / math.sqrt(3), rel=1e-3)
    assert (
        figure["layout"]["title"]["text"]
        .replace("<br>", " ")
        .startswith("a_s is known to ± 25 % of its mean, loss only to")
    )


def test_what_has_no_relative_spread_is_not_drawn() -> None:
    zero, once = [-1.0, 1.0], [3.0, None]
    assert certainty([("z", zero, summarize(zero)), ("o", once, summarize(once))], "2 runs", "simulated") is None


# --- what notebooks and reports get -------------------------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for module in (display, session, repeats):
        monkeypatch.setattr(module, "display", found.append)
    return found


def test_with_one_run_nothing_is_shown_and_the_result_has_no_repeats(shown: list[dict[str, Any]]) -> None:
    run = session.start("gpu_detection", {"seed": 3})
    run.repeats()
    assert shown == []
    run.finish()
    assert "repeats" not in shown[0][session.RESULT_MIME]


def test_a_notebook_shows_what_its_runs_say_together(shown: list[dict[str, Any]]) -> None:
    run = session.start("concurrent_processing", {"repeat": 3})
    run.machine()
    assert "the first of 3 runs (seeds 42 to 44)" in shown[0]["text/plain"]
    run.repeats()
    heading, table, *rest = shown[1:]
    assert heading["text/markdown"].startswith("## Over 3 runs (seeds 42 to 44)\n\nNo run was left out as a warm-up")
    assert "43 of 45 metrics are the same in all of them" in heading["text/markdown"]
    assert f"<td>{VARIES}</td>" in table["text/html"]
    assert "runs with a value" not in table["text/html"]
    drawn = [
        bundle[display.FIGURE_MIME]["layout"]["meta"]["figure"] for bundle in rest if display.FIGURE_MIME in bundle
    ]
    assert drawn == ["repeats.certainty", "repeats.utilization_pct"]
    assert {"text/plain": "Waiting tasks over time: the same in all 3 runs"} in rest
    run.finish()
    bundle = shown[-1][session.RESULT_MIME]
    assert bundle["repeats"]["metrics"][VARIES]["n"] == 3
    assert shown[-1]["text/plain"].endswith("checks hold in all 3 runs (simulated)")


def test_runs_that_are_all_alike_are_said_to_be(shown: list[dict[str, Any]]) -> None:
    session.start("gpu_detection", {"repeat": 2}).repeats()
    assert "All 6 metrics are the same in all of them" in shown[0]["text/plain"]
    assert all(display.FIGURE_MIME not in bundle for bundle in shown)


def test_the_warm_up_is_told_in_text_table_heading_and_figures(shown: list[dict[str, Any]]) -> None:
    scenario = staged(passing(x=9.0), passing(x=1.0), passing(x=2.0), provenance="measured")
    result, found = repeated(scenario, 2)
    repeats.show_repeats(found, result)
    assert shown[0]["text/markdown"].startswith("## Over 2 runs (seed 42, warm-up left out)\n\nOne warm-up run")
    figure = next(bundle[display.FIGURE_MIME] for bundle in shown if display.FIGURE_MIME in bundle)
    assert "warm-up left out" in figure["layout"]["title"]["subtitle"]["text"]


@pytest.mark.notebooks
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_suite_writes_the_repeats_into_its_results(tmp_path: Path) -> None:
    outcome = run_suite(NOTEBOOKS, tmp_path / "reports", "concurrent_processing", **{"run.repeat": 3})
    assert outcome.status == "passed"
    entry = json.loads((outcome.folder / "results.json").read_text())["scenarios"]["concurrent_processing"]
    assert entry["repeats"]["count"] == 3
    assert entry["repeats"]["seeds"] == [42, 43, 44]
    assert set(entry["repeats"]["metrics"][VARIES]) == {"n", "mean", "stdev", "ci95_low", "ci95_high", "min", "max"}
    assert "holds in all 3 runs" in (outcome.folder / "junit.xml").read_text() or entry["passed"]
    page = (outcome.folder / "concurrent_processing.html").read_text()
    assert "Over 3 runs (seeds 42 to 44)" in page
    assert "holds in all 3 runs" in page
