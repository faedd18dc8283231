"""What the tables of a result say of attempts."""

from __future__ import annotations

import pytest

import altlas_core as altlas


def test_the_flops_of_an_attempt_follow_from_its_kind_those_of_a_call_are_what_it_told() -> None:
    settings = altlas.load_config(overrides={"gpu.devices": ["1x A100"]}, environ={})
    records = [
        {"kind": "linear", "batch": 2, "input_size": 3, "output_size": 5, "iterations": 7},
        {"call": "jobs:f", "duration_s": 1.0},
        {"call": "jobs:g", "duration_s": 1.0},
    ]
    result = altlas.run(settings, altlas.Workload.from_records(records))
    result.log.attempts()[1].detail = {"flops": 12.0}
    assert list(result.attempts["flops"]) == pytest.approx([2 * 2 * 3 * 5 * 7, 12.0, 0.0])
