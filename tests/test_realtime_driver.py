"""The real-time driver: by a clock that tests turn, with a backend that does what the test says; then for real."""

from __future__ import annotations

import json
import math
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import altlas_core as altlas
from altlas_core.backends.simulated import SimulatedBackend
from altlas_core.config import Settings, load_config
from altlas_core.distributor import Distributor
from altlas_core.drivers.clock import Inbox, MonotonicClock, News
from altlas_core.drivers.realtime import RealtimeDriver
from altlas_core.drivers.virtual import VirtualDriver
from altlas_core.errors import StateError
from altlas_core.event_log import EventLog
from altlas_core.events import (
    RANK_CANCEL,
    RANK_DEVICE,
    RANK_SUBMIT,
    AttemptFinished,
    AttemptStopped,
    CancelRequested,
    DeviceLost,
    DeviceReturned,
    DeviceSampled,
    Fact,
    TaskSubmitted,
    WorkerCrashed,
)
from altlas_core.experiment import log_header
from altlas_core.faults import Fault
from altlas_core.intake import make_tasks
from altlas_core.model import Attempt, DeviceSample, DeviceSpec, Task, TaskSpec
from altlas_core.replay import replay
from altlas_core.telemetry import Telemetry

LOOK_S = 0.125  # a power of two, so that sums of it are exact
CPUS = [DeviceSpec(i, "cpu", f"cpu:{i}", 2 << 30, index=i, cores=1) for i in range(2)]


class TurnedClock:
    """Stands still until somebody waits; then it is at once as late as needed. `script`: what happens when."""

    def __init__(self, *script: tuple[float, Callable[[Inbox], None]]) -> None:
        self.time_s = 1000.0
        self.script = [(1000.0 + when, what) for when, what in sorted(script, key=lambda item: item[0])]
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.time_s

    def wait(self, inbox: Inbox, timeout_s: float) -> News | None:
        self.waits.append(timeout_s)
        until = self.time_s + timeout_s
        if timeout_s > 0.0:
            until = max(until, math.nextafter(self.time_s, math.inf))  # time passes, however little
        while inbox.empty() and self.script and self.script[0][0] <= until:
            when, what = self.script.pop(0)
            self.time_s = max(self.time_s, when)
            what(inbox)
        if inbox.empty():
            self.time_s = max(self.time_s, until)
            return None
        return inbox.get()


def posting(*facts: Fact) -> Callable[[Inbox], None]:
    def put(inbox: Inbox) -> None:
        for fact in facts:
            inbox.put(fact)

    return put


class ObedientBackend:
    """Records its orders. Confirms stops at once if `confirms`; readings are as `samples` says."""

    def __init__(self, confirms: bool = True) -> None:
        self.confirms = confirms
        self.calls: list[str] = []
        self.samples: dict[int, DeviceSample | None] = {}
        self.on_poll: Callable[[float], None] = lambda now: None
        self.mailbox: Any = None

    def devices(self) -> Sequence[DeviceSpec]:
        return CPUS

    def open(self, mailbox: Any) -> None:
        self.mailbox = mailbox

    def start(self, now: float, attempt: Attempt) -> None:
        self.calls.append(f"start {attempt.task.index}.{attempt.number} on {attempt.gpu_id}")

    def stop(self, now: float, attempt: Attempt, reason: str) -> None:
        self.calls.append(f"stop {attempt.task.index}.{attempt.number} {reason}")
        if self.confirms:
            self.mailbox.post(AttemptStopped(attempt.task.index, attempt.number))

    def sample(self, now: float, gpu_id: int) -> DeviceSample | None:
        return self.samples.get(gpu_id, DeviceSample())

    def inject(self, now: float, fault: Fault) -> Fact | None:
        return DeviceLost(fault.gpu_id, fault.kind)

    def poll(self, now: float) -> None:
        self.on_poll(now)

    def flush(self) -> None:
        self.calls.append("flush")

    def close(self) -> None:
        self.calls.append("close")

    def orders(self) -> list[str]:
        return [call for call in self.calls if call not in ("flush", "close")]


