"""The buttons and fields of the live dashboard. What cannot be done now is disabled; what is refused is said."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import ipywidgets as w

from altlas_core.device_names import parse_devices
from altlas_core.errors import AltlasError
from altlas_core.gpu_model.catalog import CATALOG
from altlas_core.live.session import LiveSession
from altlas_core.live.snapshot import GpuView, Snapshot
from altlas_core.strategies import USER_STRATEGIES

PACES: Final = {"1x": 1.0, "10x": 10.0, "100x": 100.0, "as fast as possible": None}
RATES: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # of arrivals
CPU: Final = "CPU device"
MOST_GPUS: Final = 1024
MOST_SLOTS: Final = 64
BREAKS: Final = {  # what can be done to a GPU: the button's text, and what it does
    "lose_gpu": ("Lose it", "The GPU falls off the bus; what runs on it starts again elsewhere"),
    "return_gpu": ("Return it", "A lost GPU answers again"),
    "overheat": ("Overheat it", "The GPU is hotter than allowed, and takes no new task"),
    "cool_down": ("Cool it down", "The end of the overheating"),
    "hang_task": ("Hang a task", "What started last on the GPU makes no more progress"),
    "crash_worker": ("Crash its worker", "The process that serves the GPU dies, with all that it runs"),
}
_FIRST_BUTTON: Final = {
    "ready": ("Start", "play"),
    "running": ("Pause", "pause"),
    "paused": ("Go on", "play"),
    "ended": ("Run again", "repeat"),
    "failed": ("Run again", "repeat"),
}


class Controls:
    """`rows` are the widgets. `selected` tells which GPU is meant, None: the busiest; `say` shows a line, "" none."""

    def __init__(self, session: LiveSession, selected: Callable[[], int | None], say: Callable[[str], None]) -> None:
        self._session = session
        self._selected = selected
        self._say = say
        self._shot = session.snapshot()
        self._before: tuple[Any, ...] = ()  # what the run was like when the fields were last told
        self._refused = True  # so fields may show what does not hold
        self._setting: int | None = None  # the thread that is setting fields, whose changes are not somebody's wish
        self._make_run_row()
        self._make_machine_row()
        self._make_break_row()
        self.rows = (_row(self.first, self.step, self.stop, self.pace), self._machine_row, self._break_row)
        self.follow(self._shot)

    # --- making -------------------------------------------------------------------------------------------------------

    def _make_run_row(self) -> None:
        self.first = w.Button(button_style="primary", tooltip="Start, pause, or go on")
        self.step = w.Button(
            description="Step", icon="step-forward", tooltip="Play the next instant at which something happens"
        )
        self.stop = w.Button(description="Stop", icon="stop", tooltip="End the run; the figures then show all of it")
        paces = dict(PACES)
        if self._shot.pace not in paces.values():
            paces = {f"{self._shot.pace:g}x": self._shot.pace, **paces}
        self.pace = w.ToggleButtons(
            options=list(paces.items()), value=self._shot.pace, description="Pace", style={"button_width": "auto"}
        )
        self.first.on_click(lambda _: self._do(self._start_or_pause))
        self.step.on_click(lambda _: self._do(self._session.step))
        self.stop.on_click(lambda _: self._do(self._session.stop))
        self.pace.observe(self._wish(self._session.set_pace), "value")

    def _make_machine_row(self) -> None:
        count, kind = _machine(self._shot)
        narrow, style = {"width": "auto"}, {"description_width": "initial"}
        listed = self._session.settings.gpu.selection.strategies
        names = [*listed, *(name for name in USER_STRATEGIES if name not in listed)]
        self.strategy = w.Dropdown(
            options=names, value=self._shot.strategy, description="Strategy", layout=narrow, style=style
        )
        self.count = w.BoundedIntText(
            value=count, min=1, max=max(MOST_GPUS, count), description="GPUs", layout={"width": "112px"}, style=style
        )
        kinds = list(dict.fromkeys([kind, *CATALOG, CPU]))
        self.kind = w.Dropdown(options=kinds, value=kind, description="Kind", layout=narrow, style=style)
        self.slots = w.BoundedIntText(
            value=self._shot.slots,
            min=1,
            max=max(MOST_SLOTS, self._shot.slots),
            description="Slots each",
            layout={"width": "136px"},
            style=style,
        )
        self.rate = w.Dropdown(
            options=[(f"{rate:g}x", rate) for rate in RATES], description="Arrivals", layout=narrow, style=style
        )
        _offer(self.rate, self._shot.rate_factor)
        self.rate.value = self._shot.rate_factor
        self.strategy.observe(self._wish(self._session.set_strategy), "value")
        self.rate.observe(self._wish(self._session.set_rate), "value")
        for field in (self.count, self.kind, self.slots):
            field.observe(self._wish(self._rebuild), "value")
        self._machine_row = _row(self.strategy, self.rate, self.count, self.kind, self.slots)

    def _make_break_row(self) -> None:
        self.target = w.Label()
        self.breaks: dict[str, w.Button] = {}
        for kind, (text, told) in BREAKS.items():
            button = w.Button(description=text, tooltip=told)
            button.on_click(lambda _, kind=kind: self._do(lambda: self._break(kind)))
            self.breaks[kind] = button
        self._break_row = _row(self.target, *self.breaks.values())

    # --- what a click means -------------------------------------------------------------------------------------------

    def _do(self, action: Callable[[], Any]) -> None:
        """Say in a line what was refused; then the fields show what holds."""
        try:
            action()
            self._say("")
        except AltlasError as problem:
            self._refused = True
            self._say(str(problem))
        except Exception as problem:  # a fault of ours: to be shown, not lost in the kernel's log
            self._refused = True
            self._say(f"{type(problem).__name__}: {problem}")

    def _wish(self, action: Callable[[Any], None]) -> Callable[[Any], None]:
        """For a field: its new value is somebody's wish, unless it was set to show what holds."""

        def changed(change: Any) -> None:
            if self._setting != threading.get_ident():
                self._do(lambda: action(change["new"]))

        return changed

    def _start_or_pause(self) -> None:
        state = self._shot.state  # as the button says
        if state == "running":
            self._session.pause()
            return
        if state in ("ended", "failed"):
            self._session.rebuild()
        self._session.start()

    def _rebuild(self, _value: Any) -> None:
        """Another machine; it goes on running where the one before ran."""
        was_running = self._session.snapshot(self._shot.next_since).state == "running"
        kind, count, devices = self.kind.value, self.count.value, None
        if (count, kind) != _machine(self._shot):
            devices = [f"cpu:{count}"] if kind == CPU else [f"{count}x {kind}"] if kind in CATALOG else [kind]
        self._session.rebuild(devices, self.slots.value)
        if was_running:
            self._session.start()

    def _break(self, kind: str) -> None:
        self._session.inject(kind, self._selected())

    # --- following the run --------------------------------------------------------------------------------------------

    def follow(self, shot: Snapshot) -> None:
        """Show what holds now and what can be done."""
        self._shot = shot
        state, ready = shot.state, shot.state in ("running", "paused")
        self.first.description, self.first.icon = _FIRST_BUTTON[state]
        self.step.disabled = not (shot.can_pace and state in ("ready", "running", "paused"))
        self.stop.disabled = not ready
        self.pace.disabled = not shot.can_pace
        self._show_fields(shot)
        self.count.disabled = self.kind.value not in (*CATALOG, CPU)
        gpu_id = self._selected()
        meant = shot.gpus if gpu_id is None else shot.gpus[gpu_id : gpu_id + 1]
        self.target.value = "The busiest GPU:" if gpu_id is None else f"GPU {gpu_id}:"
        for kind, button in self.breaks.items():
            button.disabled = not (ready and any(_can(kind, gpu) for gpu in meant))

    def _show_fields(self, shot: Snapshot) -> None:
        """Only what has changed in the run: a field that somebody has just set is ahead of it."""
        now = (shot.pace, shot.strategy, *_machine(shot), shot.slots, shot.rate_factor)
        fields = (self.pace, self.strategy, self.count, self.kind, self.slots, self.rate)
        anew, self._refused = self._refused, False
        before = (object(),) * len(now) if anew else self._before
        self._before = now
        with self._quietly():
            for field, value, old in zip(fields, now, before, strict=True):
                if value != old and value != field.value:
                    _offer(field, value)
                    field.value = value

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        self._setting = threading.get_ident()
        try:
            yield
        finally:
            self._setting = None


