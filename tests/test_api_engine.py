"""The engine between its three threads, where it is tight: a journal that is slow or broken, ends and cancellations at
the same moment, callers that leave."""

from __future__ import annotations

import asyncio
import gc
import json
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from altlas_core.api import engine as engine_module
from altlas_core.api.engine import Engine
from altlas_core.api.errors import ApiError
from altlas_core.api.journal import Journal, StoredTask, Write
from altlas_core.api.once import Once
from altlas_core.api.records import Prediction, task_name
from altlas_core.api.schemas import PredictRequest, prediction_of
from altlas_core.api.server import _parts, served
from altlas_core.backends.discover import discover
from altlas_core.config import load_config
from altlas_core.text_models import describe_model

FOREVER = 0.0001  # a pace at which nothing ends


class TroubledJournal(Journal):
    """A journal whose commits can be held back (`go`), or fail as on a full disk (`full`)."""

    def __init__(self, path: Path) -> None:
        self.go = threading.Event()
        self.go.set()
        self.full = False
        super().__init__(path, retention_age_s=1e9, retention_count=10**6, full_sync=False)

    def _write(self, group: Sequence[Write]) -> None:
        assert self.go.wait(20)
        if self.full:
            raise sqlite3.OperationalError("database or disk is full")
        super()._write(group)


class Stand:
    """A running engine on one simulated GPU."""

    def __init__(self, engine: Engine, journal: TroubledJournal, failures: list[BaseException]) -> None:
        self.engine = engine
        self.journal = journal
        self.failures = failures

    async def accepted(self, *texts: str, batch: bool = False) -> list[Prediction]:
        predictions = [made(text) for text in texts]
        for prediction in predictions if batch else ():
            prediction.batch = 0
        await self.engine.accept(predictions)
        return predictions

    def status(self, prediction: Prediction) -> str | None:
        text = self.engine.tell(task_name(prediction.number))
        return None if text is None else json.loads(text)["status"]

    async def ended(self, prediction: Prediction) -> str | None:
        await self.engine.wait_for(task_name(prediction.number), 20)
        return self.status(prediction)


def made(text: str) -> Prediction:
    return prediction_of(text, PredictRequest(text=text, max_length=4), time.time())


@asynccontextmanager
async def running(folder: Path, pace: float = 1000.0, **overrides: Any) -> AsyncIterator[Stand]:
    keys = {"gpu.backend": "simulated", "gpu.devices": ["1x A100"], "run.pace": pace, **overrides}
    settings = served(load_config(None, keys, environ={}))
    journal = TroubledJournal(folder / "journal.sqlite3")
    failures: list[BaseException] = []
    engine = Engine(_parts(settings, discover(settings), journal, describe_model(None)))
    try:
        engine.start(failures.append)
        await until(lambda: engine.opened)
        yield Stand(engine, journal, failures)
    finally:
        journal.go.set()
        engine.close()


async def until(true: Callable[[], object], within_s: float = 20.0) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


def play(test: Coroutine[Any, Any, None]) -> None:
    """Run it; whatever the event loop had to complain about fails it."""
    complaints: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
        await asyncio.wait_for(test, 50)

    asyncio.run(watched())
    gc.collect()
    assert complaints == []


# --- a journal that is slow or broken ---------------------------------------------------------------------------------


def test_an_end_that_the_journal_cannot_take_is_not_shown_until_it_can(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, pace=0.01) as stand:  # about a tenth of a second for a task
            several = await stand.accepted("a", "b", "c")
            stand.journal.full = True
            await until(lambda: stand.journal.problem)
            await asyncio.sleep(0.7)  # more than one try
            assert {stand.status(each) for each in several} <= {"QUEUED", "RUNNING"}
            assert stand.engine.by_state()["COMPLETED"] == 0
            stand.journal.full = False
            assert [await stand.ended(each) for each in several] == ["COMPLETED"] * 3
            assert stand.engine.by_state()["COMPLETED"] == 3
            assert (stand.engine.tokens, len(stand.engine.live)) == (12, 0)
            for each in several:
                stored = stand.journal.task(each.number)
                assert stored is not None
                assert (stored.status, stored.result) == ("COMPLETED", each.result)

    play(test())