class Scene:
    def __init__(self, *script: tuple[float, Callable[[Inbox], None]], confirms: bool = True, **overrides: Any) -> None:
        named = {f"gpu.workload.{name}": value for name, value in overrides.items()}
        self.settings = load_config(overrides=named)
        self.clock = TurnedClock(*script)
        self.backend = ObedientBackend(confirms)
        self.distributor = Distributor(self.settings.gpu, CPUS, 42)
        self.log = EventLog({})
        self.driver = RealtimeDriver(
            self.distributor,
            self.backend,
            clock=self.clock,
            queue_processing_interval_s=LOOK_S,
            health_check_interval_s=60.0,
            log=self.log,
        )

    def tasks(self, *specs: TaskSpec) -> list[Task]:
        return make_tasks(specs, self.settings.gpu, len(CPUS))

    def submit(self, *specs: TaskSpec) -> list[tuple[float, int, Fact]]:
        return [(task.spec.submit_s, RANK_SUBMIT, TaskSubmitted(task)) for task in self.tasks(*specs)]

    def task(self, index: int) -> Task:
        return self.distributor.tasks[index]

    def times_of(self, kind: type) -> list[float]:
        entries = map(json.loads, self.log.lines())
        return [entry["t"] for entry in entries if entry.get("fact") == kind.__name__]


NOOP = TaskSpec(kind="noop")


def test_a_task_runs_from_submission_to_its_end() -> None:
    scene = Scene((0.5, posting(AttemptFinished(0, 1, 2.0))))
    length_s = scene.driver.run(scene.submit(TaskSpec(submit_s=0.25, duration_s=1.0)))
    task = scene.task(0)
    assert (task.state, task.submitted_s, task.started_s, task.finished_s) == ("COMPLETED", 0.25, 0.25, 0.5)
    assert length_s == 0.5
    assert scene.backend.calls == ["flush", "start 0.1 on 0", "flush", "flush", "close"]


def test_an_attempt_that_a_device_gives_back_is_decided_about_again_at_once_and_the_log_replays() -> None:
    scene = Scene((0.5, posting(AttemptFinished(0, 2))))
    scene.log.header = log_header(scene.settings, CPUS, 42)
    obey = scene.backend.start

    def start(now: float, attempt: Attempt) -> None:
        obey(now, attempt)
        if attempt.gpu_id == 0:  # it has no worker
            scene.driver.post(WorkerCrashed(0, ((attempt.task.index, attempt.number),), "none", blamed=False))
            scene.driver.post(DeviceSampled(0, DeviceSample(problem="no worker")))

    scene.backend.start = start  # type: ignore[method-assign]
    scene.driver.run(scene.submit(TaskSpec(submit_s=0.25, kind="noop")))
    task = scene.task(0)
    assert scene.backend.orders() == ["start 0.1 on 0", "start 0.2 on 1"]
    assert (task.state, task.started_s, task.crashes, task.failures) == ("COMPLETED", 0.25, 0, 0)
    assert replay(scene.log.lines()).difference is None


def test_what_arrived_together_gets_one_now_and_is_applied_in_the_order_of_ranks() -> None:
    wish_first = posting(CancelRequested(0), AttemptFinished(0, 1))
    scene = Scene((0.5, wish_first))
    scene.driver.run(scene.submit(NOOP))
    assert scene.task(0).state == "COMPLETED"  # the end ranks before the wish
    assert scene.times_of(AttemptFinished) == scene.times_of(CancelRequested) == [0.5]


def test_what_ends_in_the_same_look_as_its_deadline_has_completed() -> None:
    def late(inbox: Inbox) -> None:
        scene.clock.time_s += 0.01  # the driver wakes a little after both
        inbox.put(AttemptFinished(0, 1))

    scene = Scene((1.0, late))
    scene.driver.run(scene.submit(TaskSpec(duration_s=1.0, timeout_s=1.0)))
    assert scene.task(0).state == "COMPLETED"


def test_one_decision_follows_all_facts_of_a_look() -> None:
    tasks: list[Task] = []

    def submit(inbox: Inbox) -> None:
        for task in tasks:
            inbox.put(TaskSubmitted(task))

    scene = Scene((0.5, submit), (1.0, posting(AttemptFinished(1, 1))), (1.5, posting(AttemptFinished(0, 1))),
                  (2.0, posting(AttemptFinished(2, 1))), max_concurrent_tasks_per_gpu=1)  # fmt: skip
    low, high = TaskSpec(kind="noop", priority="low"), TaskSpec(kind="noop", priority="high")
    tasks += scene.tasks(low, high, TaskSpec(submit_s=0.5, kind="noop", priority="low"))
    scene.driver.run([(0.5, RANK_SUBMIT, TaskSubmitted(tasks.pop()))])
    assert scene.backend.orders()[0] == "start 1.1 on 0"  # posted second, started first


