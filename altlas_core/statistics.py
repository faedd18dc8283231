"""What several runs say together: mean, spread, confidence, and whether two samples differ by more than their spread.

Intervals are Student's, for a mean, and Welch's, for a difference of two means: both take the values for independent
and about normally distributed. docs/architecture.md has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

CONFIDENCE: Final = 0.95
_NORMAL: Final = 1.959963984540054  # the two-sided quantile of the normal distribution at that confidence
_MUCH_FREEDOM: Final = 1e6  # degrees; from here on the expansion is the more accurate way
_TINY: Final = 1e-300  # in place of a zero denominator of a continued fraction


@dataclass(frozen=True, slots=True)
class Summary:
    """A sample of `n` values in a few numbers: what is not known of so few, or no float can hold, is None.

    `stdev` is the sample standard deviation (n - 1); [ci95_low, ci95_high] holds the true mean with 95 % confidence.
    """

    n: int
    mean: float | None
    stdev: float | None
    ci95_low: float | None
    ci95_high: float | None
    min: float | None
    max: float | None

    @property
    def half_width(self) -> float | None:
        """Of the interval: the mean is known to plus or minus this."""
        if self.stdev is None:
            return None
        return student_t(self.n - 1) * (self.stdev / math.sqrt(self.n))

    @property
    def varies(self) -> bool:
        return self.min != self.max


@dataclass(frozen=True, slots=True)
class Difference:
    """`after` less `before`. `percent` is of the mean before, None where that is 0.

    [ci95_low, ci95_high] holds the true difference with 95 % confidence; `beyond_spread`: 0 is not in it. These three
    are None where one of the samples has fewer than two values, so that its spread is unknown. So is what no float can
    hold.
    """

    absolute: float | None
    percent: float | None
    ci95_low: float | None
    ci95_high: float | None
    beyond_spread: bool | None


def summarize(values: Iterable[float | None]) -> Summary:
    """Sum up a sample. Values that are None, NaN or infinite are left out, and `n` says so."""
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    n = len(known)
    if not n:
        return Summary(0, None, None, None, None, None, None)
    low, high = min(known), max(known)
    # In units of a power of two, which rounds nothing, so that no sum or square overflows
    unit = 2.0 ** (math.frexp(max(-low, high))[1] - 1)
    scaled = [value / unit for value in known]
    mean = min(max(math.fsum(scaled) / n, low / unit), high / unit)  # rounding may not carry it out of the values
    if n < 2:
        return Summary(n, mean * unit, None, None, None, low, high)
    stdev = math.sqrt(math.fsum((value - mean) ** 2 for value in scaled) / (n - 1))
    half = student_t(n - 1) * stdev / math.sqrt(n)
    spread = stdev * unit, (mean - half) * unit, (mean + half) * unit
    if not all(map(math.isfinite, spread)):
        return Summary(n, mean * unit, None, None, None, low, high)
    return Summary(n, mean * unit, *spread, low, high)


def difference(before: Summary, after: Summary) -> Difference:
    """How far the mean went from one sample to the other, by Welch's interval: the spreads need not be equal."""
    if before.mean is None or after.mean is None:
        return Difference(None, None, None, None, None)
    absolute = _held(after.mean - before.mean)
    if absolute is None:
        return Difference(None, None, None, None, None)
    percent = _held(100 * absolute / abs(before.mean)) if before.mean else None
    if before.stdev is None or after.stdev is None:
        return Difference(absolute, percent, None, None, None)
    errors = [(own.stdev or 0.0) / math.sqrt(own.n) for own in (before, after)]
    error = math.hypot(*errors)
    if not error:
        return Difference(absolute, percent, absolute, absolute, absolute != 0)
    # Welch-Satterthwaite, with shares instead of squares so that no spread underflows or overflows
    shares = [(part / error) ** 2 for part in errors]
    freedom = 1 / sum(share**2 / (own.n - 1) for share, own in zip(shares, (before, after), strict=True))
    half = student_t(freedom) * error
    low, high = _held(absolute - half), _held(absolute + half)
    if low is None or high is None:
        return Difference(absolute, percent, None, None, None)
    return Difference(absolute, percent, low, high, abs(absolute) > half)


def _held(value: float) -> float | None:
    """The value, or None where it overflowed."""
    return value if math.isfinite(value) else None


def flat_numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float | None]:
    """The numbers among nested metrics by their dotted path; None where a value is missing. Texts and lists go."""
    found: dict[str, float | None] = {}
    for name, value in metrics.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= flat_numbers(value, f"{path}.")
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            found[path] = value
    return found


@lru_cache(maxsize=1024)
def student_t(freedom: float) -> float:
    """The two-sided 95 % quantile of Student's t: |T| exceeds it in 5 % of all cases. `freedom` may be fractional.

    By bisection, to the last few bits; the tail is I_x(freedom / 2, 1 / 2) with x = freedom / (freedom + t^2)
    (Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.1 and 26.5.27), where rounding lets it be; beyond
    that the normal quantile and the first term of the expansion about it (26.7.5).
    """
    if freedom > _MUCH_FREEDOM:
        return _NORMAL + (_NORMAL**3 + _NORMAL) / (4 * freedom)
    low, high = 0.0, 1.0
    while _tail(high, freedom) > 1 - CONFIDENCE:
        high *= 2
    while (middle := (low + high) / 2) not in (low, high):
        if _tail(middle, freedom) > 1 - CONFIDENCE:
            low = middle
        else:
            high = middle
    return high


def _tail(t: float, freedom: float) -> float:
    """P(|T| > t)."""
    square = t * t
    whole = freedom + square
    return _incomplete_beta(freedom / whole, square / whole, freedom / 2, 0.5)


def _incomplete_beta(x: float, rest: float, a: float, b: float) -> float:
    """The regularized incomplete beta function I_x(a, b), rest = 1 - x (NIST DLMF, 8.17.22, and 8.17.4 to stay where
    the fraction converges fast)."""
    if x <= 0 or rest <= 0:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(rest, x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    return math.exp(log_front) / a * _beta_fraction(x, a, b)


def _beta_fraction(x: float, a: float, b: float) -> float:
    """1 / (1 + d1 / (1 + d2 / (1 + ...))) by Lentz's method, as modified by Thompson and Barnett (1986)."""
    c = 1.0
    d = 1 / ((1 - (a + b) * x / (a + 1)) or _TINY)
    value = d
    m = 0
    change = 0.0
    while abs(change - 1) > 1e-15 and m < 10_000:
        m += 1
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / ((1 + numerator * d) or _TINY)
            c = (1 + numerator / c) or _TINY
            change = c * d
            value *= change
    return value
