"""Predictions and batches as the API knows them, and the JSON they are told as.

A prediction is one text: what callers call a task. The event loop's thread alone writes here; what has become final is
only shown once it is in the journal.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Final

from altlas_core.api.journal import StoredTask
from altlas_core.model import CANCELLED, COMPLETED, FAILED, FINAL_STATES, QUEUED, RUNNING

TYPE: Final = "text_generation"
STATES: Final = (QUEUED, RUNNING, COMPLETED, FAILED, CANCELLED)
PARTIAL: Final = "PARTIAL"
BATCH_STATES: Final = (*STATES, PARTIAL)
SHOWN_CHARACTERS: Final = 200  # of a text, in events
_ID: Final = re.compile(r"(task|batch)-([0-9]{6,18})")


def task_name(number: int) -> str:
    return f"task-{number:06d}"


def batch_name(number: int) -> str:
    return f"batch-{number:06d}"


def number_of(name: str, what: str) -> int | None:
    """The number in "task-000012" (what = "task"); None for what is no such name."""
    found = _ID.fullmatch(name)
    if found is None or found[1] != what or (found[2][0] == "0" and len(found[2]) > 6):
        return None
    return int(found[2])


@dataclass(slots=True, eq=False)
class Prediction:
    """One text on its way. Times are Unix seconds. `params` and `result` are JSON text, made once.

    `committed`: it is in the journal, so its id has been told. `ended` are those who wait for its end.
    """

    number: int
    text: str
    max_length: int
    temperature: float
    priority: str
    strategy: str | None
    pin: int | None
    params: str
    created_at: float
    batch: int | None = None
    status: str = QUEUED
    gpu_id: int | None = None
    started_at: float | None = None
    completed_at: float | None = None
    result: str | None = None
    error: str | None = None
    error_code: str | None = None
    retry_count: int = 0
    committed: bool = False
    ended: list[asyncio.Future[None]] = field(default_factory=list)

    @property
    def final(self) -> bool:
        return self.status in FINAL_STATES


def _number(value: float | int | None) -> str:
    return "null" if value is None else repr(value)


def _text(value: str | None) -> str:
    return "null" if value is None else quoted(value)


def task_json(task: Prediction | StoredTask, number: int, batch: int | None) -> str:
    """A task as callers get it."""
    return (
        f'{{"id":"{task_name(number)}","type":"{TYPE}","params":{task.params},"priority":"{task.priority}",'
        f'"batch_id":{"null" if batch is None else _text(batch_name(batch))},"status":"{task.status}",'
        f'"gpu_id":{_number(task.gpu_id)},"created_at":{task.created_at!r},"started_at":{_number(task.started_at)},'
        f'"completed_at":{_number(task.completed_at)},"result":{task.result or "null"},"error":{_text(task.error)},'
        f'"error_code":{_text(task.error_code)},"retry_count":{task.retry_count}}}'
    )


def live_json(task: Prediction) -> str:
    return task_json(task, task.number, task.batch)


def stored_json(task: StoredTask) -> str:
    return task_json(task, task.id, task.batch_id)


def batch_status(counts: Mapping[str, int]) -> str:
    """What the tasks of a batch make of it: alike, their state; QUEUED before the first has begun; RUNNING until the
    last is final; then PARTIAL, if they ended differently."""
    there = [state for state in STATES if counts.get(state, 0)]
    if len(there) == 1:
        return there[0]
    if counts.get(QUEUED, 0) or counts.get(RUNNING, 0):
        return RUNNING
    return PARTIAL if there else COMPLETED


@dataclass(slots=True, frozen=True)
class BatchView:
    """A batch as it is now. `counts` are its tasks by state; those no longer kept are in none."""

    number: int
    size: int
    priority: str
    created_at: float
    counts: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Its tasks have the numbers from its own on."""
        name = batch_name(self.number)
        return {
            "id": name,
            "batch_id": name,
            "type": TYPE,
            "priority": self.priority,
            "status": batch_status(self.counts),
            "created_at": self.created_at,
            "task_count": self.size,
            "counts": {state: self.counts.get(state, 0) for state in STATES},
            "task_ids": [task_name(self.number + place) for place in range(self.size)],
        }
