"""The workload that a user gave, or the example that comes with the package."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from altlas_core.backends.work_check import check_work
from altlas_core.config import Settings
from altlas_core.errors import AltlasError, WorkloadError
from altlas_core.intake import make_tasks
from altlas_core.model import GIB, DeviceSpec, Task
from altlas_core.scenarios.measures import capacity_bytes
from altlas_core.scenarios.yardsticks import length_s
from altlas_core.telemetry import MAX_ROWS
from altlas_core.words import memory_text, seconds_text
from altlas_core.workloads import Workload

if TYPE_CHECKING:
    import pandas as pd

EXAMPLE: Final = Path(__file__).resolve().parents[1] / "examples" / "mixed_jobs.csv"
EXAMPLE_ROOM: Final = 72 * GIB  # what one of the GPUs that the example is made for offers: 0.9 of an A100's 80 GiB


@dataclass(frozen=True, slots=True)
class Given:
    """`told`: where it comes from, in words."""

    workload: Workload
    told: str


def given_workload(settings: Settings, devices: Sequence[DeviceSpec]) -> Given:
    """The file of run.workload, else the example; on smaller devices its memory needs shrink with them.

    Raises WorkloadError where the file cannot be used.
    """
    if settings.run.workload is not None:
        path = Path(settings.run.workload)
        workload = Workload.from_file(path)
        _check_readings(settings, workload, len(devices))
        return Given(workload, path.name)
    workload = Workload.from_file(EXAMPLE)
    told = f"an example that comes with the package ({EXAMPLE.name}; no workload was given)"
    room = max((capacity_bytes(settings, spec) for spec in devices), default=EXAMPLE_ROOM)
    if room >= EXAMPLE_ROOM:
        return Given(workload, told)
    share = room / EXAMPLE_ROOM
    specs = tuple(replace(spec, memory_bytes=int((spec.memory_bytes or 0) * share)) for spec in workload.specs)
    return Given(replace(workload, specs=specs), f"{told}, its memory needs times {share:.2g} to fit this machine")


def check_given(settings: Settings, devices: Sequence[DeviceSpec]) -> None:
    """That the file of run.workload, if there is one, can be run on these devices. Raises AltlasError naming it."""
    if settings.run.workload is None:
        return
    workload = Workload.from_file(settings.run.workload)
    requests = workload.tasks(settings.gpu.workload.batch_size)
    try:
        check_work(requests, devices)
        make_tasks(requests, settings.gpu, len(devices))
    except AltlasError as problem:
        raise type(problem)(
            f"{settings.run.workload}: {problem} (tasks are numbered by submit_s, then as they stand)"
        ) from None
    _check_readings(settings, workload, len(devices))


def _check_readings(settings: Settings, workload: Workload, gpus: int) -> None:
    """That its submissions are not spread so thin that a run would do little but read idle devices."""
    last_s, interval_s = max((spec.submit_s for spec in workload.specs), default=0.0), settings.telemetry.interval
    readings = (last_s / interval_s + 1) * gpus
    if readings <= MAX_ROWS:
        return
    raise WorkloadError(
        f"{settings.run.workload}: the last task is submitted at {last_s:,.10g} s (times are seconds), which with "
        f"telemetry.interval {interval_s:g} s and {gpus} GPUs is {readings:,.0f} readings; allowed: "
        f"{MAX_ROWS:,}, as with --set telemetry.interval={_round_up(last_s * gpus / (MAX_ROWS - gpus)):g}"
    )


def _round_up(seconds: float) -> float:
    """To 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(seconds))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= seconds)


def workload_table(given: Given, tasks: Sequence[Task], strategy: str) -> pd.DataFrame:
    """What was run, in a few lines. `strategy`: how GPUs were chosen, in words."""
    import pandas as pd

    lengths = [length for task in tasks if (length := length_s(task)) is not None]
    unknown = len(tasks) - len(lengths)
    memory = [task.demand.memory_bytes for task in tasks]
    pinned = sum(task.demand.pin is not None for task in tasks)
    rows = {
        "workload": given.told,
        "size": f"{len(tasks):,} tasks" if len(tasks) > 1 else "1 task",
        "submitted": f"from {seconds_text(tasks[0].submitted_s)} to {seconds_text(tasks[-1].submitted_s)}",
        "kinds of work": _counts(task.spec.kind for task in tasks),
        "priorities": _counts(task.spec.priority for task in tasks),
        "known lengths": f"{seconds_text(sum(lengths), 5)} together, "
        f"{seconds_text(max(lengths, default=0.0))} the longest"
        + (f"; {unknown:,} of unknown length" if unknown else ""),
        "memory": f"{memory_text(min(memory), max(memory))} for a task",
        "pinned to a GPU": f"{pinned:,} of them",
        "strategy": strategy,
    }
    if not pinned:
        del rows["pinned to a GPU"]
    return pd.DataFrame({"": list(rows), "what was run": list(rows.values())})


def _counts(names: Iterable[str]) -> str:
    """ "linear 70, mlp 30", the most frequent first."""
    return ", ".join(f"{name} {count:,}" for name, count in Counter(names).most_common())
