"""The live dashboard: what `altlas.live` returns where somebody can watch."""

from __future__ import annotations

import threading
from dataclasses import replace
from importlib import import_module
from time import monotonic
from typing import Any, Final

import ipywidgets as w

from altlas_core.live.controls import Controls
from altlas_core.live.frontend import CellWatch
from altlas_core.live.machine import Machine
from altlas_core.live.plots import Plots
from altlas_core.live.session import LiveSession
from altlas_core.live.snapshot import Snapshot
from altlas_core.live.still import still_bundle
from altlas_core.result import Result

WIDGET_MIME: Final = "application/vnd.jupyter.widget-view+json"
FRAME_S: Final = 0.1  # between two frames, at least
IDLE_S: Final = 0.4  # between two looks, where nothing changes
UNSEEN_S: Final = 1.0  # between two frames where nobody answers
UNHEARD_S: Final = 0.33  # where the kernel could not hear an answer; seldom enough for a slow browser


class Dashboard(w.VBox):  # type: ignore[misc]
    """A live run as a widget. `session` steers the run, `result` is what it left, once it has ended.

    A thread looks at the run and sends what has changed; the kernel is free meanwhile. It sends no frame before the
    browser has drawn the one before last, so a slow browser sees fewer. `close` ends the run, too.
    """

    def __init__(self, session: LiveSession) -> None:
        self.session = session
        shot = session.snapshot()
        self._machine = Machine(self._touch, self._drawn, self._resized)
        self._plots = Plots(len(shot.gpus), shot.slots)
        self._controls = Controls(session, self._selected, self._say)
        run_row, machine_row, break_row = self._controls.rows
        super().__init__([run_row, machine_row, self._machine, break_row, self._plots.widget])
        self.add_class("altlas-live")
        self._cells = CellWatch()
        self._lock = threading.Lock()  # of drawing
        self._asked = threading.Event()  # somebody wants to see what he has done
        self._heard = threading.Event()  # the browser has drawn a frame
        self._closing = threading.Event()
        self._shot: Snapshot | None = None  # the latest that was drawn, without its attempts
        self._since = 0
        self._finished = 0  # number of the run whose end was drawn
        self._answered = 0  # number of the latest frame that the browser has drawn
        self._sent_s = 0.0
        self._figure = 0, 0.0  # the latest frame with another figure, and when it was sent
        self._display_id: str | None = None
        self.refresh()
        self._thread = threading.Thread(target=self._follow, name="altlas-dashboard", daemon=True)
        self._thread.start()

    @property
    def result(self) -> Result | None:
        """Tables, figures and checks, once the run has ended."""
        return self.session.result

    def close(self) -> None:
        """End the run and take the dashboard away. May be called twice."""
        self._closing.set()
        self._asked.set()
        self._heard.set()
        self._cells.close()
        self.session.close()
        if self._thread is not threading.current_thread():
            self._thread.join()
        for widget in (*self._every_widget(), self._machine, self._plots.widget):
            widget.close()
        super().close()

    # --- showing ------------------------------------------------------------------------------------------------------

    def _ipython_display_(self) -> None:
        """The widget, and its still form for those who cannot draw widgets. That follows when the run has ended."""
        show: Any = import_module("IPython.display").display
        handle = show(self._bundle(), raw=True, display_id=True)
        self._display_id = handle.display_id if handle else None

    def _bundle(self) -> dict[str, Any]:
        still = still_bundle(self.session.snapshot())
        if self._closing.is_set():
            return dict(still)
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {WIDGET_MIME: view, **still}

    # --- its thread ---------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        while not self._closing.is_set():
            try:
                changed = self.refresh()
            except Exception as problem:  # a fault of ours: to be shown, and the next frame may be well
                self._machine.problem = f"{type(problem).__name__}: {problem}"
                changed = False
            self._asked.wait(FRAME_S if changed else IDLE_S)
            self._asked.clear()
            while not (self._may_send() or self._closing.is_set()):
                self._heard.wait(FRAME_S)
                self._heard.clear()

    def _may_send(self) -> bool:
        if self._shot is None or self._machine.frame - self._answered < 2:  # None: somebody has just clicked
            return True
        return monotonic() - self._sent_s > (UNHEARD_S if self._cells.busy else UNSEEN_S)

    def refresh(self) -> bool:
        """Draw the run as it is now; whether anything differs from the frame before."""
        with self._lock:
            shot = self.session.snapshot(self._since)
            bare = replace(shot, attempts=())
            if bare == self._shot and not shot.attempts:
                return False
            self._shot, self._since = bare, shot.next_since
            self._controls.follow(shot)
            drawn = self._plots.show(shot, monotonic())
            if shot.state == "ended" and self._finished != shot.run:
                self._finish(shot)
            self._machine.show(shot)
            self._sent_s = monotonic()
            if drawn:
                self._figure = self._machine.frame, self._sent_s
        return True

    def _finish(self, shot: Snapshot) -> None:
        """The whole run in the figure, and in the still form that stays in the notebook's file."""
        self._finished = shot.run
        result = self.session.result
        if result is None:
            return  # another run has already begun
        self._plots.finish(result)
        if self._display_id is not None:
            update: Any = import_module("IPython.display").update_display
            update(self._bundle(), raw=True, display_id=self._display_id)

    # --- what the browser and the controls say, on the kernel's threads -----------------------------------------------

    def _selected(self) -> int | None:
        return None if self._machine.selected < 0 else self._machine.selected

    def _say(self, text: str) -> None:
        self._machine.problem = text
        self._touch()

    def _touch(self) -> None:
        """Draw soon, even if nothing has changed in the run."""
        self._shot = None
        self._asked.set()
        self._heard.set()

    def _drawn(self, frame: int) -> None:
        self._answered = frame
        with_figure, sent_s = self._figure
        if frame == with_figure and not self._cells.busy:
            self._plots.took(monotonic() - sent_s)
        self._heard.set()

    def _resized(self, width_px: int) -> None:
        with self._lock:
            self._plots.arrange(width_px)

    def _every_widget(self) -> list[w.Widget]:
        rows = self._controls.rows
        return [*rows, *(widget for row in rows for widget in row.children)]
