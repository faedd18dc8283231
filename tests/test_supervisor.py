"""The rules of supervision, with made-up workers and a made-up clock: spares, backoff, failed starts, silence."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from workers import SETTINGS, Recorder

from altlas_core.backends.supervision import supervisor as supervisor_module
from altlas_core.backends.supervision.lane import Lane
from altlas_core.backends.supervision.output import Output
from altlas_core.backends.supervision.process import WorkerProcess
from altlas_core.backends.supervision.restarts import LONGEST_DELAY_S, Restarts
from altlas_core.backends.supervision.supervisor import Supervisor
from altlas_core.backends.worker import channel as wire
from altlas_core.backends.worker.channel import Channel, pair
from altlas_core.events import AttemptFinished, AttemptStopped, DeviceLost, DeviceReturned, Fact, WorkerCrashed
from altlas_core.intake import make_tasks
from altlas_core.model import Attempt, DeviceSpec, TaskSpec

DEVICES = [DeviceSpec(i, "cpu", f"cpu:{i}", 2 << 30, index=i, cores=1) for i in range(2)]
READY_TIMEOUT_S = 120.0
HEARTBEAT_S = 10.0


class MadeUp(WorkerProcess):
    """A worker without a process: the test says what it says, and when it dies."""

    def __init__(self, number: int, now: float) -> None:
        self.channel, theirs = pair()
        theirs.setblocking(False)
        self.far = Channel(theirs)
        self.number = number
        self.imported = self.ready = self.killed = self.doomed = self.answers = False
        self.cause = self.pinged_s = None
        self.since_s = self.heard_s = now
        self.output = Output()
        self.fate = ""
        self.immortal = False

    @property
    def pid(self) -> int:
        return self.number

    def says(self, *answers: tuple[Any, ...]) -> None:
        self.far.send(list(answers))

    def dies(self, of: str = "signal 11 (SIGSEGV)") -> None:
        self.fate = of
        self.far.close()

    def told(self) -> list[tuple[Any, ...]]:
        """The orders that have arrived since the last time."""
        try:
            return [order for orders in self.far.receive() for order in orders]
        except BlockingIOError:
            return []

    def _strike(self) -> None:
        if not self.immortal:
            self.dies("signal 9 (SIGKILL)")

    def reap(self, _wait_s: float, _dying_s: float = 0.0) -> str:
        return self.cause or self.fate

    killed_by_others = False

    def release(self) -> None:
        self.channel.close()

    def tail(self) -> str:
        return "the last words"


class NoKeeper:
    def watch(self, _: int) -> None: ...
    def forget(self, _: int) -> None: ...
    def close(self) -> None: ...


class Stage:
    """A supervisor whose looks and clock the test moves."""

    def __init__(self, spares: int = 0, devices: int = 1) -> None:
        self.now = 0.0
        self.launched: list[MadeUp] = []
        self.broken = False  # whether a process can be started
        self.mail = Recorder()
        self.notes: deque[Lane] = deque()
        self.lanes = [Lane(spec, self.mail.post, self.notes.append) for spec in DEVICES[:devices]]
        self.lane = self.lanes[0]
        self.supervisor = Supervisor(self.lanes, self._launch, READY_TIMEOUT_S, NoKeeper(), lambda: self.now)  # type: ignore[arg-type]
        for lane in self.lanes:
            lane.renew(lane.spec, 4, 42, self.mail.post)
        self.supervisor.staff(self.lanes, spares, HEARTBEAT_S)
        self.look()

    def _launch(self, now: float) -> MadeUp:
        if self.broken:
            raise OSError("Cannot allocate memory")
        self.launched.append(MadeUp(len(self.launched), now))
        return self.launched[-1]

    def look(self) -> None:
        assert self.supervisor.look(0.0)

    def wait(self, seconds: float, step_s: float = 0.25) -> None:
        """Let time pass, as it does for a supervisor that looks all the while; healthy workers answer."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + step_s)
            self.look()
            for worker in self.launched:
                if worker.answers and any(order[0] == wire.PING for order in worker.told()):
                    worker.says((wire.PONG,))

    def make_ready(self, worker: MadeUp | None = None) -> MadeUp:
        """The worker started last imports torch and makes its device ready."""
        worker = worker or self.launched[-1]
        worker.says((wire.IMPORTED,))
        self.look()
        (order,) = worker.told()
        assert order[0] == wire.ASSIGN
        worker.says((wire.READY, {}))
        self.look()
        return worker

    def start(self, index: int = 0, send: bool = True) -> tuple[int, int]:
        """A task is given to the first lane; its key."""
        task = make_tasks([TaskSpec(kind="sleep")], SETTINGS.gpu, 1)[0]
        task.index = index
        self.lane.start(Attempt(task, 1, 0, 0.0))
        if send:
            self.lane.send()
        return (index, 1)

    def facts(self) -> list[Fact]:
        found = []
        while not self.mail.inbox.empty():
            found.append(self.mail.inbox.get())
        return found


