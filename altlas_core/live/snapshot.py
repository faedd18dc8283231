"""What a live run looks like at one moment: plain data, made on the reader's thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

State = Literal["ready", "running", "paused", "ended", "failed"]


class GpuView(NamedTuple):
    """One GPU. `health` is a state of the pool (AVAILABLE, BUSY, UNHEALTHY, LOST), `reason` why it takes no work.

    Percent, bytes, degrees C, watts; None where there is no reading. `running` attempts hold a slot of `slots`.
    """

    gpu_id: int
    name: str
    health: str
    reason: str | None
    utilization_pct: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int
    temperature_c: float | None
    power_w: float | None
    power_limit_w: float | None
    running: int
    slots: int
    simulated: bool


class AttemptView(NamedTuple):
    """One start of one task. `key` is its own in this run; `lane` the lowest slot that was free on its GPU.

    `ended_s` None: it still runs. `outcome` as figures.style.OUTCOMES names it, None while it runs. Seconds.
    """

    key: str
    gpu_id: int
    lane: int
    task_id: str
    kind: str
    priority: str
    started_s: float
    ended_s: float | None
    outcome: str | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A live run at one moment. Seconds are on the run's clock; None means that nothing was there to measure.

    `run` counts up with each rebuild: attempts and series start anew. `pace` None: as fast as possible. `can_pace`
    False: the devices are real, and time cannot be stopped or stepped.
    The percentiles are of all tasks completed so far, within 1 %. `throughput_per_s` is tasks completed a second of the
    latest half minute or more. `queue_depths` are the deepest queue since the point before; `latency_p50_series` and
    `latency_p95_series` are of the tasks completed since the point before `latency_times_s`, None where none was.
    `attempts` are those that started or ended since the `since` asked for, oldest change first; ask with `next_since`
    the next time. `news` are the latest notable lines, newest last.
    """

    state: State
    error: str | None
    run: int
    time_s: float
    pace: float | None
    can_pace: bool
    provenance: str
    strategy: str
    rate_factor: float
    seed: int
    slots: int
    device_texts: tuple[str, ...]
    gpus: tuple[GpuView, ...]
    submitted: int
    queued: int
    running: int
    completed: int
    failed: int
    cancelled: int
    latency_p50_s: float | None
    latency_p95_s: float | None
    latency_p99_s: float | None
    wait_p50_s: float | None
    throughput_per_s: float | None
    queue_times_s: Sequence[float]
    queue_depths: Sequence[int]
    latency_times_s: Sequence[float]
    latency_p50_series: Sequence[float | None]
    latency_p95_series: Sequence[float | None]
    attempts: tuple[AttemptView, ...]
    next_since: int
    news: tuple[str, ...]
