"""Every route of the API on simulated devices: what it answers, and what it refuses in which words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import Served, serving

STATES = {"QUEUED", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"}
SLOW = {"max_length": 512}  # 0.07 s of the GPU model's time; on a slow pace long enough to be cancelled


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("routes"), "--backend", "simulated", "--devices", "4x A100") as served:
        yield served


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A thousandth of real time: what is running stays so."""
    arguments = ("--backend", "simulated", "--devices", "1x T4", "--pace", "0.001")
    more = ("--set", "gpu.workload.max_concurrent_tasks_per_gpu=1", "--set", "gpu.workload.batch_size=2")
    with serving(
        tmp_path_factory.mktemp("slow"),
        *arguments,
        *more,
        "--set",
        "gpu.workload.max_queue=40",
        "--set",
        "api.shutdown_grace=0",
    ) as served:
        yield served


def refused(answer: httpx.Response, status: int, code: str, *words: str) -> None:
    assert answer.status_code == status, answer.text
    told = answer.json()
    assert set(told) == {"error", "code"}
    assert told["code"] == code
    for word in words:
        assert word in told["error"]
    assert "Traceback" not in answer.text


# --- predictions ------------------------------------------------------------------------------------------------------


def test_a_prediction_is_accepted_with_an_id_and_ends_as_completed(server: Served) -> None:
    told = server.predict("hello")
    assert set(told) == {"task_id", "gpu_id", "status"}
    task = server.task(told["task_id"], wait=20)
    assert task["status"] == "COMPLETED"
    assert task["type"] == "text_generation"
    assert task["params"] == {"text": "hello", "max_length": 128, "temperature": 0.7}
    assert task["created_at"] <= task["started_at"] <= task["completed_at"]
    assert (task["priority"], task["batch_id"], task["error"], task["retry_count"]) == ("normal", None, None, 0)
    result = task["result"]
    assert result["simulated"] is True
    assert result["text"].startswith("[simulated on A100")
    assert result["tokens"] == 128
    assert result["gpu_id"] == task["gpu_id"] == 0
    assert 0 < result["time_to_first_token_s"] < result["queue_s"] + result["run_s"]
    assert result["tokens_per_s"] == pytest.approx(128 / result["run_s"])


def test_wait_answers_with_the_finished_task(server: Served) -> None:
    told = server.predict("hello", wait=20, max_length=3)
    assert told["status"] == "COMPLETED"
    assert told["task"]["result"]["tokens"] == 3
    assert told["gpu_id"] == told["task"]["gpu_id"]


def test_wait_ends_with_the_time_and_tells_the_state_it_is_in(slow: Served) -> None:
    told = slow.predict("hello", wait=0.2, **SLOW)
    assert told["status"] in ("QUEUED", "RUNNING")
    assert told["task"]["result"] is None


@pytest.mark.parametrize("options", [{"gpu_id": 2}, {"specific_gpu_id": 2}, {"gpu_id": 2, "specific_gpu_id": None}])
def test_a_prediction_can_be_pinned_under_either_name(server: Served, options: dict[str, Any]) -> None:
    assert server.predict("a", wait=20, gpu_options=options)["gpu_id"] == 2


def test_a_strategy_can_be_named_for_one_prediction(server: Served) -> None:
    used = {server.predict("a", wait=20, gpu_options={"strategy": "round_robin"})["gpu_id"] for _ in range(4)}
    assert used == {0, 1, 2, 3}


def test_a_batch_has_a_task_for_each_text_and_is_cut_into_pieces(server: Served) -> None:
    texts = [f"text {place}" for place in range(19)]
    body = {"texts": texts, "max_length": 4, "gpu_options": {"strategy": "least_loaded"}}
    answer = server.client.post("/api/v1/predict/batch", json=body, params={"wait": 20})
    told = answer.json()
    assert told["status"] == "COMPLETED"
    assert [task["id"] for task in told["tasks"]] == told["task_ids"]
    assert [task["params"]["text"] for task in told["tasks"]] == texts
    assert [task["result"]["batch_rows"] for task in told["tasks"]] == [8] * 16 + [3] * 3
    assert {task["gpu_id"] for task in told["tasks"]} == {0, 1, 2}
    batch = server.get(f"/batches/{told['batch_id']}")
    assert batch["counts"] == {"QUEUED": 0, "RUNNING": 0, "COMPLETED": 19, "FAILED": 0, "CANCELLED": 0}
    assert batch["task_ids"] == told["task_ids"]
    assert batch["status"] == "COMPLETED"


