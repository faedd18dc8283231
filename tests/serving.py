"""`altlas serve` as its users run it: a process of its own, spoken to over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx

START_S: Final = 90.0  # importing torch in a worker on a busy machine
FAST: Final = ("--backend", "simulated", "--pace", "1000")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Served:
    """A running server. `client` speaks to it; `lines` is what it has logged so far."""

    def __init__(self, folder: Path, *arguments: str, port: int = 0, environ: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self._log_path = folder / f"serve-{self.port}.log"
        with self._log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "altlas_core.cli", "serve", "--port", str(self.port), *arguments],
                cwd=folder,
                env={**_environ(), **(environ or {})},
                stderr=log,
                stdout=log,
            )
        self.client = httpx.Client(base_url=self.base, timeout=60.0)

    @property
    def lines(self) -> list[str]:
        return self._log_path.read_text(errors="replace").splitlines()

    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    def wait_ready(self) -> Served:
        until = time.monotonic() + START_S
        while True:
            if self.process.poll() is not None:
                raise AssertionError("the server ended:\n" + "\n".join(self.lines[-30:]))
            try:
                if self.client.get("/ready").status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            if time.monotonic() > until:
                raise AssertionError("the server did not become ready:\n" + "\n".join(self.lines[-30:]))
            time.sleep(0.05)

    # --- what clients do ------------------------------------------------------------------------------------------

    def predict(self, text: str = "def f", wait: float = 0.0, **fields: Any) -> dict[str, Any]:
        params = {"wait": wait} if wait else {}
        answer = self.client.post("/api/v1/predict", json={"text": text, **fields}, params=params)
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def task(self, task_id: str, wait: float = 0.0) -> dict[str, Any]:
        answer = self.client.get(f"/api/v1/tasks/{task_id}", params={"wait": wait} if wait else {})
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def get(self, path: str, **params: Any) -> Any:
        answer = self.client.get(f"/api/v1{path}", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    # --- its end --------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def terminate(self, within_s: float = 30.0) -> int:
        """SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()


def _environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("ALTLAS_")}


@contextmanager
def serving(folder: Path, *arguments: str, **more: Any) -> Iterator[Served]:
    """A server that is ready, until the block ends."""
    server = Served(folder, *arguments, **more)
    try:
        yield server.wait_ready()
    finally:
        server.close()