@pytest.fixture
def stage() -> Stage:
    return Stage()


# --- workers and spares -----------------------------------------------------------------------------------------------


def test_a_worker_is_given_its_device_when_it_has_imported_torch(stage: Stage) -> None:
    (worker,) = stage.launched
    assert not worker.told()
    worker.says((wire.IMPORTED,))
    stage.look()
    ((code, _, _, assignment),) = worker.told()
    assert (code, assignment["kind"], assignment["slots"], assignment["seed"]) == (wire.ASSIGN, "cpu", 4, 42)
    assert not stage.lane.ready
    worker.says((wire.READY, {}))
    stage.look()
    assert stage.lane.ready


def test_all_start_at_once_and_whoever_is_first_gets_the_first_device() -> None:
    stage = Stage(spares=1, devices=2)
    first, second, third = stage.launched
    for worker in (third, first, second):
        worker.says((wire.IMPORTED,))
        stage.look()
    assert [lane.worker for lane in stage.lanes] == [third, first]
    assert stage.supervisor.free() == [second]
    assert stage.supervisor.spares_settled()


def test_a_spare_worker_replaces_a_dead_one_at_once_and_is_renewed() -> None:
    stage = Stage(spares=1)
    worker, spare = stage.launched
    stage.make_ready(worker)
    spare.says((wire.IMPORTED,))
    stage.look()
    worker.dies()
    stage.look()
    assert stage.lane.worker is spare
    assert spare.told()[0][0] == wire.ASSIGN
    assert len(stage.launched) == 3


def test_a_spare_worker_that_cannot_start_costs_no_device_and_is_tried_ever_more_seldom() -> None:
    stage = Stage(spares=1)
    stage.make_ready(stage.launched[0])
    stage.launched[0].answers = True
    for pause_s in (0.0, 0.5, 1.0, 2.0, 4.0):
        before = len(stage.launched)
        stage.launched[-1].dies()
        stage.look()
        if pause_s:
            stage.wait(pause_s - 0.25)
            assert len(stage.launched) == before
            stage.wait(0.25)
        assert len(stage.launched) == before + 1
    assert not stage.facts()


# --- deaths in a row --------------------------------------------------------------------------------------------------


def test_the_pauses_double_up_to_a_minute_and_a_finished_task_ends_the_row() -> None:
    restarts = Restarts()
    assert [restarts.died() for _ in range(5)] == [0.0, 0.5, 1.0, 2.0, 4.0]
    assert max(restarts.died() for _ in range(2000)) == LONGEST_DELAY_S == 60.0


def test_a_device_whose_workers_keep_dying_complains_until_the_next_is_ready(stage: Stage) -> None:
    for deaths in (1, 2, 3):
        worker = stage.make_ready()
        key = stage.start(deaths)
        assert worker.told()[0][0] == wire.START
        before = len(stage.launched)
        worker.dies()
        stage.look()
        assert stage.facts() == [WorkerCrashed(0, (key,), "signal 11 (SIGSEGV)")]
        if deaths == 1:
            assert stage.lane.complaint == "its worker died (signal 11 (SIGSEGV)); a new one takes its place"
            assert stage.notes.popleft() is stage.lane
            continue
        pause_s = {2: 0.5, 3: 1.0}[deaths]
        assert stage.lane.complaint == (
            f"its worker died {deaths} times in a row (signal 11 (SIGSEGV)); a new one starts in {pause_s:g} s"
        )
        assert stage.notes.pop() is stage.lane
        stage.wait(pause_s - 0.25)
        assert len(stage.launched) == before
        stage.wait(0.25)
        assert len(stage.launched) == before + 1
    stage.make_ready()
    assert stage.lane.complaint is None
    assert stage.notes.pop() is stage.lane


