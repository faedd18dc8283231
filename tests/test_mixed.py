"""Real and simulated devices in one pool: whose call goes where, whose time is whose, and what is said of each."""

from __future__ import annotations

import json
import math
import threading
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from test_realtime_driver import LOOK_S, ObedientBackend, TurnedClock

import altlas_core as altlas
from altlas_core.backends import warm
from altlas_core.backends.machine import provenance_of
from altlas_core.backends.mixed import MixedBackend
from altlas_core.backends.simulated import SimulatedBackend
from altlas_core.config import load_config
from altlas_core.distributor import Distributor
from altlas_core.drivers.clock import Arrival, Inbox
from altlas_core.drivers.realtime import RealtimeDriver
from altlas_core.errors import ConfigError, DeviceError, RunError, WorkloadError
from altlas_core.event_log import EventLog
from altlas_core.events import RANK_DEVICE, RANK_SUBMIT, AttemptFinished, DeviceLost, Fact, TaskSubmitted
from altlas_core.experiment import check_pace
from altlas_core.faults import Fault
from altlas_core.intake import make_tasks
from altlas_core.model import DeviceSample, DeviceSpec, Task, TaskSpec
from altlas_core.replay import replay
from altlas_core.scenarios import performance
from altlas_core.scenarios.common import Bench
from altlas_core.telemetry import Telemetry


def gpu(gpu_id: int) -> DeviceSpec:
    return DeviceSpec(gpu_id, "simulated", "A100", 80 << 30, model="A100-SXM4-80GB", index=gpu_id)


def cpu(gpu_id: int) -> DeviceSpec:
    return DeviceSpec(gpu_id, "cpu", "cpu", 2 << 30, index=0, uuid="CPU-0", cores=1)


SPECS = [gpu(0), cpu(1), gpu(2)]  # the real one in the middle: positions and gpu_ids differ in both inner backends


class Scene:
    """A mixed pool on a clock that the test turns; `real` does what the test says."""

    def __init__(self, *script: tuple[float, Callable[[Inbox], None]], confirms: bool = True, slots: int = 1) -> None:
        self.settings = load_config(overrides={"gpu.workload.max_concurrent_tasks_per_gpu": slots}, environ={})
        self.clock = TurnedClock(*script)
        self.real = ObedientBackend(confirms)
        self.backend = MixedBackend(SPECS, SimulatedBackend([SPECS[0], SPECS[2]], 85.0), self.real)
        self.distributor = Distributor(self.settings.gpu, SPECS, 42)
        self.log = EventLog({})
        self.telemetry = Telemetry(self.distributor, self.backend, 0.5)
        self.driver = RealtimeDriver(
            self.distributor,
            self.backend,
            clock=self.clock,
            queue_processing_interval_s=LOOK_S,
            health_check_interval_s=60.0,
            telemetry=self.telemetry,
            log=self.log,
        )

    def run(self, *specs: TaskSpec) -> list[Task]:
        tasks = make_tasks(specs, self.settings.gpu, len(SPECS))
        self.driver.run([(task.spec.submit_s, RANK_SUBMIT, TaskSubmitted(task)) for task in tasks])
        return list(tasks)

    def late_until(self, seconds: float) -> Callable[[Inbox], None]:
        """The driver gets no processor until then."""
        return lambda _: setattr(self.clock, "time_s", 1000.0 + seconds)


def arriving(fact: Fact, at_s: float) -> Callable[[Inbox], None]:
    return lambda inbox: inbox.put(Arrival(fact, 1000.0 + at_s))


def on(gpu_id: int, **values: Any) -> TaskSpec:
    return TaskSpec(gpu_id=gpu_id, kind="sleep", **values)


# --- whose time is whose ----------------------------------------------------------------------------------------------


def test_simulated_attempts_last_exactly_as_long_as_asked_however_late_the_driver_is() -> None:
    scene = Scene()
    scene.clock.script = [(1000.3, scene.late_until(5.0))]
    first, second, other = scene.run(on(0, submit_s=0.25, duration_s=1.0), on(0, submit_s=0.25, duration_s=0.5),
                                     on(2, submit_s=0.5, duration_s=0.1))  # fmt: skip
    assert (first.started_s, first.finished_s) == (0.25, 1.25)
    assert (second.started_s, second.finished_s) == (1.25, 1.75)  # its slot came free long before the driver looked
    assert (other.started_s, other.finished_s) == (0.5, 0.6)


