"""Executes notebooks side by side, each at most as long as it may take, and all of them until somebody says stop."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Final

from altlas_core.report.execute import Execution, NotebookRun, prepare

INTERRUPTED: Final = "the run was interrupted"
TICK_S: Final = 0.2  # of two signals at once the second may not wake the thread that waits: it looks by itself
GRACE_S: Final = 10.0  # a notebook that was killed usually returns within a second


@dataclass(slots=True, frozen=True)
class Deadlines:
    """Real seconds from the start of a notebook, and of the whole; 0 is none."""

    notebook_s: float = 0.0
    whole_s: float = 0.0


@dataclass(slots=True)
class _Running:
    run: NotebookRun
    since_s: float
    killed_s: float | None = None
    why: str = ""


class Runner:
    """Executes `runs` with `jobs` threads; `starts` hears of each, in its thread.

    One thread takes `executions()`; `stop` may be called from anywhere, also from a signal handler. A notebook that
    does not even return when its kernel is killed (a process stuck in a driver) is left behind.
    """

    def __init__(
        self, runs: Mapping[str, NotebookRun], jobs: int, deadlines: Deadlines, starts: Callable[[str], None]
    ) -> None:
        self._runs = dict(runs)
        self._jobs = jobs
        self._deadlines = deadlines
        self._starts = starts
        self._lock = threading.Lock()
        self._waiting = deque(self._runs)
        self._running: dict[str, _Running] = {}
        self._inbox: SimpleQueue[tuple[str, Execution] | None] = SimpleQueue()  # None: stop
        self._began_s = time.monotonic()
        self._over: str | None = None  # why no more is started
        self.interrupted = False  # before all had ended
        self.cut_off = False  # something was killed, or never begun

    def stop(self) -> None:
        """End what runs, start nothing more."""
        self._inbox.put(None)

    def executions(self) -> Generator[tuple[str, Execution], None, None]:
        """Name and execution, in the order in which they end; what was never begun comes last."""
        prepare()
        for early in self._next(0.0):  # a stop or the deadline may have come meanwhile: then nothing is begun
            self._inbox.put(early)
        for _ in range(self._jobs):
            self._add_thread()
        left = set(self._runs)
        try:
            while left:
                for name, execution in self._next(self._patience_s()):
                    if name in left:  # else it was given up
                        left.remove(name)
                        yield name, execution
        finally:
            self._end(INTERRUPTED)

    def _next(self, patience_s: float) -> list[tuple[str, Execution]]:
        """Wait for an end, a stop or a deadline; what has ended by that."""
        try:
            ended = self._inbox.get(timeout=patience_s)
        except Empty:
            return self._overdue()
        if ended is not None:
            return [ended]
        self.interrupted = True
        return self._end(INTERRUPTED)

    # --- threads --------------------------------------------------------------------------------------------------

    def _add_thread(self) -> None:
        threading.Thread(target=self._work, name="notebook", daemon=True).start()

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            name, own = taken
            execution = self._execute(name, own)
            with self._lock:
                given_up = self._running.get(name) is not own
                if not given_up:
                    del self._running[name]
                    self._inbox.put((name, execution))
            if given_up:  # another thread has this one's place
                return

    def _execute(self, name: str, own: _Running) -> Execution:
        try:
            self._starts(name)
            return own.run.execute()
        except Exception as error:  # no room for its files, say; the others go on
            return Execution(
                time.monotonic() - own.since_s, f"it could not be executed: {type(error).__name__}: {error}"
            )

    def _take(self) -> tuple[str, _Running] | None:
        with self._lock:
            if not self._waiting:
                return None
            name = self._waiting.popleft()
            own = self._running[name] = _Running(self._runs[name], time.monotonic())
            return name, own

    # --- deadlines ------------------------------------------------------------------------------------------------

    def _patience_s(self) -> float:
        """Seconds until the next deadline, TICK_S at most."""
        now = time.monotonic()
        due = [now + TICK_S]
        if self._deadlines.whole_s and self._over is None:
            due.append(self._began_s + self._deadlines.whole_s)
        with self._lock:
            for own in self._running.values():
                if own.killed_s is not None:
                    due.append(own.killed_s + GRACE_S)
                elif self._deadlines.notebook_s:
                    due.append(own.since_s + self._deadlines.notebook_s)
        return max(0.0, min(due) - now)

    def _overdue(self) -> list[tuple[str, Execution]]:
        """Kill what is over its time; give up what did not end although it was killed a while ago."""
        now = time.monotonic()
        whole_s, notebook_s = self._deadlines.whole_s, self._deadlines.notebook_s
        if whole_s and self._over is None and now >= self._began_s + whole_s:
            return self._end(f"the deadline of {whole_s:g} s for the whole run was over (--deadline)")
        ended = []
        with self._lock:
            for name, own in list(self._running.items()):
                if own.killed_s is None and notebook_s and now >= own.since_s + notebook_s:
                    self._kill(own, f"it did not end within {notebook_s:g} s (--notebook-deadline)")
                elif own.killed_s is not None and now >= own.killed_s + GRACE_S:
                    del self._running[name]
                    why = f"cut off: {own.why}; its kernel could not be ended"
                    ended.append((name, Execution(now - own.since_s, why)))
                    self._add_thread()
        return ended

    def _end(self, why: str) -> list[tuple[str, Execution]]:
        """Kill what runs. Returns what will not run any more."""
        with self._lock:
            self._over = self._over or why
            for own in self._running.values():
                if own.killed_s is None:
                    self._kill(own, why)
            never = [(name, Execution(0.0, f"not run: {why}", ran=False)) for name in self._waiting]
            self._waiting.clear()
            self.cut_off = self.cut_off or bool(never)
        return never

    def _kill(self, own: _Running, why: str) -> None:
        own.killed_s, own.why = time.monotonic(), why
        self.cut_off = True
        own.run.kill(why)


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Meanwhile Ctrl-C and SIGTERM call `stop`, and do nothing else, however often they come.

    Only a program's main thread may say so; in another one signals stay what they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def heard(_number: int, _frame: FrameType | None) -> None:
        stop()

    ignored = (signal.SIG_IGN, None)  # by who started this program, for a reason
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) not in ignored]
    before = {number: signal.signal(number, heard) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
