"""A run as Chrome's trace events, which https://ui.perfetto.dev and chrome://tracing draw (the "JSON Array Format").

Each GPU is a process with a thread per slot: attempts are complete events there, readings are counters, and what befell
GPU or task are instants. The scheduler is a process of its own. Times are microseconds of the run's own clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from heapq import heappop, heappush
from pathlib import Path
from typing import Any, Final, NamedTuple

from altlas_core.events import AttemptFailed, DeviceLost, DeviceReturned, DeviceSampled, StopAttempt, WorkerCrashed
from altlas_core.exports.run import Run, sayable
from altlas_core.model import GIB, Attempt
from altlas_core.pool import Pool

# column of the telemetry -> (counter, factor, digits, whether it is a mean over the period that a sample ends)
COUNTERS: Final = {
    "utilization_pct": ("utilization (%)", 1.0, 2, True),
    "memory_used_bytes": ("memory in use (GiB)", 1 / GIB, 4, False),
    "temperature_c": ("temperature (°C)", 1.0, 2, False),
    "power_w": ("power (W)", 1.0, 2, True),
}
NOTE: Final = (
    "Counters hold until they change. Utilization and power are means over the time between two samples and stand at "
    "its beginning. Where a GPU did not answer there is no new value."
)

Key = tuple[int, int]  # of an attempt: task, number


class Mark(NamedTuple):
    """Something that happened at an instant: to a GPU, or to one of its attempts."""

    time_s: float
    name: str
    attempt: Key | None
    args: dict[str, Any]


def write_trace(run: Run, path: Path) -> None:
    """Write the events one a line."""
    head = {
        "provenance": run.provenance,
        "seed": run.seed,
        "length_s": run.virtual_s,
        "note": NOTE,
    }
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f'{{"displayTimeUnit":"ms","otherData":{_text(head)},"traceEvents":[')
        for position, event in enumerate(trace_events(run)):
            file.write(("\n" if not position else ",\n") + _text(event))
        file.write("\n]}\n")


def trace_events(run: Run) -> Iterator[dict[str, Any]]:
    """All events: of each GPU in turn, then of the scheduler; in order of time on every thread and counter."""
    attempts: dict[int, list[Attempt]] = {}
    for attempt in run.log.attempts():
        attempts.setdefault(attempt.gpu_id, []).append(attempt)
    slots = [_slots(run, attempts.get(spec.gpu_id, ())) for spec in run.devices]
    stride = 1 + max((max(own.values(), default=0) for own in slots), default=0)  # so that no thread id comes twice
    marks, reasons = _marks(run)
    samples = _samples(run)
    for spec, own in zip(run.devices, slots, strict=True):
        pid, first = spec.gpu_id + 1, (spec.gpu_id + 1) * stride
        yield from _process(pid, f"GPU {spec.gpu_id}: {spec.name}")
        for slot in range(1 + max(own.values(), default=0)):
            yield _named("thread", pid, first + slot, f"slot {slot}")
        events = [_attempt(run, a, pid, first + own[_key(a)], reasons) for a in attempts.get(spec.gpu_id, ())]
        for mark in marks.get(spec.gpu_id, ()):
            slot = own.get(mark.attempt, 0) if mark.attempt else 0
            events.append(_instant(mark, pid, first + slot, "t" if mark.attempt else "p"))
        yield from sorted(events, key=lambda event: event["ts"])
        yield from _counters(samples, spec.gpu_id, pid)
    yield from _scheduler(run, len(run.devices) + 1, stride)


# --- attempts ---------------------------------------------------------------------------------------------------------


def _slots(run: Run, attempts: Iterable[Attempt]) -> dict[Key, int]:
    """The lowest slot that was free when each attempt of a GPU started."""
    found: dict[Key, int] = {}
    free: list[int] = []
    busy: list[tuple[int, int]] = []  # until when, slot
    for attempt in sorted(attempts, key=lambda a: (a.started_s, a.task.index)):
        start_ns = _ns(attempt.started_s)
        while busy and busy[0][0] <= start_ns:
            heappush(free, heappop(busy)[1])
        slot = heappop(free) if free else len(busy)
        heappush(busy, (_end_ns(run, attempt), slot))
        found[_key(attempt)] = slot
    return found


def _attempt(run: Run, attempt: Attempt, pid: int, tid: int, reasons: Mapping[Key, str]) -> dict[str, Any]:
    task, spec = attempt.task, attempt.task.spec
    outcome = reasons.get(_key(attempt)) if attempt.outcome == "stopped" else attempt.outcome
    args = {
        "attempt": attempt.number,
        "outcome": outcome or "not ended",
        "priority": spec.priority,
        "strategy": task.demand.strategy,
        "memory_bytes": attempt.reserved_bytes,
        "submitted_s": task.submitted_s,
        "waited_s": attempt.started_s - task.submitted_s,
        "iterations": attempt.iterations,
    }
    if task.error is not None and attempt.number == task.attempts:
        args["error"] = task.error
    if attempt.detail is not None:
        args["detail"] = sayable(attempt.detail)
    start_ns = _ns(attempt.started_s)
    return {
        "ph": "X",
        "name": task.task_id,
        "cat": spec.kind,
        "pid": pid,
        "tid": tid,
        "ts": start_ns / 1000,
        "dur": (_end_ns(run, attempt) - start_ns) / 1000,
        "args": args,
    }


def _key(attempt: Attempt) -> Key:
    return attempt.task.index, attempt.number


def _end_ns(run: Run, attempt: Attempt) -> int:
    end_s = run.virtual_s if attempt.ended_s is None else attempt.ended_s
    return _ns(max(end_s, attempt.started_s))


# --- what befell GPUs and tasks ---------------------------------------------------------------------------------------


def _marks(run: Run) -> tuple[dict[int, list[Mark]], dict[Key, str]]:
    """Marks by GPU, and why attempts were stopped. A fresh pool is told what the run's pool was, for its health."""
    pool = Pool(run.settings.gpu, run.devices, run.seed)
    where: dict[Key, int] = {}
    marks: dict[int, list[Mark]] = {}
    reasons: dict[Key, str] = {}
    now = 0.0

    def note(gpu_id: int, name: str, attempt: Key | None = None, **args: Any) -> None:
        marks.setdefault(gpu_id, []).append(Mark(now, name, attempt, args))

    for entry in run.log.entries:
        kind = type(entry)
        if isinstance(entry, float | int):
            now = entry
        elif isinstance(entry, Attempt):
            where[_key(entry)] = entry.gpu_id
        elif isinstance(entry, StopAttempt):
            reasons[_key(entry.attempt)] = entry.reason
            note(entry.attempt.gpu_id, entry.reason, _key(entry.attempt), task=entry.attempt.task.task_id)
        elif isinstance(entry, AttemptFailed) and (entry.task_index, entry.attempt) in where:
            key = (entry.task_index, entry.attempt)
            note(where[key], entry.error_code, key, error=entry.error)
        elif isinstance(entry, WorkerCrashed):
            note(entry.gpu_id, "worker crashed", error=entry.error)
        elif kind in (DeviceLost, DeviceReturned, DeviceSampled):
            for name, args in _health(pool, entry):
                note(entry.gpu_id, name, **args)  # type: ignore[union-attr]
    return marks, reasons


