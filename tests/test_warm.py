"""Worker processes that outlive a run: shared by the runs of a block, as good as new for each, gone with the block."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import psutil
import pytest

import altlas_core as altlas
from altlas_core.backends import warm
from altlas_core.config import load_config
from altlas_core.faults import Fault
from altlas_core.model import DeviceSpec

CPUS = [DeviceSpec(i, "cpu", f"cpu:{i}", 2 << 30, index=i, uuid=f"CPU-{i}", cores=1) for i in range(2)]
LINEAR = {"iterations": 2, "input_size": 64, "output_size": 64, "batch": 8}


def workers() -> set[int]:
    """The worker processes of this one."""
    children = psutil.Process().children()
    return {child.pid for child in children if "altlas_core.backends.worker.program" in child.cmdline()}


def run(records: list[dict[str, Any]], *faults: Fault, devices: Any = CPUS, seed: int = 42, slots: int = 2) -> Any:
    overrides = {
        "gpu.backend": "cpu",
        "gpu.selection.default_strategy": "round_robin",
        "gpu.workload.max_concurrent_tasks_per_gpu": slots,
        "gpu.workload.kill_grace": 0.05,
        "gpu.workload.spare_workers": 0,
        "telemetry.interval": 0.05,
    }
    asked = altlas.Workload.from_records(records)
    return altlas.run(load_config(overrides=overrides), asked, seed=seed, faults=faults, devices=devices)


def details(result: altlas.Result) -> list[dict[str, Any]]:
    return [attempt.detail for attempt in result.log.attempts()]


def test_runs_of_a_block_share_workers_and_none_is_left_after_it() -> None:
    with warm.keep():
        run([LINEAR])
        first = workers()
        assert len(first) == 2
        with warm.keep():  # belongs to the outer one
            run([LINEAR], seed=7)
        assert workers() == first
        hang = {"kind": "hang", "duration_s": 600.0, "timeout_s": 1.5, "gpu_id": 0}
        result = run([hang] * 3 + [LINEAR | {"gpu_id": 0}], slots=4)  # of which the worker was told
        assert list(result.tasks.attempts) == [1, 1, 1, 1]
        assert result.tasks.state[3] == "COMPLETED"
    assert not workers()
    run([LINEAR])
    assert not workers()


def test_another_seed_gives_other_numbers_and_the_first_one_the_same_again() -> None:
    with warm.keep():
        errors = [details(run([LINEAR], seed=seed))[0]["max_rel_error"] for seed in (42, 7, 42)]
    assert errors[0] == errors[2] != errors[1]


def test_a_run_on_some_of_the_devices_numbers_them_anew_and_others_rest() -> None:
    second = [replace(CPUS[1], gpu_id=0)]
    with warm.keep():
        run([LINEAR] * 2)
        first = workers()
        result = run([{"kind": "crash_worker"}, LINEAR], devices=second)
        assert list(result.tasks.error_code) == ["worker_crashed", None]
        assert list(result.tasks.gpu_id) == [0, 0]
        assert len(first & workers()) == 1  # the one that rested
        assert list(run([LINEAR] * 4).tasks.state) == ["COMPLETED"] * 4


def test_what_was_lost_crashed_or_killed_in_one_run_is_there_in_the_next() -> None:
    nap = {"kind": "sleep", "duration_s": 0.2, "retry_count": 0}
    hang = {"kind": "hang", "duration_s": 600.0, "timeout_s": 0.1}
    with warm.keep():
        run([nap] * 2, Fault(0.1, 0, "lose_gpu"))
        assert list(run([LINEAR | {"gpu_id": 0}]).tasks.state) == ["COMPLETED"]
        run([nap, hang], Fault(0.19, 1, "crash_worker"))
        result = run([nap] * 4)
        assert list(result.tasks.state) == ["COMPLETED"] * 4
        assert list(result.tasks.attempts) == [1] * 4


def test_a_run_reads_nothing_that_an_earlier_one_left() -> None:
    big = {"iterations": 1, "input_size": 4096, "output_size": 8192, "batch": 1}  # 128 MiB
    with warm.keep():
        run([big | {"gpu_id": 0}])
        table = run([{"kind": "sleep", "duration_s": 0.2, "gpu_id": 0}]).telemetry
    mine = table[table.gpu_id == 0]
    assert mine.utilization_pct.isna().iloc[0]  # the first reading has no span behind it
    assert mine.memory_used_bytes.iloc[-1] < mine.memory_used_bytes.iloc[0] + (64 << 20)
    with warm.keep():
        fresh = run([{"kind": "noop", "gpu_id": 0}]).telemetry.memory_used_bytes.iloc[-1]
    assert mine.memory_used_bytes.iloc[-1] < fresh + (64 << 20)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_in_the_block_leaves_nothing_behind(error: type[BaseException]) -> None:
    def block() -> None:
        with warm.keep():
            run([LINEAR])
            assert workers()
            raise error

    with pytest.raises(error):
        block()
    assert not workers()


def test_a_run_that_breaks_does_not_spoil_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    from altlas_core.distributor import Distributor

    def broken(*_: object) -> None:
        raise RuntimeError("broken on purpose")

    with warm.keep():
        run([LINEAR])
        with monkeypatch.context() as patched:
            patched.setattr(Distributor, "dispatch", broken)
            with pytest.raises(RuntimeError, match="on purpose"):
                run([LINEAR])
        assert not workers()
        assert list(run([LINEAR]).tasks.state) == ["COMPLETED"]
    assert not workers()


def test_a_run_in_another_thread_has_workers_of_its_own() -> None:
    with warm.keep():
        run([LINEAR], devices=CPUS[:1])
        first = workers()
        thread = threading.Thread(target=run, args=([LINEAR],), kwargs={"devices": CPUS[:1]})
        thread.start()
        thread.join()
        assert workers() == first


def test_simulated_runs_keep_nothing() -> None:
    with warm.keep():
        altlas.run(workload=altlas.Workload.from_records([{"duration_s": 1.0}]))
        assert not workers()
