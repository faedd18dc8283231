"""Predictions on real devices through the API: real text, the same alone and together; what a killed worker costs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from folder_models import save_llama
from serving import Served, serving

PROMPTS = ["Return the", "def read", "The quick brown fox", "", "Raise ValueError if", "ünïcödé 🦊", "self.", "A b"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    arguments = ("--devices", "cpu:1", "--set", "gpu.workload.spare_workers=0")
    with serving(tmp_path_factory.mktemp("real"), *arguments) as served:
        yield served


def greedy(server: Served, text: str, max_length: int = 48) -> dict[str, Any]:
    told = server.predict(text, wait=60, temperature=0, max_length=max_length)
    assert told["status"] == "COMPLETED", told
    result: dict[str, Any] = told["task"]["result"]
    return result


def test_a_prediction_says_what_was_made_how_fast_and_where(server: Served) -> None:
    result = greedy(server, "Return the")
    assert result["simulated"] is False
    assert result["model"] == "altlas-bytes"
    assert 0 < result["tokens"] <= 48
    assert isinstance(result["text"], str)
    assert result["prompt_tokens"] >= len("Return the")
    assert 0 < result["time_to_first_token_s"] < result["queue_s"] + result["run_s"]
    assert result["tokens_per_s"] == pytest.approx(result["tokens"] / result["run_s"])
    assert result["gpu_id"] == 0
    assert (result["finish_reason"] == "length") == (result["tokens"] == 48)


def test_at_temperature_0_a_text_gets_the_same_answer_alone_and_in_a_batch(server: Served) -> None:
    alone = [greedy(server, text)["text"] for text in PROMPTS]
    body = {"texts": PROMPTS, "temperature": 0, "max_length": 48}
    told = server.client.post("/api/v1/predict/batch", json=body, params={"wait": 60}).json()
    assert told["status"] == "COMPLETED"
    assert [task["result"]["batch_rows"] for task in told["tasks"]] == [8] * 8
    assert [task["result"]["text"] for task in told["tasks"]] == alone
    assert [greedy(server, text)["text"] for text in PROMPTS] == alone


def test_above_temperature_0_answers_differ(server: Served) -> None:
    texts = {server.predict("The", wait=60, temperature=1.0)["task"]["result"]["text"] for _ in range(4)}
    assert len(texts) > 1


def test_a_temperature_of_next_to_nothing_is_as_good_as_0(server: Served) -> None:
    greedy_text = greedy(server, "Return the", 16)["text"]
    for temperature in (1e-300, 1e-308):
        told = server.predict("Return the", wait=60, temperature=temperature, max_length=16)
        assert told["task"]["result"]["text"] == greedy_text


def test_a_gpu_option_for_a_device_that_is_not_there_is_refused(server: Served) -> None:
    answer = server.client.post("/api/v1/predict", json={"text": "a", "gpu_options": {"gpu_id": 1}})
    assert answer.status_code == 422
    assert "this machine has GPU 0" in answer.json()["error"]


def test_readings_of_a_cpu_device_are_there_or_null_but_never_made_up(server: Served) -> None:
    gpu = server.get("/gpus/0")
    assert gpu["simulated"] is False
    assert gpu["memory_used"] > 0
    assert gpu["temperature"] is None
    metrics = server.client.get("/metrics").text
    assert "DCGM_FI_DEV_GPU_TEMP{" not in metrics
    assert "DCGM_FI_DEV_FB_USED{" in metrics


def until(condition: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_running_work_is_cancelled(server: Served) -> None:
    body = {"texts": ["The"] * 8, "max_length": 512, "temperature": 1.0}
    told = server.client.post("/api/v1/predict/batch", json=body).json()
    until(lambda: server.task(told["task_ids"][0])["status"] != "QUEUED")
    answer = server.client.delete(f"/api/v1/batches/{told['batch_id']}")
    states = {server.task(task_id)["status"] for task_id in told["task_ids"]}
    assert answer.status_code in (200, 409)
    assert states <= {"CANCELLED", "COMPLETED"}
    until(lambda: server.get("/gpus/0")["task_count"] == 0)
    assert greedy(server, "Return the")["tokens"] > 0  # the device is free again


def worker_of(server: Served) -> int:
    children = psutil.Process(server.process.pid).children()
    found = [child.pid for child in children if "worker.program" in " ".join(child.cmdline())]
    assert len(found) == 1
    return found[0]


def test_a_killed_worker_costs_a_try_and_nothing_else(server: Served, tmp_path: Path) -> None:
    body = {"texts": ["The"] * 8, "max_length": 512, "temperature": 1.0}
    told = server.client.post("/api/v1/predict/batch", json=body).json()
    until(lambda: server.task(told["task_ids"][0])["status"] == "RUNNING")
    os.kill(worker_of(server), signal.SIGKILL)
    tasks = [server.task(task_id, wait=90) for task_id in told["task_ids"]]
    assert {task["status"] for task in tasks} == {"COMPLETED"}
    assert {task["retry_count"] for task in tasks} == {1}
    assert 'altlas_retries_total{reason="worker_crashed"}' in server.client.get("/metrics").text


def test_a_model_of_a_folder_is_served_with_its_own_limits(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "tiny-llama")
    arguments = ("--devices", "cpu:1", "--set", f"predict.model={model}", "--set", "gpu.workload.spare_workers=0")
    with serving(tmp_path, *arguments) as server:
        status = server.get("/status")
        assert (status["model"], status["limits"]["max_length"]) == ("tiny-llama", 63)
        alone = [greedy(server, text, 12) for text in PROMPTS[:3]]
        assert {result["model"] for result in alone} == {"tiny-llama"}
        body = {"texts": PROMPTS[:3], "temperature": 0, "max_length": 12}
        told = server.client.post("/api/v1/predict/batch", json=body, params={"wait": 60}).json()
        assert [task["result"]["text"] for task in told["tasks"]] == [result["text"] for result in alone]
        task = server.predict("Return", wait=60)["task"]  # the default of 128 tokens is more than it has room for
        assert (task["status"], task["params"]["max_length"]) == ("COMPLETED", 63)
        answer = server.client.post("/api/v1/predict", json={"text": "a", "max_length": 64})
        assert (answer.status_code, "1 to 63" in answer.json()["error"]) == (422, True)


def test_a_model_that_cannot_be_served_is_told_before_anything_listens(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    server = Served(tmp_path, "--devices", "cpu:1", "--set", "predict.model=empty")
    assert server.process.wait(60) == 2
    assert "predict.model" in server.lines[-1]
    server.close()
