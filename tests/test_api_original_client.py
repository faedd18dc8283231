"""Clients of the original program, as its users wrote them, still work: the same paths, fields and answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import FAST, Served, serving

POLLED_S = 30.0
FINAL = ("COMPLETED", "FAILED", "CANCELLED")
GPU_FIELDS = {
    "id", "name", "memory_total", "memory_used", "memory_free", "utilization", "temperature", "status", "task_count",
}  # fmt: skip
TASK_FIELDS = {
    "id", "type", "params", "priority", "status", "gpu_id", "created_at", "started_at", "completed_at", "result",
    "error", "retry_count",
}  # fmt: skip


class OriginalClient:
    """What the original's README showed with `requests`: it knows no waiting, no keys and no codes of errors."""

    def __init__(self, base: str) -> None:
        self.base_url = f"{base}/api/v1"
        self.session = httpx.Client(timeout=30.0)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        response = self.session.request(method, f"{self.base_url}{path}", json=body)
        assert response.headers["content-type"] == "application/json"
        return response.status_code, response.json()

    def predict(self, text: str, **more: Any) -> dict[str, Any]:
        asked = {"text": text, "max_length": 100, "temperature": 0.7, "duration": 5.0, "priority": "normal", **more}
        status, told = self.ask("POST", "/predict", asked)
        assert status == 200, told
        assert {"task_id", "gpu_id", "status"} <= set(told)
        assert told["status"] == "QUEUED"
        return dict(told)

    def predict_batch(self, texts: list[str], **more: Any) -> dict[str, Any]:
        asked = {"texts": texts, "max_length": 50, "temperature": 0.5, "duration": 2, "priority": "low", **more}
        status, told = self.ask("POST", "/predict/batch", asked)
        assert status == 200, told
        assert {"batch_id", "task_ids", "status"} <= set(told)
        return dict(told)

    def wait_for_task(self, task_id: Any) -> dict[str, Any]:
        until = time.monotonic() + POLLED_S
        while time.monotonic() < until:
            status, task = self.ask("GET", f"/tasks/{task_id}")
            assert status == 200
            if task["status"] in FINAL:
                return dict(task)
            time.sleep(0.02)
        raise AssertionError(f"{task_id} did not end")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("original"), *FAST, "--devices", "4x A100") as served:
        yield served


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[OriginalClient]:
    client = OriginalClient(server.base)
    yield client
    client.session.close()


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OriginalClient]:
    """One GPU at a thousandth of real time: nothing ends by itself."""
    arguments = ("--backend", "simulated", "--devices", "1x T4", "--pace", "0.001")
    with serving(tmp_path_factory.mktemp("original-slow"), *arguments) as served:
        client = OriginalClient(served.base)
        yield client
        client.session.close()


def is_an_error(told: Any) -> bool:
    return isinstance(told["error"], str) and bool(told["error"])


# --- /gpus ------------------------------------------------------------------------------------------------------------


def test_the_gpus_are_listed_with_numbers_in_the_fields_they_had(client: OriginalClient) -> None:
    status, told = client.ask("GET", "/gpus")
    assert status == 200
    assert [gpu["id"] for gpu in told["gpus"]] == [0, 1, 2, 3]
    for gpu in told["gpus"]:
        assert set(gpu) >= GPU_FIELDS
        assert gpu["memory_used"] + gpu["memory_free"] == gpu["memory_total"]
        assert 0 <= gpu["utilization"] <= 100
        assert gpu["temperature"] > 0
        assert gpu["task_count"] >= 0
        assert gpu["status"] in ("AVAILABLE", "BUSY")


def test_one_gpu_is_told_by_its_number(client: OriginalClient) -> None:
    for number in range(4):
        status, gpu = client.ask("GET", f"/gpus/{number}")
        assert status == 200
        assert gpu["id"] == number
        assert set(gpu) >= GPU_FIELDS


def test_a_gpu_that_is_not_there_is_404_with_an_error(client: OriginalClient) -> None:
    status, told = client.ask("GET", "/gpus/99")
    assert status == 404
    assert is_an_error(told)


# --- /predict ---------------------------------------------------------------------------------------------------------


def test_a_prediction_is_queued_and_polled_until_it_is_completed(client: OriginalClient) -> None:
    task_id = client.predict("Once upon a time", priority="high")["task_id"]
    task = client.wait_for_task(task_id)
    assert set(task) >= TASK_FIELDS
    assert (task["id"], task["status"], task["priority"], task["error"]) == (task_id, "COMPLETED", "high", None)
    assert (task["params"]["text"], task["params"]["max_length"]) == ("Once upon a time", 100)
    assert task["params"]["temperature"] == 0.7
    assert task["gpu_id"] in range(4)
    assert task["created_at"] <= task["started_at"] <= task["completed_at"]
    assert task["retry_count"] == 0
    assert task["result"]["text"]


def test_a_text_alone_is_enough(client: OriginalClient) -> None:
    status, told = client.ask("POST", "/predict", {"text": "a"})
    assert status == 200
    assert client.wait_for_task(told["task_id"])["priority"] == "normal"


