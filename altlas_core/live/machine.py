"""The machine drawn as GPUs: a tile each, with the state of the run above and the news below. Drawn by machine.js."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import anywidget
from traitlets import Dict, Int, List, Unicode

from altlas_core.live.machine_words import figures_of, head_of
from altlas_core.live.snapshot import GpuView, Snapshot
from altlas_core.model import GIB

HERE: Final = Path(__file__).parent


class Machine(anywidget.AnyWidget):
    """Its traits are what the browser knows; a trait is sent only when it has changed.

    `columns` have an entry for each GPU: percent, GiB, degrees C, watts; None where there is no reading. `selected` is
    the GPU that somebody clicked, -1 for none. The browser answers each `frame` once it is on the screen.
    """

    _esm = HERE / "machine.js"
    _css = HERE / "machine.css"

    gpus: List[Any] = List().tag(sync=True)  # what does not change: name, memory, power limit, slots
    head = Dict().tag(sync=True)
    figures: List[Any] = List().tag(sync=True)  # pairs of a name and a text
    news: List[Any] = List().tag(sync=True)
    health: List[Any] = List().tag(sync=True)
    reasons = Dict().tag(sync=True)  # by GPU, of those that take no work
    utilization: List[Any] = List().tag(sync=True)
    memory: List[Any] = List().tag(sync=True)
    temperature: List[Any] = List().tag(sync=True)
    power: List[Any] = List().tag(sync=True)
    running: List[Any] = List().tag(sync=True)
    selected = Int(-1).tag(sync=True)
    problem = Unicode().tag(sync=True)
    frame = Int().tag(sync=True)

    def __init__(
        self, selected: Callable[[], None], seen: Callable[[int], None], resized: Callable[[int], None]
    ) -> None:
        """selected: called when the selection has changed; seen: with the number of a frame that was drawn; resized:
        with the width in pixels that there is."""
        super().__init__()
        self._resized = resized
        self._selected = selected
        self._seen = seen
        self.on_msg(self._heard)

    def show(self, shot: Snapshot) -> None:
        """Send what differs from what was shown before."""
        gpus = shot.gpus
        with self.hold_sync():
            self.gpus = [_facts(gpu) for gpu in gpus]
            if self.selected >= len(gpus):
                self.selected = -1
            self.head = head_of(shot)
            self.figures = figures_of(shot)
            self.news = list(shot.news)
            self.health = [gpu.health for gpu in gpus]
            self.reasons = {str(gpu.gpu_id): gpu.reason for gpu in gpus if gpu.reason}
            self.utilization = [_whole(gpu.utilization_pct) for gpu in gpus]
            self.memory = [_gib(gpu.memory_used_bytes) for gpu in gpus]
            self.temperature = [_whole(gpu.temperature_c) for gpu in gpus]
            self.power = [_whole(gpu.power_w) for gpu in gpus]
            self.running = [gpu.running for gpu in gpus]
            self.frame += 1

    def _heard(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        """Messages from the browser, which may say anything."""
        frame, chosen, width_px = content.get("seen"), content.get("select"), content.get("width")
        if isinstance(frame, int):
            self._seen(frame)
        if isinstance(width_px, int):
            self._resized(width_px)
        if isinstance(chosen, int) and -1 <= chosen < len(self.gpus):
            self.selected = chosen
            self._selected()


def _facts(gpu: GpuView) -> dict[str, Any]:
    limit = _whole(gpu.power_limit_w)
    return {"name": gpu.name, "memory": _gib(gpu.memory_total_bytes), "limit": limit, "slots": gpu.slots}


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _gib(value: int | None) -> float | None:
    return None if value is None else round(value / GIB, 1)
