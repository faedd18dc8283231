"""A live run: the same log as any other at whatever pace, and what one can do to it while it goes on.

The real clock behind it goes on as soon as somebody waits, so nothing here takes time.
"""

from __future__ import annotations

import json
import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import pytest

import altlas_core as altlas
from altlas_core.drivers.clock import Inbox, News
from altlas_core.errors import AltlasError, ConfigError, DeviceError, StateError, StrategyError, WorkloadError
from altlas_core.figures.style import OUTCOMES
from altlas_core.live.arrivals import BUSY_SHARE, MOST_TASKS, endless
from altlas_core.live.clock import FOREVER, SteeredClock
from altlas_core.live.ledger import MOST_ENDED, Ledger
from altlas_core.live.session import LiveSession
from altlas_core.live.snapshot import AttemptView, Snapshot
from altlas_core.live.tally import MOST_DEPTHS, MOST_WINDOWS, Depths, Spread, Windows
from altlas_core.live.watch import MOST_NEWS
from altlas_core.replay import replay
from altlas_core.result import Result
from altlas_core.strategies import USER_STRATEGIES

PATIENCE_S = 30.0  # for a slow machine; nothing waits this long when all is well


class EagerClock:
    """Goes on as soon as somebody waits; only a clock that stands waits for real. `slow_s`: what every look costs."""

    def __init__(self, slow_s: float = 0.0) -> None:
        self.time_s = 0.0
        self.slow_s = slow_s
        self.stood = threading.Event()  # the driver has come to a stand

    def monotonic(self) -> float:
        self.time_s += self.slow_s
        return self.time_s

    def wait(self, inbox: Inbox, timeout_s: float) -> News | None:
        if timeout_s >= FOREVER:
            self.stood.set()
            return inbox.get(timeout=PATIENCE_S)
        self.time_s += timeout_s
        return None if inbox.empty() else inbox.get()


class Stage:
    """A session over an eager clock."""

    def __init__(
        self,
        records: Sequence[dict[str, Any]] | None,
        faults: Sequence[altlas.Fault] = (),
        slow_s: float = 0.0,
        **overrides: Any,
    ) -> None:
        given = {"gpu.devices": ["3x A100"], "gpu.selection.default_strategy": "least_loaded"} | overrides
        self.settings = altlas.load_config(overrides=given, environ={})
        self.workload = None if records is None else altlas.Workload.from_records(records)
        self.clock = EagerClock(slow_s)
        self.session = LiveSession(self.settings, self.workload, 42, faults, clock=self.clock)

    def play(self) -> Result:
        """To the end."""
        self.session.start()
        assert self.session.wait(PATIENCE_S)
        result = self.session.result
        assert result is not None, self.session.snapshot().error
        return result

    def do(self, what: Callable[[], Any]) -> Any:
        """Something to a run that stands, and wait until the driver has seen it."""
        self.clock.stood.clear()
        done = what()
        assert self.clock.stood.wait(PATIENCE_S)
        return done

    def step(self, until: Callable[[Snapshot], bool] | None = None) -> Snapshot:
        """One step, or as many as it takes."""
        while True:
            self.clock.stood.clear()
            self.session.step()
            while not self.clock.stood.wait(0.01) and not self.session.wait(0.0):
                pass
            seen = self.session.snapshot()
            if until is None or until(seen) or seen.state != "paused":
                return seen


@pytest.fixture
def stage() -> Iterator[Callable[..., Stage]]:
    made: list[Stage] = []

    def make(*given: Any, **overrides: Any) -> Stage:
        made.append(Stage(*given, **overrides))
        return made[-1]

    yield make
    for one in made:
        one.session.close()