@pytest.mark.parametrize("strategy", ["round_robin", "least_loaded", "memory_optimized", "random"])
def test_a_strategy_of_the_original_can_be_named(client: OriginalClient, strategy: str) -> None:
    told = client.predict("a", gpu_options={"strategy": strategy})
    assert client.wait_for_task(told["task_id"])["status"] == "COMPLETED"


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "single_gpu", "gpu_id": 3},
        {"gpu_id": 3},
        {"specific_gpu_id": 3},
        {"strategy": "single_gpu", "specific_gpu_id": 3, "batch_split": False},
        {"strategy": "least_loaded", "gpu_id": None, "specific_gpu_id": 3, "batch_split": True},
    ],
)
def test_a_gpu_can_be_named_as_each_document_of_the_original_says(
    client: OriginalClient, options: dict[str, Any]
) -> None:
    assert client.wait_for_task(client.predict("a", gpu_options=options)["task_id"])["gpu_id"] == 3
    batch = client.predict_batch(["a", "b"], gpu_options=options)
    assert {client.wait_for_task(task_id)["gpu_id"] for task_id in batch["task_ids"]} == {3}


@pytest.mark.parametrize("body", [{}, {"max_length": 10}])
def test_a_missing_text_is_400_with_an_error(client: OriginalClient, body: dict[str, Any]) -> None:
    status, told = client.ask("POST", "/predict", body)
    assert status == 400
    assert is_an_error(told)


# --- /predict/batch ---------------------------------------------------------------------------------------------------


def test_a_batch_has_a_task_for_each_text_in_order(client: OriginalClient) -> None:
    texts = [f"text {place}" for place in range(5)]
    told = client.predict_batch(texts)
    tasks = [client.wait_for_task(task_id) for task_id in told["task_ids"]]
    assert [task["params"]["text"] for task in tasks] == texts
    assert {task["status"] for task in tasks} == {"COMPLETED"}
    assert {task["priority"] for task in tasks} == {"low"}
    status, batch = client.ask("GET", f"/batches/{told['batch_id']}")
    assert status == 200
    assert (batch["batch_id"], batch["task_ids"], batch["status"]) == (told["batch_id"], told["task_ids"], "COMPLETED")


@pytest.mark.parametrize("body", [{}, {"texts": "one text"}, {"texts": {"0": "a"}}, {"texts": None}, {"text": "a"}])
def test_texts_that_are_missing_or_no_list_are_400_with_an_error(client: OriginalClient, body: dict[str, Any]) -> None:
    status, told = client.ask("POST", "/predict/batch", body)
    assert status == 400
    assert is_an_error(told)


def test_batches_are_listed(client: OriginalClient) -> None:
    made = [client.predict_batch(["a"])["batch_id"] for _ in range(3)]
    status, told = client.ask("GET", "/batches")
    assert status == 200
    assert [batch["batch_id"] for batch in told["batches"][:3]] == made[::-1]


def test_a_batch_is_cancelled(slow: OriginalClient) -> None:
    told = slow.predict_batch(["a", "b", "c"])
    status, answer = slow.ask("DELETE", f"/batches/{told['batch_id']}")
    assert status == 200
    assert answer["success"] is True
    assert isinstance(answer["message"], str)
    assert {slow.ask("GET", f"/tasks/{task_id}")[1]["status"] for task_id in told["task_ids"]} == {"CANCELLED"}
    assert slow.ask("GET", f"/batches/{told['batch_id']}")[1]["status"] == "CANCELLED"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("batch_id", ["no-such-batch", "0b5e7a4c-6f6d-4c55-9d3c-0d9c6a1f2e3b", "1"])
def test_a_batch_that_is_not_there_is_404_with_an_error(client: OriginalClient, method: str, batch_id: str) -> None:
    status, told = client.ask(method, f"/batches/{batch_id}")
    assert status == 404
    assert is_an_error(told)


# --- /tasks -----------------------------------------------------------------------------------------------------------


def test_tasks_are_listed_with_the_fields_they_had(client: OriginalClient) -> None:
    made = {client.predict("a")["task_id"] for _ in range(3)}
    status, told = client.ask("GET", "/tasks")
    assert status == 200
    assert made <= {task["id"] for task in told["tasks"]}
    assert all(set(task) >= TASK_FIELDS for task in told["tasks"])


def test_a_task_is_cancelled(slow: OriginalClient) -> None:
    task_id = slow.predict("a")["task_id"]
    status, answer = slow.ask("DELETE", f"/tasks/{task_id}")
    assert status == 200
    assert answer["success"] is True
    assert isinstance(answer["message"], str)
    task = slow.ask("GET", f"/tasks/{task_id}")[1]
    assert (task["status"], task["result"]) == ("CANCELLED", None)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("task_id", ["no-such-task", "0b5e7a4c-6f6d-4c55-9d3c-0d9c6a1f2e3b", "1"])
def test_a_task_that_is_not_there_is_404_with_an_error(client: OriginalClient, method: str, task_id: str) -> None:
    status, told = client.ask(method, f"/tasks/{task_id}")
    assert status == 404
    assert is_an_error(told)
