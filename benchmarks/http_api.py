"""The HTTP API under load, beside a bare FastAPI application on the same server settings: wrk from its own process.

    python -m benchmarks.http_api [--quick]

Simulated devices fast enough that nothing is refused. Each round gives every contestant a turn, so that a slow moment
of the machine hits all alike; what is reported is the ratio within each round. Needs wrk (Debian: apt-get install wrk).
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from altlas_core.api.journal import FinalTask, Journal, NewTask
from benchmarks.timing import script, spread

CONNECTIONS: Final = 64
BODY: Final = '{"text":"The quick brown fox jumps over the lazy dog","max_length":16,"temperature":0}'
POST_SCRIPT: Final = f"""\
wrk.method = "POST"
wrk.body = '{BODY}'
wrk.headers["Content-Type"] = "application/json"
"""
# At half the load every connection waits before each request, for a time drawn at random: with a fixed one all would
# fire in one burst.
PACED_SCRIPT: Final = POST_SCRIPT + "math.randomseed(7)\nfunction delay() return 2 * {mean_ms} * math.random() end\n"
ANSWER_MS: Final = 4.0  # about what an answer takes then, which is no waiting
BARE: Final = """
import sys
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()

class Prediction(BaseModel):
    text: str
    max_length: int = 128
    temperature: float = 0.7
    priority: str = "normal"

class Accepted(BaseModel):
    task_id: str
    gpu_id: int | None
    status: str

@app.post("/api/v1/predict", response_model=Accepted)
async def predict(asked: Prediction):
    return {"task_id": "task-000001", "gpu_id": None, "status": "QUEUED"}

TASK = {"id": "task-000001", "type": "text_generation", "params": {"text": "x" * 44, "max_length": 16},
        "priority": "normal", "batch_id": None, "status": "COMPLETED", "gpu_id": 0,
        "created_at": 1.5, "started_at": 2.5, "completed_at": 3.5,
        "result": {"text": "y" * 54, "tokens": 16, "prompt_tokens": 45, "time_to_first_token_s": 0.1, "queue_s": 0.1,
                   "run_s": 0.2, "tokens_per_s": 80.0, "finish_reason": "length", "prompt_truncated": False,
                   "model": "altlas-bytes", "simulated": True, "gpu_id": 0, "batch_rows": 8},
        "error": None, "error_code": None, "retry_count": 0}

@app.get("/api/v1/tasks/{task_id}")
async def task(task_id: str):
    return TASK

uvicorn.run(app, port=int(sys.argv[1]), log_config=None, access_log=False, loop="uvloop", http="httptools",
            server_header=False, timeout_keep_alive=65, backlog=2048)