def test_what_the_journal_cannot_take_is_refused_and_nothing_of_it_is_kept(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as stand:
            stand.journal.full = True
            tries = [stand.accepted("a"), stand.accepted("b", "c", batch=True)]
            for outcome in await asyncio.gather(*tries, return_exceptions=True):
                assert isinstance(outcome, ApiError)
                assert (outcome.code, outcome.headers) == ("not_ready", {"Retry-After": "10"})
            assert stand.engine.live == {}
            assert sum(stand.engine.by_state().values()) == 0
            assert stand.engine.not_ready() is not None
            stand.journal.full = False
            await until(lambda: stand.journal.problem is None)
            (taken,) = await stand.accepted("d")
            assert await stand.ended(taken) == "COMPLETED"
            assert [task.params for task in stand.journal.tasks(limit=10)] == [taken.params]

    play(test())


def test_nothing_is_shown_of_a_task_before_it_is_in_the_journal(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as stand:
            stand.journal.go.clear()
            coming = asyncio.ensure_future(stand.accepted("a"))
            await asyncio.sleep(0.05)
            (number,) = stand.engine.live
            assert stand.engine.find(task_name(number)) is None
            assert not coming.done()
            stand.journal.go.set()
            (prediction,) = await coming
            assert await stand.ended(prediction) == "COMPLETED"

    play(test())


def test_a_caller_that_leaves_while_the_journal_is_written_leaves_a_task_that_runs(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as stand:
            stand.journal.go.clear()
            coming = asyncio.ensure_future(stand.accepted("a", "b", batch=True))
            await asyncio.sleep(0.02)
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
            several = list(stand.engine.live.values())
            stand.journal.go.set()
            await until(lambda: not stand.engine.live)
            assert [stand.status(each) for each in several] == ["COMPLETED"] * 2
            stand.journal.full = True
            coming = asyncio.ensure_future(stand.accepted("c"))
            await asyncio.sleep(0)
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
            await until(lambda: not stand.engine.live)

    play(test())


def test_what_is_accepted_while_it_drains_is_told_and_runs_after_the_restart(tmp_path: Path) -> None:
    async def first() -> None:
        async with running(tmp_path) as stand:
            stand.journal.go.clear()
            coming = asyncio.ensure_future(stand.accepted("a"))
            await asyncio.sleep(0)
            await stand.engine.drain(0.0)
            with pytest.raises(ApiError, match="shutting down"):
                await stand.accepted("b")
            stand.journal.go.set()
            (prediction,) = await coming
            assert prediction.number == 1
            began = time.monotonic()
            assert await stand.ended(prediction) == "QUEUED"  # nobody waits any more
            assert time.monotonic() - began < 10

    async def second() -> None:
        async with running(tmp_path) as stand:
            await until(lambda: not stand.engine.live)
            stored = stand.journal.task(1)
            assert stored is not None
            assert stored.status == "COMPLETED"
            assert stand.engine.by_state() == {"QUEUED": 0, "RUNNING": 0, "COMPLETED": 1, "FAILED": 0, "CANCELLED": 0}

    play(first())
    play(second())


def test_a_drain_waits_until_the_end_of_what_ran_can_be_told(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, pace=0.01) as stand:
            (prediction,) = await stand.accepted("a")
            await until(lambda: stand.status(prediction) == "RUNNING")
            stand.journal.go.clear()
            draining = asyncio.ensure_future(stand.engine.drain(30.0))
            waiting = asyncio.ensure_future(stand.ended(prediction))
            await until(lambda: not stand.engine._driver.busy)
            await asyncio.sleep(0.1)
            assert not draining.done()
            stand.journal.go.set()
            await draining
            assert await waiting == "COMPLETED"

    play(test())


# --- cancelling -------------------------------------------------------------------------------------------------------


def test_of_two_who_cancel_a_task_at_once_the_second_learns_that_it_is_cancelled(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, pace=FOREVER) as stand:
            several = await stand.accepted("a", "b")
            numbers = [each.number for each in several]
            stand.journal.go.clear()
            both = [asyncio.ensure_future(stand.engine.cancel(numbers)) for _ in range(2)]
            await asyncio.sleep(0.1)
            assert not any(each.done() for each in both)
            assert "CANCELLED" not in [stand.status(each) for each in several]
            stand.journal.go.set()
            assert await asyncio.gather(*both) == [numbers, []]
            assert [stand.status(each) for each in several] == ["CANCELLED"] * 2

    play(test())


def test_a_task_that_ends_as_it_is_cancelled_keeps_its_result_and_the_caller_learns_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, pace=0.01) as stand:
            (prediction,) = await stand.accepted("a")
            stand.journal.go.clear()
            await until(lambda: stand.status(prediction) == "RUNNING")
            await until(lambda: not stand.engine._desk._piece_of)  # it has ended, and the journal is not done with it
            cancelling = asyncio.ensure_future(stand.engine.cancel([prediction.number]))
            await asyncio.sleep(0.1)
            assert not cancelling.done()
            stand.journal.go.set()
            assert await cancelling == []
            assert stand.status(prediction) == "COMPLETED"

    play(test())


def test_a_cancellation_that_the_journal_cannot_take_is_not_reported_as_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "LONGEST_CANCEL_S", 0.1)

    async def test() -> None:
        async with running(tmp_path, pace=FOREVER) as stand:
            (prediction,) = await stand.accepted("a")
            stand.journal.full = True
            with pytest.raises(ApiError) as raised:
                await stand.engine.cancel([prediction.number])
            assert raised.value.code == "not_ready"
            assert stand.status(prediction) in ("QUEUED", "RUNNING")
            stand.journal.full = False
            assert await stand.ended(prediction) == "CANCELLED"

    play(test())


# --- what is kept in memory ------------------------------------------------------------------------------------------


def test_a_finished_task_is_told_from_memory_for_no_longer_than_it_is_kept(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, **{"api.retention_age": 60}) as stand:
            (prediction,) = await stand.accepted("a")
            assert await stand.ended(prediction) == "COMPLETED"
            name = task_name(prediction.number)
            assert stand.engine.find(name) is prediction
            assert prediction.completed_at is not None
            prediction.completed_at -= 61
            assert isinstance(stand.engine.find(name), StoredTask)  # for as long as the journal has it

    play(test())


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_who_has_waited_leaves_nothing_behind(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, pace=FOREVER) as stand:
            (prediction,) = await stand.accepted("a")
            for seconds in (0.0, 0.01):
                await stand.engine.wait([prediction], seconds)
            left = asyncio.ensure_future(stand.engine.wait([prediction], 30))
            await asyncio.sleep(0)
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)
            assert prediction.ended == []

    play(test())


