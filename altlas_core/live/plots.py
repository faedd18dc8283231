"""The figure of the live dashboard: the timeline of tasks, the queue and the latencies, in one FigureWidget.

One widget, because each brings plotly.js along. Its traces are made once; what follows sends only what has changed.
"""

from __future__ import annotations

from typing import Any, Final

import plotly.graph_objects as go
from plotly.basedatatypes import Undefined

from altlas_core.live import canvas
from altlas_core.live.bars import RUNNING, Bars, Window, bars_of, lines_of, round_up
from altlas_core.live.canvas import BARS, HEAT, ORDER, P50, QUEUE
from altlas_core.live.crowd import BusyLately, busy_slots
from altlas_core.live.snapshot import Snapshot
from altlas_core.result import Result

MOST_GPUS_OF_BARS: Final = 64
LEAST_S, MOST_S = 0.2, 1.0  # between two drawings of a run that goes on
SERIES_EVERY: Final = 3  # drawings: what changes slowly
NARROW_PX: Final = 700  # of the dashboard: below, nothing stands side by side


class Plots:
    """`widget` is the FigureWidget. Methods are for one thread at a time."""

    def __init__(self, gpus: int, slots: int) -> None:
        self.widget = go.FigureWidget(data=canvas.traces(), layout=canvas.layout(gpus, slots, True))
        self.widget._config = {**self.widget._config, "displayModeBar": False}
        self.least_s = LEAST_S
        self._machine = (gpus, slots)
        self._run = 0
        self._wide = True
        self._frames = 0
        self._drawn_s = 0.0
        self._bars = Bars()
        self._busy = BusyLately()
        self._window = Window()
        self._seen: set[int] = set()  # traces of the timeline that are shown
        self._restyle: dict[int, dict[str, Any]] = {}
        self._relayout: dict[str, Any] = {}
        self._laid_out: dict[str, Any] = {}  # what was sent of the layout

    def show(self, shot: Snapshot, now_s: float) -> bool:
        """The run as it is now; `shot.attempts` are those since the shot before. now_s: real time.

        Drawing is what costs a browser most, so a frame that comes within `least_s` of one that was drawn is only
        taken note of. Whether it was drawn.
        """
        if shot.run != self._run:
            self._begin(shot)
        if not self._crowded:
            self._bars.add(shot.attempts)
        runs = shot.state == "running"
        if runs and now_s - self._drawn_s < self.least_s:
            return False
        self._drawn_s = now_s
        slowly = self._frames % SERIES_EVERY == 0 or not runs
        self._frames += 1
        if not self._crowded:
            self._draw_bars(shot)
        elif slowly:
            self._busy.add(shot)
            picture = self._busy.picture()
            if len(picture["x"]) > 1:  # of one column plotly.js cannot tell how wide it is
                self._draw(HEAT, picture)
                self._relayout["xaxis.range"] = [picture["x"][0], max(5.0, shot.time_s)]
        if slowly:
            self._draw_series(shot)
        self._send()
        return True

    def took(self, seconds: float) -> None:
        """So long it took until the browser had drawn: a slow one keeps half its time for everything else."""
        self.least_s = min(MOST_S, max(LEAST_S, 2 * seconds))

    def finish(self, result: Result) -> None:
        """The whole run, once it is over."""
        gpus, slots = self._machine
        end_s = max(result.virtual_s, 0.1)
        bars = None if self._crowded else bars_of(result)
        if bars is not None:
            for at, outcome in enumerate(ORDER):
                self._draw(BARS + at, lines_of([b for b in bars if b.outcome == outcome], slots, (0.0, end_s), end_s))
        elif (found := busy_slots(result)) is not None and len(found["x"]) > 1:
            self._restyle[HEAT] = {**found, "visible": True}
            for at in range(len(ORDER)):
                self._restyle[BARS + at] = {"x": [], "y": [], "customdata": [], "visible": False}
            self._relayout["annotations[0].text"] = canvas.timeline_title(gpus, True)
        for name in ("xaxis", "xaxis2", "xaxis3"):
            self._relayout[f"{name}.range"] = [0.0, end_s]
        self._send()

    def arrange(self, width_px: int) -> None:
        """As wide as there is room: two plots side by side, or all in a column where the dashboard is narrow."""
        wide = width_px >= NARROW_PX
        if wide != self._wide:
            self._wide = wide
            self._relayout |= canvas.places(self._machine[0], wide)
        self._relayout["width"] = width_px
        self._send()

    @property
    def _crowded(self) -> bool:
        return self._machine[0] > MOST_GPUS_OF_BARS

    def _begin(self, shot: Snapshot) -> None:
        """Another run, perhaps on another machine: everything from the start."""
        self._run = shot.run
        self._machine = gpus, slots = len(shot.gpus), shot.slots
        self._frames, self._drawn_s = 0, 0.0
        self._bars, self._busy, self._window = Bars(), BusyLately(), Window()
        self._seen.clear()
        width = canvas.bar_width_px(gpus, slots)
        empty = {"x": [], "y": [], "customdata": [], "visible": False, "line.width": width}
        self._restyle = {BARS + at: dict(empty) for at in range(len(ORDER))}
        self._restyle[HEAT] = {"x": [], "y": [], "z": [], "visible": False, "zmax": slots}
        self._relayout |= canvas.machine_axis(gpus, slots) | canvas.places(gpus, self._wide)
        self._relayout["annotations[0].text"] = canvas.timeline_title(gpus, self._crowded)
        self._relayout["xaxis.range"] = list(self._window.span)

    def _draw_bars(self, shot: Snapshot) -> None:
        moved = self._window.follow(shot.time_s, shot.pace, self._bars.reach_s(shot.time_s))
        if moved:
            self._relayout["xaxis.range"] = list(self._window.span)
        for at, outcome in enumerate(ORDER):
            differs = outcome == RUNNING or outcome in self._bars.changed or (moved and BARS + at in self._seen)
            if differs:
                lines = self._bars.lines(outcome, self._machine[1], self._window.span, shot.time_s)
                self._draw(BARS + at, lines)
        self._bars.changed.clear()

    def _draw(self, trace: int, content: dict[str, Any]) -> None:
        """Shown as soon as there is something in it; once seen, a trace stays in the legend."""
        if trace in self._seen or len(content["x"]):
            shown = {} if trace in self._seen else {"visible": True}
            self._restyle[trace] = {**self._restyle.get(trace, {}), **content, **shown}
            self._seen.add(trace)

    def _draw_series(self, shot: Snapshot) -> None:
        for name in ("xaxis2", "xaxis3"):
            self._relayout[f"{name}.range"] = [0.0, round_up(max(10.0, shot.time_s))]
        times, depths = [*shot.queue_times_s, shot.time_s], [*shot.queue_depths, shot.queued]
        self._restyle[QUEUE] = {"x": times, "y": depths}
        for at, series in enumerate((shot.latency_p50_series, shot.latency_p95_series)):
            self._restyle[P50 + at] = {"x": list(shot.latency_times_s), "y": list(series)}

    def _send(self) -> None:
        """All that has changed, in one message."""
        layout = {name: value for name, value in self._relayout.items() if self._laid_out.get(name, ...) != value}
        traces = sorted(self._restyle)
        names = dict.fromkeys(name for trace in traces for name in self._restyle[trace])
        style = {name: [self._restyle[trace].get(name, Undefined) for trace in traces] for name in names}
        self._laid_out |= layout
        self._restyle, self._relayout = {}, {}
        if style or layout:
            self.widget.plotly_update(style, layout, traces)
