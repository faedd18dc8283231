"""Lists, newest first: what is not final lives in memory, what is final in the journal."""

from __future__ import annotations

from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING

from altlas_core.api.parsing import TaskFilter
from altlas_core.api.records import BatchView, Prediction, live_json, stored_json
from altlas_core.model import FINAL_STATES, QUEUED

if TYPE_CHECKING:
    from altlas_core.api.engine import Engine


def list_tasks(engine: Engine, wanted: TaskFilter, limit: int) -> tuple[list[str], int | None]:
    """(tasks as JSON text, the number of the last one if there are more). One page looks at a page of each store."""
    found: list[tuple[int, str]] = []
    live = (prediction for prediction in reversed(engine.live.values()) if _fits(prediction, wanted))
    found += [(prediction.number, live_json(prediction)) for prediction in islice(live, limit + 1)]
    if wanted.status is None or wanted.status in FINAL_STATES:
        stored: list[tuple[int, str]] = []
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
            stored += [
                (task.id, stored_json(task)) for task in page if task.status != QUEUED and task.id not in engine.live
            ]
            if len(page) <= limit:
                break
            before = page[-1].id
            if len(found) > limit and found[limit][0] > before:
                break  # a page of unfinished ones is newer than all that would follow
        found = list(merge(found, stored, key=lambda entry: -entry[0]))
    page_of = found[:limit]
    more = page_of[-1][0] if len(found) > limit else None
    return [text for _, text in page_of], more


def _fits(prediction: Prediction, wanted: TaskFilter) -> bool:
    return (
        prediction.committed
        and (wanted.before is None or prediction.number < wanted.before)
        and (wanted.status is None or prediction.status == wanted.status)
        and (wanted.priority is None or prediction.priority == wanted.priority)
        and (wanted.batch is None or prediction.batch == wanted.batch)
        and (wanted.gpu is None or prediction.gpu_id == wanted.gpu)
    )


def list_batches(engine: Engine, before: int | None, limit: int) -> tuple[list[BatchView], int | None]:
    """(batches, the number of the last one if there are more)."""
    page = engine.parts.journal.batches(limit=limit + 1, before=before)
    return [engine.view(stored) for stored in page[:limit]], page[limit - 1].id if len(page) > limit else None
