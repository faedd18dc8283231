"""A stand-in for `altlas serve`, to develop and test the live page against: the same answers from a seeded random walk.

    .venv/bin/python tests/page_stand.py --port 8000 --gpus 8 [--key a-key-of-16-letters] [--interval 1]

It generates no text and owns no GPU; every device it names says that it is simulated.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from altlas_core.api.page import page_routes

GIB = 2**30
KEPT = 300  # samples
KEPT_TASKS = 400
STATES = ("QUEUED", "RUNNING", "COMPLETED", "FAILED", "CANCELLED")
STRATEGIES = ["single_gpu", "round_robin", "least_loaded", "memory_optimized", "random"]
LIMITS = {"max_text_chars": 8192, "max_length": 512, "max_texts": 1000, "max_queue": 10000}
TEXTS = [
    "Return the number of bytes that",
    "Raise an error if the file",
    "Open a connection to the server and",
    "<img src=x onerror=\"document.title='owned'\"> & <b>bold</b>",
    "A list of the names of all modules which were loaded before the interpreter was started, in the order of",
]
ANSWER = " are written to the file object, or None when nothing was read. The default is"
READINGS = ("utilization", "memory_used", "temperature", "power_usage")


class Machine:
    """GPUs and tasks that change at random. `step` moves everything on by `step_s` seconds."""

    def __init__(self, gpus: int, seed: int = 1, step_s: float = 1.0) -> None:
        self.random = random.Random(seed)
        self.step_s = step_s
        self.now = time.time()
        self.started_at = self.now - 3_725
        self.gpus = [self._gpu(index) for index in range(gpus)]
        self.warmth = [self.random.uniform(40, 60) for _ in self.gpus]  # C
        self.tasks: dict[int, dict[str, Any]] = {}
        self.finished = {"COMPLETED": 18_240, "FAILED": 37, "CANCELLED": 12}
        self.tokens_total = 1_482_332
        self.last_id = 1_000
        self.times: list[float] = []
        self.history: dict[int, dict[str, list[Any]]] = {
            gpu["id"]: {name: [] for name in READINGS} for gpu in self.gpus
        }
        self.queue_depth: list[int] = []
        self.now -= KEPT * step_s
        for _ in range(KEPT):
            self.step()

    def _gpu(self, index: int) -> dict[str, Any]:
        h100 = index % 8 >= 6
        return {
            "id": index,
            "name": "NVIDIA H100-SXM5-80GB" if h100 else "NVIDIA A100-SXM4-80GB",
            "simulated": True,
            "compute_capability": "9.0" if h100 else "8.0",
            "memory_total": 80 * GIB,
            "memory_used": None,
            "memory_free": None,
            "utilization": self.random.uniform(20, 90),
            "temperature": None,
            "power_usage": 200.0,
            "power_limit": 700.0 if h100 else 400.0,
            "status": "AVAILABLE",
            "reason": None,
            "processes": [],
            "task_count": 0,
            "slots": 2,
            "slots_used": 0,
            "uuid": f"GPU-{index:08x}-0000-4000-8000-000000000000",
        }

    def step(self) -> list[dict[str, Any]]:
        """Move on; the tasks that changed."""
        self.now += self.step_s
        changed = self._finish() + self._submit() + self._start()
        for old in list(self.tasks)[:-KEPT_TASKS]:
            if self.tasks[old]["status"] not in ("QUEUED", "RUNNING"):
                del self.tasks[old]
        running: dict[int, list[str]] = {}
        for task in self.tasks.values():
            if task["status"] == "RUNNING":
                running.setdefault(task["gpu_id"], []).append(task["id"])
        for gpu in self.gpus:
            self._walk(gpu, running.get(gpu["id"], []))
        self.times.append(round(self.now, 3))
        self.queue_depth.append(sum(task["status"] == "QUEUED" for task in self.tasks.values()))
        del self.times[:-KEPT], self.queue_depth[:-KEPT]
        return changed

    def _walk(self, gpu: dict[str, Any], processes: list[str]) -> None:
        gpu["processes"] = processes
        gpu["task_count"] = gpu["slots_used"] = len(processes)
        if gpu["status"] != "LOST":
            self._read(gpu)
            self._trouble(gpu)
        history = self.history[gpu["id"]]
        for name in READINGS:
            history[name].append(gpu[name])
            del history[name][:-KEPT]

    def _read(self, gpu: dict[str, Any]) -> None:
        busy = gpu["task_count"]
        gpu["status"] = "BUSY" if busy else "AVAILABLE"
        used = gpu["utilization"] * 0.8 + (92 if busy else 3) * 0.2 + self.random.gauss(0, 4)
        gpu["utilization"] = round(min(100, max(0, used)), 1)
        gpu["memory_used"] = int((2 + 30 * busy + gpu["id"] % 5 + self.random.random()) * GIB)
        gpu["memory_free"] = gpu["memory_total"] - gpu["memory_used"]
        warm = self.warmth[gpu["id"]] * 0.96 + (34 + 0.42 * gpu["utilization"]) * 0.04 + self.random.gauss(0, 0.2)
        self.warmth[gpu["id"]] = warm
        gpu["temperature"] = round(warm, 1)
        gpu["power_usage"] = round(gpu["power_limit"] * (0.16 + 0.0075 * gpu["utilization"]), 1)

    def _trouble(self, gpu: dict[str, Any]) -> None:
        """With more than four GPUs: some are too hot, two fall off the bus, one tells no watts or degrees."""
        index = gpu["id"]
        if len(self.gpus) <= 4:
            return
        if index == 3 or index % 97 == 96:
            gpu.update(status="UNHEALTHY", reason="temperature 91 C is above max_temperature 85 C", temperature=91.0)
        elif index in (4, 500) and len(self.times) > 2 * KEPT // 3:
            gpu.update(status="LOST", reason="fell off the bus (Xid 79)", **dict.fromkeys(READINGS), memory_free=None)
        elif index == 5:
            gpu.update(power_usage=None, temperature=None)

    def _usable(self) -> list[dict[str, Any]]:
        return [gpu for gpu in self.gpus if gpu["status"] in ("AVAILABLE", "BUSY") and gpu["task_count"] < 2]

    def _submit(self) -> list[dict[str, Any]]:
        made = []
        for _ in range(self.random.choice((0, 0, 1, 1, 1)) + len(self.gpus) // 20):
            text = self.random.choice(TEXTS)
            made.append(
                self.submit({"text": text, "max_length": 128, "temperature": 0.7}, self.random.choice(PRIORITY))
            )
        return made

    def submit(self, params: dict[str, Any], priority: str = "normal") -> dict[str, Any]:
        self.last_id += 1
        task = {
            "id": f"task-{self.last_id:06d}",
            "type": "text_generation",
            "params": params,
            "priority": priority,
            "batch_id": None,
            "status": "QUEUED",
            "gpu_id": None,
            "created_at": self.now,
            "started_at": None,
            "completed_at": None,
            "result": None,
            "error": None,
            "error_code": None,
            "retry_count": 0,
        }
        self.tasks[self.last_id] = task
        return task

    def _start(self) -> list[dict[str, Any]]:
        started = []
        waiting = [task for task in self.tasks.values() if task["status"] == "QUEUED"]
        usable = self._usable()
        self.random.shuffle(usable)
        for task, gpu in zip(waiting[: max(0, len(waiting) - 3)], usable, strict=False):
            task.update(status="RUNNING", gpu_id=gpu["id"], started_at=self.now)
            started.append(task)
        return started

    def _finish(self) -> list[dict[str, Any]]:
        ended = [task for task in self.tasks.values() if task["status"] == "RUNNING" and self.random.random() < 0.05]
        for task in ended:
            self.end(task, "FAILED" if self.random.random() < 0.12 else "COMPLETED")
        return ended

    def end(self, task: dict[str, Any], status: str) -> None:
        task.update(status=status, completed_at=self.now)
        self.finished[status] += 1
        if status == "FAILED":
            task.update(error="worker process ended by signal 9 (SIGKILL) three times", error_code="worker_crashed")
            task["retry_count"] = 3
        if status == "COMPLETED":
            tokens = task["params"]["max_length"] // 2
            self.tokens_total += tokens
            task["result"] = {
                "text": ANSWER,
                "tokens": tokens,
                "prompt_tokens": len(task["params"]["text"]) + 1,
                "time_to_first_token_s": 0.0183,
                "tokens_per_s": 412.6,
                "finish_reason": "length",
                "prompt_truncated": False,
                "model": "altlas-bytes",
                "simulated": True,
                "gpu_id": task["gpu_id"],
            }

    def status(self) -> dict[str, Any]:
        counts = {"QUEUED": 0, "RUNNING": 0, **self.finished}
        for task in self.tasks.values():
            if task["status"] in ("QUEUED", "RUNNING"):
                counts[task["status"]] += 1
        return {
            "version": "1.0.0",
            "backend": "simulated",
            "provenance": "simulated",
            "started_at": self.started_at,
            "model": "altlas-bytes",
            "strategies": STRATEGIES,
            "limits": LIMITS,
            "tasks": counts,
            "tokens_total": self.tokens_total,
            "ready": True,
        }


PRIORITY = ("high", "normal", "normal", "normal", "low")


def refusal(status: int, code: str, error: str, **headers: str) -> JSONResponse:
    return JSONResponse({"error": error, "code": code}, status, headers)


class Stand:
    """The app and its clock. `key` None: nobody needs one."""

    def __init__(self, machine: Machine, key: str | None = None, interval_s: float = 1.0) -> None:
        self.machine = machine
        self.key = key
        self.interval_s = interval_s
        self.listeners: set[asyncio.Queue[str]] = set()
        self.predictions: list[dict[str, Any]] = []
        self.calls: list[str] = []
        api = [
            ("/status", self.status, ["GET"]),
            ("/gpus", self.gpus, ["GET"]),
            ("/telemetry", self.telemetry, ["GET"]),
            ("/tasks", self.tasks, ["GET"]),
            ("/tasks/{id}", self.task, ["GET"]),
            ("/tasks/{id}", self.cancel, ["DELETE"]),
            ("/predict", self.predict, ["POST"]),
            ("/events", self.events, ["GET"]),
        ]
        routes = [Route(f"/api/v1{path}", self._guarded(call), methods=methods) for path, call, methods in api]
        self.app = Starlette(routes=[*page_routes(), *routes], lifespan=self._lifespan)

    def _guarded(self, call: Any) -> Any:
        async def endpoint(request: Request) -> Response:
            self.calls.append(f"{request.method} {request.url.path}")
            if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
                return refusal(401, "unauthorized", "an API key is needed: Authorization: Bearer KEY")
            answer: Response = await call(request)
            return answer

        return endpoint

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        self.loop = asyncio.get_running_loop()
        ticking = asyncio.create_task(self._tick())
        yield
        ticking.cancel()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self.interval_s)
            for task in self.machine.step():
                self._tell("task", task)
            machine = self.machine
            gpus = {"time": machine.now, "queue_depth": machine.queue_depth[-1], "gpus": machine.gpus}
            self._tell("gpus", gpus)
            self._tell("status", machine.status())

    def tell(self, event: str, data: Any) -> None:
        """Send an event to all listeners, from any thread."""
        self.loop.call_soon_threadsafe(self._tell, event, data)

    def _tell(self, event: str, data: Any) -> None:
        if self.listeners:
            block = f"event: {event}\ndata: {json.dumps(data)}\n\n"
            for queue in self.listeners:
                queue.put_nowait(block)

    async def status(self, _request: Request) -> Response:
        return JSONResponse(self.machine.status())

    async def gpus(self, _request: Request) -> Response:
        return JSONResponse({"gpus": self.machine.gpus})

    async def telemetry(self, _request: Request) -> Response:
        machine = self.machine
        gpus = [{"id": index, **columns} for index, columns in machine.history.items()]
        body = {"interval_s": 1.0, "time": machine.times, "gpus": gpus, "queue_depth": machine.queue_depth}
        return JSONResponse(body)

    async def tasks(self, request: Request) -> Response:
        status = request.query_params.get("status")
        found = [task for task in reversed(self.machine.tasks.values()) if status in (None, task["status"])]
        return JSONResponse({"tasks": found[: int(request.query_params.get("limit", 100))], "next": None})

    def _find(self, request: Request) -> dict[str, Any] | None:
        return self.machine.tasks.get(int(request.path_params["id"].removeprefix("task-")))

    async def task(self, request: Request) -> Response:
        task = self._find(request)
        if task is None:
            return refusal(404, "not_found", f"no task {request.path_params['id']}")
        return JSONResponse(task)

    async def cancel(self, request: Request) -> Response:
        task = self._find(request)
        if task is None:
            return refusal(404, "not_found", f"no task {request.path_params['id']}")
        if task["status"] not in ("QUEUED", "RUNNING"):
            return refusal(409, "conflict", f"{task['id']} has ended already: {task['status']}")
        self.machine.end(task, "CANCELLED")
        self._tell("task", task)
        return JSONResponse({"success": True, "message": f"{task['id']} is cancelled"})

    async def predict(self, request: Request) -> Response:
        body = await request.json()
        self.predictions.append(body)
        if body["temperature"] > 2:
            return refusal(422, "invalid_field", f"temperature: {body['temperature']} is not allowed; allowed: 0 to 2")
        if body["text"] == "full":
            return refusal(429, "queue_full", "the queue is full (10000 tasks); try again", **{"Retry-After": "3"})
        params = {name: body[name] for name in ("text", "max_length", "temperature")}
        task = self.machine.submit(params, body["priority"])
        wanted = body.get("gpu_options", {}).get("gpu_id")
        task.update(status="RUNNING", gpu_id=wanted if wanted is not None else 0, started_at=self.machine.now)
        self._tell("task", task)
        await asyncio.sleep(min(0.3, self.interval_s))
        self.machine.end(task, "FAILED" if body["text"] == "fail" else "COMPLETED")
        self._tell("task", task)
        return JSONResponse({"task_id": task["id"], "gpu_id": task["gpu_id"], "status": task["status"], "task": task})

    async def events(self, _request: Request) -> Response:
        queue: asyncio.Queue[str] = asyncio.Queue()

        async def stream() -> AsyncIterator[str]:
            self.listeners.add(queue)
            try:
                yield f": hello\nevent: status\ndata: {json.dumps(self.machine.status())}\n\n"
                while True:
                    yield await queue.get()
            finally:
                self.listeners.discard(queue)

        return StreamingResponse(stream(), media_type="text/event-stream")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(stand: Stand, port: int) -> Iterator[str]:
    """The stand served from a thread; its address."""
    config = uvicorn.Config(stand.app, "127.0.0.1", port, log_level="critical", timeout_graceful_shutdown=0)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError(f"the stand-in could not listen on port {port}")
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--key")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two steps")
    options = parser.parse_args()
    stand = Stand(Machine(options.gpus), options.key, options.interval)
    uvicorn.run(stand.app, host="127.0.0.1", port=options.port, log_level="warning", timeout_graceful_shutdown=0)


if __name__ == "__main__":
    main()
