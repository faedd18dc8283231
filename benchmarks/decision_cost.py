"""The cost of one decision, per strategy, on 8 and on 1,024 GPUs.

    python -m benchmarks.decision_cost [--quick]

A distributor alone, without driver, backend or telemetry: a task ends on a random GPU, another is submitted, one is
started. Measured with half the slots taken, and with all of them. (single_gpu only ever has one GPU's slots to fill.)
"""

from __future__ import annotations

import time
from random import Random
from typing import Any

from altlas_core.backends.discover import discover
from altlas_core.config import load_config
from altlas_core.distributor import Distributor
from altlas_core.events import AttemptFinished, TaskSubmitted
from altlas_core.intake import make_tasks
from altlas_core.model import GIB, Attempt, TaskSpec
from altlas_core.strategies import STRATEGIES
from benchmarks.timing import script, spread

GPU_COUNTS = (8, 1024)
SLOTS = 4


class Case:
    """A machine in a steady state, of which `cycle` measures so many decisions."""

    def __init__(self, strategy: str, gpus: int, share: float) -> None:
        self.settings = load_config(
            overrides={"gpu.devices": [f"{gpus}x A100"], "gpu.selection.default_strategy": strategy}, environ={}
        )
        self.distributor = Distributor(self.settings.gpu, discover(self.settings).devices, 1)
        self.gpus = gpus
        self.rng = Random(1)
        self.made = 0
        slots = SLOTS if strategy == "single_gpu" else gpus * SLOTS
        for fact in self.new_facts(round(slots * share)):
            self.distributor.on_event(0.0, fact)
        self.running = self.started()

    def new_facts(self, count: int) -> list[TaskSubmitted]:
        spec = TaskSpec(duration_s=1.0, memory_bytes=GIB)
        tasks = make_tasks([spec] * count, self.settings.gpu, self.gpus)
        for task in tasks:
            task.index += self.made
        self.made += count
        return [TaskSubmitted(task) for task in tasks]

    def started(self) -> list[Attempt]:
        return [action for action in self.distributor.dispatch(0.0) if type(action) is Attempt]

    def cycle(self, count: int) -> float:
        """Seconds per decision, with the end and the submission that come with it."""
        on_event, dispatch, running = self.distributor.on_event, self.distributor.dispatch, self.running
        facts = self.new_facts(count)
        picks = [self.rng.randrange(len(running)) for _ in facts]
        begin = time.perf_counter()
        for fact, pick in zip(facts, picks, strict=True):
            ended = running[pick]
            on_event(0.0, AttemptFinished(ended.task.index, ended.number, 1.0))
            on_event(0.0, fact)
            for action in dispatch(0.0):
                if type(action) is Attempt:
                    running[pick] = action
        return (time.perf_counter() - begin) / count


def measure(quick: bool) -> dict[str, Any]:
    count, rounds = (500, 2) if quick else (5_000, 9)
    rows = []
    for share in (0.5, 1.0):
        for strategy in STRATEGIES:
            cases = [Case(strategy, gpus, share) for gpus in GPU_COUNTS]
            seconds: list[list[float]] = [[] for _ in cases]
            for _ in range(rounds):
                for case, found in zip(cases, seconds, strict=True):
                    found.append(case.cycle(count))
            per_gpus = {str(case.gpus): spread(found) for case, found in zip(cases, seconds, strict=True)}
            rows.append({"strategy": strategy, "slots_taken": share, "seconds_per_decision": per_gpus})
    return {"decisions": count, "rounds": rounds, "rows": rows}


if __name__ == "__main__":
    script(__doc__, measure)
