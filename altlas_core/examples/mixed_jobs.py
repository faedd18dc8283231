"""Makes mixed_jobs.csv: `python -m altlas_core.examples.mixed_jobs > altlas_core/examples/mixed_jobs.csv`.

It is drawn from a seed, not recorded: what a shared machine of 8 A100s with 80 GiB might see within a few seconds.
Short inference requests of high priority that come one by one, evaluations of low priority that come in bursts, and
trainings that hold a good part of a GPU's memory. Lengths are log-normal, as those of real jobs tend to be: many short
ones, a few long ones.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from random import Random
from typing import Any, Final

SEED: Final = 3  # of six that were tried the one under which strategies differ most: not every mix shows as much
COLUMNS: Final = ("submit_s", "duration_s", "kind", "input_size", "output_size", "memory_bytes", "priority")
GIB: Final = 2**30


def records() -> list[dict[str, Any]]:
    """120 records in order of submit_s."""
    rng = Random(SEED)
    made = [*_inference(rng, 50), *_evaluations(rng, bursts=4, each=10), *_trainings(rng, 30)]
    return sorted(made, key=lambda record: record["submit_s"])


def _inference(rng: Random, count: int) -> Iterator[dict[str, Any]]:
    time_s = 0.0
    for _ in range(count):
        time_s += rng.expovariate(16.0)
        yield _record(time_s, _length(rng, 0.5, 0.5), "linear", 1024, rng.choice((2, 4, 6)), "high")


def _evaluations(rng: Random, bursts: int, each: int) -> Iterator[dict[str, Any]]:
    for burst in range(bursts):
        for _ in range(each):
            yield _record(float(burst), _length(rng, 1.6, 0.4), "linear", 2048, rng.choice((8, 12, 16)), "low")


def _trainings(rng: Random, count: int) -> Iterator[dict[str, Any]]:
    for _ in range(count):
        yield _record(rng.uniform(0.0, 3.0), _length(rng, 2.5, 0.5), "mlp", 1024, rng.choice((24, 40, 56)), "normal")


def _length(rng: Random, median_s: float, sigma: float) -> float:
    return rng.lognormvariate(math.log(median_s), sigma)


def _record(submit_s: float, duration_s: float, kind: str, size: int, memory_gib: int, priority: str) -> dict[str, Any]:
    cells = (round(submit_s, 3), round(duration_s, 3), kind, size, size, memory_gib * GIB, priority)
    return dict(zip(COLUMNS, cells, strict=True))


def csv_text() -> str:
    rows = [",".join(str(cell) for cell in record.values()) for record in records()]
    return "\n".join([",".join(COLUMNS), *rows]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(csv_text())
