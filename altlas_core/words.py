"""What happened to a task, and why no GPU will take it, in words: for error messages."""

from __future__ import annotations

from collections.abc import Sequence

from altlas_core.model import GIB, Device, ErrorCode, Task


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
