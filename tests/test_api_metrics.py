"""What Prometheus reads: names, labels, units; what was not read is absent; counting costs next to nothing."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from altlas_core.api.metrics import GpuStats, Metrics, Stats

A100 = {"gpu": "0", "UUID": "GPU-1", "device": "nvidia0", "modelName": "A100-SXM4-80GB"}
T4 = {"gpu": "1", "UUID": "", "device": "nvidia1", "modelName": "T4"}


def read_gpu() -> GpuStats:
    return GpuStats(
        0, "A100-SXM4-80GB", "BUSY", 3, False, "GPU-1", 97.5, 3.5 * 2**30, 2**30 + 2**19, 61.0, 250.25, 0
    )  # fmt: skip


def unread_gpu() -> GpuStats:
    return GpuStats(1, "T4", "LOST", 0, True)


def stats(**changed: Any) -> Stats:
    fields: dict[str, Any] = {
        "gpus": [read_gpu(), unread_gpu()], "queue_depth": {"high": 1, "normal": 7, "low": 0},
        "tasks": {"QUEUED": 8, "RUNNING": 3, "COMPLETED": 100, "FAILED": 2, "CANCELLED": 1},
        "tokens_generated_total": 900, "prompt_tokens_total": 80, "journal_problem": False, "uptime_s": 12.5,
        "version": "1.2.3", "log_lines_dropped_total": 4,
    }  # fmt: skip
    return Stats(**{**fields, **changed})


def families(metrics: Metrics, **changed: Any) -> dict[str, Any]:
    text = metrics.render(stats(**changed)).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def values(samples: list[Sample], label: str) -> dict[str, float]:
    return {sample.labels[label]: sample.value for sample in samples}


def test_gpu_readings_have_dcgm_exporters_names_labels_and_units() -> None:
    found = families(Metrics())
    expected = {
        "GPU_UTIL": (97.5, "%"), "FB_USED": (3584, "MiB"), "FB_FREE": (1024.5, "MiB"), "GPU_TEMP": (61, "C"),
        "POWER_USAGE": (250.25, "W"), "XID_ERRORS": (0, "XID"),
    }  # fmt: skip
    for name, (value, unit) in expected.items():
        family = found[f"DCGM_FI_DEV_{name}"]
        assert family.type == "gauge"
        assert unit in family.documentation
        assert [(sample.labels, sample.value) for sample in family.samples] == [(A100, value)]


def test_a_reading_that_was_not_made_is_absent_and_never_0() -> None:
    readings = [name for name in families(Metrics(), gpus=[unread_gpu()]).items() if name[0].startswith("DCGM")]
    assert len(readings) == 6
    assert all(family.samples == [] for _, family in readings)


def test_a_reading_of_0_is_there() -> None:
    gpu = GpuStats(1, "T4", "AVAILABLE", 0, False, utilization_pct=0.0, xid=0)
    found = families(Metrics(), gpus=[gpu])
    assert [sample.value for sample in found["DCGM_FI_DEV_GPU_UTIL"].samples] == [0.0]
    assert found["DCGM_FI_DEV_GPU_UTIL"].samples[0].labels == T4
    assert [sample.value for sample in found["DCGM_FI_DEV_XID_ERRORS"].samples] == [0.0]


def test_health_and_whether_it_is_simulated_are_told_of_each_gpu() -> None:
    states = ["AVAILABLE", "BUSY", "UNHEALTHY", "LOST"]
    gpus = [GpuStats(number, "T4", state, number, number == 1) for number, state in enumerate(states)]
    found = families(Metrics(), gpus=gpus)
    assert values(found["altlas_gpu_healthy"].samples, "gpu") == {"0": 1, "1": 1, "2": 0, "3": 0}
    assert values(found["altlas_simulated"].samples, "gpu") == {"0": 0, "1": 1, "2": 0, "3": 0}
    assert values(found["altlas_gpu_tasks"].samples, "gpu") == {"0": 0, "1": 1, "2": 2, "3": 3}


def test_tasks_are_told_by_state_those_finished_as_counters() -> None:
    found = families(Metrics())
    assert values(found["altlas_queue_depth"].samples, "priority") == {"high": 1, "normal": 7, "low": 0}
    assert values(found["altlas_tasks"].samples, "state") == {"QUEUED": 8, "RUNNING": 3}
    finished = found["altlas_tasks_finished"]
    assert finished.type == "counter"
    assert {sample.name for sample in finished.samples} == {"altlas_tasks_finished_total"}
    assert values(finished.samples, "state") == {"COMPLETED": 100, "FAILED": 2, "CANCELLED": 1}


def test_the_servers_own_numbers_are_told() -> None:
    metrics = Metrics()
    metrics.count_retry("worker_crashed")
    found = families(metrics, journal_problem=True)
    assert values(found["altlas_retries"].samples, "reason")["worker_crashed"] == 1
    assert values(found["altlas_retries"].samples, "reason")["device_lost"] == 0
    assert values(found["altlas_tokens"].samples, "kind") == {"prompt": 80, "generated": 900}
    assert found["altlas_journal_problem"].samples[0].value == 1
    assert found["altlas_uptime_seconds"].samples[0].value == 12.5
    assert found["altlas_log_lines_dropped"].samples[0].value == 4
    assert found["altlas_build_info"].samples[0].labels == {"version": "1.2.3"}
    assert found["process_resident_memory_bytes"].samples[0].value > 0


def test_histograms_are_cumulative_and_a_bound_belongs_to_its_bucket() -> None:
    metrics = Metrics()
    for seconds in (0.0, 0.001, 0.0011, 2.0, 1000.0):
        metrics.observe_run_s(seconds)
    metrics.observe_queue_s(3.0)
    metrics.observe_ttft_s(0.2)
    found = families(metrics)
    run = {sample.labels.get("le", sample.name): sample.value for sample in found["altlas_task_run_seconds"].samples}
    assert (run["0.001"], run["0.0025"], run["1.0"], run["2.5"], run["300.0"], run["+Inf"]) == (2, 3, 3, 4, 4, 5)
    assert run["altlas_task_run_seconds_count"] == 5
    assert run["altlas_task_run_seconds_sum"] == 1002.0021
    sums = {s.name: s.value for name in ("queue", "run") for s in found[f"altlas_task_{name}_seconds"].samples}
    assert sums["altlas_task_queue_seconds_sum"] == 3.0
    assert found["altlas_time_to_first_token_seconds"].samples[-1].value == 0.2


def test_requests_are_counted_by_method_route_and_status_with_few_labels() -> None:
    metrics = Metrics()
    for _ in range(3):
        metrics.count_request("GET", "/tasks/{id}", 200, 0.002)
    metrics.count_request("GET", None, 404, 0.001)
    metrics.count_request("BREW", None, 405, 0.001)
    found = families(metrics)
    counts = {tuple(sample.labels.values()): sample.value for sample in found["altlas_http_requests"].samples}
    assert counts == {
        ("GET", "/tasks/{id}", "200"): 3,
        ("GET", "unmatched", "404"): 1,
        ("other", "unmatched", "405"): 1,
    }
    seconds = found["altlas_http_request_seconds"].samples
    assert {s.labels["route"]: s.value for s in seconds if s.name.endswith("_count")} == {
        "/tasks/{id}": 3,
        "unmatched": 2,
    }


def test_odd_label_values_are_escaped() -> None:
    gpu = GpuStats(0, 'A "GPU"\nof \\ours', "BUSY", 0, False, utilization_pct=1.0)
    found = families(Metrics(), gpus=[gpu])
    assert found["DCGM_FI_DEV_GPU_UTIL"].samples[0].labels["modelName"] == 'A "GPU"\nof \\ours'


def test_1024_gpus_are_rendered_and_observing_is_cheap() -> None:
    gpus = [
        GpuStats(n, "H100-SXM5-80GB", "BUSY", 4, True, f"GPU-{n}", 99.0, 2.0**36, 2.0**35, 70.0, 650.0, 0)
        for n in range(1024)
    ]
    metrics = Metrics()
    begun = time.perf_counter()
    text = metrics.render(stats(gpus=gpus))
    rendered = time.perf_counter()
    for _ in range(10_000):
        metrics.observe_run_s(2.0)
    observed = time.perf_counter()
    assert text.count(b"\naltlas_gpu_healthy{") == 1024
    print(f"\n1,024 GPUs: {(rendered - begun) * 1e3:.1f} ms, {len(text) / 1024:.0f} KiB; ", end="")
    print(f"an observation: {(observed - rendered) / 10_000 * 1e6:.2f} us")