BUSY = [
    {
        "submit_s": 0.1 * i,
        "priority": ("low", "normal", "high")[i % 3],
        "input_size": 8192,
        "output_size": 8192,
        "strategy": "random" if i % 4 == 0 else None,
        "timeout_s": 1.3 if i % 7 == 0 else None,
        "cancel_s": 0.1 * i + 0.6 if i % 5 == 0 else None,
        **({"iterations": 400.0 * i} if i % 3 else {"duration_s": 1.7}),
    }
    for i in range(1, 41)
]
FAULTS = (
    altlas.Fault(0.5, 1, "crash_worker"),
    altlas.Fault(1.0, 0, "lose_gpu", duration_s=2.0),
    altlas.Fault(1.6, 2, "hang_task"),
    altlas.Fault(2.0, 2, "overheat", duration_s=1.0, value=99.0),
)
CHECKED = {"gpu.detection.health_check_interval": 0.9, "gpu.workload.timeout": 20.0, "telemetry.interval": 0.25}
NAPS = [{"submit_s": float(i), "kind": "sleep", "duration_s": 2.0} for i in range(10)]


# --- the same log -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slow_s", [0.0, 0.0004])
@pytest.mark.parametrize("pace", [0.5, 1.0, 1000.0, None])
def test_log_and_readings_are_those_of_run_at_any_pace(
    stage: Callable[..., Stage], pace: float | None, slow_s: float
) -> None:
    scene = stage(BUSY, FAULTS, slow_s, **CHECKED)
    expected = altlas.run(scene.settings, scene.workload, 42, FAULTS)
    assert set(expected.tasks.state) == {"COMPLETED", "FAILED", "CANCELLED"}
    scene.session.set_pace(pace)
    result = scene.play()
    assert list(result.event_lines()) == list(expected.event_lines())
    assert result.telemetry.equals(expected.telemetry)
    assert result.tasks.equals(expected.tasks)
    assert result.virtual_s == expected.virtual_s


def test_the_log_is_that_of_run_however_often_somebody_steps_looks_pauses_and_changes_the_pace(
    stage: Callable[..., Stage],
) -> None:
    scene = stage(BUSY, FAULTS, **CHECKED)
    expected = altlas.run(scene.settings, scene.workload, 42, FAULTS)
    times = []
    for _ in range(60):
        seen = scene.step()
        times.append(seen.time_s)
        scene.session.set_pace(None if seen.submitted % 2 else 1.0 + seen.submitted)
        scene.session.set_rate(1.0)
        scene.do(scene.session.pause)
    assert times == sorted(times)
    assert len(set(times)) > 50  # the first is at 0.1 s; a step may play an instant that only rounding keeps apart
    result = scene.play()
    assert result.event_log_sha256 == expected.event_log_sha256


def test_every_step_brings_something_new_to_the_log_and_the_last_one_ends_the_run(stage: Callable[..., Stage]) -> None:
    scene = stage(NAPS)
    steps = 0
    while scene.step().state == "paused":
        steps += 1
    assert steps == 10 + 1  # submitted at 0, 1, ... 9 s, ended at 2, 3, ... 11 s
    assert scene.session.snapshot().state == "ended"
    assert scene.session.snapshot().time_s == 11.0


def test_an_empty_workload_ends_at_once(stage: Callable[..., Stage]) -> None:
    assert len(stage([]).play().tasks) == 0


# --- arrivals ---------------------------------------------------------------------------------------------------------


def test_tasks_arrive_as_many_times_as_fast_as_asked_from_that_moment_on(stage: Callable[..., Stage]) -> None:
    scene = stage(NAPS)
    scene.session.set_rate(4.0)
    scene.step(lambda seen: seen.submitted == 5)  # 0, 0.25, ... 1.0 s
    scene.do(lambda: scene.session.set_rate(0.5))
    scene.step(lambda seen: seen.submitted == 7)  # 3, 5 s
    scene.do(lambda: scene.session.set_rate(1.0))
    result = scene.play()
    assert list(result.tasks.submitted_s) == pytest.approx([0, 0.25, 0.5, 0.75, 1, 3, 5, 6, 7, 8])
    assert list(result.tasks.state) == ["COMPLETED"] * 10
    assert replay(result.event_lines()).difference is None


def test_an_owner_waits_as_long_as_ever_before_he_cancels(stage: Callable[..., Stage]) -> None:
    scene = stage([{"submit_s": 10.0, "duration_s": 5.0, "cancel_s": 13.0}])
    scene.session.set_rate(5.0)
    task = scene.play().tasks.iloc[0]
    assert (task.submitted_s, task.finished_s, task.state) == (2.0, 5.0, "CANCELLED")


