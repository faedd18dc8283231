"""The benchmarks do what they say: same job for every contestant, every table has its place in the docs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import altlas_core as altlas

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import __main__ as runner
from benchmarks import decision_cost, scheduler, tables
from benchmarks.timing import rates, take_turns

SETTINGS = altlas.load_config(
    overrides={"gpu.devices": ["2x A100"], "gpu.selection.default_strategy": "least_loaded"}, environ={}
)


def test_every_contestant_does_the_same_job() -> None:
    jobs = scheduler.make_jobs(2, 400)
    ours = scheduler.ours(SETTINGS, scheduler.make_workload(jobs)).virtual_s
    bound = sum(duration_s for _, duration_s in jobs) / (2 * scheduler.SLOTS)
    for play in scheduler.PEERS.values():
        theirs = play(2, jobs)  # asserts that all are done
        assert bound <= theirs
        assert theirs == pytest.approx(ours, rel=0.1)


def test_first_come_first_served_on_equal_slots_ends_at_the_same_time_with_or_without_processes() -> None:
    jobs = scheduler.make_jobs(2, 400)
    assert scheduler.with_callbacks(2, jobs) == pytest.approx(scheduler.with_slot_processes(2, jobs))


def test_contestants_take_turns() -> None:
    calls: list[str] = []
    found = take_turns(3, {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")})
    assert calls == ["a", "b"] * 3
    assert [len(seconds) for seconds in found.values()] == [3, 3]


def test_rates_are_medians_with_their_range() -> None:
    found = rates(100, [(1.0, 1.0), (2.0, 1.0), (4.0, 2.0)])
    assert found["per_s"] == {"median": 50.0, "min": 25.0, "max": 100.0}


@pytest.mark.parametrize("strategy", ["single_gpu", "least_loaded", "memory_optimized"])
def test_a_decision_cycle_keeps_as_many_tasks_running(strategy: str) -> None:
    case = decision_cost.Case(strategy, 4, 0.5)
    before = len(case.running)
    case.cycle(50)
    assert before == (2 if strategy == "single_gpu" else 8)
    assert sum(device.running for device in case.distributor.pool.devices) == before
    assert case.distributor.queue.count == 0


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_benchmark_has_its_place_in_the_docs(name: str) -> None:
    page = runner.DOCS.read_text()
    assert page.count(f"<!-- {name} -->\n") == 1
    assert page.count(f"<!-- end {name} -->\n") == 1


def test_a_table_is_written_between_its_markers(tmp_path, monkeypatch) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- end a -->\nafter\n")
    monkeypatch.setattr(runner, "DOCS", page)
    runner.write_docs("a", r"new \1")
    assert page.read_text() == "before\n<!-- a -->\nnew \\1\n<!-- end a -->\nafter\n"
    with pytest.raises(SystemExit, match="markers"):
        runner.write_docs("b", "text")


def test_a_shared_machine_is_named_as_such() -> None:
    result = {"date": "2026-11-23", "others_percent": 40.0, "quick": False}
    assert "shared machine" in runner.caption(result)
    assert "quiet machine" in runner.caption(result | {"others_percent": 1.0})
    assert "not to be quoted" in runner.caption(result | {"quick": True})
