"""What a person at a terminal sees while a suite runs. Silent where nobody watches."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from typing import Final, Protocol, TextIO

from altlas_core.report.numbers import duration
from altlas_core.report.outcome import ScenarioOutcome

_REFRESH_S: Final = 0.2
_COLOURS: Final = {"passed": "32", "failed": "31", "broke": "33"}
_WORDS: Final = {"passed": "passed", "failed": "FAILED", "broke": "BROKE"}


class Progress(Protocol):
    """Told of a suite's course. `started` and `cell` come from any thread; a cell's number counts code cells from 1."""

    def opened(self, title: str, scenarios: list[str]) -> None: ...
    def started(self, scenario: str) -> None: ...
    def cell(self, scenario: str, number: int, count: int, about: str) -> None: ...
    def ended(self, outcome: ScenarioOutcome) -> None: ...
    def closed(self) -> None: ...


class Silent:
    def opened(self, title: str, scenarios: list[str]) -> None: ...
    def started(self, scenario: str) -> None: ...
    def cell(self, scenario: str, number: int, count: int, about: str) -> None: ...
    def ended(self, outcome: ScenarioOutcome) -> None: ...
    def closed(self) -> None: ...


class TerminalProgress:
    """One line per scenario as it ends, and a last line, rewritten in place, that says what is running now."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._running: dict[str, float] = {}
        self._cells: dict[str, str] = {}
        self._done = threading.Event()
        self._width = 0
        self._left = 0
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def opened(self, title: str, scenarios: list[str]) -> None:
        self._width = max(map(len, scenarios), default=0)
        self._left = len(scenarios)
        self._print(title)
        self._ticker.start()

    def started(self, scenario: str) -> None:
        with self._lock:
            self._running[scenario] = time.monotonic()

    def cell(self, scenario: str, number: int, count: int, about: str) -> None:
        with self._lock:
            self._cells[scenario] = f" (cell {number} of {count})"

    def ended(self, outcome: ScenarioOutcome) -> None:
        with self._lock:
            self._running.pop(outcome.name, None)
            self._left -= 1
        self._print(self._line(outcome))

    def closed(self) -> None:
        self._done.set()
        if self._ticker.is_alive():
            self._ticker.join()
        self._clear()

    def _line(self, outcome: ScenarioOutcome) -> str:
        word = _WORDS.get(outcome.status, outcome.status)
        checks = f"{outcome.passed_count}/{len(outcome.checks)} checks"
        coloured = f"\x1b[{_COLOURS.get(outcome.status, '0')}m{word:<6}\x1b[0m"
        line = f"  {coloured}  {outcome.name:<{self._width}}  {checks:>13}  {duration(outcome.wall_s):>8}"
        return f"{line}\n          {outcome.error}" if outcome.error else line

    def _tick(self) -> None:
        while not self._done.wait(_REFRESH_S):
            with self._lock:
                now = time.monotonic()
                running = [
                    f"{name} {now - since:.0f} s{self._cells.get(name, '')}" for name, since in self._running.items()
                ]
                waiting = self._left - len(running)
            text = "  running: " + ", ".join(running) + (f"; {waiting} waiting" if waiting else "")
            if running:
                limit = shutil.get_terminal_size().columns - 1
                with self._lock:
                    self._out.write("\r\x1b[K" + text[:limit])
                    self._out.flush()

    def _print(self, text: str) -> None:
        with self._lock:
            self._out.write(f"\r\x1b[K{text}\n")
            self._out.flush()

    def _clear(self) -> None:
        with self._lock:
            self._out.write("\r\x1b[K")
            self._out.flush()


def progress_for(stream: TextIO | None = None) -> Progress:
    """A display where `stream` (default: stderr) is a terminal, else none."""
    out = sys.stderr if stream is None else stream
    return TerminalProgress(out) if out.isatty() else Silent()