def test_single_predictions_that_wait_are_joined(slow: Served) -> None:
    """One slot, two rows: the first runs at once and alone, the others wait, two by two."""
    ids = [slow.predict(f"text {place}", **SLOW)["task_id"] for place in range(5)]
    states = [slow.task(task_id)["status"] for task_id in ids]
    assert set(states) <= {"QUEUED", "RUNNING"}
    for task_id in ids:
        slow.client.delete(f"/api/v1/tasks/{task_id}")


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ({}, 400, "missing_field", ["text"]),
        ({"max_length": 5}, 400, "missing_field", ["text"]),
        ({"text": 5}, 422, "invalid_field", ["text"]),
        ({"text": None}, 422, "invalid_field", ["text"]),
        ({"text": "a", "max_length": 0}, 422, "invalid_field", ["max_length"]),
        ({"text": "a", "max_length": 513}, 422, "invalid_field", ["max_length", "1 to 512"]),
        ({"text": "a", "max_length": 9999}, 422, "invalid_field", ["max_length", "1 to 512"]),
        ({"text": "a", "max_length": "5"}, 422, "invalid_field", ["max_length"]),
        ({"text": "a", "max_length": 1.5}, 422, "invalid_field", ["max_length"]),
        ({"text": "a", "temperature": -1}, 422, "invalid_field", ["temperature"]),
        ({"text": "a", "priority": "urgent"}, 422, "invalid_field", ["priority", "high"]),
        ({"text": "a" * 8193}, 422, "invalid_field", ["text", "8192"]),
        ({"text": "a", "colour": 1}, 422, "invalid_field", ["colour", "no field"]),
        ({"text": "a", "gpu_options": {"gpu_id": 4}}, 422, "invalid_field", ["gpu_id", "GPUs 0 to 3"]),
        ({"text": "a", "gpu_options": {"gpu_id": -1}}, 422, "invalid_field", ["gpu_options.gpu_id"]),
        ({"text": "a", "gpu_options": {"gpu_id": 1, "specific_gpu_id": 2}}, 422, "invalid_field", ["different GPUs"]),
        ({"text": "a", "gpu_options": {"strategy": "fastest"}}, 422, "invalid_field", ["strategy", "round_robin"]),
        ({"text": "a", "gpu_options": 3}, 422, "invalid_field", ["gpu_options"]),
        ({"text": "a", "temperature": math.nan}, 422, "invalid_field", ["temperature"]),
        ([], 422, "invalid_field", []),
        ("text", 422, "invalid_field", []),
    ],
)
def test_a_prediction_that_cannot_be_is_refused_with_the_field(
    server: Served, body: Any, status: int, code: str, words: list[str]
) -> None:
    before = server.get("/tasks", limit=1)
    headers = {"content-type": "application/json"}
    answer = server.client.post("/api/v1/predict", content=json.dumps(body), headers=headers)
    refused(answer, status, code, *words)
    assert server.get("/tasks", limit=1) == before


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ({}, 400, "missing_field", ["texts"]),
        ({"texts": "a"}, 400, "missing_field", ["texts"]),
        ({"texts": []}, 422, "invalid_field", ["texts"]),
        ({"texts": ["a", 5]}, 422, "invalid_field", ["texts.1"]),
        ({"texts": ["a", "b" * 8193]}, 422, "invalid_field", ["texts.1", "8192"]),
        ({"texts": ["a"] * 1001}, 422, "invalid_field", ["texts", "1000"]),
    ],
)
def test_a_batch_that_cannot_be_is_refused_whole(
    server: Served, body: Any, status: int, code: str, words: list[str]
) -> None:
    before = server.get("/tasks", limit=1)
    refused(server.client.post("/api/v1/predict/batch", json=body), status, code, *words)
    assert server.get("/tasks", limit=1) == before


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"text": "\\ud800"}', b"[" * 100_000])
def test_what_is_no_json_is_refused(server: Served, content: bytes) -> None:
    answer = server.client.post("/api/v1/predict", content=content, headers={"content-type": "application/json"})
    refused(answer, 400, "invalid_json", "JSON")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_that_does_not_say_it_is_json_is_refused(server: Served, kind: str) -> None:
    answer = server.client.post("/api/v1/predict", content=b'{"text": "a"}', headers={"content-type": kind})
    refused(answer, 400, "invalid_json", "Content-Type: application/json")


