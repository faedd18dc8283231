"""The attempts of a live run as its readers see them: every start and every end has a number."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from altlas_core.figures.outcomes import outcome_of
from altlas_core.live.snapshot import AttemptView
from altlas_core.model import Attempt

MOST_ENDED: Final = 1500  # that are kept, beside all that run


class _Entry(NamedTuple):
    number: int  # of its latest change
    lane: int
    attempt: Attempt


class Ledger:
    """`started` grows on the driver's thread. Numbers go on from `first`, so a run may follow another."""

    def __init__(self, started: Sequence[Attempt], first: int = 0) -> None:
        self.number = first
        self._started = started
        self._seen = 0
        self._running: dict[Attempt, _Entry] = {}
        self._ended: deque[_Entry] = deque(maxlen=MOST_ENDED)
        self._lanes: dict[int, list[Attempt]] = {}  # by GPU: the latest attempt in each lane
        self._lock = threading.Lock()

    def changes(self, since: int) -> tuple[tuple[AttemptView, ...], int]:
        """What has started or ended since this number, oldest change first, and the number to ask with next."""
        with self._lock:
            self._catch_up()
            found = [entry for entry in self._running.values() if entry.number > since]
            for entry in reversed(self._ended):
                if entry.number <= since:
                    break
                found.append(entry)
            number = self.number
        return tuple(_view(entry) for entry in sorted(found)), number

    def _catch_up(self) -> None:
        for attempt in [attempt for attempt in self._running if attempt.outcome is not None]:
            self._end(self._running.pop(attempt))
        total = len(self._started)
        new = self._started[self._seen : total]
        self._seen = total
        if len(new) > MOST_ENDED:  # a fast run: of those that nobody will see only what they hold on to matters
            from_s = new[-MOST_ENDED].started_s
            passed = [a for a in new[:-MOST_ENDED] if a.ended_s is None or a.ended_s > from_s]
            new = [*passed, *new[-MOST_ENDED:]]
        for attempt in new:
            self.number += 1
            entry = _Entry(self.number, self._lane_for(attempt), attempt)
            if attempt.outcome is None:
                self._running[attempt] = entry
            else:
                self._end(entry)

    def _end(self, entry: _Entry) -> None:
        self.number += 1
        self._ended.append(entry._replace(number=self.number))

    def _lane_for(self, attempt: Attempt) -> int:
        """The lowest lane whose latest attempt had ended when this one started."""
        lanes = self._lanes.setdefault(attempt.gpu_id, [])
        for lane, before in enumerate(lanes):
            if before.ended_s is not None and before.ended_s <= attempt.started_s:
                lanes[lane] = attempt
                return lane
        lanes.append(attempt)
        return len(lanes) - 1


def _view(entry: _Entry) -> AttemptView:
    attempt = entry.attempt
    task = attempt.task
    ended = attempt.outcome is not None
    return AttemptView(
        f"{task.index}.{attempt.number}",
        attempt.gpu_id,
        entry.lane,
        task.task_id,
        task.spec.kind,
        task.spec.priority,
        attempt.started_s,
        attempt.ended_s if ended else None,
        outcome_of(attempt) if ended else None,
    )