def test_another_strategy_is_for_what_arrives_from_now_on_and_names_none(stage: Callable[..., Stage]) -> None:
    records = [{"submit_s": float(i), "duration_s": 0.5, "strategy": None if i % 3 else "random"} for i in range(9)]
    scene = stage(records)
    scene.step(lambda seen: seen.submitted == 5)
    scene.session.set_strategy("round_robin")
    assert scene.session.snapshot().strategy == "round_robin"
    events = [event for event in scene.play().events if event.get("fact") == "TaskSubmitted"]
    first, then = "least_loaded", "round_robin"
    assert [e["strategy"] for e in events] == ["random", first, first, "random", first, then, "random", then, then]


def test_the_endless_mix_keeps_the_machine_busy_and_is_the_same_for_the_same_seed(stage: Callable[..., Stage]) -> None:
    scene = stage(None, **{"gpu.devices": ["8x A100"]})
    specs = altlas.run(scene.settings, altlas.Workload()).devices
    tasks = list(islice(endless(specs, scene.settings.gpu, 7), 3000))
    assert tasks == list(islice(endless(specs, scene.settings.gpu, 7), 3000))
    assert tasks[:5] != list(islice(endless(specs, scene.settings.gpu, 8), 5))
    result = altlas.run(scene.settings, altlas.Workload(tuple(tasks)))
    end_s = tasks[-1].submit_s
    held_s = sum(min(a.ended_s or 0.0, end_s) - min(a.started_s, end_s) for a in result.log.attempts())
    assert held_s / (8 * 4 * end_s) == pytest.approx(BUSY_SHARE, abs=0.05)
    assert set(result.tasks.priority) == {"high", "normal", "low"}
    assert set(result.tasks.state) == {"COMPLETED"}
    assert result.metrics["wait_p50_s"] == 0.0
    assert sum(1 for _ in endless(specs, scene.settings.gpu, 7)) == MOST_TASKS


def test_the_endless_mix_plays_in_a_session_the_same_for_the_same_seed(stage: Callable[..., Stage]) -> None:
    logs = []
    for pace in (None, 50.0):
        scene = stage(None)
        scene.session.set_pace(pace)
        scene.step(lambda seen: seen.completed >= 300)
        scene.session.stop()
        assert scene.session.wait(PATIENCE_S)
        result = scene.session.result
        assert result is not None
        logs.append(result.event_log_sha256)
        assert len({task.demand for task in result.task_list}) <= 3 * 3 + 1  # tasks alike share one
    assert logs[0] == logs[1]


# --- breaking things --------------------------------------------------------------------------------------------------


def test_a_gpu_is_lost_and_comes_back_while_the_run_stands(stage: Callable[..., Stage]) -> None:
    scene = stage(NAPS, **{"gpu.workload.max_concurrent_tasks_per_gpu": 1})
    before = scene.step(lambda seen: seen.submitted == 2)
    assert [gpu.running for gpu in before.gpus] == [1, 1, 0]
    assert scene.do(lambda: scene.session.inject("lose_gpu")) == 0  # the busiest, the first of them
    seen = scene.session.snapshot()
    assert seen.time_s == before.time_s
    assert [gpu.health for gpu in seen.gpus] == ["LOST", "BUSY", "BUSY"]
    assert scene.step().gpus[0].utilization_pct is None
    assert scene.do(lambda: scene.session.inject("return_gpu")) == 0
    assert scene.session.snapshot().gpus[0].health == "BUSY"  # with what has been waiting
    assert [line.partition("  ")[2] for line in scene.session.snapshot().news] == [
        "GPU 0 lost: fell off the bus (simulated fault)",
        "GPU 0 is back",
        "GPU 0 is healthy again",
    ]
    result = scene.play()
    assert list(result.tasks.state) == ["COMPLETED"] * 10
    assert result.tasks.attempts[0] == 2
    assert replay(result.event_lines()).difference is None


