"""Seconds and bytes as titles and tables tell them; what happened to a task, and why no GPU will take it, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from altlas_core.model import GIB, Device, ErrorCode, Task

MIB: Final = 2**20
MOST_DECIMAL: Final = 1e4  # from here on whole numbers, thousands apart


def seconds_text(seconds: float, digits: int = 4) -> str:
    """ "12.5 ms", "8.25 s", "236,104 s"."""
    if 0 < seconds < 0.01:
        return f"{_short(1000 * seconds, digits)} ms"
    return f"{_short(seconds, digits)} s"


def memory_text(*sizes: float) -> str:
    """Bytes, or a range of them: "6 MiB", "0.5 to 3.09 GiB"."""
    unit, of_unit = memory_unit(max(sizes))
    return " to ".join(dict.fromkeys(_short(size / of_unit, 3) for size in sizes)) + f" {unit}"


def memory_unit(most: float) -> tuple[str, int]:
    """What to tell sizes of up to `most` bytes in, and how many bytes that is."""
    return ("MiB", MIB) if 0 < most < GIB else ("GiB", GIB)


def _short(value: float, digits: int) -> str:
    """So many significant digits, whole numbers whole, never an exponent."""
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if abs(value) >= MOST_DECIMAL or "e" in text else text


def story(task: Task) -> str:
    """What happened to a task so far, in one line."""
    parts = [f"{task.task_id} is {task.state}", f"submitted at {task.submitted_s:g} s", f"{task.attempts} attempts"]
    if task.attempt is not None:
        attempt = task.attempt
        end = "still holds it" if attempt.ended_s is None else f"{attempt.outcome} at {attempt.ended_s:g} s"
        parts.append(f"attempt {attempt.number} started at {attempt.started_s:g} s on GPU {attempt.gpu_id}, {end}")
    if task.error_code:
        parts.append(f"{task.error_code}: {task.error}")
    return ", ".join(parts)


def why_nowhere(task: Task, devices: Sequence[Device]) -> tuple[ErrorCode, str]:
    """Why none of a pool's devices could ever take a task: (error code, sentence)."""
    pin = task.demand.pin
    if pin is not None:
        devices = [devices[pin]]
    left = [device for device in devices if not device.lost]
    which = "" if pin is None else f" (it is pinned to GPU {pin})"
    if not left:
        reason = devices[0].reason or "lost"
        return "device_lost", f"no device left that it may use{which}; GPU {devices[0].gpu_id}: {reason}"
    room = max(device.capacity_bytes for device in left)
    return "too_large", (
        f"needs {task.memory_bytes / GIB:.2f} GiB, but at most {room / GIB:.2f} GiB are available on one GPU"
        f"{which}: {(task.memory_bytes - room) / GIB:.2f} GiB too much"
    )
