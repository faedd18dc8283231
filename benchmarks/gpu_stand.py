"""What the checks of gpu_check.py stand on: one real device, runs on it, and what a check has to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

import altlas_core as altlas
from altlas_core.backends.machine import Machine
from altlas_core.config import load_config
from altlas_core.faults import Fault
from altlas_core.model import COMPLETED, Attempt, DeviceSpec
from altlas_core.result import Result

MODELS: Final = {"small_model": 1024, "medium_model": 4096, "large_model": 8192}
TOGETHER: Final = 4


@dataclass(slots=True)
class Stand:
    """What the checks run on. `seconds` is one measured piece of work, `rounds` how many of them make a median."""

    device: str
    machine: Machine
    reports: Path
    models: Mapping[str, int] = field(default_factory=lambda: dict(MODELS))
    batch: int = 256
    seconds: float = 1.0
    rounds: int = 5
    kill_grace_s: float = 0.5

    @property
    def spec(self) -> DeviceSpec:
        return self.machine.devices[0]

    @property
    def cuda(self) -> bool:
        return self.spec.kind == "cuda"

    def linear(self, size: int, **more: Any) -> dict[str, Any]:
        return {"input_size": size, "output_size": size, "batch": self.batch, "timeout_s": 120.0, **more}

    def play(
        self,
        records: Sequence[Mapping[str, Any]],
        *faults: Fault,
        slots: int = TOGETHER,
        devices: Sequence[DeviceSpec] = (),
        **more: Any,
    ) -> Result:
        """One run on the device, or on `devices`; `more` are settings of gpu.workload.

        Bad health is looked at so often that a device in use by others is given up soon.
        """
        overrides = {
            "gpu.detection.health_check_interval": 0.2,
            "gpu.workload.max_concurrent_tasks_per_gpu": slots,
            "gpu.workload.kill_grace": self.kill_grace_s,
            "telemetry.interval": 0.1,
            **{f"gpu.workload.{name}": value for name, value in more.items()},
        }
        settings = load_config(overrides=overrides, environ={})
        asked = altlas.Workload.from_records(records)
        return altlas.run(settings, asked, faults=faults, devices=devices or [self.spec])


@dataclass(slots=True)
class Finding:
    """`passed` None: it could not be looked at, and `observed` says why."""

    passed: bool | None
    observed: str
    figures: dict[str, Any] = field(default_factory=dict)


def attempts_of(result: Result) -> list[Attempt]:
    return result.log.attempts()


def worker_pids() -> set[int]:
    """The worker processes that this one has started."""
    found = set()
    for child in psutil.Process().children():
        try:
            if "altlas_core.backends.worker.program" in child.cmdline():
                found.add(child.pid)
        except psutil.Error:  # it has just ended
            continue
    return found


def story(result: Result) -> str:
    """Tasks that did not complete, in short."""
    other = [task for task in result.task_list if task.state != COMPLETED]
    said = "; ".join(
        f"{task.task_id} {task.state} {task.error_code or ''} {task.error or ''}".strip() for task in other
    )
    return said.splitlines()[0][:200] if said else "all completed"
