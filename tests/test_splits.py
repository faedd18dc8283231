"""One real device as several: its parts, what each has, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from fake_nvml import FakeNvml, gpus, installed
from test_discover import HOST, find, find_with, refusal

import altlas_core as altlas
from altlas_core.backends.discover import discover
from altlas_core.config import load_config
from altlas_core.device_names import group_name, whole_name
from altlas_core.experiment import log_header
from altlas_core.model import GIB, DeviceSpec
from altlas_core.replay import replay
from altlas_core.scenarios import SCENARIOS
from altlas_core.scenarios.measures import alike, device_texts


def test_every_cpu_device_is_cut_into_its_parts() -> None:
    specs = find("cpu:2/2").devices
    assert [(spec.gpu_id, spec.index, spec.part, spec.parts) for spec in specs] == [
        (0, 0, 0, 2),
        (1, 0, 1, 2),
        (2, 1, 0, 2),
        (3, 1, 1, 2),
    ]
    assert {(spec.memory_total_bytes, spec.cores) for spec in specs} == {(HOST.memory_bytes // 4, HOST.cores // 2)}
    assert [spec.name for spec in specs[:2]] == [f"{HOST.cpu_name} (part 1 of 2)", f"{HOST.cpu_name} (part 2 of 2)"]


def test_the_parts_of_a_gpu_have_its_identity_and_their_share_of_its_memory() -> None:
    machine = find_with(FakeNvml(gpus(2, total_mib=81920)), "cuda:1/4")
    assert [(spec.gpu_id, spec.index, spec.part, spec.parts) for spec in machine.devices] == [
        (part, 1, part, 4) for part in range(4)
    ]
    assert {spec.memory_total_bytes for spec in machine.devices} == {20 * GIB}
    assert len({spec.uuid for spec in machine.devices}) == 1
    assert len(machine.readings) == 4
    assert any("4 parts" in sentence for sentence in machine.statements)


def test_all_gpus_are_split_where_no_index_is_named() -> None:
    specs = find_with(FakeNvml(gpus(2)), "cuda/2").devices
    assert [(spec.gpu_id, spec.index, spec.part) for spec in specs] == [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1)]


def test_split_and_whole_devices_stand_side_by_side() -> None:
    specs = find_with(FakeNvml(gpus(2)), "cuda:1/2", "cuda:0", "cpu:1/3", "T4").devices
    assert [(spec.gpu_id, spec.kind, spec.index, spec.part, spec.parts) for spec in specs] == [
        (0, "cuda", 1, 0, 2),
        (1, "cuda", 1, 1, 2),
        (2, "cuda", 0, 0, 1),
        (3, "cpu", 0, 0, 3),
        (4, "cpu", 0, 1, 3),
        (5, "cpu", 0, 2, 3),
        (6, "simulated", 0, 0, 1),
    ]


@pytest.mark.parametrize(
    ("entry", "allowed"),
    [("cuda:0/32", "at most cuda:0/16"), ("cuda/17", "at most cuda/16"), ("cpu:2/1000", "at most cpu:2/128")],
)
def test_a_split_that_leaves_too_little_is_refused_with_the_largest_that_works(entry: str, allowed: str) -> None:
    message = refusal(FakeNvml(gpus(1, total_mib=16 * 1024)), entry)
    assert f"gpu.devices: {entry}" in message
    assert allowed in message
    assert find_with(FakeNvml(gpus(1, total_mib=16 * 1024)), allowed.removeprefix("at most ")).devices


def test_a_device_too_small_for_any_split_is_only_allowed_whole() -> None:
    assert "allowed here: cuda:0, unsplit" in refusal(FakeNvml(gpus(1, total_mib=1536)), "cuda:0/2")


def test_a_part_of_a_gpu_that_is_not_there_is_refused() -> None:
    assert "cuda:5 is not there" in refusal(FakeNvml(gpus(1)), "cuda:5/2")


def test_parts_are_alike_and_named_together() -> None:
    specs = find("cpu:1/3").devices
    assert alike(specs)
    assert device_texts(specs) == [f"3x {HOST.cpu_name} (1/3)"]
    assert {whole_name(spec) for spec in specs} == {HOST.cpu_name}
    assert group_name(find("cpu:1").devices[0]) == HOST.cpu_name
    assert not alike(find("cpu:1", "T4").devices)


def test_only_the_log_of_split_devices_speaks_of_parts() -> None:
    settings = load_config(environ={})
    split, whole = (log_header(settings, find(entry).devices, 42)["devices"] for entry in ("cpu:1/2", "cpu:2"))
    assert [(device["part"], device["parts"]) for device in split] == [(0, 2), (1, 2)]
    assert set(whole[0]) == {"gpu_id", "kind", "name", "memory_total_bytes"}


def test_the_detection_scenario_knows_parts_by_uuid_and_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two parts have one UUID and one PCI id; that is no mistake of the machine's."""
    from altlas_core.scenarios import gpu_detection
    from altlas_core.scenarios.common import Bench

    with installed(FakeNvml(gpus(1))):
        settings = load_config(None, {"gpu.devices": ["cuda:0/2"]}, environ={})
        machine = discover(settings, environ={}, host=HOST)
    monkeypatch.setattr("altlas_core.scenarios.common.discover", lambda _: machine)
    bench = Bench("gpu_detection", settings)
    gpu_detection._check_identity(bench)
    assert {check.name: check.passed for check in bench.checks if "unique" in check.name} == {
        "UUIDs are unique": True,
        "PCI ids are unique": True,
    }


# --- for real ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def split() -> altlas.Result:
    """Three tasks on each part of a CPU device; each part has a worker of its own, and one of them is killed."""
    settings = load_config(
        None,
        {"gpu.devices": ["cpu:1/2"], "gpu.selection.default_strategy": "round_robin", "telemetry.interval": 0.1},
        environ={},
    )
    records: list[dict[str, Any]] = [{"duration_s": 0.2, "input_size": 64, "output_size": 64}] * 6
    records.append({"kind": "crash_worker", "gpu_id": 1, "submit_s": 0.1})
    return altlas.run(settings, altlas.Workload.from_records(records))


def test_parts_run_tasks_and_only_the_part_whose_worker_dies_notices(split: altlas.Result) -> None:
    *tasks, crasher = split.task_list
    assert {task.state for task in tasks} == {"COMPLETED"}
    assert crasher.error_code == "worker_crashed"
    attempts = split.log.attempts()
    assert {attempt.gpu_id for attempt in attempts if attempt.task is not crasher} == {0, 1}
    assert {attempt.gpu_id for attempt in attempts if attempt.outcome == "worker_crashed"} == {1}
    assert all(check.passed for check in split.checks)


def test_the_log_of_a_split_device_replays(split: altlas.Result) -> None:
    replayed = replay(split.event_lines())
    assert replayed.difference is None
    specs = [device.spec for device in replayed.distributor.pool.devices]
    assert [(spec.part, spec.parts) for spec in specs] == [(0, 2), (1, 2)]
    assert all(isinstance(spec, DeviceSpec) for spec in specs)


def test_a_scenario_has_its_checks_on_parts() -> None:
    settings = load_config(None, {"gpu.devices": ["cpu:1/2"], "run.time_scale": 0.1}, environ={})
    result = SCENARIOS["gpu_detection"].run(settings)
    assert [check for check in result.checks if not check.passed] == []
    assert result.provenance == "measured"
