"""How the benchmarks measure: contestants take turns in one process, medians and spread are reported."""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def rates(count: int, seconds: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """`count` things done in each of these (wall, CPU) seconds, as things per second."""
    return {
        "per_s": spread([count / wall for wall, _ in seconds]),
        "per_cpu_s": spread([count / cpu for _, cpu in seconds]),
    }


def take_turns(rounds: int, contestants: Mapping[str, Callable[[], object]]) -> dict[str, list[tuple[float, float]]]:
    """(wall, CPU) seconds of every call: each contestant once a round, so that a slow minute hits all alike.

    No garbage collection while one runs, for none of them: `altlas.run` does without it, and so may its peers.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            gc.collect()
            gc.disable()
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            found[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            gc.enable()
    return found


def script(about: str | None, measure: Callable[[bool], dict[str, Any]]) -> None:
    """Run one benchmark by itself: its results as JSON on stdout."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small run, to see that it works; not to be quoted")
    print(json.dumps(measure(parser.parse_args().quick), indent=2))
