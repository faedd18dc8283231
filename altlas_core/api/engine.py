"""The running service behind the routes: journal, driver and what is known of every prediction.

Two threads of its own (the driver's and the journal's) and the event loop's. All that callers see is changed on the
event loop's thread only:

    accept ─► journal ─► desk (driver) ─► looked ─► journal ─► published
              committed: the id is told             committed: the end is told
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from altlas_core.api.desk import Desk
from altlas_core.api.errors import ApiError
from altlas_core.api.journal import FinalTask, Idempotent, Journal, NewBatch, NewTask, StoredBatch, StoredTask
from altlas_core.api.metrics import Metrics
from altlas_core.api.pieces import Entry, News
from altlas_core.api.readings import LiveReadings
from altlas_core.api.records import STATES, BatchView, Prediction, live_json, number_of, stored_json, task_name
from altlas_core.backends.base import Backend
from altlas_core.backends.machine import Machine
from altlas_core.config_schema import Settings
from altlas_core.distributor import Distributor
from altlas_core.drivers.clock import MonotonicClock
from altlas_core.drivers.realtime import RealtimeDriver
from altlas_core.generation import Prompt, TextModel
from altlas_core.model import QUEUED, RUNNING

log = logging.getLogger("altlas.api")

KEPT_FINAL: Final = 4096  # finished predictions held in memory beside the journal
ANSWER_S: Final = 30.0  # what the scheduler may take to hear of a wish
RATE_S: Final = 10.0  # over which throughput is told
AGAIN_S: Final = 0.5  # from one try to write ends into a broken journal to the next
LONGEST_CANCEL_S: Final = 30.0  # that a cancellation waits for the journal


@dataclass(slots=True, frozen=True)
class Parts:
    """What an engine is made of. `pace`: simulated seconds in a real one."""

    settings: Settings
    machine: Machine
    distributor: Distributor
    backend: Backend
    journal: Journal
    model: TextModel
    metrics: Metrics
    pace: float


class Engine:
    """All methods but those that say otherwise belong to the event loop's thread."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.started_at = time.time()
        self.draining = False
        self.opened = False
        self.failure: BaseException | None = None
        self.watchers: list[Callable[[Prediction], None]] = []  # told of every change of a prediction
        settings, distributor = parts.settings, parts.distributor
        self.max_queue = settings.gpu.workload.max_queue
        self.readings = LiveReadings(distributor, parts.backend, settings.telemetry.interval, parts.pace)
        self.live: dict[int, Prediction] = {}  # not final, in order of their numbers
        self._final: OrderedDict[int, Prediction] = OrderedDict()  # the latest that have become final
        self._desk = Desk(settings, distributor, parts.model, parts.pace, self._heard)
        self._driver = RealtimeDriver(
            distributor,
            parts.backend,
            clock=MonotonicClock(),
            queue_processing_interval_s=settings.gpu.workload.queue_processing_interval,
            health_check_interval_s=settings.gpu.detection.health_check_interval * parts.pace,
            telemetry=self.readings,
            log=self._desk,
            pace=parts.pace,
        )
        self._desk.attach(self._driver)
        self._driver.call(self._on_open, None)
        self.counts: Counter[str] = Counter(parts.journal.counts())
        self.counts.pop(QUEUED, None)
        self.tokens = self.prompt_tokens = 0
        self.run_on: dict[int, dict[int, None]] = {device.gpu_id: {} for device in distributor.pool.devices}
        self._ends: deque[tuple[float, int]] = (
            deque()
        )  # (monotonic seconds, predictions that ended then), of the last while
        self._next_number = parts.journal.next_task_id
        self._batch: list[tuple[list[Prediction], Idempotent | None, asyncio.Future[None]]] = []
        self._unwritten: list[News] = []  # ends that the journal could not take yet
        self._released = False
        self._cancelling: set[asyncio.Future[list[int]]] = set()  # of those that wait for the driver
        self._kept_final = min(KEPT_FINAL, settings.api.retention_count)
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=self._serve, name="altlas-driver", daemon=True)
        self._done = threading.Event()

    # --- life -----------------------------------------------------------------------------------------------------

    def start(self, failed: Callable[[BaseException], None]) -> None:
        """Queue again what an earlier process left unfinished, and begin. `failed` is called if the driver breaks."""
        self._loop = asyncio.get_running_loop()
        self._failed = failed
        left = [self._recovered(stored) for stored in self.parts.journal.unfinished()]
        for prediction in left:
            self.live[prediction.number] = prediction
            self.counts[QUEUED] += 1
        if left:
            log.info("queued again what an earlier process had not finished: %d tasks", len(left))
            self._driver.call(self._desk_take, [self._entry(prediction) for prediction in left])
        self._thread.start()

    def _serve(self) -> None:
        """The driver's thread."""
        try:
            self._driver.serve()
        except BaseException as error:
            self.failure = error
            self.on_loop(self._failed, error)
        finally:
            self._done.set()

    def _on_open(self, _now: float, _arg: None) -> None:
        self.on_loop(self._opened)

    def _opened(self) -> None:
        self.opened = True
        log.info("ready: %d devices, %s", len(self.parts.machine.devices), self.parts.machine.backend)

    async def drain(self, grace_s: float) -> None:
        """Take nothing new; give what runs `grace_s` to finish. What has not then goes back to the queue: it is in the
        journal, unfinished."""
        self.draining = True
        self._driver.drain()
        until = time.monotonic() + grace_s
        # What has ended on its device still shows as running until the journal has it.
        while (self._driver.busy or self.counts[RUNNING]) and not self._done.is_set() and time.monotonic() < until:
            await asyncio.sleep(0.02)
        self.release()
        left = len(self.live)
        log.info("drained: %d running, %d go back to the queue", self.counts[RUNNING], left)

    def release(self) -> None:
        """Nobody waits for an end any longer: the server ends, and tells how things stand."""
        self._released = True
        for prediction in self.live.values():
            _wake(prediction)
        for answer in list(self._cancelling):
            if not answer.done():
                text = "the server ends; whether it was cancelled shows once there is a next one"
                answer.set_exception(ApiError("not_ready", text, {"Retry-After": "5"}))

    def close(self) -> None:
        """End the driver (and with it every worker), then commit what is left. Any thread."""
        self._driver.stop()
        if self._thread.is_alive():
            self._thread.join()
        self.parts.journal.close()

    # --- in -------------------------------------------------------------------------------------------------------

    def refusal(self, count: int) -> ApiError | None:
        """Why `count` more predictions cannot be taken now."""
        if self.draining:
            return ApiError(
                "shutting_down", "the server is shutting down; send it again to the next one", {"Retry-After": "5"}
            )
        if self.failure is not None:
            return ApiError("not_ready", "the scheduler has stopped; see the server's log", {"Retry-After": "30"})
        if self.parts.journal.problem is not None:
            text = f"the journal cannot be written ({self.parts.journal.problem}), so nothing can be accepted"
            return ApiError("not_ready", text, {"Retry-After": "10"})
        waiting = self.counts[QUEUED]
        if waiting + count > self.max_queue:
            text = (
                f"the queue is full: {waiting} tasks wait, room for {max(0, self.max_queue - waiting)} more, {count} "
                f"sent (gpu.workload.max_queue {self.max_queue}); send it again later"
            )
            return ApiError("queue_full", text, {"Retry-After": str(self._retry_after_s(count))})
        return None

    def _retry_after_s(self, count: int) -> int:
        """Whole seconds in which about so many places come free, at the rate of the last while; 1 to 60."""
        rate = self.rate_per_s()
        return 60 if rate <= 0 else max(1, min(60, round(count / rate)))

    async def accept(
        self, predictions: Sequence[Prediction], idempotent: Callable[[], Idempotent] | None = None
    ) -> None:
        """Take predictions: numbered, in the journal, then on their way. Those of a batch are given together.

        `idempotent` makes what is remembered of the request, once they have numbers. Raises ApiError, and nothing is
        taken.
        """
        refused = self.refusal(len(predictions))
        if refused is not None:
            raise refused
        for prediction in predictions:
            prediction.number = self._next_number
            self._next_number += 1
            self.live[prediction.number] = prediction
        if len(predictions) > 1 or predictions[0].batch is not None:
            for prediction in predictions:
                prediction.batch = predictions[0].number
        self.counts[QUEUED] += len(predictions)
        committed: asyncio.Future[None] = self._loop.create_future()
        if not self._batch:
            self._loop.call_soon(self._write)
        self._batch.append((list(predictions), idempotent() if idempotent else None, committed))
        await committed

    def _write(self) -> None:
        """All that was accepted in this turn of the event loop, in one go."""
        batch, self._batch = self._batch, []
        predictions = [prediction for group, _, _ in batch for prediction in group]

        def done(error: BaseException | None) -> None:
            if error is None:
                self._driver.call(self._desk_take, [self._entry(prediction) for prediction in predictions])
            self.on_loop(self._committed, batch, error)

        self.parts.journal.write(
            tasks=[_new_task(prediction) for prediction in predictions],
            batches=[_new_batch(group) for group, _, _ in batch if group[0].batch is not None],
            idempotent=[each for _, each, _ in batch if each is not None],
            done=done,
        )

    def _committed(
        self,
        batch: list[tuple[list[Prediction], Idempotent | None, asyncio.Future[None]]],
        error: BaseException | None,
    ) -> None:
        for group, _, committed in batch:
            for prediction in group:
                if error is None:
                    prediction.committed = True
                    self._changed(prediction)
                else:
                    del self.live[prediction.number]
                    self.counts[QUEUED] -= 1
            if committed.done():
                continue
            if error is None:
                committed.set_result(None)
            else:
                log.error("not accepted, for the journal cannot be written: %s", error)
                text = "the journal cannot be written, so nothing was accepted; send it again later"
                committed.set_exception(ApiError("not_ready", text, {"Retry-After": "10"}))

    def _desk_take(self, now: float, entries: Sequence[Entry]) -> None:
        self._desk.take(now, entries)

    def _entry(self, prediction: Prediction) -> Entry:
        """As the driver's thread gets it: nothing in it changes."""
        seed = self.parts.settings.seed * 1_000_003 + prediction.number
        tokens = len(prediction.text.encode()) + 1
        prompt = Prompt(prediction.text, prediction.max_length, prediction.temperature, seed, tokens)
        strategy = prediction.strategy or self.parts.settings.gpu.selection.default_strategy
        like = (prediction.priority, strategy, prediction.pin)
        return Entry(prediction.number, prediction.batch, like, prompt, prediction.created_at)

    def _recovered(self, stored: StoredTask) -> Prediction:
        from altlas_core.api.schemas import from_journal

        prediction = from_journal(stored)
        devices, selection = self.parts.machine.devices, self.parts.settings.gpu.selection
        if prediction.pin is not None and prediction.pin >= len(devices):
            log.warning("%s: GPU %d is not there, so any may take it", task_name(stored.id), prediction.pin)
            prediction.pin = None
        if prediction.strategy is not None and prediction.strategy not in selection.strategies:
            prediction.strategy = None
        return prediction

    # --- out ------------------------------------------------------------------------------------------------------

    def on_loop(self, function: Callable[..., None], *arguments: object) -> None:
        """Any thread. Nobody is left to hear it once the loop has closed."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            log.debug("the event loop has ended")

    def _heard(self, news: News) -> None:
        """The driver's thread. What is final goes through the journal first."""
        if news.started or news.requeued or news.retries:
            self.on_loop(self._publish_moves, news)
        if news.finals:
            self._write_finals(news)

    def _write_finals(self, news: News) -> None:
        """Any thread. Tried again while the journal is broken: an end that it does not have is not shown, for after a
        restart there would be another."""

        def done(error: BaseException | None) -> None:
            if error is None or self.parts.journal.problem is None:  # a fault of ours: the next try would not help
                self.on_loop(self._publish_finals, news, error)
            else:
                self.on_loop(self._write_again, news, error)

        self.parts.journal.write(finals=news.finals, done=done)

    def _write_again(self, news: News, error: BaseException) -> None:
        if not self._unwritten:
            log.error("ends could not be written to the journal and will be tried again: %s", error)
            self._loop.call_later(AGAIN_S, self._write_unwritten)
        self._unwritten.append(news)

    def _write_unwritten(self) -> None:
        unwritten, self._unwritten = self._unwritten, []
        finals = [final for news in unwritten for final in news.finals]
        self._write_finals(News(finals=finals, measured=[each for news in unwritten for each in news.measured]))

    def _publish_moves(self, news: News) -> None:
        for code in news.retries:
            self.parts.metrics.count_retry(code)
        for requeued in news.requeued:
            self.parts.metrics.count_retry(requeued.code)
            for prediction in self._live(requeued.numbers):
                self._move(prediction, QUEUED)
                prediction.gpu_id = prediction.started_at = None
                prediction.retry_count = requeued.retry_count
                self._changed(prediction)
        for started in news.started:
            for prediction in self._live(started.numbers):
                self._move(prediction, RUNNING)
                prediction.gpu_id, prediction.retry_count = started.gpu_id, started.retry_count
                prediction.started_at = max(prediction.created_at, started.started_at)
                self.run_on[started.gpu_id][prediction.number] = None
                self._changed(prediction)

    def _publish_finals(self, news: News, error: BaseException | None) -> None:
        if error is not None:
            log.error("%d results could not be written to the journal: %s", len(news.finals), error)
        now = time.monotonic()
        self._trim_ends(now)
        self._ends.append((now, len(news.finals)))
        metrics = self.parts.metrics
        for measured in news.measured:
            self.tokens += measured.tokens
            self.prompt_tokens += measured.prompt_tokens
            metrics.observe_queue_s(measured.queue_s)
            metrics.observe_run_s(measured.run_s)
            metrics.observe_ttft_s(measured.time_to_first_token_s)
        for final in news.finals:
            prediction = self.live.pop(final.id, None)
            if prediction is not None:
                self._finish(prediction, final)
        while len(self._final) > self._kept_final:
            self._final.popitem(last=False)

    def _finish(self, prediction: Prediction, final: FinalTask) -> None:
        self._move(prediction, final.status)
        prediction.gpu_id, prediction.started_at = final.gpu_id, final.started_at
        prediction.completed_at, prediction.retry_count = final.completed_at, final.retry_count
        prediction.result, prediction.error, prediction.error_code = final.result, final.error, final.error_code
        self._final[prediction.number] = prediction
        _wake(prediction)
        self._changed(prediction)

    def _live(self, numbers: Sequence[int]) -> Iterator[Prediction]:
        return (self.live[number] for number in numbers if number in self.live)

    def _move(self, prediction: Prediction, status: str) -> None:
        self.counts[prediction.status] -= 1
        self.counts[status] += 1
        prediction.status = status
        if prediction.gpu_id is not None:
            self.run_on[prediction.gpu_id].pop(prediction.number, None)

    def _changed(self, prediction: Prediction) -> None:
        for watcher in self.watchers:
            watcher(prediction)

    def by_state(self) -> dict[str, int]:
        """Tasks by state: those that are kept from before, and all since."""
        return {state: max(0, self.counts[state]) for state in STATES}

    # --- asking ---------------------------------------------------------------------------------------------------

    def find(self, name: str) -> Prediction | StoredTask | None:
        """A task by its id, wherever it is kept."""
        number = number_of(name, "task")
        if number is None:
            return None
        prediction = self.live.get(number) or self._final.get(number)
        if prediction is None or self._too_old(prediction):
            return self.parts.journal.task(number)
        return prediction if prediction.committed else None

    def _too_old(self, prediction: Prediction) -> bool:
        ended_at = prediction.completed_at
        return ended_at is not None and ended_at < time.time() - self.parts.settings.api.retention_age

    def tell(self, name: str) -> str | None:
        """A task as JSON text."""
        found = self.find(name)
        if found is None:
            return None
        return live_json(found) if type(found) is Prediction else stored_json(found)  # type: ignore[arg-type]

    async def wait(self, predictions: Sequence[Prediction], seconds: float) -> None:
        """Until all of them are final, or so long."""
        if seconds <= 0 or self._released:
            return
        futures = []
        for prediction in predictions:
            if not prediction.final:
                future: asyncio.Future[None] = self._loop.create_future()
                prediction.ended.append(future)
                futures.append((prediction, future))
        if not futures:
            return
        try:
            await asyncio.wait([future for _, future in futures], timeout=seconds)
        finally:
            for prediction, future in futures:
                if not future.done():
                    prediction.ended.remove(future)

    async def wait_for(self, name: str, seconds: float) -> None:
        """Until the task of this id is final, or so long; at once where there is none."""
        found = self.find(name)
        if isinstance(found, Prediction):
            await self.wait([found], seconds)

    async def cancel(self, numbers: Sequence[int]) -> list[int]:
        """Cancel these predictions; returns the numbers of those that were not final, once it is in the journal.

        Raises ApiError where the journal does not take it.
        """
        if self.failure is not None or self._released:
            raise ApiError("not_ready", "the scheduler has stopped; see the server's log", {"Retry-After": "30"})
        answer: asyncio.Future[list[int]] = self._loop.create_future()
        self._cancelling.add(answer)
        answer.add_done_callback(self._cancelling.discard)

        def reply(ended: list[int]) -> None:
            self.on_loop(_answer, answer, ended)

        self._driver.call(self._cancel, (list(numbers), reply))
        ended = await answer
        # Also those that somebody else has cancelled or that end by themselves just now: then they are told as ended.
        await self.wait(list(self._live(numbers)), LONGEST_CANCEL_S)
        if any(number in self.live for number in ended):
            text = "cancelled, but the journal could not be written yet: after a restart it would run again"
            raise ApiError("not_ready", text, {"Retry-After": "10"})
        return ended

    def _cancel(self, now: float, request: tuple[Sequence[int], Callable[[list[int]], None]]) -> None:
        self._desk.cancel(now, request)

    def batch(self, number: int) -> BatchView | None:
        """A batch as it is now: what is stored of it, and its unfinished tasks as they are."""
        stored = self.parts.journal.batch(number)
        return None if stored is None else self.view(stored)

    def view(self, stored: StoredBatch) -> BatchView:
        """What is stored of a batch, with its running tasks as they are. Any thread."""
        number = stored.id
        counts: Counter[str] = Counter(stored.counts)
        if not counts[QUEUED]:
            return BatchView(number, stored.size, stored.priority, stored.created_at, counts)
        here = (self.live.get(each) for each in range(number, number + stored.size))
        running = min(counts[QUEUED], sum(each is not None and each.status == RUNNING for each in here))
        counts[RUNNING] += running
        counts[QUEUED] -= running
        return BatchView(number, stored.size, stored.priority, stored.created_at, counts)

    def tasks_on(self, gpu_id: int) -> list[str]:
        return [task_name(number) for number in list(self.run_on[gpu_id])]

    def rate_per_s(self) -> float:
        """Predictions that ended per second, over the last while."""
        self._trim_ends(time.monotonic())
        return sum(count for _, count in self._ends) / RATE_S

    def _trim_ends(self, now: float) -> None:
        while self._ends and self._ends[0][0] < now - RATE_S:
            self._ends.popleft()

    def not_ready(self) -> str | None:
        """Why nothing would be run now, in words."""
        if self.draining:
            return "shutting down"
        if self.failure is not None:
            return f"the scheduler has stopped: {self.failure}"
        if not self.opened:
            return "the devices are not open yet"
        if self.parts.journal.problem is not None:
            return f"the journal cannot be written: {self.parts.journal.problem}"
        devices = self.parts.distributor.pool.devices
        if not any(device.healthy and not device.lost for device in devices):
            reasons = {device.reason or device.state for device in devices}
            return f"no usable device: {'; '.join(sorted(reasons))}"
        return None


def _wake(prediction: Prediction) -> None:
    for waiting in prediction.ended:
        if not waiting.done():
            waiting.set_result(None)
    prediction.ended.clear()


def _answer(future: asyncio.Future[list[int]], ended: list[int]) -> None:
    if not future.done():
        future.set_result(ended)


def _new_task(prediction: Prediction) -> NewTask:
    from altlas_core.api.schemas import options_json

    return NewTask(
        prediction.number,
        prediction.priority,
        prediction.batch,
        prediction.created_at,
        prediction.params,
        options_json(prediction),
    )


def _new_batch(group: Sequence[Prediction]) -> NewBatch:
    return NewBatch(group[0].number, group[0].created_at, len(group), group[0].priority)