def test_a_task_submitted_and_cancelled_in_the_same_look_is_cancelled() -> None:
    scene = Scene((0.5, lambda _: setattr(scene.clock, "time_s", 1000.6)))
    plan = [*scene.submit(TaskSpec(submit_s=0.51)), (0.52, RANK_CANCEL, CancelRequested(0))]
    scene.driver.run(plan)
    assert scene.task(0).state == "CANCELLED"
    assert scene.backend.orders() == []


def test_an_overrun_is_stopped_and_the_run_lasts_until_the_device_is_free() -> None:
    scene = Scene((5.0, posting(AttemptStopped(0, 1))), confirms=False)
    length_s = scene.driver.run(scene.submit(TaskSpec(duration_s=10.0, timeout_s=2.0)))
    task = scene.task(0)
    assert (task.state, task.error_code, task.finished_s) == ("FAILED", "timeout", 2.0)
    assert scene.backend.orders() == ["start 0.1 on 0", "stop 0.1 timeout"]
    assert length_s == 5.0


def test_it_never_sleeps_longer_than_the_interval_and_polls_at_each_look() -> None:
    polls: list[float] = []
    scene = Scene((2.0, posting(AttemptFinished(0, 1))))
    scene.backend.on_poll = polls.append
    scene.driver.run(scene.submit(NOOP))
    assert max(scene.clock.waits) == LOOK_S
    assert len(polls) == len(scene.clock.waits) == 1 + 2.0 / LOOK_S


def test_what_poll_reports_is_applied_at_that_look() -> None:
    scene = Scene()
    scene.backend.on_poll = lambda now: scene.driver.post(AttemptFinished(0, 1)) if now == 1.0 else None
    scene.driver.run(scene.submit(NOOP))
    assert scene.task(0).finished_s == 1.0


def test_a_cancel_planned_for_after_the_end_does_not_prolong_the_run() -> None:
    scene = Scene((0.5, posting(AttemptFinished(0, 1))))
    plan = [*scene.submit(NOOP), (900.0, RANK_CANCEL, CancelRequested(0))]
    assert scene.driver.run(plan) == 0.5


def test_health_is_read_before_the_first_start_and_then_at_its_interval() -> None:
    scene = Scene((130.0, posting(AttemptFinished(0, 1))))
    scene.backend.samples[0] = DeviceSample(temperature_c=99.0)
    scene.driver.run(scene.submit(NOOP))
    assert scene.backend.orders() == ["start 0.1 on 1"]  # GPU 0 was too hot from the beginning
    assert scene.times_of(DeviceSampled) == [0.0, 0.0, 60.0, 60.0, 120.0, 120.0]


def test_a_device_that_no_longer_answers_is_lost_and_its_task_finishes_elsewhere() -> None:
    scene = Scene(
        (10.0, lambda _: scene.backend.samples.update({0: None})),
        (70.0, posting(AttemptFinished(0, 2))),
    )
    scene.driver.run(scene.submit(NOOP))
    assert scene.backend.orders() == ["start 0.1 on 0", "start 0.2 on 1"]
    assert scene.times_of(DeviceLost) == [60.0]
    assert scene.task(0).state == "COMPLETED"


def test_a_device_that_returns_is_checked_at_once() -> None:
    scene = Scene(
        (1.0, posting(DeviceLost(0, "test"))),
        (2.0, posting(DeviceReturned(0))),
        (3.0, posting(AttemptFinished(0, 2))),
    )
    scene.driver.run(scene.submit(NOOP))
    assert scene.distributor.pool.devices[0].state == "AVAILABLE"
    assert 2.0 <= scene.times_of(DeviceSampled)[-1] <= 2.0 + LOOK_S