"""
SERVE: Final = ("--backend", "simulated", "--devices", "8x A100", "--pace", "1000")
MORE: Final = ("--set", "gpu.workload.max_queue=1000000", "--set", "gpu.selection.default_strategy=least_loaded")


def measure(quick: bool) -> dict[str, Any]:
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed (Debian: apt-get install wrk)")
    seconds, rounds = (2, 2) if quick else (8, 5)
    with tempfile.TemporaryDirectory() as folder:
        with _bare(Path(folder)) as bare, _served(Path(folder)) as served:
            found = _measure(Path(folder), bare, served, seconds, rounds)
        return {**found, "stored": _stored(Path(folder), 20_000 if quick else 1_000_000, seconds)}


def _stored(folder: Path, tasks: int, seconds: int) -> dict[str, Any]:
    """Lists and single tasks of a journal that holds so many, none of them in memory; one connection, one at a time."""
    path = folder / "stored.sqlite3"
    _fill(path, tasks)
    paths = {
        "list_100_newest": "/api/v1/tasks?limit=100",
        "list_100_from_the_middle": f"/api/v1/tasks?limit=100&before=task-{tasks // 2:06d}",
        "list_100_failed": "/api/v1/tasks?limit=100&status=FAILED",
        "list_100_of_a_gpu": "/api/v1/tasks?limit=100&gpu=3",
        "one_from_the_middle": f"/api/v1/tasks/task-{tasks // 2:06d}",
    }
    command = [
        sys.executable,
        "-m",
        "altlas_core.cli",
        "serve",
        "--port",
        "8994",
        *SERVE,
        "--set",
        f"api.journal={path}",
    ]
    with process(command, folder, "8994", "/ready") as base:
        return {"tasks": tasks, **{name: _wrk(base + each, seconds, connections=1) for name, each in paths.items()}}


def _fill(path: Path, tasks: int) -> None:
    journal = Journal(path, retention_age_s=1e9, retention_count=10**9, full_sync=False)
    params = '{"text": "The quick brown fox jumps over the lazy dog", "max_length": 16, "temperature": 0.0}'
    result = '{"text": "[simulated on A100-SXM4-80GB: no text was generated]", "tokens": 16, "prompt_tokens": 45}'
    now = time.time()
    for first in range(1, tasks + 1, 2000):
        numbers = range(first, min(first + 2000, tasks + 1))
        journal.write(tasks=[NewTask(n, "normal", None, now + n / 1e3, params, "{}") for n in numbers], done=_checked)
        ends = [
            ("FAILED", None, "it broke", "task_error") if n % 1000 == 0 else ("COMPLETED", result, None, None)
            for n in numbers
        ]
        finals = [
            FinalTask(n, state, n % 8, now + n / 1e3, now + n / 1e3 + 1, 0, *rest)
            for n, (state, *rest) in zip(numbers, ends, strict=True)
        ]
        journal.write(finals=finals, done=_checked)
    journal.close()


def _checked(error: BaseException | None) -> None:
    if error is not None:
        raise error


def _measure(folder: Path, bare: str, served: str, seconds: int, rounds: int) -> dict[str, Any]:
    post = _write(folder / "post.lua", POST_SCRIPT)
    task = _first_task(served)
    found: dict[str, list[dict[str, float]]] = {"bare_post": [], "post": [], "bare_get": [], "get": []}
    for _ in range(rounds):
        found["bare_post"].append(_wrk(f"{bare}/api/v1/predict", seconds, post))
        found["post"].append(_wrk(f"{served}/api/v1/predict", seconds, post))
        _settle(served)
        found["bare_get"].append(_wrk(f"{bare}/api/v1/tasks/{task}", seconds))
        found["get"].append(_wrk(f"{served}/api/v1/tasks/{task}", seconds))
    half = spread([each["per_s"] for each in found["post"]])["median"] / 2
    paced = _write(
        folder / "paced.lua", PACED_SCRIPT.replace("{mean_ms}", f"{1000 * CONNECTIONS / half - ANSWER_MS:.1f}")
    )
    at_half = [_wrk(f"{served}/api/v1/predict", seconds, paced) for _ in range(rounds)]
    _settle(served)
    status = json.loads(fetch(f"{served}/api/v1/status"))
    failed = sum(each["errors"] for each in [*found["post"], *found["get"], *at_half])
    return {
        "connections": CONNECTIONS,
        "seconds": seconds,
        "rounds": rounds,
        "per_s": {name: spread([each["per_s"] for each in turns]) for name, turns in found.items()},
        "post_ratio": spread(_ratios(found["post"], found["bare_post"])),
        "get_ratio": spread(_ratios(found["get"], found["bare_get"])),
        "half_load_per_s": spread([each["per_s"] for each in at_half]),
        "half_load_p50_ms": spread([each["p50_ms"] for each in at_half]),
        "half_load_p99_ms": spread([each["p99_ms"] for each in at_half]),
        "errors": failed,
        "completed": status["tasks"]["COMPLETED"],
    }


def _ratios(ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]]) -> list[float]:
    return [mine["per_s"] / other["per_s"] for mine, other in zip(ours, theirs, strict=True)]


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@contextmanager
def _bare(folder: Path) -> Iterator[str]:
    with process([sys.executable, str(_write(folder / "bare.py", BARE)), "8991"], folder, "8991", "/docs") as base:
        yield base


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "altlas_core.cli", "serve", "--port", "8992", *SERVE, *MORE]
    with process(command, folder, "8992", "/ready") as base:
        yield base


@contextmanager
def process(command: Sequence[str], folder: Path, port: str, path: str) -> Iterator[str]:
    base = f"http://127.0.0.1:{port}"
    with (folder / f"{port}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        for _ in range(600):
            try:
                fetch(base + path)
                break
            except OSError:
                time.sleep(0.1)
        yield base
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def fetch(url: str, body: str | None = None) -> bytes:
    data = None if body is None else body.encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: bytes = answer.read()
        return content


def _first_task(served: str) -> str:
    """A task that has completed."""
    name: str = json.loads(fetch(f"{served}/api/v1/predict?wait=30", BODY))["task_id"]
    return name


def _settle(served: str) -> None:
    """Until everything that was accepted has ended."""
    while True:
        tasks = json.loads(fetch(f"{served}/api/v1/status"))["tasks"]
        if not tasks["QUEUED"] and not tasks["RUNNING"]:
            return
        time.sleep(0.1)


def _wrk(url: str, seconds: int, lua: Path | None = None, connections: int = CONNECTIONS) -> dict[str, float]:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", *(["-s", str(lua)] if lua else []), url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    return {
        "per_s": float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]),  # type: ignore[index]
        "p50_ms": _latency_ms(text, "50%"),
        "p99_ms": _latency_ms(text, "99%"),
        "errors": float(refused[1] if refused else 0) + (sum(map(int, broken.groups())) if broken else 0),
    }


def _latency_ms(text: str, percent: str) -> float:
    found = re.search(rf"{percent}\s+([\d.]+)(us|ms|s)\b", text)
    assert found is not None
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]]


if __name__ == "__main__":
    script(__doc__, measure)