def test_a_finished_task_between_two_deaths_makes_the_second_a_first(stage: Stage) -> None:
    for index in range(5):
        worker = stage.make_ready()
        key = stage.start(index)
        worker.says((wire.FINISHED, *key, 0.0, None))
        worker.dies()
        stage.look()
        stage.look()
        assert stage.facts() == [AttemptFinished(*key), WorkerCrashed(0, (), "signal 11 (SIGSEGV)")]
        assert stage.lane.complaint == "its worker died (signal 11 (SIGSEGV)); a new one takes its place"


def test_workers_that_we_kill_for_a_task_that_does_not_stop_are_no_deaths(stage: Stage) -> None:
    for index in range(5):
        worker = stage.make_ready()
        hanging, neighbour = stage.start(2 * index), stage.start(2 * index + 1)
        stage.lane.stop(hanging, until_s=stage.now + 2.0)
        stage.lane.send()
        assert stage.lane.kill_if_overdue(stage.now + 1.9) == 1
        assert not worker.killed
        stage.lane.kill_if_overdue(stage.now + 2.0)
        stage.look()
        why = "killed: a task in it did not stop when asked"
        assert stage.facts() == [AttemptStopped(*hanging), WorkerCrashed(0, (neighbour,), why, blamed=False)]
        assert stage.lane.complaint == f"its worker died ({why}); a new one takes its place"


def test_what_a_device_without_a_worker_is_given_comes_back_at_once_and_costs_nothing(stage: Stage) -> None:
    worker = stage.make_ready()
    worker.dies()
    stage.look()
    stage.facts()
    for index in (1, 2):
        early = stage.start(index)  # before the driver has heard of it
        (back,) = stage.facts()
        assert isinstance(back, WorkerCrashed)
        assert (back.attempts, back.blamed) == ((early,), False)
        assert not stage.lane.stop(early, until_s=1.0)
        assert stage.facts() == []
        stage.launched[-1].says((wire.IMPORTED,))  # it has a worker, which is not ready yet
        stage.look()
    worker = stage.make_ready()
    assert stage.lane.complaint is None
    late = stage.start(3)
    assert [order[:3] for order in worker.told()] == [(wire.START, *late)]


def test_what_was_not_sent_when_the_worker_died_comes_back_and_is_not_blamed(stage: Stage) -> None:
    worker = stage.make_ready()
    sent, unsent = stage.start(1), stage.start(2, send=False)
    worker.dies()
    stage.look()
    facts = stage.facts()
    assert facts[0] == WorkerCrashed(0, (sent,), "signal 11 (SIGSEGV)")
    assert isinstance(facts[1], WorkerCrashed)
    assert (facts[1].attempts, facts[1].blamed) == ((unsent,), False)


def test_a_stop_of_what_was_not_sent_is_confirmed_at_once(stage: Stage) -> None:
    worker = stage.make_ready()
    key = stage.start(send=False)
    assert not stage.lane.stop(key, until_s=1.0)
    assert stage.facts() == [AttemptStopped(*key)]
    stage.lane.send()
    assert worker.told() == []


def test_so_many_workers_start_at_a_time_as_the_computer_can_bear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_MOST_STARTING", 3)
    stage = Stage(spares=8)
    for _ in range(20):
        starting = [worker for worker in stage.launched if not worker.imported]
        assert len(starting) <= 3
        for worker in starting:
            worker.says((wire.IMPORTED,))
        stage.look()
    assert sum(worker.imported for worker in stage.launched) == 1 + 8


@pytest.mark.parametrize("bytes_", [b"\xff\xff\xff\xff", b"\x04\x00\x00\x00oops", b"\x05\x00\x00\x00i\x01\x00\x00\x00"])
def test_a_worker_that_writes_what_is_no_message_is_buried_and_the_others_live_on(bytes_: bytes) -> None:
    stage = Stage(devices=2)
    bad, good = stage.launched
    for worker in (bad, good):
        stage.make_ready(worker)
    key = stage.start()
    bad.far._socket.send(bytes_)
    stage.look()
    stage.look()
    (crash,) = stage.facts()
    assert isinstance(crash, WorkerCrashed)
    assert (crash.gpu_id, crash.attempts, crash.blamed) == (0, (key,), True)
    assert stage.lanes[1].ready


def test_a_device_that_is_lost_again_while_it_returns_stays_lost(stage: Stage) -> None:
    stage.make_ready()
    stage.lane.lose("gone")
    stage.look()
    assert stage.lane.take_back()
    stage.supervisor.spawn(stage.lane)
    stage.look()
    stage.lane.lose("gone again")
    stage.launched[-1].says((wire.IMPORTED,))
    stage.look()
    assert stage.facts() == [DeviceLost(0, "gone")]
    assert stage.lane.lost
    assert stage.lane.worker is None


