"""What each kind of work needs from a device."""

from __future__ import annotations

import pytest

from altlas_core.kinds import KINDS
from altlas_core.model import TaskSpec


def test_linear_holds_weight_input_and_output_in_fp32() -> None:
    spec = TaskSpec(input_size=3, output_size=5, batch=7)
    assert KINDS["linear"].memory_bytes(spec) == 4 * (3 * 5 + 7 * 3 + 7 * 5)
    assert KINDS["linear"].bytes_moved(spec) == 4.0 * (3 * 5 + 7 * 3 + 7 * 5)


def test_linear_does_a_multiplication_and_an_addition_per_weight_and_row() -> None:
    assert KINDS["linear"].flops(TaskSpec(input_size=3, output_size=5, batch=7)) == 2.0 * 3 * 5 * 7


def test_linear_of_the_overload_scenario_needs_a_little_over_a_gibibyte() -> None:
    spec = TaskSpec(input_size=16384, output_size=16384)
    assert 1.0 < KINDS["linear"].memory_bytes(spec) / 2**30 < 1.05


@pytest.mark.parametrize("name", ["sleep", "noop", "hang", "raise_error", "crash_worker"])
def test_other_kinds_run_no_kernel_and_need_nothing(name: str) -> None:
    kind = KINDS[name]
    assert (kind.kernel, kind.memory_bytes(TaskSpec()), kind.flops(TaskSpec()), kind.bytes_moved(TaskSpec())) == (
        False,
        0,
        0.0,
        0.0,
    )


def test_kinds_are_found_under_their_own_name() -> None:
    assert all(kind.name == name for name, kind in KINDS.items())
    assert [name for name, kind in KINDS.items() if kind.kernel] == ["linear"]
