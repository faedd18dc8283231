"""Keeps an eye on a run while it goes on: its log, what has come of its tasks, and what is worth a line of news.

The driver's thread tells it little at each look; views are made on the threads of those who want to see them.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from altlas_core.distributor import Distributor
from altlas_core.event_log import EventLog
from altlas_core.events import (
    Action,
    DeviceLost,
    DeviceReturned,
    DeviceSampled,
    Fact,
    HopeLost,
    WorkerCrashed,
)
from altlas_core.live.snapshot import GpuView
from altlas_core.live.tally import Depths, Spread, Windows
from altlas_core.model import COMPLETED, FAILED, FINAL_STATES, UNHEALTHY, Attempt, Task
from altlas_core.telemetry import Telemetry

MOST_NEWS: Final = 20
_NOTABLE: Final = frozenset({DeviceLost, DeviceReturned, DeviceSampled, WorkerCrashed, HopeLost})


class LiveLog(EventLog):
    """The event log, which also sets aside what starts and what is notable, and says when a look is over."""

    __slots__ = ("looked", "notable", "started")

    def __init__(self, header: dict[str, Any]) -> None:
        super().__init__(header)
        self.started: list[Attempt] = []
        self.notable: list[tuple[float, Fact]] = []
        self.looked: Callable[[float], None] = _nobody

    def fact(self, now: float, fact: Fact) -> None:
        self.entries += (now, fact)
        if type(fact) in _NOTABLE:
            self.notable.append((now, fact))

    def action(self, now: float, action: Action) -> None:
        self.entries += (now, action)
        if type(action) is Attempt:
            self.started.append(action)


class Watch:
    """What has come of the tasks so far. `look` is for the driver's thread, all else for any."""

    def __init__(self, distributor: Distributor, log: LiveLog) -> None:
        self.now = 0.0  # of the latest look
        self.submitted = 0
        self.ended: Counter[str] = Counter()  # tasks by final state
        self.latencies = Windows()
        self.waits = Spread()
        self.depths = Depths()
        self.lock = threading.Lock()  # of all that is here but `now`
        self._distributor = distributor
        self._log = log
        self._changed: list[Task] = []
        distributor.changed = self._changed
        self._ill: dict[int, str] = {}  # the GPUs that were not healthy at last, and why
        self._news: deque[str] = deque(maxlen=MOST_NEWS)
        self._failures = ("", 0)  # of the latest line of news: their code and how many

    def look(self, now: float) -> None:
        """Called at the end of every look of the driver."""
        self.now = now
        with self.lock:
            self.submitted = len(self._distributor.tasks)
            self.depths.add(now, self._distributor.queue.count)
            self.latencies.turn(now)
            if self._changed:
                self._count(dict.fromkeys(self._changed))  # a task may stand there twice
                self._changed.clear()
            if self._log.notable:
                for at_s, fact in self._log.notable:
                    self._tell(at_s, fact)
                self._log.notable.clear()

    def note(self, now: float, text: str) -> None:
        """A line of news."""
        with self.lock:
            self._add_news(now, text)

    def news(self) -> tuple[str, ...]:
        return tuple(self._news)

    # --- with the lock held -----------------------------------------------------------------------------------------

    def _count(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            finished_s = task.finished_s
            if task.state not in FINAL_STATES or finished_s is None:
                continue
            self.ended[task.state] += 1
            if task.state == COMPLETED:
                self.latencies.add(finished_s, finished_s - task.submitted_s)
                self.waits.add((task.started_s or 0.0) - task.submitted_s)
            elif task.state == FAILED:
                self._tell_failure(finished_s, task)

    def _add_news(self, now: float, text: str) -> None:
        self._failures = ("", 0)
        self._news.append(f"{now:.1f} s  {text}")

    def _tell_failure(self, now: float, task: Task) -> None:
        """Failures alike, one after the other, share a line."""
        code = str(task.error_code)
        count = self._failures[1] + 1 if self._failures[0] == code else 1
        if count > 1:
            self._news.pop()
            self._add_news(now, f"{count} tasks failed ({code}), the last of them {task.task_id}")
        else:
            self._add_news(now, f"{task.task_id} failed ({code}): {task.error}")
        self._failures = (code, count)

    def _tell(self, now: float, fact: Fact) -> None:
        if isinstance(fact, DeviceLost):
            self._ill[fact.gpu_id] = fact.reason
            self._add_news(now, f"GPU {fact.gpu_id} lost: {fact.reason}")
        elif isinstance(fact, DeviceReturned):
            self._add_news(now, f"GPU {fact.gpu_id} is back")
        elif isinstance(fact, WorkerCrashed):
            if fact.blamed:
                count = len(fact.attempts)
                with_it = f", and {count} attempt{'s' if count > 1 else ''} with it" if count else ""
                self._add_news(now, f"GPU {fact.gpu_id}: its worker crashed{with_it}: {fact.error}")
        elif isinstance(fact, DeviceSampled):
            self._tell_health(now, fact.gpu_id)
        elif isinstance(fact, HopeLost):
            self._add_news(now, f"all waiting tasks fail: {fact.reason}")

    def _tell_health(self, now: float, gpu_id: int) -> None:
        device = self._distributor.pool.devices[gpu_id]
        before = self._ill.get(gpu_id)
        if device.healthy and before is not None:
            del self._ill[gpu_id]
            self._add_news(now, f"GPU {gpu_id} is healthy again")
        elif device.state == UNHEALTHY:
            self._ill[gpu_id] = device.reason or ""
            if before is None:
                self._add_news(now, f"GPU {gpu_id} takes no work: {device.reason}")


def gpu_views(distributor: Distributor, telemetry: Telemetry) -> tuple[GpuView, ...]:
    """Every GPU as it is now, with what was last read of it."""
    devices = distributor.pool.devices
    count = len(devices)
    rows = len(telemetry.queue_time_s)  # its last column: all that stands before is complete
    columns = (
        telemetry.utilization_pct,
        telemetry.memory_used_bytes,
        telemetry.temperature_c,
        telemetry.power_w,
    )
    nothing = [None] * count
    last = [column[(rows - 1) * count : rows * count].tolist() or nothing for column in columns] if rows else []
    readings = zip(*last, strict=True) if last else [(None, None, None, None)] * count
    return tuple(
        GpuView(
            device.gpu_id,
            device.spec.name,
            device.state,
            device.reason,
            _read(utilization),
            None if _read(memory) is None else int(memory),
            device.spec.memory_total_bytes,
            _read(temperature),
            _read(power),
            device.spec.power_limit_w,
            device.running,
            device.slots,
            device.spec.simulated,
        )
        for device, (utilization, memory, temperature, power) in zip(devices, readings, strict=False)
    )


def _read(value: float | None) -> float | None:
    """A reading; NaN stands for none."""
    return None if value is None or value != value else value


def _nobody(_now: float) -> None:
    """Until somebody watches."""
