"""When a worker that died is replaced, and when a device is given up: a rule without clock or process."""

from __future__ import annotations

from typing import Final

FIRST_DELAY_S: Final = 0.5
LONGEST_DELAY_S: Final = 60.0
MOST_FAILED_STARTS: Final = 3


class Restarts:
    """Deaths in a row of one device's workers, with no task finished between them."""

    __slots__ = ("deaths", "failed_starts")

    def __init__(self) -> None:
        self.deaths = 0
        self.failed_starts = 0

    def died(self) -> float:
        """Seconds until the next may start: the first is replaced at once, then 0.5, 1, 2, 4 ... up to 60 s."""
        self.deaths += 1
        if self.deaths == 1:
            return 0.0
        return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self.deaths - 2, 30))

    def failed_to_start(self) -> float | None:
        """Likewise for one that was never ready; None: the third in a row, the device is of no use."""
        self.failed_starts += 1
        delay_s = self.died()
        return None if self.failed_starts >= MOST_FAILED_STARTS else delay_s

    def complaint(self, cause: str, delay_s: float) -> str:
        """What is wrong with the device meanwhile."""
        times = f" {self.deaths} times in a row" if self.deaths > 1 else ""
        when = f"starts in {delay_s:g} s" if delay_s else "takes its place"
        return f"its worker died{times} ({cause}); a new one {when}"
