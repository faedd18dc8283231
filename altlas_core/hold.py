"""A GPU set aside for a task that fits nowhere: the rule that keeps large tasks from being starved by small ones."""

from __future__ import annotations

from dataclasses import dataclass

from altlas_core.model import QUEUED, Device, Task
from altlas_core.pool import Pool
from altlas_core.strategies import STRATEGIES
from altlas_core.task_queue import Lane, Need


@dataclass(slots=True, eq=False)
class Hold:
    """Nothing else starts on `device` until `task` has; the device can only empty meanwhile."""

    task: Task
    need: Need
    device: Device

    def stands(self, pool: Pool) -> bool:
        """It ends with its task's waiting, or when its GPU can no longer come to have the room."""
        return self.task.state == QUEUED and pool.could_hold(self.device, self.need)

    def closed_to(self, lane: Lane) -> int:
        """The mask of the GPU it keeps from this lane: none for the lane its own task stands in."""
        return 0 if lane.need is self.need and lane.level == self.task.level else self.device.bit


def hold_for(task: Task, need: Need, pool: Pool) -> Hold | None:
    """Set the GPU nearest to having room aside. None where no GPU could come to have it, or a user's strategy chooses,
    which may decline for ever."""
    device = pool.roomiest(need) if need.strategy in STRATEGIES else None
    return None if device is None else Hold(task, need, device)
