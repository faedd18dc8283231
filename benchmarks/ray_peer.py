"""Ray actors as a peer of dispatch.py, where Ray is installed: this project does not ask for it."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class Worker:
    """What runs in the process of an actor."""

    def noop(self) -> None:
        """What it is asked to do."""


@contextmanager
def actors(count: int) -> Iterator[Sequence[Any]]:
    """So many actors, started and warm; none where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        yield ()
        return
    ray = importlib.import_module("ray")
    ray.init(num_cpus=count, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        kind = ray.remote(num_cpus=1)(Worker)
        workers = [kind.remote() for _ in range(count)]
        throughput(workers, 200)
        yield workers
    finally:
        ray.shutdown()


def throughput(workers: Sequence[Any], count: int) -> float:
    """Tasks per second, all submitted at once."""
    ray = importlib.import_module("ray")
    begin = time.perf_counter()
    ray.get([workers[number % len(workers)].noop.remote() for number in range(count)])
    return count / (time.perf_counter() - begin)
