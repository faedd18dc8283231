"""The figures of one run of a user's workload: flat names that stay, seconds, joules, percent."""

from __future__ import annotations

from typing import Any

from altlas_core.result import Result
from altlas_core.scenarios.measures import jain_index


def run_metrics(result: Result) -> dict[str, Any]:
    """None where there was nothing to measure.

    p50_s, p95_s, p99_s: from submission to the end of completed tasks. wait: from submission to the start of the last
    attempt. utilization and energy: from the first submission on, as makespan and throughput. jain_index: of the
    seconds for which each GPU's slots were held.
    """
    whole = result.metrics
    named = {f"p{percent}_s": whole[f"latency_p{percent}_s"] for percent in (50, 95, 99)}
    same = ("tasks", "completed", "failed", "cancelled", "makespan_s", "throughput_tasks_per_s")
    return {
        **{name: whole[name] for name in same},
        **named,
        **{f"wait_p{percent}_s": whole[f"wait_p{percent}_s"] for percent in (50, 95, 99)},
        "utilization_mean_pct": utilization_mean_pct(result),
        "energy_j": energy_j(result),
        "queue_depth_max": most_waiting(result),
        "jain_index": jain_index(held_s(result)),
    }


def held_s(result: Result) -> list[float]:
    """Slot-seconds that tasks held on each GPU."""
    held = [0.0] * len(result.devices)
    for attempt in result.log.attempts():
        end_s = result.virtual_s if attempt.ended_s is None else attempt.ended_s
        held[attempt.gpu_id] += end_s - attempt.started_s
    return held


def _first_s(result: Result) -> float:
    return min((task.submitted_s for task in result.task_list), default=0.0)


def utilization_mean_pct(result: Result) -> float | None:
    """Over all devices and all readings after the first submission; None where there are none.

    A reading is the mean since the one before, so that one at the first submission tells of idle time only.
    """
    table = result.telemetry
    readings = table["utilization_pct"][table["time_s"] > _first_s(result)].dropna()
    return float(readings.mean()) if len(readings) else None


def energy_j(result: Result) -> float | None:
    """The integral of power from the first submission on, all devices together: each reading holds for the time since
    the one before.

    None where a device never told its power. A device that does not answer for a while counts nothing meanwhile.
    """
    import numpy as np

    sampled = result.sampled
    power_w = np.frombuffer(sampled.power_w, dtype=np.float64).reshape(-1, len(result.devices))
    known = np.isfinite(power_w)
    if not known.any(axis=0).all():
        return None
    passed_s = np.diff(np.frombuffer(sampled.queue_time_s, dtype=np.float64).clip(min=_first_s(result)))
    return float((np.where(known, power_w, 0.0)[1:].sum(axis=1) * passed_s).sum())


def most_waiting(result: Result) -> int:
    """The most tasks that waited at one time; one that starts as it comes never did."""
    changes: dict[float, int] = {}
    for time_s, change in _changes(result):
        changes[time_s] = changes.get(time_s, 0) + change
    depth = most = 0
    for time_s in sorted(changes):
        depth += changes[time_s]
        most = max(most, depth)
    return most


def _changes(result: Result) -> list[tuple[float, int]]:
    """(time, one more or fewer waiting): a submission, a start, an end to be repeated or before any start."""
    tasks, attempts = result.task_list, result.log.attempts()
    changes = [(task.submitted_s, 1) for task in tasks] + [(attempt.started_s, -1) for attempt in attempts]
    changes += [(a.ended_s, 1) for a in attempts if a.number < a.task.attempts and a.ended_s is not None]
    return changes + [(t.finished_s, -1) for t in tasks if not t.attempts and t.finished_s is not None]