def test_planned_faults_are_injected_at_their_time() -> None:
    scene = Scene((2.0, posting(AttemptFinished(0, 2))))
    scene.driver.post_at(1.0, RANK_DEVICE, scene.backend.inject, Fault(1.0, 0, "lose_gpu"))
    scene.driver.run(scene.submit(NOOP))
    assert scene.times_of(DeviceLost) == [1.0]


def test_an_impossible_fact_is_raised_and_the_backend_closed() -> None:
    scene = Scene((0.5, posting(AttemptFinished(7, 1))))
    with pytest.raises(StateError, match="task-000007: it was never submitted"):
        scene.driver.run(scene.submit(NOOP), close=False)
    assert scene.backend.calls[-1] == "close"


def test_ctrl_c_closes_the_backend() -> None:
    def interrupt(_: Inbox) -> None:
        raise KeyboardInterrupt

    scene = Scene((0.5, interrupt))
    with pytest.raises(KeyboardInterrupt):
        scene.driver.run(scene.submit(NOOP), close=False)
    assert scene.backend.calls[-1] == "close"


def test_as_a_service_it_takes_tasks_from_other_threads_until_it_is_stopped() -> None:
    scene = Scene()
    done: queue.SimpleQueue[str] = queue.SimpleQueue()
    driver = RealtimeDriver(
        scene.distributor,
        scene.backend,
        clock=MonotonicClock(),
        queue_processing_interval_s=60.0,  # only events can wake it in time
        health_check_interval_s=60.0,
    )
    scene.backend.start = lambda now, attempt: done.put("started")  # type: ignore[method-assign]
    thread = threading.Thread(target=driver.serve)
    thread.start()
    driver.post(TaskSubmitted(scene.tasks(NOOP)[0]))
    assert done.get(timeout=30.0) == "started"
    driver.post(AttemptFinished(0, 1))
    driver.stop()
    thread.join(30.0)
    assert not thread.is_alive()
    assert scene.backend.calls[-1] == "close"


# --- simulated devices in real time -----------------------------------------------------------------------------------

GPUS = [DeviceSpec(i, "simulated", "A100", 80 << 30, model="A100-SXM4-80GB", index=i) for i in range(3)]
MIXED = [
    TaskSpec(submit_s=0.1 * i, duration_s=None if i % 3 else 1.7, iterations=None if i % 3 == 0 else 400.0 * i,
             priority=("low", "normal", "high")[i % 3], timeout_s=1.3 if i % 7 == 0 else None,
             cancel_s=0.1 * i + 0.6 if i % 5 == 0 else None, input_size=8192, output_size=8192)
    for i in range(40)
]  # fmt: skip
HOT = Fault(2.0, 2, "overheat", duration_s=1.0, value=99.0)
FAULTS = [Fault(0.5, 1, "crash_worker"), Fault(1.0, 0, "lose_gpu"), HOT]


def simulated(settings: Settings) -> tuple[Distributor, SimulatedBackend, EventLog, Telemetry, list[Task]]:
    distributor, backend = Distributor(settings.gpu, GPUS, 42), SimulatedBackend(GPUS, 85.0)
    telemetry = Telemetry(distributor, backend, 0.25)
    return distributor, backend, EventLog({}), telemetry, make_tasks(MIXED, settings.gpu, len(GPUS))


@pytest.mark.parametrize("pace", [0.5, 1.0, 10.0])
def test_simulated_devices_give_the_same_log_and_telemetry_as_in_virtual_time(pace: float) -> None:
    settings = load_config(overrides={"gpu.selection.default_strategy": "least_loaded"})
    distributor, backend, log, telemetry, tasks = simulated(settings)
    VirtualDriver(distributor, backend, log, telemetry, 0.9).run(tasks, FAULTS)
    distributor, backend, paced_log, paced_telemetry, tasks = simulated(settings)
    driver = RealtimeDriver(
        distributor,
        backend,
        clock=TurnedClock(),
        queue_processing_interval_s=LOOK_S,
        health_check_interval_s=0.9,
        telemetry=paced_telemetry,
        log=paced_log,
        pace=pace,
    )
    plan: list[tuple[float, int, Fact]] = [(t.spec.submit_s, RANK_SUBMIT, TaskSubmitted(t)) for t in tasks]
    plan += [(t.spec.cancel_s, RANK_CANCEL, CancelRequested(t.index)) for t in tasks if t.spec.cancel_s is not None]
    for fault in FAULTS:
        driver.post_at(fault.time_s, RANK_DEVICE, backend.inject, fault)
    driver.run(plan)
    assert list(paced_log.lines()) == list(log.lines())
    assert len(list(log.lines())) > 3 * len(MIXED)
    assert paced_telemetry.time_s == telemetry.time_s
    assert paced_telemetry.utilization_pct.tobytes() == telemetry.utilization_pct.tobytes()  # NaN included