@pytest.mark.parametrize("wait", ["-1", "301", "soon", "nan"])
def test_a_wait_that_cannot_be_is_refused(server: Served, wait: str) -> None:
    answer = server.client.post("/api/v1/predict", json={"text": "a"}, params={"wait": wait})
    refused(answer, 422, "invalid_field", "wait")


def test_text_of_any_kind_comes_back_as_it_was(server: Served) -> None:
    text = '\x00 tab\t "quotes" <b>&amp; ünïcödé 漢字 🦊 \u2028 \x7f'
    assert server.predict(text, wait=20, max_length=1)["task"]["params"]["text"] == text


# --- tasks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task_id",
    ["task-999999", "task-1", "batch-000001", "task-", "task-0000001", "..%2f", "task-" + "9" * 40, "x" * 3000],
)
def test_a_task_that_is_not_there_is_404(server: Served, task_id: str) -> None:
    refused(server.client.get(f"/api/v1/tasks/{task_id}"), 404, "not_found")
    refused(server.client.delete(f"/api/v1/tasks/{task_id}"), 404, "not_found")


def test_tasks_are_listed_newest_first_page_by_page(server: Served) -> None:
    made = [server.predict(f"{place}", wait=20, max_length=1)["task_id"] for place in range(7)]
    listed: list[str] = []
    params: dict[str, Any] = {"limit": 3}
    while len(listed) < 7:
        page = server.get("/tasks", **params)
        listed += [task["id"] for task in page["tasks"]]
        params["before"] = page["next"]
    assert listed[:7] == made[::-1]


def test_the_last_page_says_so(server: Served) -> None:
    server.predict(wait=20, max_length=1)
    page = server.get("/tasks", limit=1000)
    assert page["next"] is None
    assert page["tasks"][-1]["id"] == "task-000001"


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"before": "yesterday"}, "before"),
        ({"status": "DONE"}, "status"),
        ({"priority": "urgent"}, "priority"),
        ({"batch": "b"}, "batch"),
        ({"gpu": -1}, "gpu"),
    ],
)
def test_a_filter_that_cannot_be_is_refused(server: Served, params: dict[str, Any], field: str) -> None:
    refused(server.client.get("/api/v1/tasks", params=params), 422, "invalid_field", field)


def test_tasks_are_filtered_by_state_priority_batch_and_gpu(server: Served) -> None:
    high = server.predict("high", wait=20, max_length=1, priority="high", gpu_options={"gpu_id": 3})["task_id"]
    batch = server.client.post("/api/v1/predict/batch?wait=20", json={"texts": ["a", "b"], "max_length": 1}).json()

    def ids(**params: Any) -> list[str]:
        tasks = server.get("/tasks", limit=1000, **params)["tasks"]
        return [task["id"] for task in tasks]

    assert ids(batch=batch["batch_id"]) == batch["task_ids"][::-1]
    assert ids(priority="high")[0] == high
    assert ids(gpu=3)[0] == high
    assert ids(gpu=3, priority="high", status="COMPLETED")[0] == high
    assert ids(status="FAILED") == []
    assert ids(status="COMPLETED", priority="low") == []
    assert set(batch["task_ids"]) <= set(ids(status="COMPLETED"))


