"""The needs that tasks have had, remembered: tasks that demand alike share one, and so one lane of the queue.

And what a task needs that has found less memory than it wanted:
- It wants more than it reserved: from now on it reserves what it wants, so it starts only where that much is free.
- It had reserved what it wants, or nobody knows what it wants: others used what was its. Its next attempts are alone.
"""

from __future__ import annotations

from typing import Final

from altlas_core.model import Demand, Task
from altlas_core.pool import Pool
from altlas_core.task_queue import Need

MAX_CRASHES: Final = 3  # the third worker crash ends a task; the attempt before which it has had two is made alone
MAX_IDLE_NEEDS: Final = 1024  # remembered although nobody waits for them; a bound on memory, not on behaviour


class Needs:
    """`known` has those of tasks that share a GPU, by demand: for callers that look often."""

    __slots__ = ("_crowded_out", "_grown", "_pool", "_purge_at", "_solo", "known")

    def __init__(self, pool: Pool) -> None:
        self.known: dict[Demand, Need] = {}
        self._solo: dict[Demand, Need] = {}
        self._crowded_out: set[int] = set()  # by index: tasks whose memory others used
        self._grown: dict[int, Demand] = {}  # by index: tasks that want more than they were submitted with
        self._pool = pool
        self._purge_at = MAX_IDLE_NEEDS

    def of(self, task: Task) -> Need:
        """What a task needs now: after two crashes of its worker, or if others used its memory, a GPU to itself."""
        solo = task.crashes >= MAX_CRASHES - 1 or task.index in self._crowded_out
        needs = self._solo if solo else self.known
        demand = self._grown.get(task.index, task.demand)
        need = needs.get(demand)
        if need is None:
            if len(needs) >= self._purge_at:
                for idle in [other for other, need in needs.items() if need.idle]:
                    del needs[idle]
                self._purge_at = max(MAX_IDLE_NEEDS, 2 * len(needs))  # a purge pays for itself
            need = needs[demand] = Need(demand.memory_bytes, demand.pin, demand.strategy, solo)
            need.allowed = self._pool.allowed(need)
        return need

    def after_shortage(self, task: Task, needed_bytes: int | None) -> bool:
        """A task ran out of memory on a device that told how much was free: have its next attempt where there is more.

        `needed_bytes`: what it would have needed at least; None: not told. False if no device is that large.
        """
        if needed_bytes is None or needed_bytes <= task.memory_bytes:
            self._crowded_out.add(task.index)
            return True
        asked = task.demand
        task.memory_bytes = needed_bytes
        self._grown[task.index] = Demand(needed_bytes, asked.pin, asked.strategy, asked.sizes)
        return self._pool.allowed(self.of(task)) != 0

    def forget(self, task: Task) -> None:
        """Drop what was kept of a task that is final."""
        self._crowded_out.discard(task.index)
        self._grown.pop(task.index, None)

    def all(self) -> list[Need]:
        return [*self.known.values(), *self._solo.values()]

    def look_again(self) -> None:
        """A device was lost, or has come back: which GPUs may serve whom has changed."""
        for need in self.all():
            need.allowed = self._pool.allowed(need)
