"""The attempts of a live run as lines that look like bars, and which part of the run a moving window shows."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from altlas_core.figures.outcomes import outcome_of
from altlas_core.figures.timeline import lanes_of
from altlas_core.live.snapshot import AttemptView

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from altlas_core.result import Result

    Floats = npt.NDArray[np.float32]

MOST_BARS: Final = 1200  # ended ones
WINDOW_REAL_S: Final = 30.0  # what the window shows, in real time, where there are not too many bars
SHORTEST_WINDOW_S: Final = 5.0
RUNNING: Final = "open"  # as OUTCOMES calls what has not ended
_GAP: Final = 1 / 500  # of the window, after each bar, so that neighbours can be told apart


class Bars:
    """What has started lately: all that runs and the latest that ended. `changed`: outcomes whose bars differ."""

    def __init__(self) -> None:
        self.changed: set[str] = set()
        self._running: dict[str, AttemptView] = {}
        self._ended: deque[AttemptView] = deque(maxlen=MOST_BARS)

    def clear(self) -> None:
        self._running.clear()
        self._ended.clear()

    def add(self, attempts: Iterable[AttemptView]) -> None:
        for attempt in attempts:
            if attempt.outcome is None:
                self._running[attempt.key] = attempt
            else:
                self._running.pop(attempt.key, None)
                self._ended.append(attempt)
                self.changed.add(attempt.outcome)

    def reach_s(self, now: float) -> float:
        """How far back all that happened is known: seconds."""
        return now if len(self._ended) < MOST_BARS else now - (self._ended[0].ended_s or 0.0)

    def lines(self, outcome: str, slots: int, window: tuple[float, float], now: float) -> dict[str, Any]:
        """x, y and customdata (the task's number) of one outcome's bars in the window: start, end, a break, each."""
        shown = (
            self._running.values()
            if outcome == RUNNING
            else [a for a in self._ended if a.outcome == outcome and (a.ended_s or 0.0) > window[0]]
        )
        return lines_of(list(shown), slots, window, now)


def lines_of(attempts: Sequence[AttemptView], slots: int, window: tuple[float, float], now: float) -> dict[str, Any]:
    import numpy as np

    gap_s = (window[1] - window[0]) * _GAP
    x = np.full((len(attempts), 3), np.nan, dtype=np.float32)
    y = np.full((len(attempts), 3), np.nan, dtype=np.float32)
    x[:, 0] = starts = np.array([a.started_s for a in attempts])
    ends = np.array([now if a.ended_s is None else a.ended_s for a in attempts])
    x[:, 1] = np.maximum(ends - np.minimum(gap_s, 0.4 * (ends - starts)), starts)
    y[:, 0] = y[:, 1] = [height(a, slots) for a in attempts]
    numbers = np.repeat(np.array([int(a.key.split(".")[0]) for a in attempts], dtype=np.int32), 3)
    return {"x": x.ravel(), "y": y.ravel(), "customdata": numbers}


def height(attempt: AttemptView, slots: int) -> float:
    """Of its line, in GPUs: around the GPU's own number, so that it rounds to that."""
    lane = min(attempt.lane, slots - 1)  # on real devices one may start while the one before is still being stopped
    return attempt.gpu_id + 0.84 * ((lane + 0.5) / slots - 0.5)


def bars_of(result: Result) -> list[AttemptView] | None:
    """All attempts of a run that is over; None where they are too many for bars."""
    attempts = result.log.attempts()
    if len(attempts) > MOST_BARS:
        return None
    lanes = lanes_of(attempts)
    return [
        AttemptView(
            f"{a.task.index}.{a.number}",
            a.gpu_id,
            lanes[a.gpu_id, (a.task.index, a.number)],
            a.task.task_id,
            a.task.spec.kind,
            a.task.spec.priority,
            a.started_s,
            result.virtual_s if a.ended_s is None else a.ended_s,
            outcome_of(a),
        )
        for a in attempts
    ]


class Window:
    """The part of the run that the timeline shows. It stands still until the present leaves it, then moves on."""

    def __init__(self) -> None:
        self.begin_s = 0.0
        self.end_s = SHORTEST_WINDOW_S

    @property
    def span(self) -> tuple[float, float]:
        return self.begin_s, self.end_s

    def follow(self, now: float, pace: float | None, reach_s: float) -> bool:
        """Whether it has moved."""
        wanted_s = math.inf if pace is None else WINDOW_REAL_S * max(1.0, pace)
        length_s = round_down(max(SHORTEST_WINDOW_S, min(wanted_s, max(reach_s, WINDOW_REAL_S))))
        if self.begin_s <= now <= self.end_s and length_s == self.end_s - self.begin_s:
            return False
        self.begin_s = max(0.0, round(now - 0.75 * length_s, 3))
        self.end_s = self.begin_s + length_s
        return True


def round_down(seconds: float) -> float:
    """To 1, 2, 3 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(seconds))
    return power * max(step for step in (1, 2, 3, 5) if step * power <= seconds * (1 + 1e-9))


def round_up(seconds: float) -> float:
    """To 1, 1.5, 2, 3, 5 or 7 times a power of ten: an axis that grows seldom."""
    power = 10.0 ** math.floor(math.log10(seconds))
    return power * min(step for step in (1, 1.5, 2, 3, 5, 7, 10) if step * power >= seconds)
