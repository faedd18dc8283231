"""Whatever happens, in whatever order, late or twice: what must hold of the distributor at every moment."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scheduling import CLEAN, HOT, Bench

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
from altlas_core.model import FINAL_STATES, GIB, Attempt, DeviceSample, Task

SIZES = (10, 10, 7, 4)
STRATEGIES = ("round_robin", "least_loaded", "memory_optimized", "random")
RETRIES = 2


class SchedulerMachine(RuleBasedStateMachine):
    """Plays driver and backend: it knows which attempts it was told to start and has not yet reported as over."""

    aging_s = 30.0  # holds come into play

    @initialize(slots=st.integers(1, 3), max_queue=st.sampled_from([0, 0, 4]))
    def begin(self, slots: int, max_queue: int) -> None:
        self.bench = Bench(
            *SIZES, slots=slots, max_queue=max_queue, priority_aging=self.aging_s, retry_count=RETRIES, timeout=50
        )
        self.slots = slots
        self.core = self.bench.distributor
        self.now = 0.0
        self.live: dict[tuple[int, int], Attempt] = {}  # what holds a device, as a backend would know
        self.over: list[tuple[int, int]] = []  # reported as over, or lost with their device
        self.timers: list[tuple[float, float]] = []
        self.tasks: dict[int, Task] = {}
        self.final: dict[int, tuple[Any, ...]] = {}
        self.alone: set[int] = set()  # tasks whose memory others used: they want a GPU to themselves
        self.news = False  # facts since the last decision

    # --- the part of the driver ---

    def tell(self, fact: Fact) -> None:
        self.news = True
        for action in self.core.on_event(self.now, fact):
            self.obey(action)

    def obey(self, action: Action) -> None:
        if isinstance(action, Attempt):
            key = (action.task.index, action.number)
            assert key not in self.live
            assert key not in self.over
            assert not any(index == action.task.index for index, _ in self.live), "two running attempts of one task"
            device = self.core.pool.devices[action.gpu_id]
            assert device.healthy
            assert not device.lost
            assert action.task.demand.pin in (None, action.gpu_id)
            self.live[key] = action
        elif isinstance(action, StopAttempt):
            assert (action.attempt.task.index, action.attempt.number) in self.live
            assert action.attempt.stopping
        else:
            assert isinstance(action, SetTimer)
            assert action.time_s > self.now
            self.timers.append((action.time_s, action.timeout_s))

    def decide(self) -> None:
        for action in self.core.dispatch(self.now):
            self.obey(action)
        self.news = False

    def end(self, key: tuple[int, int]) -> None:
        del self.live[key]
        self.over.append(key)

    # --- rules ---

    @rule(
        gib=st.sampled_from([0, 1, 1, 2, 3, 5, 6, 9, 10, 11]),
        priority=st.sampled_from(["high", "normal", "low"]),
        pin=st.sampled_from([None, None, None, 0, 3]),
        strategy=st.sampled_from([*STRATEGIES, "single_gpu"]),
        timeout_s=st.sampled_from([None, None, 5.0, 400.0]),
        number=st.integers(1, 3),
    )
    def submit(self, number: int, gib: float, **spec: Any) -> None:
        spec["gpu_id"] = spec.pop("pin")
        for _ in range(number):
            task = self.bench.task(gib, **spec)
            self.tasks[task.index] = task
            self.tell(TaskSubmitted(task))

    @rule()
    def decide_now(self) -> None:
        self.decide()
        if not self.held_back():
            self.nobody_waits_who_could_run()

    @rule(step=st.sampled_from([0.25, 1.0, 5.0, 29.0, 60.0]))
    def time_passes(self, step: float) -> None:
        self.decide()
        end = self.now + step
        while due := sorted(timer for timer in self.timers if timer[0] <= end):
            self.now = due[0][0]
            for timer in [timer for timer in due if timer[0] == self.now]:
                self.timers.remove(timer)
                self.tell(TimerFired(timer[1]))
            self.decide()
        self.now = end

    @precondition(lambda self: self.live)
    @rule(data=st.data(), how=st.sampled_from(["finished", "finished", "finished", "task_error", "out_of_memory"]))
    def an_attempt_ends(self, data: st.DataObject, how: str) -> None:
        key = data.draw(st.sampled_from(sorted(self.live)))
        self.end(key)
        self.tell(AttemptFinished(*key, 1.0) if how == "finished" else AttemptFailed(*key, how, "it failed"))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), needed_gib=st.sampled_from([None, 0, 1, 2, 4, 7, 11]))
    def an_attempt_runs_out_of_memory(self, data: st.DataObject, needed_gib: int | None) -> None:
        key = data.draw(st.sampled_from(sorted(self.live)))
        attempt = self.live[key]
        before = attempt.task.memory_bytes
        self.end(key)
        needed = None if needed_gib is None else needed_gib * GIB
        self.tell(AttemptFailed(*key, "out_of_memory", "too little", needed_bytes=needed, free_bytes=GIB))
        if attempt.stopping:
            assert attempt.task.memory_bytes == before
        elif (needed or 0) <= before:
            self.alone.add(key[0])
        else:
            assert attempt.task.memory_bytes == needed
        assert attempt.reserved_bytes == before

    @precondition(lambda self: any(attempt.stopping for attempt in self.live.values()))
    @rule(data=st.data())
    def a_stop_is_confirmed(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(key for key, attempt in self.live.items() if attempt.stopping)))
        self.end(key)
        self.tell(AttemptStopped(*key))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), blamed=st.booleans())
    def a_worker_crashes(self, data: st.DataObject, blamed: bool) -> None:
        gpu_id = data.draw(st.sampled_from(sorted({attempt.gpu_id for attempt in self.live.values()})))
        there = sorted(key for key, attempt in self.live.items() if attempt.gpu_id == gpu_id)
        for key in there:
            self.end(key)
        self.tell(WorkerCrashed(gpu_id, tuple(there), "signal 9", blamed))

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def an_owner_cancels(self, data: st.DataObject) -> None:
        """Any task, whatever has become of it."""
        self.tell(CancelRequested(data.draw(st.sampled_from(sorted(self.tasks)))))

    @rule(gpu_id=st.integers(0, len(SIZES) - 1), hot=st.booleans(), foreign_gib=st.sampled_from([0, 0, 0, 3, 8]))
    def a_reading_comes(self, gpu_id: int, hot: bool, foreign_gib: int) -> None:
        sample = HOT if hot else CLEAN
        self.tell(DeviceSampled(gpu_id, DeviceSample(0.0, 0, sample.temperature_c, None, foreign_gib * GIB, 0.0)))

    @rule(gpu_id=st.integers(0, len(SIZES) - 1))
    def a_device_is_lost(self, gpu_id: int) -> None:
        for key in [key for key, attempt in self.live.items() if attempt.gpu_id == gpu_id]:
            self.end(key)
        self.tell(DeviceLost(gpu_id, "gone"))

    @rule(gpu_id=st.integers(0, len(SIZES) - 1))
    def a_device_returns(self, gpu_id: int) -> None:
        self.tell(DeviceReturned(gpu_id))

    @precondition(lambda self: self.over)
    @rule(data=st.data(), what=st.sampled_from(["finished", "failed", "stopped", "crashed"]))
    def a_stale_fact_comes(self, data: st.DataObject, what: str) -> None:
        """About an attempt that is over: it may change nothing but a count."""
        key = data.draw(st.sampled_from(self.over))
        before = self.picture()
        facts: dict[str, Fact] = {
            "finished": AttemptFinished(*key, 9.0),
            "failed": AttemptFailed(*key, "task_error", "late"),
            "stopped": AttemptStopped(*key),
            "crashed": WorkerCrashed(0, (key,), "late"),
        }
        counted = sum(self.core.stale.values())
        self.tell(facts[what])
        assert self.picture() == before
        assert sum(self.core.stale.values()) == counted + 1

    @rule(timeout_s=st.sampled_from([5.0, 50.0, 400.0, 123.0]))
    def a_timer_fires_out_of_turn(self, timeout_s: float) -> None:
        self.tell(TimerFired(timeout_s))

    @rule()
    def hope_is_lost(self) -> None:
        """Only where nothing runs, as the drivers do."""
        if not self.live:
            self.tell(HopeLost("nothing can change"))
            assert self.core.queue.count == 0

    # --- what must hold ---

    def picture(self) -> list[Any]:
        tasks = [(t.state, t.attempts, t.failures, t.crashes, t.finished_s, t.error_code) for t in self.tasks.values()]
        return [*tasks, [(d.running, d.free_bytes, d.state) for d in self.core.pool.devices], self.core.open_tasks]

    def held_back(self) -> bool:
        """Whether a hold may be in force: somebody has waited a full aging period."""
        return any(t.state == "QUEUED" and self.now - t.submitted_s >= self.aging_s for t in self.tasks.values())

    def nobody_waits_who_could_run(self) -> None:
        """Work conservation, of every strategy but single_gpu."""
        for task in self.tasks.values():
            if task.state != "QUEUED" or task.demand.strategy == "single_gpu":
                continue
            for device in self.core.pool.devices:
                if task.demand.pin not in (None, device.gpu_id) or device.state != "AVAILABLE":
                    continue
                if (task.crashes >= 2 or task.index in self.alone) and device.running:
                    continue  # it wants a GPU to itself
                assert device.free_bytes < task.memory_bytes, f"{task.task_id} fits GPU {device.gpu_id} and waits"

    @invariant()
    def every_task_is_in_one_state_and_counted(self) -> None:
        if not hasattr(self, "core"):
            return
        open_tasks = queued = 0
        for task in self.tasks.values():
            assert task.state in {"QUEUED", "RUNNING", *FINAL_STATES}
            final = task.state in FINAL_STATES
            assert (task.finished_s is not None) == final
            assert (task.error_code is not None) == (task.state == "FAILED")
            assert (task.error is not None) == (task.state == "FAILED")
            open_tasks += not final
            queued += task.state == "QUEUED"
            mine = [key for key in self.live if key[0] == task.index]
            assert len(mine) <= 1
            if task.state == "RUNNING":
                assert mine == [(task.index, task.attempts)]
            if task.state == "QUEUED":
                assert not mine
            assert task.failures <= RETRIES + 1
            assert task.crashes <= 3
            if final:  # for ever
                ended = (task.state, task.finished_s, task.error_code, task.error, task.attempts)
                assert self.final.setdefault(task.index, ended) == ended
        assert self.core.open_tasks == open_tasks
        assert self.core.queue.count == queued

    @invariant()
    def what_is_reserved_is_what_the_backend_holds(self) -> None:
        if not hasattr(self, "core"):
            return
        for device in self.core.pool.devices:
            there = [attempt for attempt in self.live.values() if attempt.gpu_id == device.gpu_id]
            assert device.running == len(there) <= self.slots
            reserved = sum(attempt.task.memory_bytes for attempt in there)
            assert reserved <= device.capacity_bytes
            foreign = device.sample.foreign_memory_bytes or 0 if device.sample is not None else 0
            assert device.free_bytes == device.capacity_bytes - foreign - reserved
            assert not any(attempt.solo for attempt in there) or len(there) == 1

    def teardown(self) -> None:
        """All devices come back clean, all work ends: then every task must be final."""
        if not hasattr(self, "core"):
            return
        for gpu_id in range(len(SIZES)):
            self.tell(DeviceReturned(gpu_id))
            self.tell(DeviceSampled(gpu_id, CLEAN))
        self.decide()
        for _ in range(5 * len(self.tasks) + 10):
            if not self.core.open_tasks:
                break
            assert self.live, "tasks wait, nothing runs, every GPU is free and well"
            key = min(self.live)
            stopping = self.live[key].stopping
            self.end(key)
            self.now += 1.0
            self.tell(AttemptStopped(*key) if stopping else AttemptFinished(*key, 1.0))
            self.decide()
            self.every_task_is_in_one_state_and_counted()
        assert self.core.open_tasks == 0
        assert all(task.state in FINAL_STATES for task in self.tasks.values())


class PatientSchedulerMachine(SchedulerMachine):
    """Nobody ages, so no GPU is ever held: no GPU with room stays idle while somebody waits."""

    aging_s = 1e9


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
TestPatientSchedulerMachine = PatientSchedulerMachine.TestCase
TestPatientSchedulerMachine.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
