"""What it costs to end a task that does not stop when asked: from its deadline to the end of the task after it.

    python -m benchmarks.stop_cost [--quick]

One CPU device with one slot. A task that never looks whether it should stop runs into its timeout; kill_grace later its
worker is killed; the next task, a no-op that waits for the slot, is done when the replacement has run it. With a spare
worker that has torch imported already, and without one; the grace itself is not counted. (The goals: under 1 s, and
under 4 s.)
"""

from __future__ import annotations

from typing import Any, Final

import altlas_core as altlas
from altlas_core.backends import warm
from altlas_core.config import load_config
from altlas_core.model import COMPLETED, DeviceSpec
from benchmarks.timing import script, spread

DEVICE: Final = DeviceSpec(0, "cpu", "cpu:0", 2 << 30, cores=1)
GRACE_S: Final = 0.5
TIMEOUT_S: Final = 0.5


def once(spare_workers: int) -> float:
    """Seconds from the deadline and its grace to the end of the next task."""
    overrides = {
        "gpu.backend": "cpu",
        "gpu.workload.max_concurrent_tasks_per_gpu": 1,
        "gpu.workload.kill_grace": GRACE_S,
        "gpu.workload.spare_workers": spare_workers,
    }
    hang = {"kind": "hang", "duration_s": 600.0, "timeout_s": TIMEOUT_S, "priority": "high"}
    asked = altlas.Workload.from_records([hang, {"kind": "noop"}])
    hung, following = altlas.run(load_config(overrides=overrides, environ={}), asked, devices=[DEVICE]).task_list
    assert hung.error_code == "timeout", hung.error
    assert following.state == COMPLETED, following.error
    assert hung.finished_s is not None
    assert following.finished_s is not None
    return following.finished_s - hung.finished_s - GRACE_S


def measure(quick: bool) -> dict[str, Any]:
    rounds = 1 if quick else 11
    found: dict[str, Any] = {"rounds": rounds, "kill_grace_s": GRACE_S, "seconds": {}}
    for name, spares in (("with a spare worker", 1), ("without", 0)):
        with warm.keep():  # each round opens with all workers ready, the spare one among them
            found["seconds"][name] = spread([once(spares) for _ in range(rounds)])
    return found


if __name__ == "__main__":
    script(__doc__, measure)
