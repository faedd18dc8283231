"""Workers killed again and again under load: no task is lost, none ends twice, and every attempt is accounted for."""

from __future__ import annotations

import sys
from pathlib import Path

import altlas_core as altlas
from altlas_core.model import COMPLETED

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kills import account, play


def test_all_tasks_end_once_and_their_attempts_add_up_while_workers_are_killed() -> None:
    settings = altlas.load_config(overrides={"gpu.selection.default_strategy": "least_loaded"}, environ={})
    found = account(*play(500, 100, settings))  # which asserts it of each task
    assert 4 <= found["kills"] <= 5
    assert found["outcomes"]["worker_crashed"] >= 1
    assert sum(found["states"].values()) == 500
    assert found["outcomes"]["finished"] == found["states"][COMPLETED] >= 500 - found["kills"]  # unlucky three times
    assert sum(found["outcomes"].values()) == found["attempts"]
