"""How attempts ended and when GPUs were lost: in a word, in a title, as marks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from altlas_core.events import DeviceLost, DeviceReturned
from altlas_core.figures.style import OUTCOMES, PINK, device_word, numbers, plural
from altlas_core.model import Attempt
from altlas_core.result import Result
from altlas_core.words import seconds_text

LOSSES: Final = ((True, "GPU lost", "x"), (False, "GPU back", "cross"))


def outcome_of(attempt: Attempt) -> str:
    """How an attempt ended, as OUTCOMES names it: a stop is told by its reason."""
    if attempt.outcome is None:
        return "open"
    if attempt.outcome == "stopped":
        return "timeout" if attempt.task.error_code == "timeout" else "cancelled"
    return attempt.outcome


def finding(result: Result, attempts: Sequence[Attempt], end_s: float, subject: str = "") -> str:
    """A title: the subject, how many tasks on how many devices, how long, and how their attempts ended."""
    if not attempts:
        return "No task ever started"
    counts = Counter(outcome_of(attempt) for attempt in attempts)
    odd = [f"{counts[name]:,} {words}" for name, (_, words) in OUTCOMES.items() if counts[name] and name != "finished"]
    tasks = len({attempt.task.index for attempt in attempts})
    gpus = len({attempt.gpu_id for attempt in attempts})
    what = device_word(result.backend)
    where = f"{gpus:,} of {len(result.devices):,} {what}s" if len(result.devices) > 1 else f"one {what}"
    said = f"{subject}: " if subject else ""
    text = f"{said}{plural(tasks, 'task')} on {where} in {seconds_text(end_s)}"
    if not odd:
        return f"{text}, all finished"
    return f"{text}; attempts: {', '.join(odd)}, {counts['finished']:,} finished"


def _losses(result: Result) -> list[tuple[float, int, bool]]:
    """Time, GPU, and True where it was lost, False where it came back."""
    entries: Any = result.log.entries  # each fact after its time
    kinds = enumerate(map(type, entries))
    places = [place for place, kind in kinds if kind is DeviceLost or kind is DeviceReturned]
    return [(entries[place - 1], entries[place].gpu_id, type(entries[place]) is DeviceLost) for place in places]


def lost_at(result: Result, at_s: float) -> set[int]:
    """The GPUs that were lost at a time, seconds."""
    lost: set[int] = set()
    for time_s, gpu_id, gone in _losses(result):
        if time_s <= at_s:
            (lost.add if gone else lost.discard)(gpu_id)
    return lost


def lost_marks(result: Result, rows: dict[int, float], until_s: float | None) -> list[dict[str, Any]]:
    """Marks where a GPU was lost or came back, before `until_s`; rows: where each GPU is on the y axis."""
    told = [own for own in _losses(result) if own[1] in rows and (until_s is None or own[0] < until_s)]
    traces = []
    for lost, name, symbol in LOSSES:
        own = [(time_s, gpu_id) for time_s, gpu_id, gone in told if gone is lost]
        if own:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": name,
                    "showlegend": True,
                    "x": numbers(time_s for time_s, _ in own),
                    "y": [rows[gpu_id] for _, gpu_id in own],
                    "customdata": [gpu_id for _, gpu_id in own],
                    "marker": {"symbol": symbol, "size": 11, "color": PINK, "line": {"width": 1.5, "color": "#ffffff"}},
                    "hovertemplate": f"{name}: GPU %{{customdata}} at %{{x:.5~g}} s<extra></extra>",
                }
            )
    return traces
