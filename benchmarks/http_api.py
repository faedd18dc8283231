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

from benchmarks.timing import script, spread

CONNECTIONS: Final = 64
BODY: Final = '{"text":"The quick brown fox jumps over the lazy dog","max_length":16,"temperature":0}'
POST_SCRIPT: Final = f"""\
wrk.method = "POST"
wrk.body = '{BODY}'
wrk.headers["Content-Type"] = "application/json"
"""
# A closed loop at half the load: every connection waits between its requests as long as wrk is told.
PACED_SCRIPT: Final = POST_SCRIPT + "function delay() return {delay_ms} end\n"
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

uvicorn.run(app, port=int(sys.argv[1]), log_config=None, access_log=False, loop="uvloop", http="httptools",
            server_header=False, timeout_keep_alive=65, backlog=2048)
"""
SERVE: Final = ("--backend", "simulated", "--devices", "8x A100", "--pace", "1000")
MORE: Final = ("--set", "gpu.workload.max_queue=1000000", "--set", "gpu.selection.default_strategy=least_loaded")


def measure(quick: bool) -> dict[str, Any]:
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed (Debian: apt-get install wrk)")
    seconds, rounds = (2, 2) if quick else (8, 5)
    with tempfile.TemporaryDirectory() as folder, _bare(Path(folder)) as bare, _served(Path(folder)) as served:
        return _measure(Path(folder), bare, served, seconds, rounds)


def _measure(folder: Path, bare: str, served: str, seconds: int, rounds: int) -> dict[str, Any]:
    post = _write(folder / "post.lua", POST_SCRIPT)
    task = _first_task(served)
    found: dict[str, list[dict[str, float]]] = {"bare_post": [], "post": [], "get": []}
    for _ in range(rounds):
        found["bare_post"].append(_wrk(f"{bare}/api/v1/predict", seconds, post))
        found["post"].append(_wrk(f"{served}/api/v1/predict", seconds, post))
        _settle(served)
        found["get"].append(_wrk(f"{served}/api/v1/tasks/{task}", seconds))
    half = spread([each["per_s"] for each in found["post"]])["median"] / 2
    paced = _write(folder / "paced.lua", PACED_SCRIPT.replace("{delay_ms}", f"{1000 * CONNECTIONS / half:.1f}"))
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
        "get_ratio": spread(_ratios(found["get"], found["bare_post"])),
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


def _wrk(url: str, seconds: int, lua: Path | None = None) -> dict[str, float]:
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", *(["-s", str(lua)] if lua else []), url]
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
