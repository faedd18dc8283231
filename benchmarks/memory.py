"""Memory of a large run: altlas.run with 1,000,000 tasks, then its tables and the hash of its event log.

    python -m benchmarks.memory [--quick]

Peak resident memory of the whole process, workload and pandas included.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import altlas_core as altlas
from benchmarks.timing import script

GPUS = 8


def peak_bytes() -> int:
    """The most resident memory this process has had. (getrusage would count its parent's, from before exec.)"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def records(count: int) -> Iterator[dict[str, Any]]:
    rng = Random(1)
    now = 0.0
    for _ in range(count):
        now += rng.expovariate(1.1 * 4 * GPUS)
        yield {
            "submit_s": now,
            "duration_s": rng.uniform(0.5, 1.5),
            "priority": rng.choice(["high", "normal", "low"]),
            "memory_bytes": rng.choice([1, 2, 4]) << 30,
        }


def measure(quick: bool) -> dict[str, Any]:
    count = 20_000 if quick else 1_000_000
    steps: dict[str, dict[str, float]] = {}

    def step(name: str, begin: float) -> None:
        steps[name] = {"wall_s": time.perf_counter() - begin, "peak_bytes": peak_bytes()}

    begin = time.perf_counter()
    workload = altlas.Workload.from_records(records(count))
    settings = altlas.load_config(
        overrides={"gpu.devices": [f"{GPUS}x A100"], "gpu.selection.default_strategy": "least_loaded"}, environ={}
    )
    step("workload", begin)
    begin = time.perf_counter()
    result = altlas.run(settings, workload)
    step("altlas.run", begin)
    for name in ("event_log_sha256", "telemetry", "tasks"):
        begin = time.perf_counter()
        getattr(result, name)
        step(f"result.{name}", begin)
    return {"tasks": count, "gpus": GPUS, "steps": steps, "peak_bytes": peak_bytes()}


if __name__ == "__main__":
    script(__doc__, measure)
