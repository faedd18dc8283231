"""Virtual-time scheduling: altlas.run against SimPy, the same arrivals and durations, in turns in one process.

    python -m benchmarks.scheduler [--quick]

Ours does its full work, through the public `altlas.run`: three priorities with aging, memory, least_loaded, a timeout
per task, telemetry of every GPU every second, health checks, an event log. The peers do less, each as lean as we could
write it fairly: first come first served, and nothing else. The load is 1.1 times what the machine can do, so a queue
builds up; every contestant must finish every task.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from itertools import cycle
from random import Random
from typing import Any

import simpy
from simpy.events import Timeout

import altlas_core as altlas
from benchmarks.timing import rates, script, take_turns

SLOTS = 4
LOAD = 1.1
Jobs = list[tuple[float, float]]  # (seconds after the one before, duration in seconds)


def make_jobs(gpus: int, count: int) -> Jobs:
    """Poisson arrivals, durations of 0.5 to 1.5 s."""
    rng = Random(1)
    rate = LOAD * gpus * SLOTS  # the mean duration is 1 s
    return [(rng.expovariate(rate), rng.uniform(0.5, 1.5)) for _ in range(count)]


def make_workload(jobs: Jobs) -> altlas.Workload:
    rng = Random(2)
    records, now = [], 0.0
    for gap, duration_s in jobs:
        now += gap
        records.append(
            {
                "submit_s": now,
                "duration_s": duration_s,
                "priority": rng.choice(["high", "normal", "low"]),
                "memory_bytes": rng.choice([1, 2, 4]) << 30,
            }
        )
    return altlas.Workload.from_records(records)


def with_resources(gpus: int, jobs: Jobs) -> float:
    """SimPy as its tutorial has it: a Resource per GPU, a process per task, which takes the GPUs in turn."""
    env = simpy.Environment()
    resources = [simpy.Resource(env, SLOTS) for _ in range(gpus)]
    done = 0

    def task(resource: Any, duration_s: float) -> Any:
        nonlocal done
        with resource.request() as request:
            yield request
            yield env.timeout(duration_s)
        done += 1

    def source() -> Any:
        for (gap, duration_s), resource in zip(jobs, cycle(resources), strict=False):
            yield env.timeout(gap)
            env.process(task(resource, duration_s))

    env.process(source())
    env.run()
    assert done == len(jobs)
    return float(env.now)


def with_slot_processes(gpus: int, jobs: Jobs) -> float:
    """Lean SimPy: one process per GPU slot and one queue; no Resource, no process per task."""
    env = simpy.Environment()
    waiting: deque[float] = deque()
    idle: list[Any] = []
    done = 0

    def slot() -> Any:
        nonlocal done
        while True:
            while waiting:
                yield env.timeout(waiting.popleft())
                done += 1
            wake = env.event()
            idle.append(wake)
            yield wake

    def source() -> Any:
        for gap, duration_s in jobs:
            yield env.timeout(gap)
            waiting.append(duration_s)
            if idle:
                idle.pop().succeed()

    for _ in range(gpus * SLOTS):
        env.process(slot())
    env.process(source())
    env.run()
    assert done == len(jobs)
    return float(env.now)


def with_callbacks(gpus: int, jobs: Jobs) -> float:
    """SimPy at its leanest: no process at all, two Timeouts with a callback per task, a list of free slots."""
    env = simpy.Environment()
    waiting: deque[float] = deque()
    free = list(range(gpus * SLOTS))
    upcoming = iter(jobs)
    done = 0

    def start(duration_s: float, slot: int) -> None:
        Timeout(env, duration_s, slot).callbacks.append(ended)

    def ended(event: Any) -> None:
        nonlocal done
        done += 1
        if waiting:
            start(waiting.popleft(), event._value)
        else:
            free.append(event._value)

    def arrived(event: Any) -> None:
        if free:
            start(event._value, free.pop())
        else:
            waiting.append(event._value)
        plan_arrival()

    def plan_arrival() -> None:
        for gap, duration_s in upcoming:
            Timeout(env, gap, duration_s).callbacks.append(arrived)
            return

    plan_arrival()
    env.run()
    assert done == len(jobs)
    return float(env.now)


PEERS = {
    "SimPy, a Resource per GPU": with_resources,
    "lean SimPy, a process per slot": with_slot_processes,
    "leanest SimPy, callbacks only": with_callbacks,
}


def ours(settings: Any, workload: altlas.Workload) -> altlas.Result:
    result = altlas.run(settings, workload)
    assert all(task.state == "COMPLETED" for task in result.task_list)
    return result


def compare(gpus: int, count: int, rounds: int) -> dict[str, Any]:
    jobs = make_jobs(gpus, count)
    workload = make_workload(jobs)
    settings = altlas.load_config(
        overrides={"gpu.devices": [f"{gpus}x A100"], "gpu.selection.default_strategy": "least_loaded"}, environ={}
    )
    contestants: dict[str, Any] = {"altlas.run": partial(ours, settings, workload)}
    contestants |= {name: partial(play, gpus, jobs) for name, play in PEERS.items()}
    make_spans = {name: call() for name, call in contestants.items()}  # also warms up
    make_spans["altlas.run"] = make_spans["altlas.run"].virtual_s
    seconds = take_turns(rounds, contestants)
    return {
        "gpus": gpus,
        "slots": SLOTS,
        "tasks": count,
        "rounds": rounds,
        "contestants": {name: rates(count, seconds[name]) | {"virtual_s": make_spans[name]} for name in contestants},
    }


def measure(quick: bool) -> dict[str, Any]:
    count, rounds = (5_000, 2) if quick else (200_000, 5)
    return {"machines": [compare(gpus, count, rounds) for gpus in (8, 1024)]}


if __name__ == "__main__":
    script(__doc__, measure)
