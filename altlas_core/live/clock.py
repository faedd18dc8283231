"""A clock that can be stopped, paced and stepped, for a real-time driver whose devices are all simulated.

Its time goes on only while somebody waits on it, and little past what is waited for: so no look of the driver takes
long, however high the pace, and a computer that cannot keep the pace is simply as fast as it can be.
"""

from __future__ import annotations

import math
import threading
from typing import Final, NamedTuple

from altlas_core.drivers.clock import Clock, Inbox, News

FOREVER: Final = 86_400.0  # how long it waits for news while it stands; then it looks again
BUSY_S: Final = 0.004  # of real time that may pass without a rest
REST_S: Final = 0.0005  # real: long enough for the other threads of the process to get the interpreter
MOST_BEHIND_S: Final = 0.2  # real: a greater lag behind the pace is forgotten, not made up for
SHORT_S: Final = 0.001  # real: what a look should take where there is no waiting
MOST_STRIDE_S: Final = 10.0  # its own: how far it may jump past what is waited for


class _Course(NamedTuple):
    """At `real_s` it was `time_s`; from then on it goes `pace` times as fast (0: it stands, inf: it jumps)."""

    pace: float
    time_s: float
    real_s: float

    def at(self, real_s: float) -> float:
        passed = real_s - self.real_s
        return self.time_s + passed * self.pace if passed > 0.0 else self.time_s


class SteeredClock:
    """Implements drivers.clock.Clock. Begins at 0 s, and stands. `wait` is for one thread, all else for any."""

    def __init__(self, real: Clock, pace: float | None = 1.0) -> None:
        self._real = real
        self._lock = threading.Lock()  # between those who change the course
        self._pace = pace
        self._stepping = False
        self._course = _Course(0.0, 0.0, real.monotonic())
        self._now_s = 0.0  # what has been waited for
        self._until_s = 0.0  # how far it may go on by itself
        self._inbox: Inbox | None = None  # of whoever waits
        self._rested_s = self._jumped_s = real.monotonic()
        self._stride_s = 0.0

    # --- steering -------------------------------------------------------------------------------------------------

    @property
    def pace(self) -> float | None:
        """Its seconds for each real one while it runs; None: as fast as possible."""
        return self._pace

    @property
    def stepping(self) -> bool:
        return self._stepping

    @property
    def stands(self) -> bool:
        return self._course.pace == 0.0

    def run(self) -> None:
        with self._lock:
            self._stepping = False
            self._go(math.inf if self._pace is None else self._pace)

    def pause(self) -> None:
        with self._lock:
            self._stepping = False
            self._go(0.0)

    def step(self) -> None:
        """Jump over the waiting, from one instant to the next, until `stepped`."""
        with self._lock:
            self._stepping = True
            self._go(math.inf)

    def stepped(self) -> None:
        """Stand if a step is under way; whoever has let the clock run or stand meanwhile has the last word."""
        with self._lock:
            if self._stepping:
                self._stepping = False
                self._go(0.0)

    def set_pace(self, pace: float | None) -> None:
        with self._lock:
            self._pace = pace
            if self._course.pace and not self._stepping:
                self._go(math.inf if pace is None else pace)

    def _go(self, pace: float) -> None:
        """Another course from now on; wakes whoever waits."""
        time_s = self.monotonic()
        self._course = _Course(pace, time_s, self._real.monotonic())
        if self._inbox is not None:
            self._inbox.put(None)

    # --- Clock ----------------------------------------------------------------------------------------------------

    def monotonic(self) -> float:
        course, until_s = self._course, self._until_s
        if course.pace in (0.0, math.inf):
            return max(self._now_s, min(until_s, course.time_s))
        return max(self._now_s, min(until_s, course.at(self._real.monotonic())))

    def wait(self, inbox: Inbox, timeout_s: float) -> News | None:
        """The next item of the inbox, or None when `timeout_s` seconds of this clock have passed, or its course has
        changed."""
        self._inbox = inbox
        if not inbox.empty():
            return inbox.get()
        # Rounded up: the sum may be a hair less than the time that was meant, and nothing would be due.
        self._until_s = until_s = math.nextafter(self._now_s + timeout_s, math.inf) if timeout_s > 0.0 else self._now_s
        course = self._course
        if not course.pace:
            item = self._real.wait(inbox, FOREVER)
        elif self._stepping:
            self._now_s = until_s
            return None
        else:
            real_s = self._real.monotonic()
            course_s = math.inf if course.pace == math.inf else course.at(real_s)
            if course_s >= until_s:
                return self._jump(inbox, course, until_s, course_s, real_s)
            item = self._real.wait(inbox, (until_s - course_s) / course.pace)
            self._rested_s = self._jumped_s = self._real.monotonic()
        self._now_s = self._until_s = self.monotonic()
        return item

    def _jump(self, inbox: Inbox, course: _Course, until_s: float, course_s: float, real_s: float) -> News | None:
        """No waiting: to `until_s`, and past it as far as the driver can play in a moment. Now and then a rest."""
        took_s = real_s - self._jumped_s
        self._stride_s = min(MOST_STRIDE_S, 1.5 * self._stride_s + 0.001) if took_s < SHORT_S else self._stride_s / 2
        self._now_s = self._until_s = now_s = min(course_s, until_s + self._stride_s)
        if course_s - now_s > MOST_BEHIND_S * course.pace:
            with self._lock:
                if self._course is course:
                    self._course = _Course(course.pace, now_s, real_s)
        item = None
        if real_s - self._rested_s >= BUSY_S:
            item = self._real.wait(inbox, REST_S)
            self._rested_s = real_s = self._real.monotonic()
        self._jumped_s = real_s
        return item
