"""What a single value may be: small checks shared by settings, workloads and fault plans.

A rule is called with a value and returns it in its proper type, or raises RefusedError with what is wrong and what is
allowed. Where the value stood (file, key, row) is for the caller to add.
"""

from __future__ import annotations

import math
import numbers
import reprlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

from altlas_core.errors import nearest

Rule = Callable[[Any], Any]

MAX_SECONDS: Final = 1e9  # about 32 years: what is longer is a slip of the pen
MAX_SIZE: Final = 2**20  # elements along one side of a weight
MAX_BYTES: Final = 2**50  # 1 PiB

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
_short.maxlist = _short.maxdict = 4


class RefusedError(ValueError):
    """A value cannot be used. The message says what is wrong with it and what is allowed.

    `at` is where inside the value the trouble is, such as "[2].duration".
    """

    def __init__(self, message: str, at: str = "") -> None:
        super().__init__(message)
        self.at = at


def shown(value: object) -> str:
    """The value in a few words, however large (or however nested by YAML aliases) it is."""
    return "null" if value is None else _short.repr(value)


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number in a range. `above` leaves out the lower end. bool is no number.

    Whole numbers are returned as int (8.0 is taken as 8), others as float; numpy's become Python's.
    """

    low: float
    high: float
    whole: bool = False
    above: bool = False
    optional: bool = False
    unit: str = ""

    @property
    def allowed(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        unit = f" of {self.unit}" if self.unit else ""
        start = "above" if self.above else "from"
        low, high = (_plain(bound) for bound in (self.low, self.high))
        return f"{kind}{unit} {start} {low} to {high}" + (", or null" if self.optional else "")

    def __call__(self, value: Any) -> Any:
        if type(value) is not float and type(value) is not int:  # the two common types need no look at the others
            if value is None and self.optional:
                return value
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise RefusedError(f"{shown(value)} is not a number; allowed: {self.allowed}")
            value = int(value) if isinstance(value, numbers.Integral) else float(value)
        if not self.low <= value <= self.high or (self.above and value == self.low):
            raise RefusedError(f"{_plain(value)} is out of range; allowed: {self.allowed}")
        if not self.whole:
            return float(value)
        if value != int(value):
            raise RefusedError(f"{_plain(value)} is not a whole number; allowed: {self.allowed}")
        return int(value)


def _plain(value: float) -> str:
    """3 for 3.0, and no exponent for whole numbers that are not absurd."""
    if isinstance(value, float) and math.isfinite(value) and value == int(value) and abs(value) <= 1e15:
        return str(int(value))
    return shown(value)


def seconds(low: float = 0.0, above: bool = True, high: float = MAX_SECONDS) -> Number:
    """Seconds, by default more than 0."""
    return Number(low, high, above=above, unit="seconds")


def whole(low: int, high: int, unit: str = "", optional: bool = False) -> Number:
    """A whole number from low to high."""
    return Number(low, high, whole=True, unit=unit, optional=optional)


def boolean(value: Any) -> bool:
    """Only true and false; 1, 0 and words are not."""
    if isinstance(value, bool):
        return value
    raise RefusedError(f"{shown(value)} is neither true nor false; allowed: true, false")


def text(value: Any) -> str:
    """Text that is not blank."""
    if isinstance(value, str) and value.strip():
        return str(value)
    raise RefusedError(f"{shown(value)} is not text; allowed: text that is not blank")


def one_of(names: Collection[str]) -> Callable[[Any], str]:
    """Exactly one of the names, returned as the shared object (which a million records then do not copy)."""
    by_name = {name: name for name in names}

    def check(value: Any) -> str:
        if isinstance(value, str) and value in by_name:
            return by_name[value]
        hint = nearest(value, by_name) if isinstance(value, str) else ""
        raise RefusedError(f"{shown(value)} is not known; allowed: {', '.join(by_name)}.{hint}")

    return check