def test_an_overheated_gpu_takes_no_work_at_once_and_all_is_well_when_it_has_cooled_down(
    stage: Callable[..., Stage],
) -> None:
    scene = stage(NAPS)
    scene.step(lambda seen: seen.submitted == 3)
    assert scene.do(lambda: scene.session.inject("overheat", 1)) == 1
    gpu = scene.session.snapshot().gpus[1]
    assert gpu.health == "UNHEALTHY"
    assert gpu.reason == "temperature 100.0 C is over max_temperature 85 C"
    hot = scene.step(lambda seen: seen.submitted == 8)
    assert hot.gpus[1].running == 0
    assert hot.gpus[1].temperature_c == 100.0
    assert scene.do(lambda: scene.session.inject("cool_down")) == 1
    assert scene.session.snapshot().gpus[1].health == "AVAILABLE"
    result = scene.play()
    assert result.telemetry[result.telemetry.gpu_id == 1].temperature_c.iloc[-1] < 85.0
    assert replay(result.event_lines()).difference is None


def test_a_task_that_is_made_to_hang_ends_by_its_timeout(stage: Callable[..., Stage]) -> None:
    scene = stage([{"duration_s": 5.0, "timeout_s": 30.0}, {"duration_s": 5.0, "submit_s": 1.0, "gpu_id": 0}])
    scene.step(lambda seen: seen.submitted == 2)
    assert scene.do(lambda: scene.session.inject("hang_task", 0)) == 0
    hung = "1.0 s  GPU 0: what started last there makes no more progress"
    assert scene.session.snapshot().news == (hung,)
    result = scene.play()
    assert list(result.tasks.finished_s) == [5.0, 301.0]  # what started last hangs
    assert list(result.tasks.error_code) == [None, "timeout"]
    assert scene.session.snapshot().news == (
        hung,
        "301.0 s  task-000001 failed (timeout): ran longer than its timeout of 300 s",
    )


def test_a_crashed_worker_takes_all_on_its_gpu_with_it(stage: Callable[..., Stage]) -> None:
    scene = stage([{"duration_s": 5.0, "gpu_id": 2}] * 3)
    scene.step()
    assert scene.do(lambda: scene.session.inject("crash_worker")) == 2
    assert "3 attempts with it" in scene.session.snapshot().news[0]
    assert list(scene.play().tasks.attempts) == [2, 2, 2]