# --- starts that fail -------------------------------------------------------------------------------------------------


def test_the_third_start_in_a_row_that_fails_costs_the_device(stage: Stage) -> None:
    stage.make_ready().dies()
    stage.look()
    stage.facts()
    for pause_s in (0.5, 1.0):
        stage.launched[-1].dies("exit status 1: no torch")
        stage.look()
        assert stage.lane.complaint is not None
        assert "did not start: exit status 1: no torch" in stage.lane.complaint
        stage.wait(pause_s)
    stage.launched[-1].dies("exit status 1: no torch")
    stage.look()
    assert stage.facts() == [DeviceLost(0, "its worker did not start: exit status 1: no torch")]
    assert stage.lane.lost
    stage.wait(100.0)
    assert len(stage.launched) == 4
    assert stage.lane.take_back()
    stage.supervisor.spawn(stage.lane)
    stage.look()
    stage.make_ready()
    assert stage.facts() == [DeviceReturned(0)]


def test_while_a_run_opens_the_first_start_that_fails_ends_it(stage: Stage) -> None:
    stage.launched[-1].dies("exit status 1")
    stage.look()
    assert stage.lane.problem == "did not start: exit status 1\nthe last words"


def test_a_computer_that_can_start_no_process_is_a_failed_start() -> None:
    stage = Stage()
    stage.make_ready().dies()
    stage.broken = True
    stage.look()
    stage.wait(2.0)
    assert DeviceLost(0, "its worker did not start: Cannot allocate memory") in stage.facts()


def test_a_worker_that_is_not_ready_in_time_is_killed(stage: Stage) -> None:
    (worker,) = stage.launched
    stage.wait(READY_TIMEOUT_S - 1.0, step_s=1.0)
    assert stage.lane.problem is None
    stage.wait(3.0)
    assert stage.lane.problem is not None
    assert stage.lane.problem.startswith("did not start: not ready after 120 s")
    assert worker.cause is not None


# --- silence ----------------------------------------------------------------------------------------------------------


def test_a_worker_that_answers_is_left_in_peace_however_long_its_task_takes(stage: Stage) -> None:
    worker = stage.make_ready()
    worker.answers = True
    stage.start()
    stage.wait(100.0)
    assert worker.cause is None
    assert stage.lane.ready


def test_a_worker_that_does_not_answer_is_killed_and_blamed(stage: Stage) -> None:
    worker = stage.make_ready()
    key = stage.start()
    stage.wait(HEARTBEAT_S)
    assert worker.cause is None
    stage.wait(HEARTBEAT_S / 2)
    assert stage.facts() == [WorkerCrashed(0, (key,), "did not answer for 10 s")]
    assert len(stage.launched) == 2


def test_what_a_worker_has_said_is_read_before_it_is_judged(stage: Stage) -> None:
    worker = stage.make_ready()
    stage.wait(HEARTBEAT_S / 2)
    assert worker.pinged_s is not None
    worker.says((wire.PONG,))
    stage.supervisor._listen(worker.pinged_s + HEARTBEAT_S)  # nothing was read since
    assert worker.cause is None


def test_the_time_in_which_nobody_could_look_is_not_held_against_workers(stage: Stage) -> None:
    worker = stage.make_ready()
    stage.wait(HEARTBEAT_S / 2)
    assert worker.pinged_s is not None
    stage.now += 3600.0  # this process was stopped, or the computer suspended, and the worker with it
    stage.look()
    stage.wait(HEARTBEAT_S - 0.5)
    assert worker.cause is None
    stage.wait(1.0)
    assert worker.cause == "did not answer for 10 s"


def test_a_silent_spare_worker_is_replaced_too() -> None:
    stage = Stage(spares=1)
    worker, spare = stage.launched
    stage.make_ready(worker)
    worker.answers = True
    spare.says((wire.IMPORTED,))
    stage.wait(2 * HEARTBEAT_S)
    assert spare.cause == "did not answer for 10 s"
    assert len(stage.launched) == 3
    assert not stage.facts()


def test_a_worker_that_even_a_kill_does_not_end_is_given_up(stage: Stage) -> None:
    worker = stage.make_ready()
    worker.immortal = True
    key = stage.start()
    stage.wait(30.0)
    assert stage.facts() == [WorkerCrashed(0, (key,), "did not answer for 10 s")]
    assert len(stage.launched) == 2
