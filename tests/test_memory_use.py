"""Memory reserved against memory used: the check, the table and the figure of runs on real devices."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from altlas_core import figures
from altlas_core.config import load_config
from altlas_core.intake import make_tasks
from altlas_core.model import GIB, Attempt, TaskSpec
from altlas_core.notebook import display
from altlas_core.notebook.session import Session
from altlas_core.scenarios import SCENARIOS, memory

MIB = 1 << 20


def attempt(used: int | None, reserved: int, neighbours: int = 0, outcome: str = "finished", **spec: Any) -> Attempt:
    """Of a task of `reserved` bytes that had as many neighbours of its size."""
    task = make_tasks([TaskSpec(duration_s=1.0, memory_bytes=reserved, **spec)], load_config().gpu, 1)[0]
    made = Attempt(task, 1, 0, 0.0, outcome=outcome)
    made.detail = {
        "reserved_bytes": reserved,
        "peak_memory_bytes": used,
        "reserved_peak_bytes": reserved * (1 + neighbours),
        "memory_neighbours": neighbours,
        "memory_enforced": True,
    }
    return made


def test_only_what_finished_and_was_measured_counts() -> None:
    seen = attempt(MIB, MIB)
    simulated = attempt(MIB, MIB)
    simulated.detail = None
    unreadable = attempt(None, MIB)
    failed = attempt(MIB, MIB, outcome="out_of_memory")
    result: Any = SimpleNamespace(log=SimpleNamespace(attempts=lambda: [seen, simulated, unreadable, failed]))
    assert memory.measured([result, result]) == [seen, seen]


@pytest.mark.parametrize(("over", "passed"), [(-MIB, True), (memory.ALLOWANCE_BYTES, True), (80 * MIB, False)])
def test_a_peak_beyond_what_was_reserved_fails_the_check(over: int, passed: bool) -> None:
    check = memory.check_use([attempt(MIB, GIB), attempt(4 * GIB + over, 2 * GIB, neighbours=1)])
    assert check.passed is passed
    assert check.observed.startswith("2 of 2" if passed else "1 of 2")
    assert "4.000 GiB reserved" in check.observed


def test_a_budget_that_nobody_enforces_is_said() -> None:
    loose = attempt(MIB, GIB)
    assert loose.detail is not None
    loose.detail["memory_enforced"] = False
    assert "not enforced" in memory.check_use([loose]).observed
    assert "not enforced" not in memory.check_use([attempt(MIB, GIB)]).observed


def test_the_table_has_a_row_for_each_kind_and_size() -> None:
    table = memory.use_table(
        [
            attempt(GIB, 2 * GIB, input_size=2048),
            attempt(3 * GIB, 2 * GIB, neighbours=1, input_size=2048),
            attempt(MIB, GIB, neighbours=3, kind="mlp", dtype="bf16"),
        ],
        {(2048, 1024): "middle"},
    )
    assert list(table["work"]) == ["middle: linear 2048 x 1024", "mlp 1024 x 1024 bf16"]
    assert list(table["reserved (GiB)"]) == [2, 1]
    assert table["used alone, peak (GiB)"][0] == 1
    assert table["used alone, peak (GiB)"].isna()[1]
    assert list(table["tasks at a time"]) == [2, 4]
    assert list(table["reserved together (GiB)"]) == [4, 4]
    assert table["used together, peak (GiB)"][0] == 3


def test_the_figure_draws_both_and_says_the_share() -> None:
    drawn = figures.memory_use(["small_model: linear"], [2.0], [1.5], "measured")
    assert drawn["layout"]["title"]["text"] == "Tasks used at most 75 % of the memory that was reserved for them"
    assert [bar["y"] for bar in drawn["data"]] == [[2], [1.5]]
    assert "GiB" in drawn["layout"]["yaxis"]["title"]["text"]
    small = figures.memory_use(["a"], [0.03], [0.02], "measured")
    assert "MiB" in small["layout"]["yaxis"]["title"]["text"]
    assert json.dumps(small, allow_nan=False)


def test_where_nothing_was_measured_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(display, "display", shown.append)
    settings = load_config(None, {"gpu.devices": "1x T4", "gpu.backend": "simulated"}, environ={})
    result = SCENARIOS["basic_functionality"].run(settings)
    session = Session(result, None)
    session.memory()
    assert shown == []
    assert not any("memory used" in check.name for check in result.checks)
    result.tables["memory"] = memory.use_table([attempt(MIB, GIB)], {})
    session.memory()
    assert [next(iter(bundle)) for bundle in shown] == [display.FIGURE_MIME, "text/html"]
