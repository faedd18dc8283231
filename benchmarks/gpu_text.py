"""The check of gpu_check.py on text generation: `altlas serve` on the device, against the same model on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from typing import Any, Final

from gpu_stand import Finding, Stand

PROMPTS: Final = (
    "Return the ",
    "def read",
    "Raise ValueError if ",
    "",
    "The class",
    "ünïcödé",
    "Open a file and ",
    "A b",
)
NEW_TOKENS: Final = 64
PORT: Final = 8997
READY_S: Final = 120.0


def served_text(stand: Stand) -> Finding:
    """Greedy text of eight prompts, alone and as a batch; float64 on the device and on the CPU, so it is the same."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "altlas_core.cli", "serve", "--port", str(PORT), "--devices", stand.device]
        server = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
        try:
            _wait_ready(server)
            alone = [_ask("predict", text=text)["task"] for text in PROMPTS]
            batch = _ask("predict/batch", texts=list(PROMPTS))["tasks"]
        except (OSError, RuntimeError) as error:
            return Finding(False, f"no answer: {error}")
        finally:
            server.terminate()
            server.wait(60)
    expected = cpu_texts()
    wrong = [
        f"{name} {place}"
        for name, tasks in (("alone", alone), ("batch", batch))
        for place, task in enumerate(tasks)
        if task["status"] != "COMPLETED" or task["result"]["text"] != expected[place]
    ]
    figures = {
        "alone_tokens_per_s": alone[-1]["result"]["tokens_per_s"] if not wrong else None,
        "batch_run_s": batch[-1]["result"]["run_s"] if not wrong else None,
        "batch_tokens": sum(task["result"]["tokens"] for task in batch) if not wrong else None,
    }
    if wrong:
        return Finding(False, f"not the text of the CPU: {', '.join(wrong)}", figures)
    rate = figures["batch_tokens"] / figures["batch_run_s"]
    return Finding(True, f"8 of 8 alone and together as on the CPU; {rate:,.0f} tokens/s together", figures)


def cpu_texts() -> list[str]:
    import torch

    from altlas_core.backends.worker.byte_model import ByteModel
    from altlas_core.backends.worker.generate import Continuation, Times, continue_all

    engine = ByteModel(torch, torch.device("cpu"), 512)
    rows = [Continuation(engine, text, NEW_TOKENS, 0.0, 0) for text in PROMPTS]
    with torch.inference_mode():
        for _ in continue_all(engine, rows, Times()):
            pass
    return [engine.decode(row.prompt, row.new) for row in rows]


def _wait_ready(server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with {server.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"not ready within {READY_S:g} s")


def _ask(route: str, **fields: Any) -> dict[str, Any]:
    body = json.dumps({**fields, "max_length": NEW_TOKENS, "temperature": 0}).encode()
    url = f"http://127.0.0.1:{PORT}/api/v1/{route}?wait=120"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=150) as answer:
        told: dict[str, Any] = json.loads(answer.read())
        return told
