"""The scenario own_workload: a user's trace is run as it says, judged, and summed up under names that stay."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import altlas_core as altlas
from altlas_core import cli
from altlas_core.backends.simulated import SimulatedBackend
from altlas_core.config import load_config
from altlas_core.errors import AltlasError, ConfigError
from altlas_core.figures.priorities import latency_by_priority
from altlas_core.model import GIB
from altlas_core.notebook import parameters
from altlas_core.report import notebooks
from altlas_core.scenarios import SCENARIOS
from altlas_core.scenarios.common import ScenarioResult
from altlas_core.scenarios.given import EXAMPLE_ROOM, check_given, given_workload
from altlas_core.scenarios.own_workload import latencies_by_priority
from altlas_core.scenarios.run_metrics import energy_j, most_waiting, run_metrics
from altlas_core.scenarios.yardsticks import lower_bound_s

FOUND = notebooks.find_notebooks(Path(__file__).parents[1] / "notebooks")
NAMES = [
    "tasks", "completed", "failed", "cancelled", "makespan_s", "throughput_tasks_per_s", "p50_s", "p95_s", "p99_s",
    "wait_p50_s", "wait_p95_s", "wait_p99_s", "utilization_mean_pct", "energy_j", "queue_depth_max", "jain_index",
]  # fmt: skip
TRACE = """\
submit_s,kind,duration_s,memory_bytes,priority,timeout_s,cancel_s,gpu_id,retry_count
0,linear,2,,high,,,,
0,linear,30,,normal,5,,,
1,linear,5,,normal,,3,,
1,linear,1,999999999999,low,,,,
2,raise_error,0.5,,normal,,,,1
2,sleep,1,,low,,,1,
"""


def settings(**overrides: Any) -> altlas.Settings:
    changed = {name.replace("__", "."): value for name, value in overrides.items()}
    return load_config(None, {"gpu.backend": "simulated", "gpu.devices": ["2x A100"], **changed}, environ={})


def run(tmp_path: Path, text: str = TRACE, **overrides: Any) -> ScenarioResult:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return SCENARIOS["own_workload"].run(settings(run__workload=str(path), **overrides))


def failed(result: ScenarioResult) -> list[str]:
    return [check.name for check in result.checks if not check.passed]


def rows(result: ScenarioResult, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = result.tables[table].to_dict("records")
    return found


# --- what is said of a run --------------------------------------------------------------------------------------------


def test_a_task_that_fails_by_its_nature_is_told_and_fails_no_check(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert failed(result) == []
    ended = {(row["ended"], row["why"]): row for row in rows(result, "outcomes")}
    assert {key: row["tasks"] for key, row in ended.items()} == {
        ("COMPLETED", "as asked"): 2,
        ("FAILED", "timeout"): 1,
        ("FAILED", "too_large"): 1,
        ("FAILED", "task_error"): 1,
        ("CANCELLED", "as asked"): 1,
    }
    assert ended["FAILED", "too_large"]["the first of them"] == "task-000003"
    assert "more memory than any GPU" in ended["FAILED", "too_large"]["what that means"]


def test_the_metrics_are_flat_and_mean_what_they_say(tmp_path: Path) -> None:
    text = "submit_s,duration_s,priority\n" + "0,2,high\n0,4,low\n1,3,low\n"
    result = run(tmp_path, text, gpu__devices=["1x A100"], gpu__workload__max_concurrent_tasks_per_gpu=2)
    metrics = result.metrics
    assert list(metrics) == NAMES
    assert (metrics["tasks"], metrics["completed"], metrics["makespan_s"]) == (3, 3, 5.0)
    assert metrics["throughput_tasks_per_s"] == 3 / 5.0
    assert (metrics["p50_s"], metrics["wait_p50_s"], metrics["wait_p95_s"]) == (4.0, 0.0, pytest.approx(0.9))
    assert metrics["queue_depth_max"] == 1
    assert metrics["jain_index"] == 1.0
    by_priority = {row["priority"]: row for row in rows(result, "priorities")}
    assert by_priority["high"]["latency p99 (s)"] == 2.0
    assert by_priority["low"]["wait p50 (s)"] == 0.5
    json.dumps(result.to_json(), allow_nan=False)


def test_energy_is_power_over_time() -> None:
    """One GPU busy for 2.5 s and one idle. A reading is the mean since the one before, so their sum is the integral."""
    result = altlas.run(settings(), altlas.Workload.from_records([{"duration_s": 2.5}]))
    power = result.telemetry.query("time_s == 2").sort_values("gpu_id")["power_w"]
    busy_w, idle_w = power.iloc[0], power.iloc[1]
    assert busy_w > idle_w
    assert energy_j(result) == pytest.approx(2.5 * (busy_w + idle_w))


def test_time_before_the_first_submission_counts_for_nothing() -> None:
    def metrics(first_s: float) -> dict[str, Any]:
        records = [{"submit_s": first_s, "duration_s": 2.0}, {"submit_s": first_s + 1, "duration_s": 3.0}]
        return run_metrics(altlas.run(settings(), altlas.Workload.from_records(records)))

    at_once, later = metrics(0.0), metrics(500.0)
    assert later["utilization_mean_pct"] == at_once["utilization_mean_pct"] > 0
    assert later["energy_j"] == pytest.approx(at_once["energy_j"])
    between = metrics(500.5)
    assert between["energy_j"] == pytest.approx(at_once["energy_j"], rel=0.2)


def test_energy_is_not_made_up_where_a_device_does_not_tell_its_power(monkeypatch: pytest.MonkeyPatch) -> None:
    record = SimulatedBackend.record

    def silent(self: Any, now: float, utilization: Any, memory: Any, temperature: Any, power: Any) -> None:
        record(self, now, utilization, memory, temperature, power)
        power[-1] = math.nan

    monkeypatch.setattr(SimulatedBackend, "record", silent)
    assert energy_j(altlas.run(settings(), altlas.Workload.from_records([{"duration_s": 2.0}]))) is None


def test_the_most_that_wait_counts_those_that_are_repeated_and_those_that_never_start() -> None:
    records = [{"duration_s": 3.0, "memory_bytes": 60 * GIB}, {"submit_s": 1.0, "duration_s": 1.0, "cancel_s": 2.0}]
    one = {"gpu__devices": ["1x A100"], "gpu__workload__max_concurrent_tasks_per_gpu": 1}
    assert most_waiting(altlas.run(settings(**one), altlas.Workload.from_records(records))) == 1
    two = {**one, "gpu__devices": ["2x A100"], "gpu__selection__default_strategy": "least_loaded"}
    both_run = altlas.Workload.from_records(records[:1] * 2)
    assert most_waiting(altlas.run(settings(**two), both_run)) == 0
    assert most_waiting(altlas.run(settings(**two), both_run, faults=[altlas.Fault(1.0, 0, "lose_gpu")])) == 1


def test_a_run_in_which_nothing_completes_has_no_made_up_numbers(tmp_path: Path) -> None:
    result = run(tmp_path, "duration_s,memory_bytes\n1,999999999999\n")
    assert failed(result) == []
    assert result.metrics["p99_s"] is None
    assert result.metrics["wait_p95_s"] is None
    figure = latency_by_priority(latencies_by_priority(result.runs["workload"]), "simulated")
    assert figure["layout"]["title"]["text"] == "No task completed"


def test_latency_by_priority_draws_each_distribution_whole() -> None:
    figure = latency_by_priority(
        {"high": [1.0, 2.0], "normal": [], "low": [float(n) for n in range(1000)]}, "simulated"
    )
    assert [trace["name"] for trace in figure["data"]] == ["high priority", "low priority"]
    assert (figure["data"][0]["x"], figure["data"][0]["y"]) == ([1, 1, 2, 2], [0, 50, 100, 100])
    low = figure["data"][1]
    assert (low["x"][-1], low["y"][-1], len(low["x"])) == (999, 100, 202)
    assert "949 s (low)" in figure["layout"]["title"]["text"]


def test_a_task_that_fails_early_is_not_expected_to_have_taken_its_time() -> None:
    """Its device is lost after 1 s, and there is no other."""
    lost = altlas.run(
        settings(gpu__devices=["1x A100"]),
        altlas.Workload.from_records([{"duration_s": 50.0}]),
        faults=[altlas.Fault(1.0, 0, "lose_gpu")],
    )
    assert lost.task_list[0].error_code == "device_lost"
    assert lower_bound_s(lost) == 0.0


# --- checks that can fail ---------------------------------------------------------------------------------------------


def test_work_that_is_cut_short_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    post_at = SimulatedBackend.open

    def hasty(self: Any, mailbox: Any) -> None:
        post_at(self, mailbox)
        own = self._post_at
        self._post_at = lambda time_s, rank, due, arg: own(time_s * 0.9, rank, due, arg)

    monkeypatch.setattr(SimulatedBackend, "open", hasty)
    assert failed(run(tmp_path, "duration_s\n5\n5\n")) == [
        "completed tasks held their GPU exactly as long as they asked",
        "the makespan is not below what the work needs at least",
    ]


def test_a_strategy_that_never_answers_fails_the_check_on_devices(tmp_path: Path) -> None:
    altlas.register_strategy("never", lambda task, gpus: None)
    try:
        path = tmp_path / "trace.csv"
        path.write_text("duration_s\n1\n")
        asked = parameters.settings({"workload": path, "strategy": "never"})
        result = SCENARIOS["own_workload"].run(asked)
    finally:
        from altlas_core.strategies import USER_STRATEGIES

        del USER_STRATEGIES["never"]
    assert failed(result) == ["no task ends for want of a device"]
    assert "declined by strategy never" in result.checks[0].observed


# --- which workload, and when -----------------------------------------------------------------------------------------


def test_without_a_workload_the_example_runs_and_says_so() -> None:
    result = SCENARIOS["own_workload"].run(settings())
    assert failed(result) == []
    assert "an example that comes with the package" in rows(result, "workload")[0]["what was run"]
    assert result.metrics["completed"] == 120


def test_the_example_shrinks_with_the_gpus_and_a_users_file_does_not(tmp_path: Path) -> None:
    small = settings(gpu__devices=["2x T4"], run__workload=None)
    devices = SCENARIOS["own_workload"].run(small).devices
    given = given_workload(small, devices)
    largest = max(spec.memory_bytes or 0 for spec in given.workload.specs)
    room = int(0.9 * devices[0].memory_total_bytes)
    assert largest == int(56 * GIB * room / EXAMPLE_ROOM)
    assert "its memory needs times" in given.told
    result = run(tmp_path, f"duration_s,memory_bytes\n1,{40 * GIB}\n", gpu__devices=["2x T4"])
    assert rows(result, "outcomes")[0]["why"] == "too_large"


def test_it_joins_a_suite_only_where_asked_for_or_where_a_workload_is_given() -> None:
    def chosen(asked: list[str], **overrides: Any) -> list[str]:
        return [notebook.scenario for notebook in notebooks.choose(FOUND, asked, settings(**overrides))]

    assert chosen([]) == [name for name in SCENARIOS if name != "own_workload"]
    assert chosen([], run__workload="a.csv") == list(SCENARIOS)
    assert chosen(["own_workload"]) == ["own_workload"]
    assert "own_workload" not in chosen([], run__workload="a.csv", test__own_workload__enabled=False)
    with pytest.raises(ConfigError, match="own_workload' is switched off"):
        chosen(["own_workload"], test__own_workload__enabled=False)


def test_a_path_is_a_path_whatever_yaml_would_read_in_it(tmp_path: Path) -> None:
    path = tmp_path / "a: b #1.csv"
    path.write_text("duration_s\n1\n")
    assert parameters.settings({"workload": path}).run.workload == str(path)
    assert parameters.settings({"workload": "12"}).run.workload == "12"


# --- bad input, before anything starts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("no.csv", None, "no.csv: no such file"),
        ("a.txt", "x", "a.txt: ends in '.txt'"),
        ("a: b.csv", "duration_s\nx\n", "a: b.csv, row 2: column duration_s: 'x' is not a number"),
        ("a.csv", "duration_s,strategy\n1,\n1,randm\n", "a.csv: task-000001: unknown strategy 'randm'. Did you"),
        ("a.csv", "duration_s,gpu_id\n1,8\n", "a.csv: task-000000: gpu_id 8 is not there; this machine has"),
    ],
)  # fmt: skip
def test_a_bad_workload_is_bad_input_and_nothing_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str | None,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_text(content)
    assert cli.main(["run", "--backend", "simulated", "--workload", name]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"altlas: {told}")
    assert error.count("\n") == 1
    assert not Path("reports").exists()


def test_a_trace_so_sparse_that_only_idle_devices_would_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("submit_s,duration_s\n0,1\n90000000,1\n")
    command = ["run", "--backend", "simulated", "--devices", "2x A100", "--workload", "a.csv"]
    assert cli.main(command) == 2
    assert capsys.readouterr().err == (
        "altlas: a.csv: the last task is submitted at 90,000,000 s (times are seconds), which with "
        "telemetry.interval 1 s and 2 GPUs is 180,000,002 readings; allowed: 8,000,000, as with "
        "--set telemetry.interval=50\n"
    )
    assert not Path("reports").exists()
    devices = SCENARIOS["own_workload"].run(settings()).devices
    check_given(settings(run__workload="a.csv", telemetry__interval=50), devices)


def test_a_workload_that_asks_for_what_the_machine_has_not_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("duration_s,dtype\n1,bf16\n")
    old = settings(gpu__devices=["1x T4"], run__workload=str(path))
    with pytest.raises(AltlasError, match=r"a\.csv: task-000000: dtype: bf16 is not among the number formats of GPU 0"):
        check_given(old, SCENARIOS["own_workload"].run(settings(gpu__devices=["1x T4"])).devices)


def test_sums_of_a_run_are_the_runs_own() -> None:
    result = altlas.run(settings(), altlas.Workload.poisson(20, 100, seed=3, duration_mean_s=1.0))
    metrics = run_metrics(result)
    assert metrics["makespan_s"] == result.metrics["makespan_s"]
    assert metrics["p99_s"] == result.metrics["latency_p99_s"]
    assert metrics["queue_depth_max"] >= result.metrics["queue_depth_max"]
