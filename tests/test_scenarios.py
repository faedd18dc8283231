"""The scenarios: they pass on sound machines, follow their settings, and fail when something is broken."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from altlas_core.backends.machine import Excluded, Machine
from altlas_core.backends.simulated import SimulatedBackend
from altlas_core.config import Settings, load_config
from altlas_core.distributor import Distributor
from altlas_core.model import COMPLETED, FAILED, Attempt, Task, TaskSpec
from altlas_core.scenarios import SCENARIOS, enabled_scenarios, gpu_detection
from altlas_core.scenarios.common import ScenarioResult
from altlas_core.scenarios.concurrent_processing import split_places
from altlas_core.scenarios.measures import (
    jain_index,
    list_schedule,
    peak_running,
    percentile,
    usable_places,
)

NAMES = [
    "gpu_detection",
    "basic_functionality",
    "concurrent_processing",
    "performance",
    "error_handling",
    "own_workload",
    "strategy_comparison",
]


def settings(**overrides: Any) -> Settings:
    changed = {name.replace("__", "."): value for name, value in overrides.items()}
    return load_config(None, {"gpu.backend": "simulated", **changed}, environ={})


def run(name: str, **overrides: Any) -> ScenarioResult:
    return SCENARIOS[name].run(settings(**overrides))


def failed(result: ScenarioResult) -> list[str]:
    return [check.name for check in result.checks if not check.passed]


# --- all of them --------------------------------------------------------------------------------------------------


def test_the_scenarios_are_there_in_order() -> None:
    assert list(SCENARIOS) == NAMES


def test_listing_scenarios_loads_nothing_heavy() -> None:
    code = (
        "import sys, altlas_core.scenarios; print({'pandas', 'numpy', 'torch', 'plotly', 'IPython'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", NAMES)
def test_it_passes_on_the_default_machine(name: str) -> None:
    result = run(name)
    assert failed(result) == []
    assert result.provenance == "simulated"
    assert result.virtual_s > 0


@pytest.mark.parametrize("devices", ["1x A100", ["T4", "L4", "2x B200"], "3x RTX-4060-8GB"])
@pytest.mark.parametrize("name", NAMES)
def test_it_passes_on_other_machines(name: str, devices: Any) -> None:
    assert failed(run(name, gpu__devices=devices)) == []


@pytest.mark.parametrize("name", ["gpu_detection", "concurrent_processing", "error_handling"])
def test_it_passes_on_a_thousand_gpus(name: str) -> None:
    assert failed(run(name, gpu__devices="1024x H100")) == []


@pytest.mark.parametrize(
    "overrides",
    [
        {"gpu__workload__max_concurrent_tasks_per_gpu": 1},
        {"gpu__workload__max_concurrent_tasks_per_gpu": 7, "gpu__selection__default_strategy": "random"},
        {"gpu__selection__strategies": ["single_gpu"]},
        {"gpu__selection__strategies": ["random"], "gpu__selection__default_strategy": "random"},
        {"gpu__workload__batch_size": 1, "gpu__workload__retry_count": 0},
        {"gpu__memory_limit_bytes": 3_000_000_000},
        {"telemetry__interval": 7.0, "gpu__workload__priority_aging": 0.5},
        {"gpu__detection__max_temperature": 40.0},
    ],
    ids=lambda overrides: ",".join(name.rpartition("__")[2] for name in overrides),
)
def test_all_pass_under_other_settings(overrides: dict[str, Any]) -> None:
    for name in NAMES:
        assert failed(run(name, **overrides)) == [], name


@pytest.mark.parametrize("name", NAMES)
def test_same_settings_give_the_same_bytes(name: str) -> None:
    first, second = run(name), run(name)
    assert first.event_log_sha256 == second.event_log_sha256
    assert json.dumps(first.to_json(), allow_nan=False) == json.dumps(second.to_json(), allow_nan=False)


def test_another_seed_changes_the_log_where_chance_decides() -> None:
    assert run("concurrent_processing", seed=1).event_log_sha256 != run("concurrent_processing").event_log_sha256


@pytest.mark.parametrize("name", NAMES)
def test_the_event_log_has_every_run_under_its_label(name: str) -> None:
    result = run(name)
    lines = [json.loads(line) for line in result.event_log.splitlines()]
    assert [line["run"] for line in lines if "run" in line] == list(result.runs)
    assert len(lines) == sum(len(own.events) for own in result.runs.values())
    assert hashlib.sha256(result.event_log.encode()).hexdigest() == result.event_log_sha256


@pytest.mark.parametrize("name", NAMES)
def test_the_result_says_what_reports_need(name: str) -> None:
    data = run(name).to_json()
    assert data["scenario"] == name
    assert data["passed"] is all(check["passed"] for check in data["checks"])
    assert set(data["key_metrics"]) <= set(data["metrics"])
    assert data["devices"] == ["8x A100-SXM4-80GB"]
    names = [check["name"] for check in data["checks"]]
    assert len(set(names)) == len(names)


def test_enabled_false_leaves_a_scenario_out() -> None:
    chosen = enabled_scenarios(settings(test__detection__enabled=False, test__performance__enabled=False))
    left_out = {"gpu_detection", "performance"}
    assert [scenario.name for scenario in chosen] == [name for name in NAMES if name not in left_out]


# --- GPU detection ------------------------------------------------------------------------------------------------


def test_a_gpu_that_was_left_out_is_listed_with_its_reason() -> None:
    result = run("gpu_detection", gpu__devices=["T4", "2x H100"], gpu__detection__min_compute_capability=8.0)
    assert list(result.tables["left_out"]["name"]) == ["T4"]
    assert "min_compute_capability" in result.tables["left_out"]["reason"][0]
    assert result.metrics["left_out"] == 1
    assert result.metrics["devices"] == 2


def test_an_exclusion_without_a_reason_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    found = gpu_detection.Bench("gpu_detection", settings()).machine
    mute = replace(found, excluded=(Excluded("T4", 0, None, " "),))
    monkeypatch.setattr("altlas_core.scenarios.common.discover", lambda _: mute)
    assert failed(run("gpu_detection")) == ["every device left out has a reason"]


def test_two_devices_of_one_identity_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    found: Machine = gpu_detection.Bench("gpu_detection", settings()).machine
    twin = replace(found.devices[1], uuid=found.devices[0].uuid)
    twins = replace(found, devices=(found.devices[0], twin, *found.devices[2:]))
    monkeypatch.setattr("altlas_core.scenarios.common.discover", lambda _: twins)
    assert failed(run("gpu_detection")) == ["UUIDs are unique"]


@pytest.mark.parametrize(
    ("reading", "value"), [("utilization_pct", 101.0), ("power_w", 5.0), ("power_w", 900.0), ("temperature_c", -3.0)]
)
def test_an_impossible_reading_fails(monkeypatch: pytest.MonkeyPatch, reading: str, value: float) -> None:
    real = SimulatedBackend.sample

    def sample(self: SimulatedBackend, now: float, gpu_id: int) -> Any:
        found = real(self, now, gpu_id)
        if gpu_id == 3:
            setattr(found, reading, value)
        return found

    monkeypatch.setattr(SimulatedBackend, "sample", sample)
    result = run("gpu_detection")
    assert failed(result) == ["readings are plausible"]
    assert "GPU 3" in next(check.observed for check in result.checks if not check.passed)


# --- basic functionality ------------------------------------------------------------------------------------------


def test_a_timeout_shorter_than_the_task_shows_under_every_strategy() -> None:
    names = failed(run("basic_functionality", gpu__workload__timeout=3))
    assert [name for name in names if name.endswith("a task's whole life")] == [
        f"{strategy}: a task's whole life"
        for strategy in ("single_gpu", "round_robin", "least_loaded", "memory_optimized", "random")
    ]


def test_a_queue_that_ignores_priorities_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("altlas_core.intake.PRIORITIES", {"high": 1, "normal": 1, "low": 1})
    result = run("basic_functionality")
    assert failed(result) == ["priorities decide the order, first come first served inside each"]
    assert next(check for check in result.checks if not check.passed).observed.startswith("low 2, low 3")


def test_a_cancelled_task_that_completes_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Distributor, "_on_cancel", lambda self, now, fact: ())
    names = failed(run("basic_functionality"))
    assert "a running task that is cancelled stays CANCELLED" in names
    assert "a waiting task that is cancelled never starts" in names


def test_the_batch_follows_batch_size() -> None:
    result = run("basic_functionality", gpu__workload__batch_size=3)
    assert result.metrics["batch_pieces"] == 3  # 8 items: 3, 3, 2
    check = next(check for check in result.checks if check.name == "a batch is cut into pieces of batch_size")
    assert check.observed == "3 pieces of 3, 3, 2, 1 batch"


# --- concurrent processing ----------------------------------------------------------------------------------------


def test_task_count_and_concurrent_tasks_are_those_of_the_settings() -> None:
    result = run(
        "concurrent_processing",
        test__concurrent_processing__task_count=11,
        test__concurrent_processing__concurrent_tasks=6,
        test__concurrent_processing__duration=3.0,
    )
    assert result.metrics["most_in_flight"] == 6
    assert result.metrics["tasks"] == 6 * 11
    assert result.metrics["makespan_limited_s"] == 6.0


@pytest.mark.parametrize(
    ("wanted", "devices", "split"), [(4, 8, (4, 1)), (4, 2, (2, 2)), (7, 4, (1, 7)), (12, 8, (6, 2))]
)
def test_places_are_split_so_that_there_are_exactly_as_many(wanted: int, devices: int, split: tuple[int, int]) -> None:
    assert split_places(wanted, devices) == split


def test_makespan_of_each_strategy_is_that_of_list_scheduling() -> None:
    rows = run("concurrent_processing", gpu__devices="3x T4").metrics["strategies"]
    assert {name: row["makespan_s"] for name, row in rows.items()} == {
        "single_gpu": 10.0,
        "round_robin": 4.0,
        "least_loaded": 4.0,
        "memory_optimized": 4.0,
        "random": 4.0,
    }


def test_a_scheduler_that_leaves_slots_idle_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy(Distributor):
        def __init__(self, gpu: Any, *rest: Any) -> None:
            fewer = replace(gpu.workload, max_concurrent_tasks_per_gpu=gpu.workload.max_concurrent_tasks_per_gpu - 1)
            super().__init__(replace(gpu, workload=fewer), *rest)

    monkeypatch.setattr("altlas_core.experiment.Distributor", Lazy)
    names = failed(run("concurrent_processing", gpu__devices="2x T4"))
    assert "limited: never more in flight than allowed, and as many as can be" in names
    assert "single_gpu: the cap per GPU is reached and never passed" in names
    assert "random: makespan is that of list scheduling" in names


def test_a_scheduler_that_overfills_gpus_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Greedy(Distributor):
        def __init__(self, gpu: Any, *rest: Any) -> None:
            more = replace(gpu.workload, max_concurrent_tasks_per_gpu=gpu.workload.max_concurrent_tasks_per_gpu + 1)
            super().__init__(replace(gpu, workload=more), *rest)

    monkeypatch.setattr("altlas_core.experiment.Distributor", Greedy)
    names = failed(run("concurrent_processing"))
    assert "limited: never more in flight than allowed, and as many as can be" in names
    assert "single_gpu: the cap per GPU is reached and never passed" in names
    assert "slots per GPU are never exceeded" in names


# --- performance --------------------------------------------------------------------------------------------------


def test_every_model_of_the_settings_is_measured_under_every_strategy() -> None:
    models = [{"name": "tiny", "input_size": 64, "output_size": 64, "duration": 1}]
    result = run("performance", test__performance__scenarios=models)
    assert list(result.metrics["models"]) == ["tiny"]
    assert set(result.series["tflops"]["tiny"]) == {
        "alone", "single_gpu", "round_robin", "least_loaded", "memory_optimized", "random",
    }  # fmt: skip
    assert failed(result) == []


@pytest.mark.parametrize(("devices", "counts"), [("8x T4", [1, 2, 4, 8]), ("3x T4", [1, 2]), ("1x T4", [1])])
def test_scaling_uses_the_numbers_of_gpus_that_exist(devices: str, counts: list[int]) -> None:
    result = run("performance", gpu__devices=devices)
    assert sorted({count for own in result.series["speedup"].values() for count in own}) == counts
    for own in result.series["speedup"].values():
        for count, speedup in own.items():
            assert speedup == pytest.approx(count, rel=1e-9)


def test_a_gpu_faster_than_its_peak_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("altlas_core.scenarios.performance._peak_flops", lambda devices, gpu_ids: 1e12 * len(gpu_ids))
    assert failed(run("performance")) == ["no GPU computes faster than its peak"]


# --- error handling -----------------------------------------------------------------------------------------------


def test_overload_waits_for_memory_although_slots_are_free() -> None:
    runs = run("error_handling").runs
    assert peak_running(runs["overload"].log.attempts()) == 4
    assert peak_running(runs["overload_small"].log.attempts()) == 3
    assert all(task.state == COMPLETED for task in runs["overload_small"].task_list)


def test_timeout_is_exact_and_its_case_can_be_left_out() -> None:
    result = run("error_handling")
    task = next(task for task in result.phases["failures"][-1].tasks)
    assert task.started_s is not None
    assert task.finished_s == task.started_s + 300
    overload = [{"name": "gpu_overload", "concurrent_tasks": 2, "input_size": 64, "output_size": 64, "duration": 1}]
    short = run("error_handling", test__error_handling__scenarios=overload)
    assert "task_timeout" not in {phase.label for phase in short.phases["failures"]}
    assert not any("task_timeout" in check.name for check in short.checks)
    timeout = [{"name": "task_timeout", "duration": 10}]
    rest = run("error_handling", test__error_handling__scenarios=timeout, gpu__workload__timeout=60)
    assert set(rest.runs) == {"device_lost", "failures"}
    assert "task_timeout: ends before its timeout" in {check.name for check in rest.checks}
    assert failed(rest) == []


def test_with_one_device_lost_nothing_can_finish_elsewhere_and_the_check_says_so() -> None:
    result = run("error_handling", gpu__devices="1x A100")
    assert {task.error_code for task in result.runs["device_lost"].task_list} == {"device_lost"}
    assert failed(result) == []


def test_retries_follow_the_settings() -> None:
    tasks = run("error_handling", gpu__workload__retry_count=1).phases["failures"][1].tasks
    assert [task.attempts for task in tasks] == [2]


def test_losing_the_tasks_of_a_lost_gpu_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Distributor, "_requeue", lambda self, now, task: self._finish(now, task, FAILED, "device_lost", "gone")
    )
    names = failed(run("error_handling"))
    assert "device lost: its tasks finish elsewhere, in a second attempt" in names
    assert "raises: a task that raises is tried again, then FAILED with its error" in names
    assert "crashes: tasks beside it in the same worker complete all the same" in names


def test_overfilling_memory_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Greedy(Distributor):
        def __init__(self, gpu: Any, *rest: Any) -> None:
            super().__init__(replace(gpu, memory_limit_bytes=None), *rest)

    monkeypatch.setattr("altlas_core.experiment.Distributor", Greedy)
    names = failed(run("error_handling"))
    assert "small GPU: what does not fit waits for memory, with slots free" in names
    assert "small GPU: reserved memory stays under its limit" in names


# --- measures -----------------------------------------------------------------------------------------------------


def test_list_scheduling_takes_the_slot_that_is_free_first() -> None:
    assert list_schedule([2.0] * 20, 4) == 10.0
    assert list_schedule([3.0, 1.0, 1.0, 1.0], 2) == 3.0
    assert list_schedule([1.0], 100, start_s=5.0) == 6.0


def test_single_gpu_may_use_the_first_gpu_that_can_hold_the_task() -> None:
    assert usable_places("single_gpu", [0, 3, 4]) == [0, 3, 0]
    assert usable_places("random", [0, 3, 4]) == [0, 3, 4]


def test_jain_index_of_even_and_lopsided_loads() -> None:
    assert jain_index([3, 3, 3]) == 1.0
    assert jain_index([9, 0, 0]) == pytest.approx(1 / 3)
    assert jain_index([0, 0]) == 1.0


def test_percentiles_lie_between_ranks() -> None:
    assert percentile([], 50) is None
    assert percentile([4.0, 1.0, 2.0, 3.0], 50) == 2.5
    assert percentile([1.0, 2.0], 100) == 2.0


def test_an_attempt_that_ends_as_another_starts_has_made_room() -> None:
    def attempt(start: float, end: float | None) -> Attempt:
        return Attempt(Task(0, TaskSpec(), 1, None, 0, 1.0, 0), 1, 0, start, ended_s=end)  # type: ignore[arg-type]

    assert peak_running([attempt(0, 1), attempt(1, 2), attempt(0.5, None)]) == 2


# --- real devices -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_code_runs_on_a_cpu_device() -> None:
    real = load_config(
        None,
        {
            "gpu.devices": "cpu:1",
            "gpu.selection.strategies": ["single_gpu", "least_loaded"],
            "telemetry.interval": 0.2,
            "run.time_scale": 0.5,
            "test.basic_functionality": {"input_size": 128, "output_size": 128, "duration": 1.0},
        },
        environ={},
    )
    result = SCENARIOS["basic_functionality"].run(real)
    assert failed(result) == []
    assert result.provenance == "measured"
    assert "sampled outputs agree with the float64 reference" in {check.name for check in result.checks}


def test_a_failed_check_says_what_to_do() -> None:
    checks = run("concurrent_processing", gpu__workload__max_queue=3).to_json()["checks"]
    advice = {check["name"]: check.get("advice") for check in checks}
    assert "gpu.workload.max_queue" in advice["single_gpu: all tasks complete"]
    assert advice["random: all tasks complete"] is None  # it passed
