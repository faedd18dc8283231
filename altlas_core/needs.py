"""The needs that tasks have had, remembered: tasks that demand alike share one, and so one lane of the queue."""

from __future__ import annotations

from typing import Final

from altlas_core.model import Demand, Task
from altlas_core.pool import Pool
from altlas_core.task_queue import Need

MAX_CRASHES: Final = 3  # the third worker crash ends a task; the attempt before which it has had two is made alone
MAX_IDLE_NEEDS: Final = 1024  # remembered although nobody waits for them; a bound on memory, not on behaviour


class Needs:
    """`known` has those of tasks that share a GPU, by demand: for callers that look often."""

    __slots__ = ("_pool", "_purge_at", "_solo", "known")

    def __init__(self, pool: Pool) -> None:
        self.known: dict[Demand, Need] = {}
        self._solo: dict[Demand, Need] = {}
        self._pool = pool
        self._purge_at = MAX_IDLE_NEEDS

    def of(self, task: Task) -> Need:
        """What a task needs now: after two crashes of its worker, a GPU to itself."""
        solo = task.crashes >= MAX_CRASHES - 1
        needs = self._solo if solo else self.known
        demand = task.demand
        need = needs.get(demand)
        if need is None:
            if len(needs) >= self._purge_at:
                for idle in [other for other, need in needs.items() if need.idle]:
                    del needs[idle]
                self._purge_at = max(MAX_IDLE_NEEDS, 2 * len(needs))  # a purge pays for itself
            need = needs[demand] = Need(demand.memory_bytes, demand.pin, demand.strategy, solo)
            need.allowed = self._pool.allowed(need)
        return need

    def all(self) -> list[Need]:
        return [*self.known.values(), *self._solo.values()]

    def look_again(self) -> None:
        """A device was lost, or has come back: which GPUs may serve whom has changed."""
        for need in self.all():
            need.allowed = self._pool.allowed(need)