def test_when_the_driver_breaks_nobody_waits_and_nothing_is_taken(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, pace=FOREVER) as stand:
            (prediction,) = await stand.accepted("a")

            now = threading.Event()

            def broken(_now: float, _arg: object) -> None:
                assert now.wait(20)
                raise RuntimeError("made up")

            stand.engine._driver.call(broken, None)
            caught = asyncio.ensure_future(stand.engine.cancel([prediction.number]))
            waiting = asyncio.ensure_future(stand.ended(prediction))
            await asyncio.sleep(0)
            now.set()
            await until(lambda: stand.failures)
            stand.engine.release()
            with pytest.raises(ApiError, match="the server ends"):
                await caught
            assert await asyncio.wait_for(waiting, 5) in ("QUEUED", "RUNNING")
            assert [str(error) for error in stand.failures] == ["made up"]
            with pytest.raises(ApiError, match="scheduler has stopped"):
                await stand.accepted("b")
            with pytest.raises(ApiError, match="scheduler has stopped"):
                await stand.engine.cancel([prediction.number])
            assert "made up" in (stand.engine.not_ready() or "")
            await stand.engine.drain(30.0)

    play(test())


# --- Idempotency-Key --------------------------------------------------------------------------------------------------


def test_of_two_with_the_same_key_at_once_one_is_taken_and_if_that_fails_the_other(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as stand:
            once = Once(stand.engine)

            async def post(body: bytes = b"{}") -> str:
                prediction = made("a")
                return await once.answer("key", "/p", body, [prediction], lambda: task_name(prediction.number))

            stand.journal.full = True
            asked = [asyncio.ensure_future(post()) for _ in range(3)]
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            assert [isinstance(each, ApiError) and each.code == "not_ready" for each in outcomes] == [True] * 3
            stand.journal.full = False
            await until(lambda: stand.journal.problem is None)
            stand.journal.go.clear()
            asked = [asyncio.ensure_future(post()) for _ in range(3)]
            other = asyncio.ensure_future(post(b"[]"))
            await asyncio.sleep(0.05)
            assert len(stand.engine.live) == 1
            stand.journal.go.set()
            assert len(set(await asyncio.gather(*asked))) == 1
            with pytest.raises(ApiError, match="another request"):
                await other
            assert once._under_way == {}
            assert len(stand.journal.tasks(limit=10)) == 1

    play(test())


def test_nothing_is_lost_of_what_was_committed_when_the_engine_ends(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as stand:
            await asyncio.gather(*(stand.accepted(str(place)) for place in range(300)))

    play(test())
    with closing(TroubledJournal(tmp_path / "journal.sqlite3")) as journal:
        assert sum(journal.counts().values()) == 300
