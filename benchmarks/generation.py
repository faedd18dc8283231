"""Text generation by a worker's own path against a bare loop over the same model, in one process, in turn.

    python -m benchmarks.generation [--quick]

Both continue 8 prompts by 128 tokens each, greedily, on one CPU thread. The worker's path chooses tokens by prompt,
looks for ends and for a stop before each step, takes turns on the device and makes texts; the bare loop reads the
prompts and steps. A ratio is of the two halves of one round; what is told is the median over the rounds.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import torch

from altlas_core.backends.worker.byte_model import ByteModel
from altlas_core.backends.worker.device import WorkDevice
from altlas_core.backends.worker.generate import load_engine, run_generation
from altlas_core.backends.worker.order import Order
from altlas_core.generation import reserved_bytes
from altlas_core.text_models import describe_model
from benchmarks.timing import script, spread, take_turns

ROWS, NEW = 8, 128
TEXTS = ["Return the " + "number of all the " * row for row in range(ROWS)]  # whose continuations have no end soon


def bare(engine: ByteModel, prompts: list[list[int]]) -> int:
    """Read the prompts and continue them, nothing more; returns the tokens made."""
    with torch.inference_mode():
        batch = engine.begin(prompts, [NEW] * len(prompts))
        *_, logits = batch.read()
        chosen = [logits.argmax(-1)]
        for _ in range(NEW - 1):
            chosen.append(batch.step(chosen[-1]).argmax(-1))
        return int(torch.stack(chosen).numel())


def measure(quick: bool) -> dict[str, Any]:
    model = describe_model(None)
    device = WorkDevice("cpu", 1, 42, 1 << 30)
    order = Order(
        "text_generation",
        None,
        None,
        1,
        1,
        1,
        reserved_bytes(model, ROWS, max(map(len, TEXTS)) + 1 + NEW),
        generation=(None, model.name, tuple((text, NEW, 0.0, row) for row, text in enumerate(TEXTS))),
    )

    def load() -> tuple[Any, int]:
        engine = load_engine(device, None)
        return engine, engine.size_bytes

    with device.model(order, model.name, load) as engine:
        prompts = [engine.encode(text) for text in TEXTS[::-1]]  # the longest first

        def ours() -> None:
            _, detail = run_generation(device, order, threading.Event(), time.perf_counter())
            assert sum(part["tokens"] for part in detail["generation"]) == ROWS * NEW

        contestants = {"worker": ours, "bare": lambda: bare(engine, prompts)}
        take_turns(2, contestants)  # warm
        found = take_turns(3 if quick else 25, contestants)
    pairs = list(zip(found["worker"], found["bare"], strict=True))
    return {
        "rows": ROWS,
        "new_tokens": NEW,
        "rounds": len(pairs),
        "tokens_per_s": spread([ROWS * NEW / wall for wall, _ in found["worker"]]),
        "bare_tokens_per_s": spread([ROWS * NEW / wall for wall, _ in found["bare"]]),
        "ratio": spread([theirs[0] / ours[0] for ours, theirs in pairs]),
    }


if __name__ == "__main__":
    script(__doc__, measure)