def _row(*children: w.Widget) -> w.HBox:
    row = w.HBox(children)
    row.add_class("altlas-row")
    return row


def _offer(field: Any, value: Any) -> None:
    """Where a choice has no such option, one more."""
    if not isinstance(field, w.Dropdown | w.ToggleButtons):
        return
    texts = bool(field.options) and isinstance(field.options[0], str)
    if value not in (field.options if texts else [option for _, option in field.options]):
        field.options = [value if texts else (f"{value:g}x", value), *field.options]


def _machine(shot: Snapshot) -> tuple[int, str]:
    """How many of which kind; where there are several, or real GPUs, the kind is the machine as it was asked for."""
    requests = parse_devices(shot.device_texts)
    request = requests[0]
    if len(requests) == 1 and request.split == 1 and request.kind != "cuda" and request.count:
        return request.count, request.model or CPU
    return len(shot.gpus), ", ".join(shot.device_texts)


def _can(kind: str, gpu: GpuView) -> bool:
    """Whether this can be done to this GPU; the session knows best, and says why not."""
    lost = gpu.health == "LOST"
    if kind == "return_gpu":
        return lost
    if kind == "hang_task":
        return gpu.running > 0
    if kind == "cool_down":
        return gpu.simulated and gpu.health == "UNHEALTHY"
    return not lost and (gpu.simulated or kind != "overheat")
