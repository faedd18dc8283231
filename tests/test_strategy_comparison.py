"""The scenario strategy_comparison: the same work under each strategy, against bounds that hold of any schedule."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import altlas_core as altlas
from altlas_core.config import load_config
from altlas_core.figures import strategies as figures
from altlas_core.model import GIB
from altlas_core.notebook import parameters
from altlas_core.scenarios import SCENARIOS, strategy_comparison, yardsticks
from altlas_core.scenarios.common import ScenarioResult
from altlas_core.scenarios.measures import list_schedule
from altlas_core.scenarios.strategy_comparison import latencies, regret, task_counts
from altlas_core.scenarios.yardsticks import graham_bound_s, lower_bound_s, offline_schedule
from altlas_core.strategies import STRATEGIES, USER_STRATEGIES

SPREADING = [name for name in STRATEGIES if name != "single_gpu"]


@pytest.fixture(autouse=True)
def none_registered() -> Iterator[None]:
    before = dict(USER_STRATEGIES)
    USER_STRATEGIES.clear()
    yield
    USER_STRATEGIES.clear()
    USER_STRATEGIES.update(before)


def settings(**overrides: Any) -> altlas.Settings:
    changed = {name.replace("__", "."): value for name, value in overrides.items()}
    return load_config(None, {"gpu.backend": "simulated", "gpu.devices": ["2x A100"], **changed}, environ={})


def compare(tmp_path: Path, records: Sequence[dict[str, Any]], **overrides: Any) -> ScenarioResult:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    return SCENARIOS["strategy_comparison"].run(settings(run__workload=str(path), **overrides))


def result_of(records: Sequence[dict[str, Any]], **overrides: Any) -> altlas.Result:
    return altlas.run(settings(**overrides), altlas.Workload.from_records(records))


def failed(result: ScenarioResult) -> list[str]:
    return [check.name for check in result.checks if not check.passed]


def check_names(result: ScenarioResult) -> list[str]:
    return [check.name for check in result.checks]


# --- the comparison ---------------------------------------------------------------------------------------------------


def test_the_example_under_every_strategy() -> None:
    result = SCENARIOS["strategy_comparison"].run(load_config(None, {"gpu.backend": "simulated"}, environ={}))
    assert failed(result) == []
    rows = result.metrics["strategies"]
    assert list(rows) == list(STRATEGIES)
    best = result.metrics["best_strategy"]
    assert result.metrics["best_makespan_s"] == min(row["makespan_s"] for row in rows.values())
    assert rows[best]["makespan_s"] == result.metrics["best_makespan_s"]
    assert result.metrics["lower_bound_s"] <= result.metrics["offline_makespan_s"]
    found = min(result.metrics["best_makespan_s"], result.metrics["offline_makespan_s"])
    for row in rows.values():
        assert row["makespan_regret"] == row["makespan_s"] / found - 1
        assert min(row[name] or 0.0 for name in strategy_comparison.REGRETS.values()) >= 0
    assert [sum(counts) for counts in task_counts(result).values()] == [120] * 5
    assert {len(values) for values in latencies(result).values()} == {120}


def test_every_strategy_gets_the_same_work_seed_and_machine(tmp_path: Path) -> None:
    result = compare(tmp_path, [{"submit_s": 0.1 * n, "duration_s": 1.0} for n in range(20)], seed=9)
    for run in result.runs.values():
        assert [(t.submitted_s, t.spec) for t in run.task_list] == [
            (t.submitted_s, t.spec) for t in result.runs["random"].task_list
        ]
        assert run.seed == 9
        assert len(run.devices) == 2
    alone = result_of([{"submit_s": 0.1 * n, "duration_s": 1.0, "strategy": "random"} for n in range(20)], seed=9)
    assert [t.gpu_id for t in alone.task_list] == [t.gpu_id for t in result.runs["random"].task_list]


def test_a_strategy_that_a_record_names_is_set_aside_and_a_pin_is_not(tmp_path: Path) -> None:
    records = [{"duration_s": 1.0, "strategy": "single_gpu"}] * 4 + [{"duration_s": 1.0, "gpu_id": 1}]
    result = compare(tmp_path, records)
    assert failed(result) == []
    assert task_counts(result)["round_robin"][0] < 4
    assert all(run.task_list[4].gpu_id == 1 for run in result.runs.values())
    assert "4 records name is set aside" in result.tables["workload"].iloc[-1, 1]


def test_a_users_strategy_is_compared_and_judged(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text("def last(task, gpus):\n    return gpus[-1]\n")
    asked = parameters.settings({"strategy": f"{tmp_path}/my.py:last", "devices": "2x A100"})
    result = SCENARIOS["strategy_comparison"].run(asked)
    assert failed(result) == []
    assert list(result.metrics["strategies"]) == [*STRATEGIES, "last"]

    altlas.register_strategy("never", lambda task, gpus: None)
    result = compare(tmp_path, [{"duration_s": 1.0}] * 3)
    assert failed(result) == ["every strategy completes the same tasks of known length"]
    assert "3 under single_gpu, 0 under never; task-000000 under one only" in result.checks[0].observed


def test_tasks_whose_end_depends_on_when_they_run_are_not_held_against_a_strategy(tmp_path: Path) -> None:
    records = [{"duration_s": 4.0}] * 4 + [{"duration_s": 4.0, "cancel_s": 6.0}] * 4 + [{"iterations": 10**7}] * 8
    result = compare(tmp_path, records, gpu__workload__timeout=60)
    done = {sum(task.state == "COMPLETED" for task in run.task_list) for run in result.runs.values()}
    assert len(done) > 1
    assert failed(result) == []
    assert result.metrics["offline_makespan_s"] is None


def test_a_scheduler_that_leaves_slots_idle_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"duration_s": 1.0}] * 80
    assert "strategies that leave no slot idle stay within Graham's bound" in check_names(compare(tmp_path, records))
    monkeypatch.setitem(STRATEGIES, "random", STRATEGIES["single_gpu"])
    monkeypatch.setattr("altlas_core.pool.Pool.place", _one_gpu_only)
    assert failed(compare(tmp_path, records)) == ["strategies that leave no slot idle stay within Graham's bound"]


def _one_gpu_only(pool: Any, task: Any, need: Any, closed: int) -> Any:
    device = pool.devices[0]
    return device if device.running < device.slots else None


def test_work_that_is_cut_short_beats_the_bound_and_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategy_comparison, "lower_bound_s", lambda *runs: 10.0)
    assert failed(compare(tmp_path, [{"duration_s": 9.0}])) == ["no strategy beats the lower bound"]


@pytest.mark.parametrize(
    ("value", "best", "expected"),
    [(3.0, 2.0, 0.5), (2.0, 2.0, 0.0), (0.0, 0.0, 0.0), (1.0, 0.0, None), (None, 1.0, None)],
)
def test_regret_is_the_share_over_the_best(value: float | None, best: float | None, expected: float | None) -> None:
    assert regret(value, best) == expected


# --- yardsticks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([{"duration_s": 5.0}], 5.0),
        ([{"duration_s": 1.0}] * 16, 2.0),  # 2 GPUs of 4 slots
        ([{"duration_s": 1.0}] * 12, 1.5),
        ([{"duration_s": 1.0}, {"submit_s": 7.0, "duration_s": 2.0}], 9.0),  # the last to come
        ([{"submit_s": 3.0, "duration_s": 1.0}] * 16, 2.0),  # counted from the first submission
        ([{"duration_s": 1.0}] + [{"submit_s": 3.0, "duration_s": 1.0}] * 16, 5.0),  # what comes from 3 s on
        ([{"duration_s": 1.0, "memory_bytes": 36 * GIB}] * 8, 2.0),  # memory: two at a time on a GPU
        ([{"duration_s": 1.0, "memory_bytes": 40 * GIB}] * 8, 4.0),  # so large that each is alone on its GPU
        ([{"duration_s": 1.0, "memory_bytes": 20 * GIB}] * 12, 2.0),  # so large that three fit
        ([{"duration_s": 1.0, "gpu_id": 1}] * 8, 2.0),  # all on one GPU
        ([{"duration_s": 900.0, "timeout_s": 4.0}], 4.0),
        ([{"duration_s": 5.0}, {"duration_s": 9.0, "memory_bytes": 10**12}], 5.0),  # too large: never runs
        ([{"duration_s": 1.0}, {"iterations": 5, "input_size": 8}], 1.0),  # of unknown length
    ],
)
def test_the_lower_bound_by_hand(records: list[dict[str, Any]], expected: float) -> None:
    assert lower_bound_s(result_of(records)) == pytest.approx(expected)


TASK = st.fixed_dictionaries(
    {
        "submit_s": st.sampled_from([0.0, 0.5, 2.0, 3.0]),
        "duration_s": st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        "memory_bytes": st.sampled_from([GIB, 20 * GIB, 30 * GIB, 70 * GIB]),
        "priority": st.sampled_from(["high", "low"]),
    },
    optional={"gpu_id": st.integers(0, 1)},
)


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.lists(TASK, min_size=1, max_size=12), st.sampled_from(list(STRATEGIES)), st.sampled_from([1, 2, 4]))
def test_no_schedule_goes_below_the_bound(records: list[dict[str, Any]], strategy: str, slots: int) -> None:
    result = result_of(
        records, gpu__selection__default_strategy=strategy, gpu__workload__max_concurrent_tasks_per_gpu=slots
    )
    bound_s, offline = lower_bound_s(result), offline_schedule(result)
    assert result.metrics["makespan_s"] >= bound_s - 1e-9
    assert offline is not None
    assert offline[0] >= bound_s - 1e-9
    most_s = graham_bound_s(result)
    if most_s is not None and strategy in SPREADING:
        assert result.metrics["makespan_s"] <= most_s + 1e-9


def test_the_offline_schedule_is_a_list_schedule_where_only_slots_count() -> None:
    lengths = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0, 5.0, 3.0, 5.0]
    result = result_of([{"duration_s": length} for length in lengths], gpu__workload__max_concurrent_tasks_per_gpu=1)
    longest_first = list_schedule(sorted(lengths, reverse=True), 2)
    assert offline_schedule(result) == (min(longest_first, offline_schedule(result)[0]), "longest first")  # type: ignore[index]
    assert longest_first == 22.0  # 44 s of work on two slots: nothing is better


def test_the_offline_schedule_packs_memory_as_well_as_the_best_of_all_orders() -> None:
    """Four tasks on one GPU of 72 GiB: by brute force over all orders of a greedy schedule."""
    work = [(4.0, 40), (3.0, 30), (2.0, 40), (2.0, 30)]
    records = [{"duration_s": length, "memory_bytes": memory * GIB} for length, memory in work]
    result = result_of(records, gpu__devices=["1x A100"])

    def greedy(order: Sequence[tuple[float, int]]) -> float:
        waiting, running, now = list(order), [], 0.0
        while waiting or running:
            for each in list(waiting):
                if each[1] + sum(memory for _, memory in running) <= 72:
                    running.append((now + each[0], each[1]))
                    waiting.remove(each)
            now = min(end for end, _ in running)
            running = [(end, memory) for end, memory in running if end > now]
        return now

    best = min(greedy(order) for order in itertools.permutations(work))
    offline = offline_schedule(result)
    assert offline is not None
    assert offline[0] == best


def test_the_offline_schedule_leaves_room_for_the_large() -> None:
    work = [(5.0, 40), (4.0, 30), (1.9, 60)]  # the second beside the first, so that the third has a GPU at once
    result = result_of([{"duration_s": length, "memory_bytes": memory * GIB} for length, memory in work])
    assert offline_schedule(result) == (5.0, "longest first")


def test_there_is_no_offline_schedule_of_what_is_not_known_or_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    assert offline_schedule(result_of([{"duration_s": 1.0}, {"iterations": 5}])) is None
    assert offline_schedule(result_of([{"duration_s": 1.0}, {"duration_s": 1.0, "cancel_s": 9.0}])) is None
    result = result_of([{"duration_s": 1.0, "memory_bytes": GIB + n} for n in range(20)])
    assert offline_schedule(result) is not None
    monkeypatch.setattr(yardsticks, "MOST_STEPS", 2 * 20 * 20 * 22 - 1)  # 2 orders, 20 tasks of as many needs, 2 GPUs
    assert offline_schedule(result) is None


def test_only_tasks_that_ran_their_length_in_every_run_are_held_against_any() -> None:
    records = [{"duration_s": 5.0}, {"duration_s": 50.0, "gpu_id": 1}]
    whole = result_of(records)
    cut = altlas.run(settings(), altlas.Workload.from_records(records), faults=[altlas.Fault(1.0, 1, "lose_gpu")])
    assert [task.error_code for task in cut.task_list] == [None, "device_lost"]
    assert [lower_bound_s(*runs) for runs in ([whole], [whole, cut], [cut, whole])] == [50.0, 5.0, 5.0]
    assert offline_schedule(whole) is not None
    assert offline_schedule(whole, cut) is None


def test_many_tasks_of_as_many_needs_are_too_much_for_an_offline_schedule() -> None:
    def work(count: int, needs: int) -> list[yardsticks.Work]:
        return [yardsticks.Work(0.0, 1.0, GIB + n % needs, None) for n in range(count)]

    assert yardsticks._steps(work(3000, 3000), 8) > yardsticks.MOST_STEPS
    assert yardsticks._steps(work(20_000, 10), 8) < yardsticks.MOST_STEPS


@pytest.mark.parametrize(
    "odd",
    [{"duration_s": 1.0, "gpu_id": 0}, {"duration_s": 1.0, "memory_bytes": 20 * GIB}, {"iterations": 5}],
    ids=["pinned", "large", "unknown"],
)
def test_grahams_bound_is_only_claimed_where_it_holds(odd: dict[str, Any]) -> None:
    plain = [{"duration_s": 1.0}] * 16
    assert graham_bound_s(result_of(plain)) == pytest.approx(16 / 8 + (1 - 1 / 8))
    assert graham_bound_s(result_of([*plain, odd])) is None


# --- figures ----------------------------------------------------------------------------------------------------------

ROW = {"wait_p50_s": 0.0, "wait_p95_s": 1.0, "p99_s": 2.0, "energy_j": 1000.0}


def row(makespan_s: float, **more: Any) -> dict[str, Any]:
    return {**ROW, "makespan_s": makespan_s, "makespan_regret": makespan_s / 10 - 1, **more}


@pytest.mark.parametrize(
    ("spans", "told"),
    [
        ([10, 10, 10], "Every strategy needs 10 s"),
        ([80, 10, 11.9, 10.5], "b ends first; a takes 8.0 times as long, the others up to 19 % longer (c)"),
        ([10, 12, 11], "a ends first; b takes 20 % longer, c 10 % longer"),
        ([10, 12], "a ends first; b takes 20 % longer"),
        ([10, 10, 10, 10.3], "a ends first; d takes 3 % longer, the others as long as the first"),
    ],
)
def test_the_finding_names_first_last_and_what_the_others_lose(spans: list[float], told: str) -> None:
    rows = {name: row(float(span)) for name, span in zip("abcd", spans, strict=False)}
    assert figures.finding(rows) == told
    figure = figures.strategy_makespans(rows, 9.0, 9.5, "simulated")
    assert figure["layout"]["title"]["text"].replace("<br>", " ") == told
    assert [trace["name"] for trace in figure["data"][1:]] == ["lower bound: 9 s", "offline, every length known: 9.5 s"]


def test_a_regret_that_is_no_ratio_is_shown_in_seconds_and_a_missing_one_as_such() -> None:
    rows = {
        "a": row(10.0, wait_p50_regret=0.0, wait_p95_regret=None, wait_p95_s=None, p99_regret=0.1, energy_regret=0.0),
        "b": row(30.0, wait_p50_regret=None, wait_p50_s=0.25, wait_p95_regret=0.0, p99_regret=0.0, energy_regret=0.2),
    }
    heat = figures.regrets(rows, "simulated")["data"][0]
    assert dict(zip(heat["y"], heat["text"], strict=True)) == {
        "b": ["200 %", "+0.25 s", "0 %", "0 %", "20 %"],
        "a": ["0 %", "0 %", "N/A", "10 %", "0 %"],
    }


def test_who_is_most_often_best_is_told_and_seconds_over_a_best_of_0_count() -> None:
    def told(**rows: dict[str, Any]) -> str:
        title: str = figures.regrets(rows, "simulated")["layout"]["title"]["text"].replace("<br>", " ")
        return title

    good = {"wait_p50_regret": 0.0, "wait_p95_regret": 0.0, "p99_regret": 0.0, "energy_regret": 0.0}
    idle = {**good, "wait_p50_regret": None, "wait_p50_s": 40.0, "wait_p95_regret": None, "wait_p95_s": 60.0}
    assert told(a=row(10.0, **idle), b=row(13.0, **good)) == "Most often best: b, in 4 of 5 metrics"
    assert told(a=row(10.0, **idle), b=row(10.0, **good)) == "Most often best: b, in 5 of 5 metrics"
    assert told(a=row(10.0, **good), b=row(10.0, **good)) == "Every strategy does equally well"


def test_energy_is_drawn_only_where_it_is_known() -> None:
    assert figures.strategy_energy({"a": row(1.0, energy_j=None)}, "measured") is None
    figure = figures.strategy_energy({"a": row(1.0), "b": row(1.0, energy_j=1500.0)}, "simulated")
    assert figure is not None
    assert figure["layout"]["title"]["text"] == "a needs least energy; b 50 % more"