def test_what_a_real_device_reports_counts_from_when_it_arrived() -> None:
    def report(inbox: Inbox) -> None:
        arriving(AttemptFinished(0, 1), 0.75)(inbox)
        scene.late_until(5.0)(inbox)

    scene = Scene((0.75, report))
    real, simulated = scene.run(on(1, duration_s=0.7), on(0, duration_s=1.0))
    assert (real.started_s, real.finished_s) == (0.0, 0.75)
    assert simulated.finished_s == 1.0


@pytest.mark.parametrize(("arrived_s", "state"), [(0.984375, "COMPLETED"), (1.0, "COMPLETED"), (1.015625, "FAILED")])
def test_a_late_look_does_not_cost_a_real_task_its_deadline(arrived_s: float, state: str) -> None:
    def report(inbox: Inbox) -> None:
        scene.late_until(3.0)(inbox)
        arriving(AttemptFinished(0, 1), arrived_s)(inbox)

    scene = Scene((0.9, report))
    (task,) = scene.run(on(1, duration_s=1.0, timeout_s=1.0))
    assert task.state == state
    assert task.finished_s == min(1.0, arrived_s)


def test_a_fact_from_another_thread_arrives_at_the_time_it_is_posted() -> None:
    def report(inbox: Inbox) -> None:
        thread = threading.Thread(target=scene.driver.post, args=[AttemptFinished(0, 1)])
        thread.start()
        thread.join()
        scene.late_until(3.0)(inbox)

    scene = Scene((0.5, report))
    (task,) = scene.run(on(1, duration_s=0.5))
    assert task.finished_s == 0.5


def test_the_log_of_a_late_driver_replays() -> None:
    def report(inbox: Inbox) -> None:
        arriving(AttemptFinished(3, 1), 0.6)(inbox)
        scene.late_until(2.0)(inbox)

    scene = Scene((0.5, report), (2.5, arriving(AttemptFinished(4, 1), 2.5)))
    scene.log.header.update(_header(scene))
    tasks = [on(0, duration_s=0.4)] * 3 + [on(1, duration_s=0.5)] * 2 + [on(2, duration_s=0.3, timeout_s=0.2)]
    scene.run(*tasks)
    assert replay(scene.log.lines()).difference is None
    times = [entry["t"] for entry in map(json.loads, scene.log.lines()) if "t" in entry]
    assert times == sorted(times)


def _header(scene: Scene) -> dict[str, Any]:
    from altlas_core.experiment import log_header

    return log_header(scene.settings, SPECS, 42)


def test_a_stop_of_a_simulated_attempt_is_confirmed_at_that_instant_and_of_a_real_one_when_it_says_so() -> None:
    scene = Scene(confirms=False)

    def confirm(inbox: Inbox) -> None:
        from altlas_core.events import AttemptStopped

        arriving(AttemptStopped(1, 1), 3.0)(inbox)

    scene.clock.script = [(1003.0, confirm)]
    simulated, real = scene.run(on(0, duration_s=9.0, timeout_s=1.0), on(1, duration_s=9.0, timeout_s=1.0))
    assert simulated.finished_s == real.finished_s == 1.0
    ended = {attempt.task.index: attempt.ended_s for attempt in scene.log.attempts()}
    assert ended == {0: 1.0, 1: 3.0}


# --- readings ---------------------------------------------------------------------------------------------------------


def test_readings_are_taken_by_the_clock_of_all_devices_in_the_order_of_the_pool() -> None:
    scene = Scene((1.25, arriving(AttemptFinished(0, 1), 1.25)))
    scene.real.samples[1] = DeviceSample(utilization_pct=50.0)
    scene.run(on(1, duration_s=1.2))
    table = scene.telemetry.table()
    assert list(table.gpu_id) == [0, 1, 2] * 4
    assert list(table.time_s)[::3] == [0.0, 0.5, 1.0, 1.25]
    assert list(table.provenance[:3]) == ["simulated", "measured", "simulated"]
    real = table[table.gpu_id == 1]
    assert list(real.utilization_pct) == [50.0] * 4
    assert real.memory_used_bytes.isna().all()
    assert table[table.gpu_id == 2].power_w.notna().all()


