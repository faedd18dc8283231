"""The workload distributor: a pure state machine. Facts go in with a time, decisions come out.

It reads no clock, starts no thread and imports no torch. A driver applies every fact of one instant with `on_event`,
then asks `dispatch` once for what to start. Same facts at the same times, same decisions.

The rules:
- Order: effective priority, then first come first served (task_queue.py says how waiting lifts a task).
- A task that fits nowhere now is stepped over: later ones that fit may start. Once it has waited a full
  `priority_aging` and its turn comes again, it holds the GPU nearest to having room: nothing else starts there until it
  has. So it neither blocks small tasks (one GPU at most is held, and only by one task) nor is starved (that GPU can
  only empty, each of its tasks within its timeout).
- A reservation lasts until the backend confirms the end of the attempt, or the device is lost; a task that timed out or
  was cancelled has its final state at once, whatever still arrives for it.
- A task whose worker crashed twice makes its third attempt alone on a GPU, so no neighbour can cost it that one.
- A task that ran out of memory tries again where there is more room, and fails at once where there is none (needs.py).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from altlas_core.config_schema import GpuSettings
from altlas_core.errors import StateError
from altlas_core.events import (
    Action,
    AttemptFailed,
    AttemptFinished,
    AttemptStopped,
    CancelRequested,
    DeviceLost,
    DeviceReturned,
    DeviceSampled,
    Fact,
    HopeLost,
    SetTimer,
    StopAttempt,
    TaskSubmitted,
    TimerFired,
    WorkerCrashed,
)
from altlas_core.hold import Hold, hold_for
from altlas_core.model import (
    CANCELLED,
    COMPLETED,
    FAILED,
    FINAL_STATES,
    QUEUED,
    RUNNING,
    Attempt,
    Device,
    DeviceSpec,
    ErrorCode,
    Task,
    TaskState,
)
from altlas_core.needs import MAX_CRASHES, Needs
from altlas_core.pool import Pool
from altlas_core.task_queue import Lane, TaskQueue
from altlas_core.words import story, why_nowhere

_NO_ACTIONS: tuple[Action, ...] = ()


class Distributor:
    """Queue, attempts, timeouts, retries and cancelling over a pool.

    `open_tasks` counts accepted tasks that are not final; `stale` counts facts that came too late, by their name.
    `changed`: a list that its owner empties, of the tasks that became final or were queued again; None: nobody asks.
    `handlers` is on_event by type of fact. With no GPU open or nobody waiting `dispatch` decides nothing, unless the
    queue is `bounded`.
    """

    def __init__(self, settings: GpuSettings, devices: Sequence[DeviceSpec], seed: int) -> None:
        self.pool = Pool(settings, devices, seed)
        self.queue = TaskQueue(settings.workload.priority_aging)
        self.tasks: dict[int, Task] = {}
        self.open_tasks = 0
        self.stale: Counter[str] = Counter()
        self.changed: list[Task] | None = None
        self._forgotten_to = -1  # the highest index of a task that is forgotten
        self._max_queue = settings.workload.max_queue
        self.bounded = self._max_queue > 0
        self._arrived: list[Task] = []  # of this instant; only kept where the queue is bounded
        self._needs = Needs(self.pool)
        self._deadlines: dict[float, deque[Attempt]] = {}  # by timeout: starts come in order, so deadlines do too
        self._hold: Hold | None = None
        self.handlers: dict[type, Callable[[float, Any], Sequence[Action]]] = {
            TaskSubmitted: self._on_submitted,
            CancelRequested: self._on_cancel,
            AttemptFinished: self._on_finished,
            AttemptFailed: self._on_failed,
            AttemptStopped: self._on_stopped,
            WorkerCrashed: self._on_crash,
            DeviceSampled: self._on_sample,
            DeviceLost: self._on_lost,
            DeviceReturned: self._on_returned,
            TimerFired: self._on_timer,
            HopeLost: self._on_hope_lost,
        }

    def on_event(self, now: float, fact: Fact) -> Sequence[Action]:
        """Apply a fact; return what must be done at once. Raises StateError, and changes nothing, if it cannot be."""
        handler = self.handlers.get(type(fact))
        if handler is None:
            raise StateError(f"{fact!r} is no fact; facts are {', '.join(kind.__name__ for kind in self.handlers)}")
        return handler(now, fact)

    def waiting(self) -> Iterator[Task]:
        """The tasks that wait, in no particular order."""
        return self.queue.waiting(self._needs.all())

    def forget(self, task: Task) -> None:
        """Keep nothing of a final task whose last attempt has let go of its device: for a service without end, which
        submits tasks in the order of their indexes. A fact that still comes is stale.

        Raises StateError for any other task.
        """
        attempt = task.attempt
        if task.state not in FINAL_STATES or (attempt is not None and attempt.ended_s is None):
            raise StateError(f"cannot be forgotten yet: {story(task)}")
        self.tasks.pop(task.index, None)
        self._needs.forget(task)
        task.attempt = None  # they hold each other: without this only the garbage collector could free them
        self._forgotten_to = max(self._forgotten_to, task.index)

    # --- decisions ------------------------------------------------------------------------------------------------

    def dispatch(self, now: float) -> Sequence[Action]:
        """Start what can be started now: called once after all facts of an instant."""
        queue, pool = self.queue, self.pool
        if not queue.count or not pool.open:
            return self._refuse_excess(now) if self._arrived else _NO_ACTIONS
        actions: list[Action] = []
        aside = []
        while pool.open:
            lane = queue.first(now)
            if lane is None:
                break
            need = lane.need
            task = lane.tasks[0]
            device = pool.place(task, need, self._closed_to(lane) if self._hold is not None else 0)
            if device is None:
                aside.append(queue.set_aside(lane))
                if self._hold is None and now - task.submitted_s >= queue.aging_s:
                    self._hold = hold_for(task, need, pool)
                continue
            queue.pop(lane)
            if self._hold is not None and self._hold.task is task:
                self._hold = None
            task.attempts = number = task.attempts + 1
            task.gpu_id = gpu_id = device.gpu_id
            task.attempt = attempt = Attempt(task, number, gpu_id, now, need.solo)
            task.state = RUNNING
            task.started_s = now
            pool.reserve(device, attempt)
            actions.append(attempt)
            timeout_s = task.timeout_s
            due = self._deadlines.get(timeout_s)
            if due is None:
                self._deadlines[timeout_s] = deque((attempt,))
                actions.append(SetTimer(now + timeout_s, timeout_s))
            else:
                due.append(attempt)
                if due[0].ended_s is not None:
                    due.popleft()  # keeps the deque about as long as the number of running tasks
        if aside:
            queue.put_back(aside)
        if self._arrived:
            self._refuse_excess(now)
        return actions

    def _closed_to(self, lane: Lane) -> int:
        """The mask of the GPU held for somebody else than this lane; a hold that no longer stands is dropped."""
        if self._hold is not None and not self._hold.stands(self.pool):
            self._hold = None
        return 0 if self._hold is None else self._hold.closed_to(lane)

    def _refuse_excess(self, now: float) -> tuple[Action, ...]:
        """A bounded queue: of the tasks that arrived this instant the latest are refused until it is short enough."""
        while self._arrived and self.queue.count > self._max_queue:
            task = self._arrived.pop()
            if task.state == QUEUED:
                text = f"the queue is full: {self._max_queue} tasks wait already (gpu.workload.max_queue)"
                self._end_waiting(now, task, FAILED, "queue_full", text)
        self._arrived.clear()
        return _NO_ACTIONS

    # --- tasks in and out -----------------------------------------------------------------------------------------

    def _on_submitted(self, now: float, fact: TaskSubmitted) -> Sequence[Action]:
        task = fact.task
        tasks, index = self.tasks, task.index
        if index in tasks:
            raise StateError(f"{task.task_id} was submitted before: {story(tasks[index])}")
        tasks[index] = task
        self.open_tasks += 1
        task.submitted_s = now
        need = self._needs.known.get(task.demand) or self._needs.of(task)
        if need.allowed:
            self.queue.push(task, need)
            if self._max_queue:
                self._arrived.append(task)
        else:
            self._finish(now, task, FAILED, *why_nowhere(task, self.pool.devices))
        return _NO_ACTIONS

    def _finish(self, now: float, task: Task, state: TaskState, code: ErrorCode | None, error: str | None) -> None:
        task.state = state
        task.finished_s = now
        task.error_code = code
        task.error = error
        self.open_tasks -= 1
        if self.changed is not None:
            self.changed.append(task)

    def _end_waiting(self, now: float, task: Task, state: TaskState, code: ErrorCode | None, error: str | None) -> None:
        self._finish(now, task, state, code, error)
        self.queue.discard(task, self._needs.of(task))

    def _requeue(self, now: float, task: Task) -> None:
        task.state = QUEUED
        need = self._needs.of(task)
        if need.allowed:
            self.queue.push(task, need)
            if self.changed is not None:
                self.changed.append(task)
        else:
            self._finish(now, task, FAILED, *why_nowhere(task, self.pool.devices))

    def _on_cancel(self, now: float, fact: CancelRequested) -> Sequence[Action]:
        task = self.tasks.get(fact.task_index)
        if task is None and fact.task_index <= self._forgotten_to:
            self.stale["CancelRequested"] += 1
            return _NO_ACTIONS
        if task is None:
            raise StateError(f"task-{fact.task_index:06d} cannot be cancelled: it was never submitted")
        if task.state in FINAL_STATES:
            self.stale["CancelRequested"] += 1
            return _NO_ACTIONS
        if task.state == QUEUED:
            self._end_waiting(now, task, CANCELLED, None, None)
            return _NO_ACTIONS
        return (self._stop(now, task, CANCELLED, None, None),)

    def _stop(self, now: float, task: Task, state: TaskState, code: ErrorCode | None, error: str | None) -> StopAttempt:
        attempt = task.attempt
        assert attempt is not None  # a RUNNING task has one
        self._finish(now, task, state, code, error)
        attempt.stopping = True
        return StopAttempt(attempt, code or "cancelled")

    # --- attempts -------------------------------------------------------------------------------------------------

    def _known_task(self, fact: Fact, index: int, number: int) -> Task | None:
        """The task a fact is about; None if it is forgotten. Raises StateError if it, or this attempt, never was."""
        task = self.tasks.get(index)
        if task is None and index <= self._forgotten_to:
            return None
        if task is None or not 1 <= number <= task.attempts:
            known = "it was never submitted" if task is None else story(task)
            raise StateError(f"{type(fact).__name__} for attempt {number} of task-{index:06d}: {known}")
        return task

    def _current(self, fact: AttemptFinished | AttemptFailed | AttemptStopped) -> Attempt | None:
        """The attempt a fact is about, or None if it came too late. Raises StateError if there never was one."""
        task = self._known_task(fact, fact.task_index, fact.attempt)
        attempt = None if task is None else task.attempt
        if attempt is None or attempt.number != fact.attempt or attempt.ended_s is not None:
            self.stale[type(fact).__name__] += 1
            return None
        return attempt

    def _end_attempt(self, now: float, attempt: Attempt, outcome: str) -> None:
        attempt.ended_s = now
        attempt.outcome = outcome
        attempt.noted_bytes = attempt.task.memory_bytes
        self.pool.release(attempt)

    def _on_finished(self, now: float, fact: AttemptFinished) -> Sequence[Action]:
        task = self.tasks.get(fact.task_index)
        attempt = None if task is None else task.attempt
        if task is None or attempt is None or attempt.number != fact.attempt or attempt.ended_s is not None:
            self._current(fact)  # says what is wrong with it
            return _NO_ACTIONS
        attempt.iterations = fact.iterations
        attempt.detail = fact.detail
        attempt.ended_s = now
        self.pool.release(attempt)
        if attempt.stopping:
            attempt.outcome = "stopped"
            self.stale["late result"] += 1
        else:
            attempt.outcome = "finished"
            task.state = COMPLETED
            task.finished_s = now
            self.open_tasks -= 1
            if self.changed is not None:
                self.changed.append(task)
        return _NO_ACTIONS

    def _on_failed(self, now: float, fact: AttemptFailed) -> Sequence[Action]:
        attempt = self._current(fact)
        if attempt is None:
            return _NO_ACTIONS
        attempt.iterations = fact.iterations
        self._end_attempt(now, attempt, fact.error_code)
        if attempt.stopping:
            self.stale["late result"] += 1
            return _NO_ACTIONS
        task = attempt.task
        task.failures += 1
        code: ErrorCode = "out_of_memory" if fact.error_code == "out_of_memory" else "task_error"
        told = code == "out_of_memory" and fact.free_bytes is not None
        if told and not self._needs.after_shortage(task, fact.needed_bytes):
            text = f"{fact.error}; {why_nowhere(task, self.pool.devices)[1]}"
            self._finish(now, task, FAILED, code, text)
        elif task.failures <= task.retry_count:
            self._requeue(now, task)
        else:
            self._finish(now, task, FAILED, code, fact.error)
        return _NO_ACTIONS

    def _on_stopped(self, now: float, fact: AttemptStopped) -> Sequence[Action]:
        attempt = self._current(fact)
        if attempt is None:
            return _NO_ACTIONS
        if not attempt.stopping:
            raise StateError(f"AttemptStopped, but nobody asked for it: {story(attempt.task)}")
        attempt.iterations = fact.iterations
        self._end_attempt(now, attempt, "stopped")
        return _NO_ACTIONS

    def _on_crash(self, now: float, fact: WorkerCrashed) -> Sequence[Action]:
        self._device(fact.gpu_id, "WorkerCrashed")
        for index, number in fact.attempts:
            self._known_task(fact, index, number)
        for index, number in fact.attempts:
            task = self.tasks.get(index)
            attempt = None if task is None else task.attempt
            if task is None or attempt is None or attempt.number != number or attempt.ended_s is not None:
                self.stale["WorkerCrashed"] += 1
                continue
            self._end_attempt(now, attempt, "worker_crashed" if fact.blamed else "worker_replaced")
            if attempt.stopping:
                continue
            task.crashes += fact.blamed
            if task.crashes >= MAX_CRASHES:
                text = f"its worker crashed {task.crashes} times, the last time: {fact.error}"
                self._finish(now, task, FAILED, "worker_crashed", text)
            else:
                self._requeue(now, task)
        return _NO_ACTIONS

    def _on_timer(self, now: float, fact: TimerFired) -> Sequence[Action]:
        due = self._deadlines.get(fact.timeout_s)
        if due is None:
            self.stale["TimerFired"] += 1
            return _NO_ACTIONS
        actions: list[Action] = []
        while due:
            attempt = due[0]
            deadline = attempt.started_s + fact.timeout_s
            running = attempt.ended_s is None and not attempt.stopping
            if running and deadline > now:
                actions.append(SetTimer(deadline, fact.timeout_s))
                return actions
            due.popleft()
            if running:
                text = f"ran longer than its timeout of {fact.timeout_s:g} s"
                actions.append(self._stop(deadline, attempt.task, FAILED, "timeout", text))
        del self._deadlines[fact.timeout_s]
        return actions

    # --- devices --------------------------------------------------------------------------------------------------

    def _on_sample(self, now: float, fact: DeviceSampled) -> Sequence[Action]:
        device = self._device(fact.gpu_id, "DeviceSampled")
        if device.lost:
            self.stale["DeviceSampled"] += 1
        else:
            self.pool.check(device, fact.sample)
        return _NO_ACTIONS

    def _on_lost(self, now: float, fact: DeviceLost) -> Sequence[Action]:
        device = self._device(fact.gpu_id, "DeviceLost")
        if device.lost:
            self.stale["DeviceLost"] += 1
            return _NO_ACTIONS
        self.pool.lose(device, fact.reason)
        self._needs.look_again()
        for attempt in self._holding(device):
            self._end_attempt(now, attempt, "device_lost")
            if not attempt.stopping:
                self._requeue(now, attempt.task)
        nowhere = [need for need in self._needs.all() if not need.allowed]
        for task in sorted(self.queue.waiting(nowhere), key=lambda task: task.index):
            self._end_waiting(now, task, FAILED, *why_nowhere(task, self.pool.devices))
        return _NO_ACTIONS

    def _holding(self, device: Device) -> list[Attempt]:
        """The attempts that hold a place on a device, in order of their tasks. A scan: a device is seldom lost."""
        current = [task.attempt for task in self.tasks.values() if task.gpu_id == device.gpu_id]
        return [attempt for attempt in current if attempt is not None and attempt.ended_s is None]

    def _on_returned(self, now: float, fact: DeviceReturned) -> Sequence[Action]:
        device = self._device(fact.gpu_id, "DeviceReturned")
        if not device.lost:
            self.stale["DeviceReturned"] += 1
            return _NO_ACTIONS
        self.pool.take_back(device)
        self._needs.look_again()
        return _NO_ACTIONS

    def _on_hope_lost(self, now: float, fact: HopeLost) -> Sequence[Action]:
        for task in sorted(self.waiting(), key=lambda task: task.index):
            self._end_waiting(now, task, FAILED, "device_lost", fact.reason)
        return _NO_ACTIONS

    def _device(self, gpu_id: int, what: str) -> Device:
        if not 0 <= gpu_id < len(self.pool.devices):
            raise StateError(f"{what} for GPU {gpu_id}: there are GPUs 0 to {len(self.pool.devices) - 1}")
        return self.pool.devices[gpu_id]
