"""Memory of `altlas serve` under a million finished tasks: resident bytes of the server's process every 100,000.

A server with simulated devices, a thousand times faster than real ones, in a process of its own; batches of 1000 over
HTTP, one after the other, its journal on the disk of the temporary folder. The journal keeps 1,000,000 tasks, so until
the end nothing is deleted; memory must not follow. Run it: python -m benchmarks.api_memory
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import httpx

from benchmarks.timing import script

BATCH: Final = 1000
START_S: Final = 60.0
POOL: Final = ("--backend", "simulated", "--devices", "8x A100", "--pace", "1000")


def measure(quick: bool) -> dict[str, Any]:
    tasks, every = (30_000, 5_000) if quick else (1_000_000, 100_000)
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        with Path(folder, "log").open("wb") as log:
            command = [sys.executable, "-m", "altlas_core.cli", "serve", "--port", str(port), *POOL]
            server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0) as client:
                _wait_ready(client, server)
                began = time.perf_counter()
                rows = [{"tasks": 0, "resident_mib": _resident_mib(server.pid)}]
                for done in range(BATCH, tasks + 1, BATCH):
                    _finish(client)
                    if done % every == 0:
                        rows.append({"tasks": done, "resident_mib": _resident_mib(server.pid)})
                took_s = time.perf_counter() - began
        finally:
            server.terminate()
            server.wait(30)
        journal_mib = Path(folder, "altlas.sqlite3").stat().st_size / 2**20
    return {"tasks_per_s": round(tasks / took_s), "journal_mib": round(journal_mib, 1), "resident": rows}


def _finish(client: httpx.Client) -> None:
    """One batch, until its tasks are final."""
    texts = [f"def function_{place}(" + "x" * 100 for place in range(BATCH)]
    answer = client.post("/api/v1/predict/batch", json={"texts": texts, "max_length": 64}).raise_for_status().json()
    for name in reversed(answer["task_ids"]):
        task = client.get(f"/api/v1/tasks/{name}", params={"wait": 30}).raise_for_status().json()
        if task["status"] != "COMPLETED":
            raise RuntimeError(f"{name} is {task['status']}: {task['error']}")
        counts = client.get(f"/api/v1/batches/{answer['batch_id']}").raise_for_status().json()["counts"]
        if counts["COMPLETED"] == BATCH:
            return


def _resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return round(int(status.partition("VmRSS:")[2].split()[0]) / 1024, 1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_ready(client: httpx.Client, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            if client.get("/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        if server.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the server was not ready within {START_S:g} s")
        time.sleep(0.05)


if __name__ == "__main__":
    script(__doc__, measure)
