"""What `make gpu-check` does, on a CPU device: the same code, small. Times are looked at here, but decide nothing."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from altlas_core.backends import warm
from altlas_core.errors import AltlasError, DeviceError
from altlas_core.model import GIB, DeviceSpec

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))  # scripts, not a package

import gpu_check
import gpu_checks
import gpu_kinds
import gpu_machine
import gpu_speed
import gpu_text
from gpu_checks import Check
from gpu_stand import Finding, Stand

SMALL = {"small_model": 32, "medium_model": 64, "large_model": 256}


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    pytest.importorskip("torch")
    reports = tmp_path_factory.mktemp("gpu_check")
    with warm.keep():
        yield Stand("cpu:1", gpu_check.find("cpu:1"), reports, SMALL, batch=16, seconds=0.4, rounds=2, kill_grace_s=0.1)


# --- the checks, for real, on a CPU -----------------------------------------------------------------------------------


def test_products_are_judged_by_their_samples(stand: Stand) -> None:
    finding = gpu_checks.right("medium_model", stand)
    assert finding.passed
    assert 0 <= finding.figures["max_rel_error"] <= finding.figures["tolerance"]
    result = stand.play([stand.linear(32, iterations=1)])
    attempt = result.log.attempts()[0]
    assert attempt.detail is not None
    attempt.detail["reference_ok"] = False
    assert not gpu_checks.judge_products(result).passed


def test_a_task_that_failed_has_no_right_product(stand: Stand) -> None:
    finding = gpu_checks.judge_products(stand.play([{"kind": "raise_error", "retry_count": 0}]))
    assert not finding.passed
    assert "task_error RuntimeError: raise_error" in finding.observed


def test_text_through_the_api_is_compared_with_that_of_the_cpu(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = gpu_text.served_text(stand)
    assert finding.passed, finding.observed
    assert finding.figures["batch_tokens"] > 8
    others = ["x" + text for text in gpu_text.cpu_texts()]
    monkeypatch.setattr(gpu_text, "cpu_texts", lambda: others)
    finding = gpu_text.served_text(stand)
    assert not finding.passed
    assert "alone 0" in finding.observed
    assert "batch 7" in finding.observed


def test_rounding_to_tf32_would_be_seen(stand: Stand) -> None:
    finding = gpu_checks.no_tf32(stand)
    assert finding.passed
    assert finding.figures["max_rel_error"] <= finding.figures["tolerance"] < finding.figures["tf32_error"]


def test_several_tasks_run_together(stand: Stand) -> None:
    finding = gpu_checks.together(stand)
    assert finding.passed, finding.observed
    assert finding.observed.startswith("4 together")


def test_a_hanging_task_is_stopped(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks, "REPLACED_S", 60.0)
    finding = gpu_checks.hanging_is_stopped(stand)
    assert finding.passed, finding.observed
    monkeypatch.setattr(gpu_checks, "REPLACED_S", 0.0)
    assert gpu_checks.hanging_is_stopped(replace(stand, kill_grace_s=0.0)).passed is False


def test_a_killed_worker_loses_no_task(stand: Stand) -> None:
    finding = gpu_checks.killed_worker(stand)
    assert finding.passed, finding.observed
    assert finding.figures["attempts"] == 8 + 4


def test_out_of_memory_is_survived(stand: Stand) -> None:
    finding = gpu_checks.out_of_memory(stand)
    assert finding.passed, finding.observed
    assert "needed" in finding.observed
    assert "free" in finding.observed


@pytest.mark.parametrize(
    "look",
    [
        gpu_kinds.all_kinds_are_right,
        gpu_kinds.formats_have_their_rate,
        gpu_kinds.link,
        gpu_kinds.users_function,
        gpu_machine.memory_within_reservation,
        gpu_machine.share_is_enforced,
        gpu_machine.mixed_pool,
        gpu_machine.silent_worker,
    ],
)
def test_what_kinds_parts_pools_and_heartbeats_promise_is_looked_at(
    stand: Stand, look: Callable[[Stand], Finding]
) -> None:
    finding = look(replace(stand, models={"small_model": 128, "medium_model": 256, "large_model": 512}))
    assert finding.passed, finding.observed
    json.dumps(finding.figures, allow_nan=False)


def test_a_wrong_result_of_any_kind_is_seen(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    def told_wrong(result: Any) -> list[Any]:
        attempts = result.log.attempts()
        attempts[2].detail["reference_ok"] = False
        return attempts

    monkeypatch.setattr(gpu_kinds, "attempts_of", told_wrong)
    finding = gpu_kinds.all_kinds_are_right(stand)
    assert finding.passed is False
    assert "bf16" in finding.observed


def test_how_parts_contend_what_a_spare_takes_and_what_readings_cost_are_stated(stand: Stand) -> None:
    larger = replace(stand, models=dict.fromkeys(SMALL, 512), rounds=1)
    assert gpu_machine.parts_contend(larger).figures["ratio"] > 0
    assert gpu_machine.sampler_keeps_up(larger).figures["rate_hz"] > 0
    assert all(seconds > 0 for seconds in gpu_machine.spare_takes_over(larger).figures["seconds"])


def test_readings_of_a_working_device_are_taken(stand: Stand) -> None:
    finding = gpu_checks.readings(stand)
    assert finding.figures["utilization_pct"] > 0
    assert finding.figures["memory_used_bytes"] > 0
    assert "N/A" in finding.observed  # watts, of a CPU device


def test_a_rate_is_compared_with_a_bare_loop_in_turn(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = gpu_speed.throughput("large_model", stand)
    assert finding.figures["ratio"] > 0
    assert finding.figures["bare_tflops"] > 0
    assert finding.passed is (finding.figures["ratio"] >= 0.98)
    monkeypatch.setattr(gpu_speed, "our_rate", lambda *_: None)
    assert not gpu_speed.throughput("small_model", stand).passed


@pytest.mark.notebooks
def test_a_scenario_is_run_through_the_command_line(stand: Stand) -> None:
    finding = gpu_speed.scenario("gpu_detection", stand)
    if finding.passed is None:
        pytest.skip(finding.observed)
    assert finding.passed, finding.observed
    assert Path(finding.figures["report"]).is_file()


def test_a_scenario_that_cannot_run_is_a_failed_check(stand: Stand) -> None:
    finding = gpu_speed.scenario("gpu_detection", replace(stand, device="cpu:0"))
    assert finding.passed is False
    assert "exit status 2" in finding.observed


# --- judging what only a GPU says -------------------------------------------------------------------------------------

CARD = DeviceSpec(0, "cuda", "NVIDIA T4", 16 * GIB, uuid="GPU-abc", compute_capability=(7, 5), power_limit_w=70.0)


def test_what_nvml_and_torch_say_of_a_card_must_agree() -> None:
    def compared(**changed: Any) -> Finding:
        said: dict[str, Any] = {
            "name": "NVIDIA T4",
            "uuid": "abc",
            "capability": (7, 5),
            "memory_bytes": int(15.6 * GIB),
        } | changed
        return gpu_checks.compare_cards(CARD, **said)

    assert compared().passed
    for changed in (
        {"name": "NVIDIA L4"},
        {"uuid": "abd"},
        {"capability": (8, 0)},
        {"memory_bytes": 15 * GIB},
        {"memory_bytes": 17 * GIB},
    ):
        finding = compared(**changed)
        assert finding.passed is False
        assert str(next(iter(changed)))[:4] in finding.observed.lower()


def test_readings_must_be_those_of_a_card_at_work() -> None:
    good = {"utilization_pct": 99.0, "memory_used_bytes": 2.0 * GIB, "power_w": 60.0, "temperature_c": 70.0}

    def judged(**changed: Any) -> bool | None:
        return gpu_checks.judge_readings(good | changed, 12.0, 70.0, GIB).passed

    assert judged()
    assert judged(power_w=None, temperature_c=None)  # a device need not tell
    assert judged(power_w=72.0)  # the limit bounds an average
    for name, values in {
        "utilization_pct": (20.0, None),
        "memory_used_bytes": (0.5 * GIB, None),
        "power_w": (11.0, 80.0),
        "temperature_c": (0.0, 200.0),
    }.items():
        for value in values:
            assert judged(**{name: value}) is False


# --- the table and results.json ---------------------------------------------------------------------------------------


def test_without_a_gpu_everything_is_skipped_and_the_status_is_0(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(_: str) -> None:
        raise DeviceError("No usable GPU for backend cuda. Looked for NVIDIA GPUs: none.")

    monkeypatch.setattr(gpu_check, "find", nothing)
    assert gpu_check.main(["--out", str(tmp_path / "deep" / "results.json")]) == 0
    found = json.loads((tmp_path / "deep" / "results.json").read_text())
    shown = capsys.readouterr().out
    assert "Looked for NVIDIA GPUs" in shown
    assert found["passed"] is None
    assert found["card"] is None
    assert "Looked for NVIDIA GPUs" in found["skipped_because"]
    assert {"date", "driver", "cuda", "torch"} <= set(found)
    assert len(found["checks"]) == len(gpu_checks.plan()) == shown.count("skipped ")
    assert {check["passed"] for check in found["checks"]} == {None}


def test_a_check_that_breaks_is_a_failed_check_and_the_others_go_on(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(_: Stand) -> Finding:
        raise OSError("no such thing")

    checks = [
        Check("breaks", "never", breaks),
        Check("holds", "a long expectation " * 5, lambda _: Finding(True, "seen", {"value": 1.5})),
        Check("cannot", "anything", lambda _: Finding(None, "not here"), None),
    ]
    monkeypatch.setattr(gpu_check, "plan", lambda **_: checks)
    assert gpu_check.main(["--device", "cpu:1", "--out", str(tmp_path / "results.json")]) == 1
    found = json.loads((tmp_path / "results.json").read_text())
    assert [check["passed"] for check in found["checks"]] == [False, True, None]
    assert found["checks"][0]["observed"] == "OSError: no such thing"
    assert found["checks"][1]["figures"] == {"value": 1.5}
    assert found["card"] == stand.spec.name
    lines = capsys.readouterr().out.splitlines()
    begins = [line[:8].strip() for line in lines if line[8:].startswith(("breaks", "holds", "cannot"))]
    assert begins == ["FAILED", "passed", "skipped"] * 2  # as they are made, then in the table
    assert max(map(len, lines)) <= 8 + sum(gpu_check.WIDTHS) + 4
    monkeypatch.setattr(gpu_check, "plan", lambda **_: checks[1:])
    assert gpu_check.main(["--device", "cpu:1", "--out", str(tmp_path / "results.json")]) == 0


@pytest.mark.parametrize("device", ["cpu:2", "A100", "cpu:0"])
def test_a_device_that_is_not_one_real_device_is_refused(device: str) -> None:
    with pytest.raises(AltlasError):
        gpu_check.find(device)


def test_the_figures_of_every_check_can_be_written(stand: Stand) -> None:
    assert math.isfinite(gpu_checks.tf32_error(8)[0])
    json.dumps(gpu_checks.together(stand).figures, allow_nan=False)