# --- for real ---------------------------------------------------------------------------------------------------------


def real_run(records: list[dict[str, Any]], faults: Sequence[Fault] = (), **workload: Any) -> altlas.Result:
    overrides = {f"gpu.workload.{name}": value for name, value in workload.items()}
    overrides |= {"gpu.backend": "cpu", "gpu.selection.default_strategy": "round_robin", "telemetry.interval": 0.05}
    asked = altlas.Workload.from_records(records)
    return altlas.run(load_config(overrides=overrides), asked, faults=faults, devices=CPUS)


def test_work_on_real_workers_completes_with_measured_results() -> None:
    result = real_run([{"duration_s": 0.1, "input_size": 64, "output_size": 64}] * 6)
    assert list(result.tasks.state) == ["COMPLETED"] * 6
    details = [attempt.detail for attempt in result.log.attempts()]
    assert len(details) == 6
    assert all(detail is not None and detail["reference_ok"] for detail in details)
    assert len(result.telemetry) >= 2


def test_a_task_that_always_raises_fails_after_all_its_attempts() -> None:
    result = real_run([{"kind": "raise_error", "retry_count": 2}])
    task = result.tasks.iloc[0]
    assert (task.state, task.error_code, task.attempts) == ("FAILED", "task_error", 3)
    assert "RuntimeError: raise_error" in task.error


def test_a_hanging_task_is_timed_out_for_real_and_costs_its_neighbours_nothing() -> None:
    hanging = {"kind": "hang", "duration_s": 600.0, "timeout_s": 0.2, "gpu_id": 0}
    neighbour = {"kind": "sleep", "duration_s": 0.3, "gpu_id": 0}
    result = real_run([hanging, neighbour, neighbour], kill_grace=0.05, retry_count=0)
    assert list(result.tasks.state) == ["FAILED", "COMPLETED", "COMPLETED"]
    assert result.tasks.error_code[0] == "timeout"
    assert result.tasks.finished_s[0] == result.tasks.started_s[0] + 0.2


def test_a_killed_worker_loses_no_task() -> None:
    faults = [Fault(0.1, 0, "crash_worker"), Fault(0.15, 1, "crash_worker")]
    result = real_run([{"kind": "sleep", "duration_s": 0.3}] * 8, faults, retry_count=0)
    assert list(result.tasks.state) == ["COMPLETED"] * 8
    assert result.tasks.attempts.max() == 2


def test_a_task_that_kills_its_worker_ends_as_worker_crashed_and_the_others_complete() -> None:
    result = real_run([{"kind": "crash_worker", "gpu_id": 0}, {"kind": "sleep", "duration_s": 0.1, "gpu_id": 0}])
    assert list(result.tasks.state) == ["FAILED", "COMPLETED"]
    assert result.tasks.error_code[0] == "worker_crashed"
    assert "signal 9 (SIGKILL)" in result.tasks.error[0]


def test_the_tasks_of_a_lost_device_finish_elsewhere() -> None:
    faults = [Fault(0.1, 0, "lose_gpu")]
    result = real_run([{"kind": "sleep", "duration_s": 0.3}] * 4, faults, retry_count=0)
    assert list(result.tasks.state) == ["COMPLETED"] * 4
    assert list(result.tasks.gpu_id) == [1] * 4


# --- a service --------------------------------------------------------------------------------------------------------


def served(*script: tuple[float, Callable[[Scene], None]], **overrides: Any) -> Scene:
    """A scene that serves until its script is over and a second more."""
    scene = Scene(**overrides)
    steps = [(when, lambda _inbox, what=what: what(scene)) for when, what in script]
    last = max(when for when, _ in script)
    scene.clock.script = [(1000.0 + when, what) for when, what in steps]
    scene.clock.script.append((1001.0 + last, lambda _inbox: scene.driver.stop()))
    scene.driver.serve()
    return scene


