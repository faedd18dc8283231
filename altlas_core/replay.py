"""Feed a recorded event log to a fresh state machine and see whether it decides the same again.

Works on the log of a real run too: the facts are what the hardware did, the decisions follow from them alone. Facts of
one time belong to one instant; the distributor decided when the time moved on, or where the log shows a decision.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from altlas_core.config import load_config
from altlas_core.distributor import Distributor
from altlas_core.errors import AltlasError, StateError
from altlas_core.event_log import FORMAT_VERSION, action_line, read_fact
from altlas_core.events import Action, TaskSubmitted
from altlas_core.intake import make_task
from altlas_core.model import Demand, DeviceSpec

NOT_A_LOG = (KeyError, TypeError, ValueError, IndexError, AttributeError)  # what reading garbage as a log runs into


@dataclass(slots=True, frozen=True)
class Replay:
    """`decisions` were compared; `difference` is None if all were the same, else the first that was not, in words."""

    facts: int
    decisions: int
    difference: str | None
    distributor: Distributor

    @property
    def same(self) -> bool:
        return self.difference is None


def replay(lines: Iterable[str]) -> Replay:
    """Replay a log given as JSON lines, header first. Raises AltlasError if it is no event log of this format.

    A scenario's log holds several runs, each behind a header of its own: each gets a fresh state machine. User
    strategies named in the log must be registered.
    """
    return _Replayer(iter(lines)).play()


class _Replayer:
    def __init__(self, lines: Any) -> None:
        self.lines = lines
        self._begin(_parse(next(lines, ""), 1), 1)

    def _begin(self, header: dict[str, Any], number: int) -> None:
        """A fresh state machine, as the header on this line says."""
        try:
            if header["format"] != FORMAT_VERSION:
                raise ValueError(header["format"])
            settings = load_config(None, dict(header["settings"]), environ={})
            devices = [DeviceSpec(**device) for device in header["devices"]]
            self.distributor = Distributor(settings.gpu, devices, header["seed"])
        except (AltlasError, *NOT_A_LOG) as error:
            what = f"{type(error).__name__}: {error}"
            raise AltlasError(
                f"line {number}: not the header of an event log of format {FORMAT_VERSION} ({what})"
            ) from None
        self.expected: deque[str] = deque()  # what the fresh machine decided and the log has still to show
        self.demands: dict[tuple[Any, ...], Demand] = {}
        self.now = 0.0
        self.decided = True  # nothing new since the last decision

    def play(self) -> Replay:
        facts = decisions = 0
        for number, line in enumerate(self.lines, start=2):
            record = _parse(line, number)
            try:
                if "format" in record:
                    difference = self._settle(f"line {number}")
                    self._begin(record, number)
                elif "action" in record:
                    decisions += 1
                    difference = self._check(line, number)
                else:
                    facts += 1
                    difference = self._apply(number, record)
            except AltlasError as error:
                told = str(error)
                raise AltlasError(told if told.startswith("line ") else f"line {number}: {told}") from None
            except NOT_A_LOG as error:
                what = f"{type(error).__name__}: {error}"
                raise AltlasError(f"line {number}: not a line of an event log ({what})") from None
            if difference is not None:
                return Replay(facts, decisions, difference, self.distributor)
        return Replay(facts, decisions, self._settle("the end of the log"), self.distributor)

    def _apply(self, number: int, record: dict[str, Any]) -> str | None:
        if record["t"] != self.now or self.expected:
            difference = self._settle(f"line {number}")
            if difference is not None:
                return difference
        self.now = record["t"]
        submitted = record["fact"] == "TaskSubmitted"
        fact = TaskSubmitted(make_task(record, self.demands)) if submitted else read_fact(record)
        try:
            self._expect(self.distributor.on_event(self.now, fact))
        except StateError as error:
            return f"line {number}: {error}"
        self.decided = False
        return None

    def _check(self, line: str, number: int) -> str | None:
        if not self.expected:
            self._decide()
        mine = self.expected.popleft() if self.expected else "nothing"
        if mine == line.strip():
            return None
        return f"line {number}: the log has {line.strip()}, the fresh machine decided {mine}"

    def _settle(self, where: str) -> str | None:
        """The instant is over: decide if that is still to be done; the log must have shown all of it."""
        if not self.decided:
            self._decide()
        return f"{where}: the fresh machine also decided {self.expected[0]}" if self.expected else None

    def _decide(self) -> None:
        self.decided = True
        self._expect(self.distributor.dispatch(self.now))

    def _expect(self, actions: Iterable[Action]) -> None:
        self.expected.extend(action_line(self.now, action) for action in actions)


def _parse(line: str, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise AltlasError(f"line {number}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise AltlasError(f"line {number}: an object is needed, not {line.strip()[:60]!r}")
    return record
