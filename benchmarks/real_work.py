"""Real products through the distributor against a bare loop of torch, on one CPU core each, in turn.

    python benchmarks/real_work.py [--quick]

Both multiply the same sizes in fp32 with one thread. Ours is one task in a worker process, from its start to its end as
the scheduler sees them: turns, looks at the stop flag and the check of the result included. The bare loop does nothing
but multiply. A ratio is of the two halves of one round; what is told is the median over the rounds.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_speed import paired_rates
from gpu_stand import MODELS, Stand
from timing import script, spread

from altlas_core.backends import warm
from altlas_core.backends.discover import discover
from altlas_core.config import load_config


def measure(quick: bool) -> dict[str, Any]:
    machine = discover(load_config(overrides={"gpu.devices": ["cpu:1"]}, environ={}))
    machine = replace(machine, devices=(replace(machine.devices[0], cores=1),))
    seconds, rounds = (0.5, 3) if quick else (3.0, 11)
    models = {name: size for name, size in MODELS.items() if not quick or name != "large_model"}
    found: dict[str, Any] = {"seconds": seconds, "rounds": rounds, "models": {}}
    with tempfile.TemporaryDirectory() as folder, warm.keep():
        stand = Stand("cpu:1", machine, Path(folder), models, seconds=seconds, rounds=rounds)
        for name, size in models.items():
            pairs = paired_rates(stand, size)
            found["models"][name] = {
                "size": size,
                "batch": stand.batch,
                "iterations_per_s": spread([ours for ours, _ in pairs]),
                "bare_iterations_per_s": spread([bare for _, bare in pairs]),
                "ratio": spread([ours / bare for ours, bare in pairs]),
            }
    return found


if __name__ == "__main__":
    script(__doc__, measure)
