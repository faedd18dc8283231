"""No-op tasks through distributor, real-time driver and worker processes, against concurrent.futures, in one run.

Against Ray actors too where Ray is installed.

    python benchmarks/dispatch.py [--tasks 20000] [--rounds 5] [--json]

Both sides have two worker processes, started and warm before anything is timed, and take turns. Throughput: all tasks
submitted at once, until the last result is there. Latency: one task at a time, submit to result, from another thread
than the one that schedules. Ours does its full work: priorities, slots, timeouts, retries, the event log.
"""

from __future__ import annotations

import argparse
import json
import queue
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import ray_peer

from altlas_core.backends.supervision.backend import TorchBackend
from altlas_core.config import load_config
from altlas_core.distributor import Distributor
from altlas_core.drivers.clock import MonotonicClock
from altlas_core.drivers.realtime import RealtimeDriver
from altlas_core.event_log import EventLog
from altlas_core.events import RANK_SUBMIT, AttemptFinished, TaskSubmitted
from altlas_core.intake import make_tasks
from altlas_core.model import COMPLETED, DeviceSpec, TaskSpec

WORKERS = 2
DEVICES = [DeviceSpec(i, "cpu", f"cpu:{i}", 2 << 30, index=i, cores=1) for i in range(WORKERS)]
SETTINGS = load_config(environ={}, overrides={"gpu.selection.default_strategy": "least_loaded"})


def noop() -> None:
    """What the peer's workers do."""


class TellingLog(EventLog):
    """An event log that passes every end of an attempt on to whoever waits for it."""

    def __init__(self, ended: queue.SimpleQueue[int]) -> None:
        super().__init__({})
        self._ended = ended

    def fact(self, now: float, fact: Any) -> None:
        super().fact(now, fact)
        if type(fact) is AttemptFinished:
            self._ended.put(fact.task_index)


def driver_for(backend: TorchBackend, log: EventLog) -> RealtimeDriver:
    return RealtimeDriver(
        Distributor(SETTINGS.gpu, DEVICES, 42),
        backend,
        clock=MonotonicClock(),
        queue_processing_interval_s=SETTINGS.gpu.workload.queue_processing_interval,
        health_check_interval_s=SETTINGS.gpu.detection.health_check_interval,
        log=log,
    )


def our_throughput(backend: TorchBackend, count: int) -> float:
    """Tasks per second."""
    tasks = make_tasks([TaskSpec(kind="noop")] * count, SETTINGS.gpu, WORKERS)
    driver = driver_for(backend, EventLog({}))
    seconds = driver.run([(0.0, RANK_SUBMIT, TaskSubmitted(task)) for task in tasks], close=False)
    assert all(task.state == COMPLETED for task in tasks)
    return count / seconds


def our_latencies(backend: TorchBackend, count: int) -> list[float]:
    """Seconds from posting a task to hearing of its end, one at a time."""
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    driver = driver_for(backend, TellingLog(ended))
    thread = threading.Thread(target=driver.serve)
    thread.start()
    seconds = []
    for task in make_tasks([TaskSpec(kind="noop")] * count, SETTINGS.gpu, WORKERS):
        begin = time.perf_counter()
        driver.post(TaskSubmitted(task))
        assert ended.get() == task.index
        seconds.append(time.perf_counter() - begin)
    driver.stop()
    thread.join()
    return seconds


def peer_throughput(pool: ProcessPoolExecutor, count: int) -> float:
    begin = time.perf_counter()
    for future in [pool.submit(noop) for _ in range(count)]:
        future.result()
    return count / (time.perf_counter() - begin)


def peer_latencies(pool: ProcessPoolExecutor, count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        begin = time.perf_counter()
        pool.submit(noop).result()
        seconds.append(time.perf_counter() - begin)
    return seconds


def measure(count: int, rounds: int) -> dict[str, Any]:
    single = max(100, count // 20)
    backend = TorchBackend(DEVICES, SETTINGS.gpu.workload.max_concurrent_tasks_per_gpu, 42, 2.0)
    ours: list[float] = []
    theirs: list[float] = []
    rays: list[float] = []
    try:
        with ProcessPoolExecutor(WORKERS) as pool, ray_peer.actors(WORKERS) as actors:
            peer_throughput(pool, 200)
            our_throughput(backend, 200)
            for _ in range(rounds):
                theirs.append(peer_throughput(pool, count))
                ours.append(our_throughput(backend, count))
                if actors:
                    rays.append(ray_peer.throughput(actors, count))
            their_latencies = peer_latencies(pool, single)
            latencies = our_latencies(backend, single)  # serve() closes the backend
    finally:
        backend.close()
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return {
        "tasks": count,
        "rounds": rounds,
        "tasks_per_s": statistics.median(ours),
        "peer_tasks_per_s": statistics.median(theirs),
        "ray_tasks_per_s": statistics.median(rays) if rays else None,
        "ratio": ratio,
        "ratio_min": min(a / b for a, b in zip(ours, theirs, strict=True)),
        "latency_p50_s": statistics.median(latencies),
        "peer_latency_p50_s": statistics.median(their_latencies),
    }


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    found = measure(options.tasks, options.rounds)
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"{found['tasks']} no-op tasks, {WORKERS} worker processes, medians of {found['rounds']} rounds")
    print(f"{'':34}{'altlas':>14}{'ProcessPoolExecutor':>22}")
    print(f"{'tasks/s':34}{found['tasks_per_s']:>14,.0f}{found['peer_tasks_per_s']:>22,.0f}")
    ours_us, theirs_us = found["latency_p50_s"] * 1e6, found["peer_latency_p50_s"] * 1e6
    print(f"{'one at a time, p50 (microseconds)':34}{ours_us:>14,.0f}{theirs_us:>22,.0f}")
    rays = found["ray_tasks_per_s"]
    print(f"{'tasks/s of Ray actors':34}{'not installed' if rays is None else f'{rays:,.0f}':>36}")
    print(f"ratio of tasks/s, paired: median {found['ratio']:.2f}, lowest {found['ratio_min']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