def test_waiting_and_running_tasks_are_listed_and_cancelled_once(slow: Served) -> None:
    ids = [slow.predict(f"{place}", **SLOW)["task_id"] for place in range(4)]
    running = {task["id"] for task in slow.get("/tasks", status="RUNNING", limit=1000)["tasks"]}
    queued = {task["id"] for task in slow.get("/tasks", status="QUEUED", limit=1000)["tasks"]}
    assert set(ids) <= running | queued
    assert {task["id"] for task in slow.get("/tasks", limit=1000)["tasks"]} >= set(ids)
    for task_id in ids:
        answer = slow.client.delete(f"/api/v1/tasks/{task_id}")
        assert answer.json() == {"success": True, "message": f"{task_id} was cancelled"}
        task = slow.task(task_id)
        assert (task["status"], task["result"], task["error"]) == ("CANCELLED", None, None)
        refused(slow.client.delete(f"/api/v1/tasks/{task_id}"), 409, "conflict", "CANCELLED")
    assert slow.get("/tasks", status="QUEUED")["tasks"] == []


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_can_be_cancelled_whole_and_in_part(slow: Served) -> None:
    body = {"texts": ["a", "b", "c", "d"], **SLOW}
    told = slow.client.post("/api/v1/predict/batch", json=body).json()
    assert slow.client.delete(f"/api/v1/tasks/{told['task_ids'][3]}").status_code == 200
    batch = slow.get(f"/batches/{told['batch_id']}")
    assert batch["counts"]["CANCELLED"] == 1
    assert batch["status"] in ("QUEUED", "RUNNING")
    answer = slow.client.delete(f"/api/v1/batches/{told['batch_id']}")
    assert answer.json() == {"success": True, "message": f"3 of 4 tasks of {told['batch_id']} were cancelled"}
    assert slow.get(f"/batches/{told['batch_id']}")["status"] == "CANCELLED"
    refused(slow.client.delete(f"/api/v1/batches/{told['batch_id']}"), 409, "conflict")
    listed = slow.get("/batches", limit=1)
    assert listed["batches"][0]["id"] == told["batch_id"]


@pytest.mark.parametrize("batch_id", ["batch-999999", "task-000001", "batch-1"])
def test_a_batch_that_is_not_there_is_404(server: Served, batch_id: str) -> None:
    refused(server.client.get(f"/api/v1/batches/{batch_id}"), 404, "not_found")
    refused(server.client.delete(f"/api/v1/batches/{batch_id}"), 404, "not_found")


# --- overload ---------------------------------------------------------------------------------------------------------


def test_a_full_queue_answers_429_says_when_and_takes_nothing(slow: Served) -> None:
    batch = slow.client.post("/api/v1/predict/batch", json={"texts": ["a"] * 38, **SLOW}).json()
    while slow.client.post("/api/v1/predict", json={"text": "a", **SLOW}).status_code == 200:
        pass
    last = slow.get("/tasks", limit=1)["tasks"][0]["id"]
    answer = slow.client.post("/api/v1/predict/batch", json={"texts": ["a", "b"], **SLOW})
    refused(answer, 429, "queue_full", "max_queue 40")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert slow.get("/tasks", limit=1)["tasks"][0]["id"] == last
    refused(slow.client.post("/api/v1/predict/batch", json={"texts": ["a"] * 41}), 422, "invalid_field", "texts", "40")
    slow.client.delete(f"/api/v1/batches/{batch['batch_id']}")
    for task in slow.get("/tasks", status="QUEUED", limit=1000)["tasks"]:
        slow.client.delete(f"/api/v1/tasks/{task['id']}")
    assert slow.client.post("/api/v1/predict", json={"text": "a", **SLOW}).status_code == 200


def test_a_body_over_the_limit_is_413(server: Served) -> None:
    refused(server.client.post("/api/v1/predict", json={"text": "a" * 2**20}), 413, "too_large")


# --- repeated requests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"), [("/predict", {"text": "once"}), ("/predict/batch", {"texts": ["once", "twice"]})]
)
def test_a_repeated_post_with_a_key_gets_the_first_answer(server: Served, path: str, body: Any) -> None:
    headers = {"Idempotency-Key": f"key-of-{path}"}
    first = server.client.post(f"/api/v1{path}", json=body, headers=headers)
    again = server.client.post(f"/api/v1{path}", json=body, headers=headers)
    assert again.json() == first.json()
    waited = server.client.post(f"/api/v1{path}", json=body, headers=headers, params={"wait": 20}).json()
    assert waited["status"] == "COMPLETED"
    other = server.client.post(f"/api/v1{path}", json={**body, "max_length": 3}, headers=headers)
    refused(other, 409, "idempotency_key_reused", "Idempotency-Key")


@pytest.mark.parametrize("key", ["", "two words", "x" * 256])
def test_an_odd_idempotency_key_is_refused(server: Served, key: str) -> None:
    answer = server.client.post("/api/v1/predict", json={"text": "a"}, headers={"Idempotency-Key": key})
    refused(answer, 422, "invalid_field", "Idempotency-Key")


# --- devices and probes -----------------------------------------------------------------------------------------------


