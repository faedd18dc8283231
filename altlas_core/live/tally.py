"""Figures of a run that has no end, in bounded memory: percentiles, and series that get coarser as they get longer."""

from __future__ import annotations

import math
from typing import Final

MOST_DEPTHS: Final = 400  # points of the queue's series
MOST_WINDOWS: Final = 200  # points of the latencies' series
FIRST_DEPTH_S: Final = 0.1  # between two points, at first
FIRST_WINDOW_S: Final = 1.0
RECENT_S: Final = 30.0  # what "now" means for a rate
_LEAST: Final = 1e-9  # seconds; less is nothing
_NOTHING: Final = -(10**6)  # the bin of zero
_PER_E: Final = 1.0 / math.log(1.02)  # bins 2 % wide: their middle is within 1 % of all that is in them


class Spread:
    """How values of zero or more are spread: counts in bins of equal ratio."""

    __slots__ = ("bins", "count")

    def __init__(self) -> None:
        self.bins: dict[int, int] = {}
        self.count = 0

    def add(self, value: float) -> None:
        place = math.floor(math.log(value) * _PER_E) if value > _LEAST else _NOTHING
        self.bins[place] = self.bins.get(place, 0) + 1
        self.count += 1

    def take_in(self, other: Spread) -> None:
        for place, count in other.bins.items():
            self.bins[place] = self.bins.get(place, 0) + count
        self.count += other.count

    def percentiles(self, *percents: float) -> list[float | None]:
        """The values at these ranks (ascending), each within 1 %; None where there is no value at all."""
        found: list[float | None] = []
        bins = iter(sorted(self.bins.items()))
        seen, value = 0, None
        for percent in percents:
            while seen < max(1.0, percent / 100.0 * self.count) and self.count:
                place, count = next(bins)
                seen += count
                value = 0.0 if place == _NOTHING else math.exp((place + 0.5) / _PER_E)
            found.append(value)
        return found


class Depths:
    """The queue's depth over time: at each point the deepest since the point before."""

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self.depths: list[int] = []
        self._step_s = FIRST_DEPTH_S
        self._next_s = 0.0
        self._peak = 0

    def add(self, now: float, depth: int) -> None:
        if depth > self._peak:
            self._peak = depth
        if now < self._next_s:
            return
        self.times_s.append(now)
        self.depths.append(self._peak)
        self._peak = depth
        if len(self.times_s) >= MOST_DEPTHS:
            self.times_s = self.times_s[1::2]
            self.depths = [max(pair) for pair in zip(self.depths[::2], self.depths[1::2], strict=True)]
            self._step_s *= 2
        self._next_s = now + self._step_s


class Windows:
    """Latencies over time: those of each window by themselves, and all of them together."""

    def __init__(self) -> None:
        self.all = Spread()
        self.ends_s: list[float] = []
        self.p50: list[float | None] = []
        self.p95: list[float | None] = []
        self._spreads: list[Spread] = []
        self._open = Spread()
        self._step_s = FIRST_WINDOW_S

    def add(self, now: float, latency_s: float) -> None:
        self.turn(now)
        self.all.add(latency_s)
        self._open.add(latency_s)

    def turn(self, now: float) -> None:
        """Close the windows that are over by now."""
        while now >= self._end_s + self._step_s:
            self._close(self._end_s + self._step_s)

    @property
    def _end_s(self) -> float:
        return self.ends_s[-1] if self.ends_s else 0.0

    def recent_per_s(self, now: float) -> float | None:
        """How many a second in the windows of the latest RECENT_S, or of the latest one, if longer."""
        count, begin_s = self._open.count, self._end_s
        for position in range(len(self._spreads) - 1, -1, -1):
            if now - begin_s >= RECENT_S:
                break
            count += self._spreads[position].count
            begin_s = self.ends_s[position - 1] if position else 0.0
        return count / (now - begin_s) if now > begin_s else None

    def _close(self, end_s: float) -> None:
        self._keep(end_s, self._open)
        self._open = Spread()
        if len(self.ends_s) >= MOST_WINDOWS:
            self._coarsen()

    def _keep(self, end_s: float, spread: Spread) -> None:
        p50, p95 = spread.percentiles(50, 95)
        self.ends_s.append(end_s)
        self.p50.append(p50)
        self.p95.append(p95)
        self._spreads.append(spread)

    def _coarsen(self) -> None:
        """Every two windows become one."""
        ends_s, spreads = self.ends_s[1::2], self._spreads
        self.ends_s, self.p50, self.p95, self._spreads = [], [], [], []
        for end_s, first, second in zip(ends_s, spreads[::2], spreads[1::2], strict=True):
            first.take_in(second)
            self._keep(end_s, first)
        self._step_s *= 2
