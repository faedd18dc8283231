"""Lists, newest first: what is not final lives in memory, what is final in the journal."""

from __future__ import annotations

import asyncio
import json
from itertools import islice
from typing import TYPE_CHECKING, Final

from altlas_core.api.parsing import TaskFilter
from altlas_core.api.records import Prediction, batch_name, live_json, stored_json
from altlas_core.model import FINAL_STATES, QUEUED

if TYPE_CHECKING:
    from altlas_core.api.engine import Engine

PAGE_CHARACTERS: Final = 8 << 20  # of JSON in one page: the rest is on the next


async def list_tasks(engine: Engine, wanted: TaskFilter, limit: int) -> tuple[list[str], int | None]:
    """(tasks as JSON text, the number of the last one if there are more).

    One page looks at a page of each store; the journal is read, and what it holds is told, on another thread.
    """
    live = (prediction for prediction in reversed(engine.live.values()) if _fits(prediction, wanted))
    found = {prediction.number: live_json(prediction) for prediction in islice(live, limit + 1)}
    if wanted.status is None or wanted.status in FINAL_STATES:
        oldest = min(found) if len(found) > limit else 0
        found |= await asyncio.to_thread(_stored, engine, wanted, limit, oldest)
    return _page(found, limit)


def _stored(engine: Engine, wanted: TaskFilter, limit: int, oldest: int) -> dict[int, str]:
    """One more than `limit` final tasks of the journal, the newest; none need be older than `oldest`."""
    stored: dict[int, str] = {}
    before = wanted.before
    while len(stored) <= limit:
        page = engine.parts.journal.tasks(
            limit=limit + 1,
            before=before,
            status=wanted.status,
            priority=wanted.priority,
            batch_id=wanted.batch,
            gpu_id=wanted.gpu,
        )
        stored |= {task.id: stored_json(task) for task in page if task.status != QUEUED and task.id not in engine.live}
        if len(page) <= limit:
            break
        before = page[-1].id
        if before < oldest:
            break
    return stored


def _page(found: dict[int, str], limit: int) -> tuple[list[str], int | None]:
    """The newest: at most `limit`, and no more than fit into one answer."""
    texts: list[str] = []
    room = PAGE_CHARACTERS
    last = None
    for number in sorted(found, reverse=True):
        text = found[number]
        if len(texts) == limit or (texts and len(text) > room):
            return texts, last
        texts.append(text)
        room -= len(text)
        last = number
    return texts, None


def _fits(prediction: Prediction, wanted: TaskFilter) -> bool:
    return (
        prediction.committed
        and (wanted.before is None or prediction.number < wanted.before)
        and (wanted.status is None or prediction.status == wanted.status)
        and (wanted.priority is None or prediction.priority == wanted.priority)
        and (wanted.batch is None or prediction.batch == wanted.batch)
        and (wanted.gpu is None or prediction.gpu_id == wanted.gpu)
    )


async def list_batches(engine: Engine, before: int | None, limit: int) -> str:
    """A page of batches as JSON text, made on another thread: a batch may have a thousand tasks."""
    return await asyncio.to_thread(_batches, engine, before, limit)


def _batches(engine: Engine, before: int | None, limit: int) -> str:
    page = engine.parts.journal.batches(limit=limit + 1, before=before)
    following = batch_name(page[limit - 1].id) if len(page) > limit else None
    return json.dumps({"batches": [engine.view(stored).to_json() for stored in page[:limit]], "next": following})
