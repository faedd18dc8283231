"""The event log: every fact and every decision of a run, in order. Written as JSON lines, hashed, replayed.

While a run lasts only references are kept; text is made when somebody asks. The first line says what a fresh state
machine needs to come to the same decisions: the devices, the seed and the settings it reads.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from json.encoder import encode_basestring_ascii
from typing import Any

from altlas_core.errors import AltlasError
from altlas_core.events import (
    Action,
    AttemptFailed,
    AttemptFinished,
    AttemptStopped,
    CancelRequested,
    DeviceLost,
    DeviceReturned,
    DeviceSampled,
    Fact,
    HopeLost,
    SetTimer,
    StopAttempt,
    TaskSubmitted,
    TimerFired,
    WorkerCrashed,
)
from altlas_core.model import Attempt, DeviceSample, TaskSpec

FORMAT_VERSION = 1


class EventLog:
    """Facts and actions in the order they happened, each fact after its time; an action has the time before it.

    `header` is JSON-able (see experiment.py).
    """

    __slots__ = ("entries", "header")

    def __init__(self, header: dict[str, Any]) -> None:
        self.header = header
        self.entries: list[float | Fact | Action] = []

    def fact(self, now: float, fact: Fact) -> None:
        self.entries += (now, fact)

    def action(self, now: float, action: Action) -> None:
        self.entries += (now, action)

    def lines(self) -> Iterator[str]:
        """The log as JSON lines, each with its line end."""
        yield json.dumps({"format": FORMAT_VERSION, **self.header}, separators=(",", ":")) + "\n"
        now = "0.0"
        for entry in self.entries:
            if isinstance(entry, float | int):
                now = repr(entry)
            else:
                yield f'{{"t":{now},{_WRITERS[type(entry)](entry)}}}\n'

    def sha256(self) -> str:
        """SHA-256 of the log's bytes."""
        digest = hashlib.sha256()
        lines = self.lines()
        while chunk := "".join(islice(lines, 4096)):
            digest.update(chunk.encode())
        return digest.hexdigest()

    def attempts(self) -> list[Attempt]:
        """Every attempt, in the order they were started."""
        return [entry for entry in self.entries if type(entry) is Attempt]


def _text(value: str | None) -> str:
    return "null" if value is None else encode_basestring_ascii(value)


def _number(value: float | int | None) -> str:
    return "null" if value is None else repr(value)


def _if_told(**values: Any) -> str:
    """The values that are not None, as further fields of a line."""
    return "".join(f',"{name}":{json.dumps(value)}' for name, value in values.items() if value is not None)


def _sayable(detail: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: an error without bound is null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in detail.items()}


def _submitted(fact: TaskSubmitted) -> str:
    task = fact.task
    spec = task.spec
    return (
        f'"fact":"TaskSubmitted","task":{task.index},"kind":{_text(spec.kind)},"priority":{_text(spec.priority)},'
        f'"strategy":{_text(task.demand.strategy)},"gpu_id":{_number(task.demand.pin)},'
        f'"memory_bytes":{task.demand.memory_bytes},'  # as submitted: it may have come to reserve more since
        f'"timeout_s":{task.timeout_s!r},"retry_count":{task.retry_count},"duration_s":{_number(spec.duration_s)},'
        f'"iterations":{_number(spec.iterations)},"input_size":{spec.input_size},"output_size":{spec.output_size},'
        f'"batch":{spec.batch},"batch_id":{_text(spec.batch_id)}{_if_asked(spec)}'
    )


def _if_asked(spec: TaskSpec) -> str:
    """What only some tasks say."""
    dtype = "" if spec.dtype == "fp32" else f',"dtype":{_text(spec.dtype)}'
    return dtype if spec.call is None else f'{dtype},"call":{_text(spec.call.target)},"args":{spec.call.arguments}'


def _started(attempt: Attempt) -> str:
    return f'"action":"StartAttempt","task":{attempt.task.index},"attempt":{attempt.number},"gpu_id":{attempt.gpu_id}'