def test_gpus_have_the_fields_of_the_original_and_of_today(server: Served) -> None:
    gpus = server.get("/gpus")["gpus"]
    assert [gpu["id"] for gpu in gpus] == [0, 1, 2, 3]
    for gpu in gpus:
        assert {"name", "compute_capability", "memory_total", "memory_used", "memory_free", "utilization"} <= set(gpu)
        assert {"temperature", "power_usage", "power_limit", "status", "processes", "task_count"} <= set(gpu)
        assert gpu["status"] == "AVAILABLE"
        assert gpu["memory_used"] + gpu["memory_free"] == gpu["memory_total"]
        assert gpu["temperature"] >= 30.0
    assert server.get("/gpus/2")["id"] == 2


def test_a_running_task_is_seen_on_its_gpu(slow: Served) -> None:
    task_id = slow.predict("a", **SLOW)["task_id"]
    task = slow.task(task_id)
    running = slow.get("/tasks", status="RUNNING")["tasks"]
    gpu = slow.get("/gpus/0")
    assert gpu["processes"] == [each["id"] for each in running][::-1] or gpu["processes"]
    assert gpu["task_count"] == len(gpu["processes"]) >= 1
    assert gpu["status"] == "BUSY"
    assert task["status"] in ("QUEUED", "RUNNING")
    slow.client.delete(f"/api/v1/tasks/{task_id}")


@pytest.mark.parametrize("gpu_id", ["4", "-1", "first", "1e3", "00000000000", "٣"])
def test_a_gpu_that_is_not_there_is_404(server: Served, gpu_id: str) -> None:
    refused(server.client.get(f"/api/v1/gpus/{gpu_id}"), 404, "not_found", "GPUs 0 to 3")


def test_probes_metrics_and_status_tell_the_same_story(server: Served) -> None:
    server.predict(wait=20, max_length=2)
    assert server.client.get("/health").json()["status"] == "ok"
    assert server.client.get("/ready").json() == {"ready": True}
    status = server.get("/status")
    assert status["ready"] is True
    assert (status["backend"], status["provenance"]) == ("simulated", "simulated")
    assert set(status["tasks"]) == STATES
    metrics = server.client.get("/metrics").text
    completed = status["tasks"]["COMPLETED"]
    assert f'altlas_tasks_finished_total{{state="COMPLETED"}} {float(completed)}' in metrics
    assert 'DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-' in metrics
    assert "altlas_time_to_first_token_seconds_bucket" in metrics


def test_telemetry_has_a_value_for_each_moment_and_gpu(server: Served) -> None:
    history = server.get("/telemetry")
    moments = len(history["time"])
    assert moments >= 1
    assert history["time"] == sorted(history["time"])
    assert len(history["queue_depth"]) == moments
    for gpu in history["gpus"]:
        assert {len(gpu[name]) for name in ("utilization", "memory_used", "temperature", "power_usage")} == {moments}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/api/v1/", 404, "not_found"),
        ("GET", "/api/v1/predict", 405, "method_not_allowed"),
        ("PUT", "/api/v1/tasks", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
    ],
)
def test_what_is_not_there_or_not_so_is_told(server: Served, method: str, path: str, status: int, code: str) -> None:
    refused(server.client.request(method, path), status, code)


def test_the_description_holds_every_route_and_the_docs_load_nothing_from_elsewhere(server: Served) -> None:
    document = server.client.get("/openapi.json").json()
    assert {"/api/v1/predict", "/api/v1/predict/batch", "/api/v1/tasks/{task_id}", "/api/v1/events"} <= set(
        document["paths"]
    )
    text = json.dumps(document)
    assert "PredictRequest" in text
    docs = server.client.get("/docs").text
    assert "http://" not in docs
    assert "https://" not in docs


# --- events -----------------------------------------------------------------------------------------------------------


def test_events_stream_the_status_the_gpus_and_the_changes_of_tasks(server: Served) -> None:
    seen: dict[str, list[Any]] = {}
    with server.client.stream("GET", "/api/v1/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        task_id = None
        name = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                seen.setdefault(name, []).append(json.loads(line.removeprefix("data: ")))
                if task_id is None:
                    task_id = server.predict("x" * 1000, max_length=2)["task_id"]
                if any(task["status"] == "COMPLETED" for task in seen.get("task", [])) and len(seen["gpus"]) > 1:
                    break
    last = seen["task"][-1]
    assert last["id"] == task_id
    assert len(last["params"]["text"]) == 201
    assert seen["status"][0]["ready"] is True
    assert len(seen["gpus"][0]["gpus"]) == 4