def test_a_call_runs_on_the_drivers_thread_with_the_time_and_what_it_posts_is_applied_at_once() -> None:
    told: list[tuple[float, int]] = []

    def due(now: float, task: Task) -> None:
        told.append((now, threading.get_ident()))
        scene.driver.post(TaskSubmitted(task))

    def step(at: Scene) -> None:
        nonlocal scene
        scene = at
        at.driver.call(due, at.tasks(NOOP)[0])

    scene: Any = None
    served((0.5, step))
    assert told == [(0.5, threading.get_ident())]
    assert scene.backend.orders() == ["start 0.1 on 0"]
    assert scene.task(0).started_s == 0.5


def test_a_fact_that_a_call_returns_is_applied() -> None:
    scene = served((0.5, lambda at: at.driver.call(lambda now, task: TaskSubmitted(task), at.tasks(NOOP)[0])))
    assert scene.task(0).state == "RUNNING"


def test_a_driver_that_drains_starts_nothing_more_and_lets_what_runs_end() -> None:
    def submit(index: int) -> Callable[[Scene], None]:
        tasks = [TaskSpec(kind="noop")] * (index + 1)
        return lambda at: at.driver.call(lambda now, task: TaskSubmitted(task), at.tasks(*tasks)[index])

    busy: list[bool] = []
    scene = served(
        (0.5, submit(0)),
        (0.6, lambda at: at.driver.drain()),
        (0.7, submit(1)),
        (0.8, lambda at: busy.append(at.driver.busy)),
        (0.9, lambda at: at.driver._inbox.put(AttemptFinished(0, 1))),
        (1.2, lambda at: busy.append(at.driver.busy)),
    )
    assert scene.backend.orders() == ["start 0.1 on 0"]
    assert [scene.task(index).state for index in (0, 1)] == ["COMPLETED", "QUEUED"]
    assert busy == [True, False]


def test_a_driver_that_drained_starts_what_waits_as_soon_as_it_is_resumed() -> None:
    def submit(index: int) -> Callable[[Scene], None]:
        tasks = [TaskSpec(kind="noop")] * (index + 1)
        return lambda at: at.driver.call(lambda now, task: TaskSubmitted(task), at.tasks(*tasks)[index])

    scene = served((0.5, lambda at: at.driver.drain()), (0.6, submit(0)), (0.9, lambda at: at.driver.resume()),
                   (1.0, submit(1)))  # fmt: skip
    assert scene.backend.orders() == ["start 0.1 on 0", "start 1.1 on 0"]
    assert [scene.task(index).started_s for index in (0, 1)] == pytest.approx([0.9, 1.0])


def test_a_run_goes_on_while_more_is_to_come_than_its_plan() -> None:
    coming = [0.5]

    def arrive(now: float, task: Task) -> Fact:
        coming.clear()
        return TaskSubmitted(task)

    scene = Scene((0.25, posting(AttemptFinished(0, 1))), (0.75, posting(AttemptFinished(1, 1))))
    first, second = scene.tasks(NOOP, NOOP)
    scene.driver.post_at(0.5, RANK_SUBMIT, arrive, second)
    length_s = scene.driver.run([(0.0, RANK_SUBMIT, TaskSubmitted(first))], more=lambda: bool(coming))
    assert (length_s, second.state) == (0.75, "COMPLETED")


def test_a_log_is_told_when_a_look_is_over() -> None:
    looks: list[tuple[float, int]] = []

    class Watcher:
        facts = 0

        def fact(self, now: float, fact: Fact) -> None:
            self.facts += 1

        def action(self, now: float, action: Any) -> None:
            pass

        def looked(self, now: float) -> None:
            looks.append((now, self.facts))

    scene = Scene()
    watcher = Watcher()
    driver = RealtimeDriver(
        scene.distributor,
        scene.backend,
        clock=TurnedClock((0.5, posting(AttemptFinished(0, 1)))),
        queue_processing_interval_s=LOOK_S,
        health_check_interval_s=60.0,
        log=watcher,
    )
    driver.run(scene.submit(NOOP))
    assert looks[-1] == (0.5, watcher.facts)
    assert [facts for _, facts in looks] == sorted(facts for _, facts in looks)