def _finished(fact: AttemptFinished) -> str:
    detail = "" if fact.detail is None else f',"detail":{json.dumps(_sayable(fact.detail), sort_keys=True)}'
    return (
        f'"fact":"AttemptFinished","task":{fact.task_index},"attempt":{fact.attempt},'
        f'"iterations":{fact.iterations!r}{detail}'
    )


def _failed(fact: AttemptFailed) -> str:
    return (
        f'"fact":"AttemptFailed","task":{fact.task_index},"attempt":{fact.attempt},'
        f'"error_code":{_text(fact.error_code)},"error":{_text(fact.error)},"iterations":{fact.iterations!r}'
        f"{_if_told(needed_bytes=fact.needed_bytes, free_bytes=fact.free_bytes)}"
    )


def _crashed(fact: WorkerCrashed) -> str:
    attempts = json.dumps([list(pair) for pair in fact.attempts], separators=(",", ":"))
    blamed = "true" if fact.blamed else "false"
    return (
        f'"fact":"WorkerCrashed","gpu_id":{fact.gpu_id},"attempts":{attempts},"error":{_text(fact.error)},'
        f'"blamed":{blamed}'
    )


def _sample(sample: DeviceSample) -> str:
    told = {name: value for name, value in asdict(sample).items() if value is not None}
    return json.dumps(told, separators=(",", ":"))


_WRITERS: dict[type, Callable[[Any], str]] = {
    TaskSubmitted: _submitted,
    CancelRequested: lambda fact: f'"fact":"CancelRequested","task":{fact.task_index}',
    AttemptFinished: _finished,
    AttemptFailed: _failed,
    AttemptStopped: lambda fact: (
        f'"fact":"AttemptStopped","task":{fact.task_index},"attempt":{fact.attempt},"iterations":{fact.iterations!r}'
    ),
    WorkerCrashed: _crashed,
    DeviceSampled: lambda fact: f'"fact":"DeviceSampled","gpu_id":{fact.gpu_id},"sample":{_sample(fact.sample)}',
    DeviceLost: lambda fact: f'"fact":"DeviceLost","gpu_id":{fact.gpu_id},"reason":{_text(fact.reason)}',
    DeviceReturned: lambda fact: f'"fact":"DeviceReturned","gpu_id":{fact.gpu_id}',
    TimerFired: lambda fact: f'"fact":"TimerFired","timeout_s":{fact.timeout_s!r}',
    HopeLost: lambda fact: f'"fact":"HopeLost","reason":{_text(fact.reason)}',
    Attempt: _started,
    StopAttempt: lambda action: (
        f'"action":"StopAttempt","task":{action.attempt.task.index},"attempt":{action.attempt.number},'
        f'"reason":{_text(action.reason)}'
    ),
    SetTimer: lambda action: f'"action":"SetTimer","time_s":{action.time_s!r},"timeout_s":{action.timeout_s!r}',
}


def action_line(now: float, action: Action) -> str:
    """An action as its line in the log, without the line end."""
    return f'{{"t":{now!r},{_WRITERS[type(action)](action)}}}'


_FACTS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        AttemptFailed,
        AttemptFinished,
        AttemptStopped,
        CancelRequested,
        DeviceLost,
        DeviceReturned,
        HopeLost,
        TimerFired,
    )
}


def read_fact(record: dict[str, Any]) -> Fact:
    """The fact of a parsed line; TaskSubmitted is the intake's (see replay.py). Raises AltlasError if it is unknown."""
    fields = {key: value for key, value in record.items() if key not in ("t", "fact")}
    if "task" in fields:
        fields["task_index"] = fields.pop("task")
    name = record["fact"]
    if name == "DeviceSampled":
        return DeviceSampled(fields["gpu_id"], DeviceSample(**fields["sample"]))
    if name == "WorkerCrashed":
        fields["attempts"] = tuple((index, number) for index, number in fields["attempts"])
        return WorkerCrashed(**fields)
    if name not in _FACTS:
        raise AltlasError(f"unknown fact {name!r} in an event log")
    fact: Fact = _FACTS[name](**fields)
    return fact