def _health(pool: Pool, fact: Any) -> list[tuple[str, dict[str, Any]]]:
    """Tell the pool a fact about a GPU; what changed by it."""
    device = pool.devices[fact.gpu_id]
    healthy, lost = device.healthy, device.lost
    if isinstance(fact, DeviceLost):
        if not lost:
            pool.lose(device, fact.reason)
            return [("GPU lost", {"reason": fact.reason})]
    elif isinstance(fact, DeviceReturned):
        if lost:
            pool.take_back(device)
            return [("GPU back", {})]
    elif not lost:
        pool.check(device, fact.sample)
        if device.healthy != healthy:
            return [("healthy again", {}) if device.healthy else ("unhealthy", {"reason": device.reason})]
    return []


def _instant(mark: Mark, pid: int, tid: int, scope: str) -> dict[str, Any]:
    ts = _ns(mark.time_s) / 1000
    return {"ph": "i", "name": mark.name, "pid": pid, "tid": tid, "ts": ts, "s": scope, "args": mark.args}


# --- counters ---------------------------------------------------------------------------------------------------------


def _samples(run: Run) -> dict[str, Any]:
    """Times, and each column of the telemetry as an array of samples by GPUs."""
    import numpy as np

    sampled, gpus = run.sampled, len(run.devices)
    found: dict[str, Any] = {"time_s": np.frombuffer(sampled.queue_time_s, dtype=np.float64)}
    for column in COUNTERS:
        found[column] = np.frombuffer(getattr(sampled, column), dtype=np.float64).reshape(-1, gpus)
    return found


def _counters(samples: Mapping[str, Any], gpu_id: int, pid: int) -> Iterator[dict[str, Any]]:
    for column, (name, factor, digits, is_mean) in COUNTERS.items():
        values = (samples[column][:, gpu_id] * factor).round(digits)
        times = samples["time_s"]
        if is_mean:
            times, values = times[:-1], values[1:]
        yield from _counter(name, pid, times, values)


def _counter(name: str, pid: int, times: Any, values: Any) -> Iterator[dict[str, Any]]:
    """An event for each value that is not the one before. Both are arrays; missing values are left out."""
    import numpy as np

    known = np.isfinite(values)
    times, values = times[known], values[known]
    changed = np.flatnonzero(np.append(True, values[1:] != values[:-1])) if len(values) else ()
    for at in changed:
        yield {
            "ph": "C",
            "name": name,
            "pid": pid,
            "ts": _ns(times[at]) / 1000,
            "args": {"value": values[at].item()},
        }


# --- the scheduler ----------------------------------------------------------------------------------------------------


def _scheduler(run: Run, pid: int, stride: int) -> Iterator[dict[str, Any]]:
    """How many tasks wait, and those that ended without a start."""
    import numpy as np

    yield from _process(pid, "scheduler", order=0)
    yield _named("thread", pid, pid * stride, "ended without a start")
    never = [task for task in run.task_list if not task.attempts and task.finished_s is not None]
    for task in sorted(never, key=lambda task: task.finished_s or 0.0):
        args = {"error": task.error} if task.error else {}
        mark = Mark(task.finished_s or 0.0, f"{task.task_id}: {task.error_code or 'cancelled'}", None, args)
        yield _instant(mark, pid, pid * stride, "t")
    times = np.frombuffer(run.sampled.queue_time_s, dtype=np.float64)
    yield from _counter("tasks waiting", pid, times, np.array(run.sampled.queue_depth, dtype=np.float64))


def _process(pid: int, name: str, order: int | None = None) -> Iterator[dict[str, Any]]:
    yield _named("process", pid, 0, name)
    index = pid if order is None else order
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "ts": 0, "args": {"sort_index": index}}


def _named(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": f"{what}_name", "pid": pid, "tid": tid, "ts": 0, "args": {"name": name}}


def _ns(seconds: float) -> int:
    """Whole nanoseconds: what ends when another begins does so in the trace, too."""
    return round(seconds * 1e9)


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