def test_a_lost_device_of_either_kind_has_no_readings() -> None:
    scene = Scene()
    scene.backend.open(scene.driver)
    scene.real.samples[1] = None
    scene.backend.inject(0.0, Fault(0.0, 0, "lose_gpu"))
    columns = [array("d") for _ in range(4)]
    scene.backend.record(1.0, *columns)
    assert [math.isnan(value) for value in columns[3]] == [True, True, False]


def test_means_of_a_real_backend_are_taken_where_it_has_them() -> None:
    scene = Scene()
    scene.real.mean_sample = lambda now, gpu_id: DeviceSample(utilization_pct=12.5)  # type: ignore[attr-defined]
    scene.real.history = object()  # type: ignore[attr-defined]
    backend = MixedBackend(SPECS, SimulatedBackend([SPECS[0], SPECS[2]], 85.0), scene.real)
    columns = [array("d") for _ in range(4)]
    backend.record(1.0, *columns)
    assert columns[0][1] == 12.5
    assert backend.history is scene.real.history  # type: ignore[attr-defined]
    assert scene.backend.history is scene.real.history  # type: ignore[attr-defined]


# --- whose call goes where --------------------------------------------------------------------------------------------


def test_orders_and_faults_reach_the_backend_of_their_device() -> None:
    scene = Scene((0.5, arriving(AttemptFinished(1, 1), 0.5)))
    for gpu_id in (1, 2):
        scene.driver.post_at(0.25, RANK_DEVICE, scene.backend.inject, Fault(0.25, gpu_id, "lose_gpu"))
    tasks = scene.run(on(0, duration_s=0.5), on(1, duration_s=0.5), on(2, duration_s=0.5))
    assert scene.real.orders() == ["start 1.1 on 1"]
    lost = [entry for entry in scene.log.entries if isinstance(entry, DeviceLost)]
    assert [(fact.gpu_id, fact.reason) for fact in lost] == [(1, "lose_gpu"), (2, "fell off the bus (simulated fault)")]
    assert tasks[0].state == "COMPLETED"


def test_the_real_backend_is_polled_flushed_and_closed() -> None:
    polls: list[float] = []
    scene = Scene((0.5, arriving(AttemptFinished(0, 1), 0.5)))
    scene.real.on_poll = polls.append
    scene.run(on(1, duration_s=0.5))
    assert polls
    assert scene.real.calls[:2] == ["start 0.1 on 1", "flush"]
    assert scene.real.calls[-1] == "close"


# --- what is allowed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("specs", "provenance"),
    [([gpu(0), gpu(1)], "simulated"), ([cpu(0)], "measured"), (SPECS, "mixed")],
)
def test_provenance_is_that_of_the_devices(specs: Sequence[DeviceSpec], provenance: str) -> None:
    assert provenance_of(specs) == provenance


@pytest.mark.parametrize("pace", [0.5, 10.0])
def test_another_pace_than_real_time_is_refused_beside_real_devices(pace: float) -> None:
    settings = load_config(None, {"run.pace": pace}, environ={})
    check_pace(settings, "simulated")
    with pytest.raises(ConfigError, match=r"run\.pace: .*allowed: 1, or 0"):
        altlas.run(settings, altlas.Workload.from_records([{"duration_s": 1.0}]), devices=SPECS)


@pytest.mark.parametrize(
    "specs", [[gpu(0)], [cpu(0)], [replace(cpu(0), part=0, parts=2), replace(cpu(1), part=1, parts=2)], SPECS]
)
def test_a_pin_to_a_device_that_is_not_there_is_refused_on_every_kind(specs: Sequence[DeviceSpec]) -> None:
    work = altlas.Workload.from_records([{"duration_s": 1.0, "gpu_id": 7}])
    with pytest.raises(WorkloadError, match="gpu_id 7 is not there; this machine has GPU"):
        altlas.run(load_config(environ={}), work, devices=specs)


