"""When waiting has become hopeless: what both drivers ask at each health check."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from altlas_core.distributor import Distributor
from altlas_core.events import RANK_TIMER, HopeLost
from altlas_core.strategies import USER_STRATEGIES

HOPELESS_CHECKS: Final = 100  # health checks in a row that changed nothing
Planned = tuple[float, int, int, Callable[..., Any], Any]  # (time_s, rank, sequence, due, arg)


class Patience:
    """Counts the health checks at which tasks wait, nothing runs and nothing else is planned that could change it."""

    __slots__ = ("_checks", "_waiting")

    def __init__(self) -> None:
        self._checks = 0
        self._waiting = 0

    def judge(self, distributor: Distributor, planned: Iterable[Planned], check: Callable[..., Any]) -> HopeLost | None:
        """`planned` is the driver's heap, `check` the health check in it. Deadlines of what has ended are nothing."""
        devices, waiting = distributor.pool.devices, distributor.queue.count
        stuck = (
            waiting
            and waiting == self._waiting
            and not any(device.running for device in devices)
            and not any(rank != RANK_TIMER and due != check for _, rank, _, due, _ in planned)
        )
        self._checks = self._checks + 1 if stuck else 0
        self._waiting = waiting
        if self._checks < HOPELESS_CHECKS:
            return None
        self._checks = 0
        states = ", ".join(f"GPU {device.gpu_id} {device.reason or device.state}" for device in devices[:4])
        more = f" and {len(devices) - 4} more" if len(devices) > 4 else ""
        why = f"no usable GPU in {HOPELESS_CHECKS} health checks, and nothing left that could change it: {states}{more}"
        names = sorted({task.demand.strategy for task in distributor.waiting()} & USER_STRATEGIES.keys())
        return HopeLost(f"{why}; declined by strategy {', '.join(names)}" if names else why)
