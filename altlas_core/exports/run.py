"""What an export needs to know of a run: what `Result` has."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

from altlas_core.config import Settings
from altlas_core.event_log import EventLog
from altlas_core.model import DeviceSpec
from altlas_core.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from altlas_core.model import Task


class Run(Protocol):
    settings: Settings
    seed: int
    provenance: str
    devices: tuple[DeviceSpec, ...]
    virtual_s: float
    log: EventLog
    sampled: Telemetry
    task_list: Sequence[Task]

    @property
    def tasks(self) -> pd.DataFrame: ...
    @property
    def attempts(self) -> pd.DataFrame: ...
    @property
    def telemetry(self) -> pd.DataFrame: ...
    @property
    def queue_depth(self) -> pd.DataFrame: ...


def sayable(detail: dict[str, Any]) -> dict[str, Any]:
    """What was measured of an attempt as JSON can say it: an infinity, which it has not, is null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in detail.items()}