def test_work_that_a_device_cannot_do_is_refused_before_anything_starts() -> None:
    work = altlas.Workload.from_records([{"duration_s": 1.0, "dtype": "tf32"}])
    with pytest.raises(WorkloadError, match=r"tf32 .*GPU 1"):
        altlas.run(load_config(environ={}), work, devices=SPECS)
    pinned = altlas.Workload.from_records([{"duration_s": 1.0, "dtype": "tf32", "gpu_id": 0}])
    assert altlas.run(load_config(environ={}), pinned, devices=[gpu(0)]).tasks.state[0] == "COMPLETED"


def test_answers_that_came_too_late_are_counted_in_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    class Workers(ObedientBackend):
        late = 3

        def devices(self) -> Sequence[DeviceSpec]:
            return [SPECS[1]]

    monkeypatch.setattr(warm, "torch_backend", lambda *_: Workers())
    result = altlas.run(load_config(environ={}), altlas.Workload.from_records([{"kind": "noop", "gpu_id": 0}]),
                        devices=SPECS)  # fmt: skip
    assert result.stale == {"late result": 3}
    assert result.metrics["late_facts"] == 3


def test_readings_of_a_real_device_cannot_be_made_up_in_a_mixed_pool() -> None:
    settings = load_config(environ={})
    work = altlas.Workload.from_records([{"duration_s": 1.0}])
    with pytest.raises(WorkloadError, match="GPU 1 is a real device"):
        altlas.run(settings, work, faults=[Fault(0.0, 1, "overheat", value=99.0)], devices=SPECS)


def test_a_real_device_that_cannot_start_ends_the_run() -> None:
    class Broken(ObedientBackend):
        def open(self, mailbox: Any) -> None:
            raise RunError("no worker")

    scene = Scene()
    scene.backend.real = scene.real = Broken()
    with pytest.raises(RunError, match="no worker"):
        scene.run(on(0, duration_s=1.0))
    assert scene.real.calls == ["close"]


def test_some_devices_of_a_larger_machine_are_numbered_anew() -> None:
    settings = load_config(None, {"gpu.selection.default_strategy": "round_robin"}, environ={})
    work = altlas.Workload.from_records([{"duration_s": 1.0}] * 4)
    result = altlas.run(settings, work, devices=[gpu(5), gpu(3)])
    assert [spec.gpu_id for spec in result.devices] == [0, 1]
    assert list(result.tasks.gpu_id) == [0, 1, 0, 1]
    with pytest.raises(DeviceError, match="none were given"):
        altlas.run(settings, work, devices=[])


# --- for real ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result() -> altlas.Result:
    """One CPU device and two simulated GPUs, every time scaled; a GPU of the latter is lost on the way."""
    settings = load_config(
        None,
        {
            "gpu.devices": ["cpu:1", "2x A100"],
            "gpu.selection.default_strategy": "round_robin",
            "telemetry.interval": 0.1,
            "run.time_scale": 0.1,
        },
        environ={},
    )
    records: list[dict[str, Any]] = [
        {"submit_s": 0.5 * i, "duration_s": 2.0, "input_size": 64, "output_size": 64} for i in range(9)
    ]
    records += [{"submit_s": 1.0, "kind": "sleep", "duration_s": 600.0, "timeout_s": 2.0, "gpu_id": g} for g in (0, 1)]
    records.append({"duration_s": 1.0, "memory_bytes": 1 << 40})  # too large: it never starts
    with warm.keep():
        return altlas.run(settings, altlas.Workload.from_records(records), faults=[Fault(4.0, 2, "lose_gpu")])


def test_a_mixed_run_says_of_each_row_where_it_comes_from(result: altlas.Result) -> None:
    assert (result.backend, result.provenance) == ("mixed", "mixed")
    assert {gpu_id: set(rows) for gpu_id, rows in result.tasks.groupby("gpu_id").provenance} == {
        0: {"measured"},
        1: {"simulated"},
        2: {"simulated"},
    }
    assert list(result.tasks[result.tasks.attempts == 0].provenance) == [None]
    assert list(result.attempts.provenance) == [
        "measured" if gpu_id == 0 else "simulated" for gpu_id in result.attempts.gpu_id
    ]
    rows = result.telemetry.groupby("gpu_id").provenance.unique()
    assert [list(rows[gpu_id]) for gpu_id in range(3)] == [["measured"], ["simulated"], ["simulated"]]


