"""Mean, spread and confidence: equal to published values, and right as often as they say they are."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altlas_core.statistics import Summary, difference, flat_numbers, student_t, summarize

values = st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=2, max_size=12)

# NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2: upper critical values of Student's t, 0.975
PUBLISHED = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228,
             15: 2.131, 20: 2.086, 25: 2.060, 29: 2.045, 30: 2.042, 31: 2.040, 40: 2.021, 60: 2.000, 80: 1.990,
             100: 1.984}  # fmt: skip


def normal(random: Random, count: int, mean: float = 0.0, stdev: float = 1.0) -> list[float]:
    return [random.gauss(mean, stdev) for _ in range(count)]


# --- Student's t --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("freedom", "quantile"), PUBLISHED.items())
def test_quantiles_are_the_published_ones(freedom: int, quantile: float) -> None:
    assert round(student_t(freedom), 3) == quantile


def test_quantiles_are_exact_where_there_is_a_closed_form() -> None:
    assert student_t(1) == pytest.approx(math.tan(math.pi * 0.475), rel=1e-12)
    assert student_t(2) == pytest.approx(0.95 / math.sqrt(2 * 0.975 * 0.025), rel=1e-12)
    cosine = math.cos(math.acos(math.sqrt(4 * 0.975 * 0.025)) / 3) / math.sqrt(4 * 0.975 * 0.025)
    assert student_t(4) == pytest.approx(2 * math.sqrt(cosine - 1), rel=1e-12)


@given(st.floats(0.6, 3000.0), st.floats(1.001, 3.0))
def test_more_freedom_makes_it_narrower_and_never_narrower_than_the_normal(freedom: float, factor: float) -> None:
    assert student_t(freedom) > student_t(freedom * factor) > 1.959963984


@pytest.mark.parametrize("freedom", [1e6, 1.001e6, 1e9, 1e15, math.inf])
def test_with_much_freedom_it_is_the_normal_quantile_and_a_little(freedom: float) -> None:
    normal_quantile = 1.959963984540054
    little = (normal_quantile**3 + normal_quantile) / (4 * freedom)
    assert student_t(freedom) == pytest.approx(normal_quantile + little, rel=1e-9)


# --- one sample ---------------------------------------------------------------------------------------------------


def test_a_known_sample() -> None:
    """NIST StRD, univariate summary statistics, NumAcc3: mean and standard deviation are certified exactly."""
    summary = summarize([1000000.2] + [1000000.1, 1000000.3] * 500)
    assert summary.n == 1001
    assert summary.mean == pytest.approx(1000000.2, rel=1e-15)
    assert summary.stdev == pytest.approx(0.1, rel=1e-8)
    assert (summary.min, summary.max) == (1000000.1, 1000000.3)


def test_the_interval_is_students() -> None:
    summary = summarize([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445105 * math.sqrt(2.5) / math.sqrt(5)
    assert summary.ci95_low == pytest.approx(3 - half)
    assert summary.ci95_high == pytest.approx(3 + half)
    assert summary.half_width == pytest.approx(half)


def test_what_is_missing_is_left_out_and_n_says_so() -> None:
    assert summarize([1.0, None, 3.0, math.nan, math.inf, -math.inf]) == summarize([1.0, 3.0])
    assert summarize([1.0, None]).n == 1


def test_of_one_value_no_spread_is_known_and_of_none_nothing() -> None:
    assert summarize([7.0]) == Summary(1, 7.0, None, None, None, 7.0, 7.0)
    assert summarize([None]) == Summary(0, None, None, None, None, None, None)
    assert summarize([7.0]).half_width is None


@given(st.floats(-1e9, 1e9), st.integers(2, 20))
def test_equal_values_have_no_spread_at_all(value: float, count: int) -> None:
    assert summarize([value] * count) == Summary(count, value, 0.0, value, value, value, value)


@given(values, st.floats(-1e3, 1e3), st.floats(0.01, 100.0))
def test_shifting_and_scaling_the_values_shifts_and_scales_the_summary(
    own: list[float], shift: float, scale: float
) -> None:
    before, after = summarize(own), summarize([scale * value + shift for value in own])
    near = 1e-9 * (scale * max(map(abs, own)) + abs(shift) + 1)
    for name in ("mean", "ci95_low", "ci95_high", "min", "max"):
        expected = scale * getattr(before, name) + shift
        assert getattr(after, name) == pytest.approx(expected, rel=1e-6, abs=40 * near), name
    assert after.stdev == pytest.approx(scale * (before.stdev or 0.0), rel=1e-6, abs=near)


@given(values, st.randoms(use_true_random=False))
def test_the_order_of_the_values_does_not_matter(own: list[float], random: Random) -> None:
    shuffled = list(own)
    random.shuffle(shuffled)
    assert summarize(shuffled) == summarize(own)


@given(values)
def test_the_mean_lies_between_the_values_and_inside_its_interval(own: list[float]) -> None:
    summary = summarize(own)
    assert summary.min <= summary.mean <= summary.max  # type: ignore[operator]
    assert summary.ci95_low <= summary.mean <= summary.ci95_high  # type: ignore[operator]


@pytest.mark.parametrize("unit", [1e-310, 1e-200, 1e160, 1e307])
def test_no_value_is_too_large_or_too_small(unit: float) -> None:
    summary, other = summarize([unit, 2 * unit, 3 * unit]), summarize([7 * unit, 8 * unit, 9 * unit])
    assert summary.mean == pytest.approx(2 * unit)
    assert summary.stdev == pytest.approx(unit)
    assert summary.half_width == pytest.approx(student_t(2) * unit / math.sqrt(3))
    found = difference(summary, other)
    assert (found.absolute, found.beyond_spread) == (pytest.approx(6 * unit), True)
    assert summarize([1e308] * 3) == Summary(3, 1e308, 0.0, 1e308, 1e308, 1e308, 1e308)


def test_what_no_float_can_hold_is_not_known() -> None:
    assert summarize([-1.7e308, 1.7e308]) == Summary(2, 0.0, None, None, None, -1.7e308, 1.7e308)
    low, high, wide = summarize([-1.7e308] * 2), summarize([1.7e308] * 2), summarize([0.0, 1.3e307])
    assert difference(low, high) == difference(summarize([]), high)
    assert difference(summarize([1e-300]), summarize([1.0])).percent == pytest.approx(1e302)
    assert difference(summarize([1e-320]), high).percent is None
    found = difference(wide, summarize([1.6e308, 1.61e308]))
    assert found.absolute is not None
    assert (found.ci95_low, found.ci95_high, found.beyond_spread) == (None, None, None)


@pytest.mark.parametrize("count", [2, 5, 20])
def test_the_interval_holds_the_true_mean_in_95_of_100_samples(count: int) -> None:
    random, trials, inside = Random(count), 4000, 0
    for _ in range(trials):
        summary = summarize(normal(random, count, mean=10.0, stdev=3.0))
        assert summary.ci95_low is not None
        assert summary.ci95_high is not None
        inside += summary.ci95_low <= 10.0 <= summary.ci95_high
    assert inside / trials == pytest.approx(0.95, abs=0.0105)  # three standard errors of a share of 4,000


# --- two samples --------------------------------------------------------------------------------------------------

# "Welch's t-test", Wikipedia, example 1: t = -2.46 with 25.0 degrees of freedom
A = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4]
B = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4]


def test_a_published_example_of_welch() -> None:
    found = difference(summarize(B), summarize(A))
    assert found.ci95_high is not None
    half = found.ci95_high - found.absolute  # type: ignore[operator]
    assert found.absolute / half * student_t(25.0) == pytest.approx(-2.46, abs=0.005)  # type: ignore[operator]
    assert found.beyond_spread is True
    assert found.percent == pytest.approx(100 * (20.82 - 22.99) / 22.99, abs=0.02)


def test_the_two_directions_mirror_each_other() -> None:
    there, back = difference(summarize(A), summarize(B)), difference(summarize(B), summarize(A))
    assert there.absolute == -back.absolute  # type: ignore[operator]
    assert (there.ci95_low, there.ci95_high) == (-back.ci95_high, -back.ci95_low)  # type: ignore[operator]


@pytest.mark.parametrize(("before", "after"), [([1.0], [2.0, 3.0]), ([1.0, 2.0], [3.0]), ([1.0], [3.0])])
def test_without_a_spread_on_either_side_nothing_is_said_about_it(before: list[float], after: list[float]) -> None:
    found = difference(summarize(before), summarize(after))
    assert found.absolute is not None
    assert found.percent is not None
    assert (found.ci95_low, found.ci95_high, found.beyond_spread) == (None, None, None)


def test_samples_without_any_spread_differ_if_their_means_do() -> None:
    assert difference(summarize([2.0, 2.0]), summarize([2.0, 2.0])).beyond_spread is False
    found = difference(summarize([2.0, 2.0]), summarize([2.5, 2.5, 2.5]))
    assert (found.absolute, found.percent, found.beyond_spread) == (0.5, 25.0, True)


def test_a_spread_on_one_side_only_is_that_sides() -> None:
    found = difference(summarize([10.0] * 5), summarize([11.0, 12.0, 13.0]))
    assert found.ci95_low == pytest.approx(summarize([1.0, 2.0, 3.0]).ci95_low)


def test_there_is_no_percent_of_nothing_and_no_difference_to_what_is_missing() -> None:
    assert difference(summarize([0.0, 0.0]), summarize([1.0, 2.0])).percent is None
    assert difference(summarize([-4.0]), summarize([-2.0])).percent == 50.0
    assert difference(summarize([]), summarize([1.0])).absolute is None


def test_samples_of_one_source_are_told_apart_in_5_of_100_cases() -> None:
    random, trials = Random(3), 1500
    apart = sum(
        difference(summarize(normal(random, 5)), summarize(normal(random, 12, stdev=4.0))).beyond_spread is True
        for _ in range(trials)
    )
    assert apart / trials == pytest.approx(0.05, abs=0.017)  # three standard errors of a share of 1,500


# --- nested metrics -----------------------------------------------------------------------------------------------


def test_only_numbers_are_taken_by_their_path() -> None:
    metrics = {"tasks": 20, "fast": True, "by": {"random": {"p99_s": 0.5, "name": "x", "list": [1]}}, "power_w": None}
    assert flat_numbers(metrics) == {"tasks": 20, "by.random.p99_s": 0.5, "power_w": None}
