"""Text generation through the whole API against a bare batched torch loop over the same model, each on one core.

    python -m benchmarks.generation_api [--quick]

A server with two CPU devices of a core each is sent batches of 8 prompts, 128 new tokens each, greedily, all to its
first device, and is waited for. The bare loop, a process of its own, makes as many with one thread. They take turns;
the ratio is of the two turns of a round.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.http_api import fetch, process
from benchmarks.timing import script, spread

ROWS: Final = 8
NEW: Final = 128
PROMPT: Final = (  # the model does not come to an end of it, nor of what is left of it without its last letters
    "This module provides the class for the following examples of the standard library of the interpreter, and the "
)
BARE: Final = """
import sys, time, torch
from altlas_core.backends.worker.byte_model import ByteModel
from benchmarks.generation import bare

torch.set_num_threads(1)
engine = ByteModel(torch, torch.device("cpu"), 512)
prompts = [engine.encode(sys.argv[1][: len(sys.argv[1]) - row]) for row in range(8)]
bare(engine, prompts)
for line in sys.stdin:
    begin = time.perf_counter()
    made = sum(bare(engine, prompts) for _ in range(int(line)))
    print(made / (time.perf_counter() - begin), flush=True)
"""


def measure(quick: bool) -> dict[str, Any]:
    batches, rounds = (3, 2) if quick else (12, 9)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "altlas_core.cli", "serve", "--port", "8993", "--devices", "cpu:2"]
        with process(command, Path(folder), "8993", "/ready") as base:
            loop = subprocess.Popen(
                ["taskset", "-c", "0", sys.executable, "-c", BARE, PROMPT],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                _through(base, 2)  # warm
                pairs = [(_through(base, batches), _bare(loop, batches)) for _ in range(rounds)]
            finally:
                loop.kill()
    return {
        "rows": ROWS,
        "new_tokens": NEW,
        "batches": batches,
        "rounds": rounds,
        "tokens_per_s": spread([ours for ours, _ in pairs]),
        "bare_tokens_per_s": spread([bare for _, bare in pairs]),
        "ratio": spread([ours / bare for ours, bare in pairs]),
    }


def _through(base: str, batches: int) -> float:
    """New tokens per second, from the first request to the last answer."""
    texts = [PROMPT[: len(PROMPT) - row] for row in range(ROWS)]
    asked = json.dumps({"texts": texts, "max_length": NEW, "temperature": 0, "gpu_options": {"gpu_id": 0}})
    begin = time.perf_counter()
    accepted = [json.loads(fetch(f"{base}/api/v1/predict/batch", asked)) for _ in range(batches)]
    for batch in accepted:
        fetch(f"{base}/api/v1/tasks/{batch['task_ids'][-1]}?wait=120")
    seconds = time.perf_counter() - begin
    made = 0
    for batch in accepted:
        tasks = json.loads(fetch(f"{base}/api/v1/tasks?batch={batch['batch_id']}"))["tasks"]
        made += sum(task["result"]["tokens"] for task in tasks)
    if made != batches * ROWS * NEW:
        raise SystemExit(f"a text ended early ({made} tokens): the two did not do the same work")
    return made / seconds


def _bare(loop: subprocess.Popen[str], batches: int) -> float:
    assert loop.stdin is not None
    assert loop.stdout is not None
    print(batches, file=loop.stdin, flush=True)
    return float(loop.stdout.readline())


if __name__ == "__main__":
    script(__doc__, measure)