def test_in_a_mixed_run_only_what_is_simulated_is_exact(result: altlas.Result) -> None:
    done = [task for task in result.task_list if task.state == "COMPLETED"]
    assert len(done) == 9
    for task in done:
        assert task.started_s is not None
        if task.gpu_id != 0:
            assert task.finished_s == task.started_s + 0.2  # 2 s, scaled
        else:
            assert task.finished_s >= task.started_s + 0.19
    details = [a.detail for a in result.log.attempts() if a.gpu_id == 0 and a.outcome == "finished"]
    assert details
    assert all(detail is not None and detail["reference_ok"] for detail in details)
    timed_out = [task for task in result.task_list if task.error_code == "timeout"]
    assert [(task.gpu_id, task.finished_s - (task.started_s or 0.0)) for task in timed_out] == [
        (0, pytest.approx(0.2)),
        (1, pytest.approx(0.2)),
    ]


def test_readings_at_the_samplers_rate_are_of_the_real_device_only(result: altlas.Result) -> None:
    assert len(result.readings)
    assert set(result.readings.gpu_id) == {0}
    assert result.readings.time_s.between(0.0, result.virtual_s).all()


def test_the_log_of_a_mixed_run_replays(result: altlas.Result) -> None:
    assert replay(result.event_lines()).difference is None
    assert all(check.passed for check in result.checks)


def test_on_a_mixed_machine_things_fail_on_a_real_device_and_each_kind_is_timed_alone() -> None:
    for devices, last, alone in (
        (["cpu:1", "2x T4"], 0, {"alone": 0, "alone on GPU 1": 1}),
        (["T4", "cpu:1"], 1, {"alone": 0, "alone on GPU 1": 1}),
        (["2x T4"], 1, {"alone": 0}),
        (["cpu:2"], 1, {"alone": 0}),
    ):
        bench = Bench("performance", load_config(None, {"gpu.devices": devices}, environ={}))
        assert bench.last_gpu_id == last
        assert performance._alone(bench, [4] * len(bench.devices)) == alone
    assert performance._alone(bench, [0, 4]) == {"alone": 1}  # GPU 0 has no room for it


def test_a_scenario_on_a_mixed_machine_compares_what_was_computed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_config(None, {"gpu.devices": ["cpu:1", "T4"], "run.time_scale": 0.05}, environ={})
    bench = Bench("basic_functionality", settings)
    assert bench.real
    assert bench.scale == 0.05
    size = {"input_size": 64, "output_size": 64, "duration_s": 4.0}
    bench.run("both", [{**size, "gpu_id": 0}, {**size, "gpu_id": 1}])
    found = bench.finish({}, [], {})
    assert found.provenance == "mixed"
    (compared,) = [check for check in found.checks if "float64" in check.name]
    assert compared.passed
    assert compared.observed.startswith("1 of 1")


def test_figures_and_commands_of_a_mixed_run_say_what_it_is(result: altlas.Result) -> None:
    from altlas_core import figures
    from altlas_core.backends.machine import Machine
    from altlas_core.report.environment import Request, command
    from altlas_core.report.pages import PROVENANCE_TEXT
    from altlas_core.report.suite import notebook_parameters

    for figure in (figures.readings(result, "power_w"), figures.queue_depth(result), figures.timeline(result)):
        assert "measured and simulated" in json.dumps(figure["layout"])
    assert "of simulated GPUs from the GPU catalog" in json.dumps(figures.memory_bars(result)["layout"])
    machine = Machine("mixed", result.devices)
    assert notebook_parameters(result.settings, machine, Request(), None)["backend"] == "auto"
    assert "--backend auto --devices cpu:1 --devices '2x A100'" in command(Request(), result.settings, machine)
    assert PROVENANCE_TEXT[machine.provenance].startswith("Measured and simulated")
