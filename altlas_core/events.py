"""Facts in (past tense) and actions out (imperative). Plain data: a log of them can be written, read and replayed.

Facts name tasks by index and attempts by number, so that a late one can be told from a current one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from altlas_core.model import Attempt, DeviceSample, Task

# Order of facts that carry the same time. What has ended frees its place first; then health; then new work; then the
# owner's wish (a task cancelled at the instant it is submitted never starts); then deadlines (a task that ends exactly
# at its deadline has completed, one cancelled exactly then is cancelled). Decisions follow all facts of the instant.
RANK_ENDED: Final = 0
RANK_DEVICE: Final = 1
RANK_SUBMIT: Final = 2
RANK_CANCEL: Final = 3
RANK_TIMER: Final = 4


@dataclass(slots=True)
class TaskSubmitted:
    task: Task


@dataclass(slots=True)
class CancelRequested:
    task_index: int


@dataclass(slots=True)
class AttemptFinished:
    """The work is done. `iterations` is how many times the kernel ran (a fraction counts a part of one)."""

    task_index: int
    attempt: int
    iterations: float = 0.0
    detail: dict[str, Any] | None = None


@dataclass(slots=True)
class AttemptFailed:
    """The task itself failed: `error_code` is task_error or out_of_memory.

    Out of memory: `needed_bytes` is what the task would have held, `free_bytes` what it could have had; None: not told.
    """

    task_index: int
    attempt: int
    error_code: str
    error: str
    iterations: float = 0.0
    needed_bytes: int | None = None
    free_bytes: int | None = None


@dataclass(slots=True)
class AttemptStopped:
    """The backend confirms that an attempt it was asked to stop has let go of the device."""

    task_index: int
    attempt: int
    iterations: float = 0.0


@dataclass(slots=True)
class WorkerCrashed:
    """A worker process of a device died. `attempts` are (task_index, attempt number) of all that ran in it.

    `blamed` False: we killed it ourselves for the sake of another task, and these lose nothing by it.
    """

    gpu_id: int
    attempts: tuple[tuple[int, int], ...]
    error: str
    blamed: bool = True


@dataclass(slots=True)
class DeviceSampled:
    gpu_id: int
    sample: DeviceSample


@dataclass(slots=True)
class DeviceLost:
    gpu_id: int
    reason: str


@dataclass(slots=True)
class DeviceReturned:
    """A lost device answers again."""

    gpu_id: int


@dataclass(slots=True)
class TimerFired:
    """A timer asked for with SetTimer; `timeout_s` names the group of deadlines to look at."""

    timeout_s: float


@dataclass(slots=True)
class HopeLost:
    """The driver sees that nothing can change any more: what still waits will never find a device."""

    reason: str


@dataclass(slots=True)
class StopAttempt:
    attempt: Attempt
    reason: str


@dataclass(slots=True)
class SetTimer:
    """Ask the driver for TimerFired(timeout_s) at time_s."""

    time_s: float
    timeout_s: float


StartAttempt = Attempt  # an Attempt among the actions is the order to start it

Fact = (
    TaskSubmitted
    | CancelRequested
    | AttemptFinished
    | AttemptFailed
    | AttemptStopped
    | WorkerCrashed
    | DeviceSampled
    | DeviceLost
    | DeviceReturned
    | TimerFired
    | HopeLost
)
Action = Attempt | StopAttempt | SetTimer