@pytest.mark.parametrize(
    ("kind", "gpu_id", "parts"),
    [
        ("lose_gpus", None, ("'lose_gpus'", "allowed: lose_gpu, ", "Did you mean 'lose_gpu'?")),
        (["lose_gpu"], None, ("['lose_gpu'] cannot be done", "allowed: lose_gpu, ")),
        ("lose_gpu", 3, ("lose_gpu: GPU 3 is out of range", "from 0 to 2")),
        ("lose_gpu", -1, ("GPU -1 is out of range",)),
        ("lose_gpu", True, ("GPU True is not a number", "a whole number from 0 to 2")),
        ("lose_gpu", "0", ("GPU '0' is not a number",)),
        ("lose_gpu", 0.5, ("GPU 0.5 is not a whole number",)),
        ("return_gpu", None, ("there is no GPU", "GPU 0 is not lost")),
        ("return_gpu", 1, ("GPU 1 is not lost",)),
        ("cool_down", 1, ("GPU 1 was not made to overheat",)),
        ("hang_task", 2, ("GPU 2 runs nothing that could hang",)),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_changes(
    stage: Callable[..., Stage], kind: Any, gpu_id: Any, parts: tuple[str, ...]
) -> None:
    scene = stage(NAPS)
    scene.step()
    with pytest.raises(DeviceError) as refused:
        scene.session.inject(kind, gpu_id)
    assert all(part in str(refused.value) for part in parts)
    assert scene.session.snapshot().news == ()
    assert list(scene.play().tasks.state) == ["COMPLETED"] * 10


def test_a_planned_hang_is_news_where_something_runs(stage: Callable[..., Stage]) -> None:
    scene = stage([{"duration_s": 5.0, "submit_s": 1.0}], [altlas.Fault(time_s, 0, "hang_task") for time_s in (0.5, 2)])
    scene.step(lambda seen: seen.time_s >= 1.0)
    assert scene.session.snapshot().news == ()
    scene.play()
    assert scene.session.snapshot().news[0] == "2.0 s  GPU 0: what started last there makes no more progress"


def test_nothing_can_be_broken_before_a_run_begins_or_when_it_is_over(stage: Callable[..., Stage]) -> None:
    scene = stage(NAPS)
    with pytest.raises(StateError, match="lose_gpu: the run is ready"):
        scene.session.inject("lose_gpu")
    scene.play()
    with pytest.raises(StateError, match="lose_gpu: the run is ended"):
        scene.session.inject("lose_gpu")


# --- states, ends, other machines -------------------------------------------------------------------------------------


def test_a_run_is_ready_runs_stands_and_ends(stage: Callable[..., Stage]) -> None:
    scene = stage(None)
    session = scene.session
    assert session.snapshot().state == "ready"
    session.stop()  # there is nothing to stop
    assert session.snapshot().state == "ready"
    states: list[str] = []
    for act in (session.start, lambda: scene.do(session.pause), session.start, session.stop):
        act()
        states.append(session.snapshot().state)
        assert states[-1] == "ended" or session.result is None
    assert states[:3] == ["running", "paused", "running"]
    assert session.wait(PATIENCE_S)
    ended = session.snapshot()
    assert ended.state == "ended"
    assert session.result is not None
    assert session.result.metrics["tasks"] == ended.submitted


def test_a_run_that_is_stopped_leaves_open_what_was_not_final(stage: Callable[..., Stage]) -> None:
    scene = stage(NAPS)
    scene.step(lambda seen: seen.completed == 2)
    scene.session.stop()
    assert scene.session.wait(PATIENCE_S)
    result = scene.session.result
    assert result is not None
    assert Counter(result.tasks.state) == {"COMPLETED": 2, "RUNNING": len(result.tasks) - 2}
    assert result.metrics["completed"] == 2


def test_a_strategy_that_breaks_ends_the_run_with_one_line_that_says_so(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(USER_STRATEGIES, "broken", lambda task, gpus: gpus[99])
    scene = stage(NAPS)
    scene.step(lambda seen: seen.submitted == 3)
    scene.session.set_strategy("broken")
    scene.session.start()
    assert scene.session.wait(PATIENCE_S)
    seen = scene.session.snapshot()
    assert seen.state == "failed"
    assert seen.error == "strategy 'broken' raised IndexError: list index out of range (task-000003)"
    assert scene.session.result is None


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (SystemExit(3), "strategy 'broken' raised SystemExit: 3 (task-000000)"),
        (KeyboardInterrupt("now"), "KeyboardInterrupt: now"),
    ],
)
def test_a_strategy_that_would_end_the_process_makes_the_run_fail(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch, problem: BaseException, told: str
) -> None:
    def choose(task: Any, gpus: Any) -> None:
        raise problem

    monkeypatch.setitem(USER_STRATEGIES, "broken", choose)
    session = stage(NAPS).session
    session.set_strategy("broken")
    session.start()
    assert session.wait(PATIENCE_S)
    seen = session.snapshot()
    assert (seen.state, seen.error, session.result) == ("failed", told, None)


def test_whoever_starts_the_run_while_a_step_ends_is_not_left_with_a_pause(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[None] = []

    def stepping(clock: SteeredClock) -> bool:
        was = clock._stepping
        if was and not starts:  # between the driver's look and what it does about it
            starts.append(None)
            clock.run()
        return was

    monkeypatch.setattr(SteeredClock, "stepping", property(stepping))
    session = stage(NAPS).session
    session.step()
    assert session.wait(5.0), session.snapshot().state
    assert starts


def test_another_machine_is_a_fresh_run_with_all_else_as_it_was(stage: Callable[..., Stage]) -> None:
    scene = stage(NAPS)
    session = scene.session
    session.set_pace(7.0)
    session.set_rate(2.0)
    session.set_strategy("round_robin")
    old = scene.step(lambda seen: seen.completed == 2)
    before = session._run
    session.rebuild(["2x T4", "1x A100"], slots=2)
    assert before.over.wait(PATIENCE_S)
    seen = session.snapshot(old.next_since)
    assert (seen.run, seen.state, seen.time_s, seen.submitted) == (old.run + 1, "ready", 0.0, 0)
    assert (seen.pace, seen.rate_factor, seen.strategy, seen.seed) == (7.0, 2.0, "round_robin", 42)
    assert (seen.device_texts, seen.slots) == (("2x T4", "1x A100"), 2)
    assert [(gpu.name, gpu.slots) for gpu in seen.gpus] == [("T4", 2), ("T4", 2), ("A100-SXM4-80GB", 2)]
    scene.step(lambda now: now.submitted == 2)
    assert {view.task_id for view in session.snapshot(old.next_since).attempts} == {"task-000000", "task-000001"}
    result = scene.play()
    assert list(result.tasks.submitted_s) == [0.5 * i for i in range(10)]
    session.rebuild("3x T4")
    assert session.snapshot().device_texts == ("3x T4",)
    session.rebuild("2x T4, 1x A100", slots=1)
    assert (session.snapshot().slots, session.snapshot().device_texts) == (1, ("2x T4", "1x A100"))


def test_a_machine_that_cannot_be_leaves_the_run_alone(stage: Callable[..., Stage]) -> None:
    scene = stage([{"duration_s": 1.0, "gpu_id": 2}])
    scene.step()
    for devices, slots, error, text in (
        (["3x A99"], None, ConfigError, "unknown GPU name 'A99'"),
        ("3x A99", None, ConfigError, "unknown GPU name 'A99'"),
        (5, None, ConfigError, "5 is not a list of device specs"),
        (None, 0, ConfigError, "max_concurrent_tasks_per_gpu: 0 is out of range"),
        (["2x A100"], None, WorkloadError, "task-000000: gpu_id 2 is not there"),
    ):
        with pytest.raises(error, match=text):
            scene.session.rebuild(devices, slots)
    assert (scene.session.snapshot().run, scene.session.snapshot().state) == (1, "paused")


@pytest.mark.parametrize(
    ("act", "error", "text"),
    [
        (lambda session: session.set_pace(0), ConfigError, "pace: 0 is out of range"),
        (lambda session: session.set_pace("fast"), ConfigError, "pace: 'fast' is not a number"),
        (lambda session: session.set_rate(0.05), ConfigError, "rate: 0.05 is out of range; allowed: a number from 0.1"),
        (lambda session: session.set_strategy("random_"), StrategyError, "Did you mean 'random'?"),
        (lambda session: session.set_strategy(["random"]), StrategyError, "a name is needed"),
    ],
)
def test_a_control_that_cannot_be_set_so_says_what_is_allowed(
    stage: Callable[..., Stage], act: Callable[[LiveSession], None], error: type[AltlasError], text: str
) -> None:
    session = stage(NAPS).session
    before = session.snapshot()
    with pytest.raises(error) as refused:
        act(session)
    assert text in str(refused.value)
    assert session.snapshot() == before


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"workload": [1]}, WorkloadError, "list is no workload"),
        ({"settings": {"seed": 3}}, ConfigError, "dict is no settings"),
        ({"seed": -1}, ConfigError, "seed: -1"),
        ({"faults": [altlas.Fault(0.0, 99, "lose_gpu")]}, WorkloadError, "gpu_id: 99 is not there"),
        ({"faults": [altlas.Fault(0.0, 0, "lose_gpu"), 1]}, WorkloadError, r"faults: \[1\]: 1 is no fault"),
        ({"faults": 5}, WorkloadError, "faults: 5 is no list"),
    ],
)
def test_what_cannot_be_run_is_refused_when_the_session_is_made(
    given: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        LiveSession(**{"settings": altlas.load_config(environ={}), **given})


def test_a_closed_session_has_no_thread_and_begins_nothing(stage: Callable[..., Stage]) -> None:
    before = set(threading.enumerate())
    scene = stage(None)
    scene.session.start()
    scene.session.close()
    scene.session.close()
    assert set(threading.enumerate()) <= before
    assert scene.session.snapshot().state == "ended"
    with pytest.raises(StateError, match="closed"):
        scene.session.start()


def test_a_strategy_that_never_returns_does_not_hold_up_whoever_closes(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = threading.Event(), threading.Event()

    def choose(task: Any, gpus: Any) -> Any:
        asked.set()
        answer.wait(PATIENCE_S)
        return gpus[0]

    monkeypatch.setitem(USER_STRATEGIES, "slow", choose)
    monkeypatch.setattr(sys.modules[LiveSession.__module__], "CLOSE_S", 0.05)
    session = stage(NAPS).session
    session.set_strategy("slow")
    session.start()
    assert asked.wait(PATIENCE_S)
    session.close()
    assert not session.wait(0.0)
    answer.set()
    assert session.wait(PATIENCE_S)
    assert session.snapshot().state == "ended"


# --- what one sees ----------------------------------------------------------------------------------------------------


def test_the_figures_of_the_last_snapshot_are_those_of_the_result(stage: Callable[..., Stage]) -> None:
    scene = stage(BUSY, FAULTS, **CHECKED)
    metrics = scene.play().metrics
    seen = scene.session.snapshot()
    assert (seen.submitted, seen.queued, seen.running) == (metrics["tasks"], 0, 0)
    assert (seen.completed, seen.failed, seen.cancelled) == (
        metrics["completed"],
        metrics["failed"],
        metrics["cancelled"],
    )
    assert scene.session.result is not None
    tasks = scene.session.result.tasks
    done = tasks[tasks.state == "COMPLETED"]
    for column, percent, told in (
        (done.finished_s - done.submitted_s, 0.5, seen.latency_p50_s),
        (done.finished_s - done.submitted_s, 0.95, seen.latency_p95_s),
        (done.finished_s - done.submitted_s, 0.99, seen.latency_p99_s),
        (done.started_s - done.submitted_s, 0.5, seen.wait_p50_s),
    ):
        exact = sorted(column)[math.ceil(percent * len(column)) - 1]
        assert told == pytest.approx(exact, rel=0.0101)
    assert max(seen.queue_depths) <= metrics["tasks"]
    assert len(seen.news) <= MOST_NEWS


def test_whoever_asks_for_what_changed_gets_every_attempt_and_no_lane_twice_at_a_time(
    stage: Callable[..., Stage],
) -> None:
    scene = stage(BUSY, FAULTS, **CHECKED)
    known: dict[str, AttemptView] = {}
    since = 0
    while True:
        state = scene.step().state
        seen = scene.session.snapshot(since)
        since = seen.next_since
        assert scene.session.snapshot(since).attempts == ()
        known |= {view.key: view for view in seen.attempts}
        running = [view for view in known.values() if view.ended_s is None]
        assert sorted(v.gpu_id for v in running) == sorted(g.gpu_id for g in seen.gpus for _ in range(g.running))
        assert len({(view.gpu_id, view.lane) for view in running}) == len(running)
        assert all(view.lane < seen.slots for view in running)
        if state != "paused":
            break
    result = scene.session.result
    assert result is not None
    told = sorted((v.task_id, int(v.key.partition(".")[2]), v.started_s, v.ended_s) for v in known.values())
    table = result.attempts
    assert told == sorted(zip(table.task_id, table.attempt, table.started_s, table.ended_s, strict=True))
    assert {view.outcome for view in known.values()} <= set(OUTCOMES) - {"open"}
    assert len({view.outcome for view in known.values()}) >= 4
    assert len(scene.session.snapshot(0).attempts) == len(known)


def test_of_a_long_run_the_latest_attempts_are_kept_and_all_that_run() -> None:
    result = altlas.run(
        altlas.load_config(overrides={"gpu.devices": ["2x A100"]}, environ={}),
        altlas.Workload.uniform(MOST_ENDED * 3, interval_s=0.5, duration_s=1.0),
    )
    started = result.log.attempts()
    still = started[3]
    still.ended_s = still.outcome = None  # one that goes on for ever
    views, number = Ledger(started, 10).changes(0)
    assert len(views) == MOST_ENDED + 1
    assert number > 10 + 2 * MOST_ENDED
    assert [view.task_id for view in views if view.ended_s is None] == [still.task.task_id]
    assert {view.lane for view in views if view.gpu_id == still.gpu_id} == {0, 1, 2}


@pytest.mark.parametrize("count", [0, 1, 7, 10_000])
def test_a_percentile_is_within_one_percent(count: int) -> None:
    values = [0.0001 * 1.003**i for i in range(count)]
    spread = Spread()
    for value in values:
        spread.add(value)
    for percent, told in zip((1, 50, 95, 99, 100), spread.percentiles(1, 50, 95, 99, 100), strict=True):
        exact = values[max(1, math.ceil(percent / 100 * count)) - 1] if values else None
        assert told == (None if exact is None else pytest.approx(exact, rel=0.0101))


def test_series_stay_short_and_true_however_long_the_run() -> None:
    depths, windows = Depths(), Windows()
    for i in range(30_000):
        depths.add(0.5 * i, 900 if i == 777 else i % 5)
        windows.add(0.5 * i, 2.0 if i < 15_000 else 4.0)
    assert len(depths.times_s) == len(depths.depths) <= MOST_DEPTHS
    assert depths.times_s == sorted(depths.times_s)
    assert max(depths.depths) == 900
    assert len(windows.ends_s) == len(windows.p50) == len(windows.p95) <= MOST_WINDOWS
    assert len(windows.ends_s) >= MOST_WINDOWS // 2
    assert [windows.p50[1], windows.p50[-1]] == [pytest.approx(2.0, rel=0.01), pytest.approx(4.0, rel=0.01)]
    assert windows.recent_per_s(15_000.0) == pytest.approx(2.0, rel=0.05)
    windows.turn(40_000.0)
    assert windows.recent_per_s(40_000.0) == 0.0
    assert windows.p50[-1] is None


def test_a_task_that_fails_again_and_again_in_one_instant_has_failed_once(stage: Callable[..., Stage]) -> None:
    scene = stage([{"kind": "raise_error", "retry_count": 2}])
    assert scene.play().tasks.attempts[0] == 3
    assert scene.session.snapshot().failed == 1


def test_news_tell_failures_alike_in_one_line(stage: Callable[..., Stage]) -> None:
    scene = stage([{"duration_s": 2.0, "timeout_s": 1.0, "submit_s": 0.1 * i} for i in range(30)])
    scene.play()
    assert scene.session.snapshot().news == ("3.9 s  30 tasks failed (timeout), the last of them task-000029",)


# --- real devices -----------------------------------------------------------------------------------------------------


def test_a_real_machine_starts_nothing_more_while_it_is_paused_and_keeps_its_own_time() -> None:
    settings = altlas.load_config(
        overrides={"gpu.devices": ["cpu:1"], "gpu.workload.spare_workers": 0, "telemetry.interval": 0.05}, environ={}
    )
    naps = [{"kind": "sleep", "duration_s": 0.2}] * 12
    session = LiveSession(settings, altlas.Workload.from_records(naps))
    try:
        for act in (session.step, lambda: session.set_pace(10.0)):
            with pytest.raises(ConfigError, match="real devices run in real time"):
                act()
        assert (session.snapshot().can_pace, session.snapshot().pace) == (False, 1.0)
        session.start()
        while session.snapshot().completed < 4:
            threading.Event().wait(0.005)
        session.pause()
        while session.snapshot().running:
            threading.Event().wait(0.005)
        paused = session.snapshot()
        assert (paused.state, paused.queued + paused.completed) == ("paused", 12)
        assert paused.queued > 0
        with pytest.raises(DeviceError, match="overheat: GPU 0 is a real device"):
            session.inject("overheat", 0)
        session.start()
        assert session.wait(PATIENCE_S)
        result = session.result
        assert result is not None
        assert list(result.tasks.state) == ["COMPLETED"] * 12
        assert result.provenance == "measured"
        assert json.loads(next(result.event_lines()))["devices"][0]["kind"] == "cpu"
    finally:
        session.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("altlas-")]
