"""Ten thousand tasks on two CPU devices whose worker is killed after every hundred: what becomes of them.

    python -m benchmarks.kills [--quick]

No-ops, naps of no length and small products, four at a time on each device. Every task must end in one final state, and
every attempt that was started must be accounted for.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from altlas_core.backends.supervision.backend import TorchBackend
from altlas_core.config import Settings, load_config
from altlas_core.distributor import Distributor
from altlas_core.drivers.clock import MonotonicClock
from altlas_core.drivers.realtime import RealtimeDriver
from altlas_core.event_log import EventLog
from altlas_core.events import RANK_SUBMIT, Action, AttemptFinished, Fact, TaskSubmitted
from altlas_core.intake import make_tasks
from altlas_core.model import COMPLETED, FAILED, FINAL_STATES, Attempt, DeviceSpec, Task, TaskSpec
from altlas_core.needs import MAX_CRASHES
from benchmarks.timing import script

DEVICES: Final = [DeviceSpec(i, "cpu", f"cpu:{i}", 2 << 30, index=i, cores=1) for i in range(2)]
MIX: Final = (
    TaskSpec(kind="noop"),
    TaskSpec(kind="sleep", duration_s=0.0),
    TaskSpec(iterations=1, input_size=64, output_size=64, batch=8),
)


class KillingLog(EventLog):
    """An event log that, after every so many tasks that finished, kills the worker of the last of them.

    Only then are so many more submitted (`submit`), so that there is always something to lose, and no more of it: a
    worker takes longer to start than hundreds of these tasks.
    """

    def __init__(self, backend: TorchBackend, tasks: Sequence[Task], every: int) -> None:
        super().__init__({})
        self.kills = 0
        self.starts: Counter[int] = Counter()  # by task, as ordered
        self.submit: Callable[[Fact], None] = lambda _: None
        self._backend = backend
        self._tasks = tasks
        self._every = every
        self._finished = 0
        self._killed: set[int] = set()

    def action(self, now: float, action: Action) -> None:
        super().action(now, action)
        if type(action) is Attempt:
            self.starts[action.task.index] += 1

    def fact(self, now: float, fact: Fact) -> None:
        super().fact(now, fact)
        if type(fact) is AttemptFinished:
            self._finished += 1
            if self._finished // self._every > self.kills:
                self._kill(self._tasks[fact.task_index].gpu_id or 0)

    def _kill(self, gpu_id: int) -> None:
        pid = self._backend.worker_pids()[gpu_id]
        if pid is None or pid in self._killed:  # its last words: the next to finish says who dies
            return
        self._killed.add(pid)
        self.kills += 1
        os.kill(pid, signal.SIGKILL)
        begin = (self.kills + 1) * self._every
        for task in self._tasks[begin : begin + self._every]:
            self.submit(TaskSubmitted(task))


def play(count: int, every: int, settings: Settings, spare_workers: int = 1) -> tuple[Sequence[Task], KillingLog]:
    """`count` tasks, a worker killed after each `every` of them."""
    gpu = settings.gpu
    tasks = make_tasks([MIX[i % len(MIX)] for i in range(count)], gpu, len(DEVICES))
    workload = gpu.workload
    backend = TorchBackend(DEVICES, workload.max_concurrent_tasks_per_gpu, 42, workload.kill_grace, spare_workers)
    log = KillingLog(backend, tasks, every)
    driver = RealtimeDriver(
        Distributor(gpu, DEVICES, 42),
        backend,
        clock=MonotonicClock(),
        queue_processing_interval_s=workload.queue_processing_interval,
        health_check_interval_s=gpu.detection.health_check_interval,
        log=log,
    )
    log.submit = driver.post
    driver.run([(0.0, RANK_SUBMIT, TaskSubmitted(task)) for task in tasks[: 2 * every]])
    return tasks, log


def account(tasks: Sequence[Task], log: KillingLog) -> dict[str, Any]:
    """How tasks and attempts ended. Raises AssertionError where they do not add up."""
    ended: dict[int, Counter[str]] = {task.index: Counter() for task in tasks}
    for attempt in log.attempts():
        assert attempt.ended_s is not None, f"attempt {attempt.number} of {attempt.task.task_id} never ended"
        ended[attempt.task.index][attempt.outcome or "none"] += 1
    for task in tasks:
        outcomes = ended[task.index]
        assert task.state in FINAL_STATES, f"{task.task_id} is {task.state}"
        assert task.attempts == log.starts[task.index] == outcomes.total(), f"{task.task_id}: {outcomes}"
        assert outcomes["worker_crashed"] == task.crashes
        assert outcomes["finished"] == (task.state == COMPLETED)
        assert task.state != FAILED or task.crashes == MAX_CRASHES, f"{task.task_id}: {task.error}"
    outcomes = sum(ended.values(), Counter())
    return {
        "tasks": len(tasks),
        "states": dict(Counter(task.state for task in tasks)),
        "attempts": log.starts.total(),
        "outcomes": dict(outcomes),
        "kills": log.kills,
    }


def measure(quick: bool) -> dict[str, Any]:
    settings = load_config(environ={}, overrides={"gpu.selection.default_strategy": "least_loaded"})
    begin = time.monotonic()
    tasks, log = play(*((400, 100) if quick else (10_000, 100)), settings)
    return {**account(tasks, log), "wall_s": time.monotonic() - begin}


if __name__ == "__main__":
    script(__doc__, measure)
