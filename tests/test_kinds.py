"""What each kind of work needs from a device."""

from __future__ import annotations

import pytest

from altlas_core.kinds import DTYPE_BYTES, KINDS
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


def test_half_the_bytes_where_elements_are_half_as_large() -> None:
    for name, kind in KINDS.items():
        for dtype in kind.dtypes:
            whole, asked = TaskSpec(kind=name), TaskSpec(kind=name, dtype=dtype)
            share = DTYPE_BYTES[dtype] / 4
            assert kind.flops(asked) == kind.flops(whole)
            assert kind.bytes_moved(asked) == kind.bytes_moved(whole) * share
            if name != "attention":  # which keeps one fp32 number for each row and head
                assert kind.memory_bytes(asked) == kind.memory_bytes(whole) * share


def test_mlp_is_two_products_with_a_hidden_layer_of_output_size() -> None:
    spec, kind = TaskSpec(input_size=3, output_size=5, batch=7), KINDS["mlp"]
    arrays = {"up": 3 * 5, "down": 5 * 3, "x": 7 * 3, "hidden": 7 * 5, "y": 7 * 3}
    assert kind.memory_bytes(spec) == 4 * sum(arrays.values())
    assert kind.flops(spec) == 2 * (7 * 3 * 5) + 2 * (7 * 5 * 3)
    assert kind.bytes_moved(spec) == 4 * (sum(arrays.values()) + 3 * arrays["hidden"])


def test_attention_holds_no_matrix_of_scores_and_grows_with_the_square_of_the_length_in_work_alone() -> None:
    kind = KINDS["attention"]
    short, long = (TaskSpec(input_size=length, output_size=128, batch=2) for length in (100, 200))
    array = 2 * 100 * 128
    assert kind.memory_bytes(short) == 4 * 5 * array + 4 * 2 * 100 * 2  # two heads
    assert kind.memory_bytes(long) == 2 * kind.memory_bytes(short)
    assert kind.flops(short) == 2 * (2 * 2 * 100 * 100 * 64) * 2  # two products for each of two sequences and heads
    assert kind.flops(long) == 4 * kind.flops(short)
    assert kind.bytes_moved(short) == 4 * 6 * array


def test_transfer_moves_a_buffer_there_on_the_device_and_back() -> None:
    spec, kind = TaskSpec(input_size=1000, output_size=7, batch=10), KINDS["transfer"]
    buffer = 4 * 1000 * 10
    assert kind.flops(spec) == 0.0
    assert (kind.bytes_moved(spec), kind.link_bytes(spec)) == (4 * buffer, 2 * buffer)
    assert kind.memory_bytes(spec) == 4 * buffer
    large = TaskSpec(input_size=2**20, batch=1024)
    assert kind.memory_bytes(large) == 2 * 2**32 + 2 * 64 * 2**20  # the host's buffers are no larger than a chunk


@pytest.mark.parametrize("name", ["call", "sleep", "noop", "hang", "raise_error", "crash_worker"])
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
    assert [name for name, kind in KINDS.items() if kind.kernel] == ["linear", "mlp", "attention", "transfer"]
