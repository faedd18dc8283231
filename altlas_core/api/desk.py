"""Predictions become tasks of the scheduler, and what that decides becomes news of predictions.

Everything in this file runs on the driver's thread. A *piece* is one task of the scheduler: up to batch_size
predictions that a device computes together. A batch is cut into pieces. A single prediction starts a piece of its own
at once where a GPU is idle; otherwise it joins a piece of its like that has not started, or waits up to
`predict.max_batch_delay` for others to join it. A piece can be joined until it starts.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from altlas_core.api.journal import FinalTask
from altlas_core.api.pieces import Entry, Like, Measured, News, Piece, Requeued, Started
from altlas_core.config_schema import Settings
from altlas_core.distributor import Distributor
from altlas_core.drivers.realtime import RealtimeDriver
from altlas_core.events import RANK_SUBMIT, Action, CancelRequested, Fact, TaskSubmitted
from altlas_core.generation import KIND, Generation, TextModel, reserved_bytes
from altlas_core.model import (
    CANCELLED,
    COMPLETED,
    FINAL_STATES,
    PRIORITIES,
    QUEUED,
    RUNNING,
    Attempt,
    Demand,
    Task,
    TaskSpec,
)

log = logging.getLogger("altlas.api")

SMALLEST_BUCKET: Final = 64  # tokens; pieces reserve memory for a power of two of them, so that few Demands differ


class Desk:
    """The driver's log: it is told of every decision, and at the end of each look tells `tell` what has come of it."""

    def __init__(
        self, settings: Settings, distributor: Distributor, model: TextModel, pace: float, tell: Callable[[News], None]
    ) -> None:
        workload = settings.gpu.workload
        self._distributor = distributor
        self._changed: list[Task] = []
        distributor.changed = self._changed
        self._model = model
        self._pace = pace
        self._tell = tell
        self._rows = workload.batch_size
        self._delay_s = settings.predict.max_batch_delay * pace
        self._timeout_s, self._retry_count = workload.timeout, workload.retry_count
        self._driver: RealtimeDriver
        self._next_index = 0
        self._pieces: dict[int, Piece] = {}  # by the index of their task
        self._piece_of: dict[int, Piece] = {}  # by the number of a prediction that is not final
        self._joinable: dict[Like, Piece] = {}
        self._demands: dict[tuple[Any, ...], Demand] = {}
        self._begun: list[Attempt] = []
        self._finals: list[FinalTask] = []  # of cancelled predictions
        self._promised = 0  # pieces submitted in this look that have not started
        self._narrow: set[int] = set()  # sizes for which fewer rows than batch_size fit
        self._lingering: list[Task] = []  # final, but their attempt still holds its device

    def attach(self, driver: RealtimeDriver) -> None:
        self._driver = driver

    # --- what the driver tells ------------------------------------------------------------------------------------

    def fact(self, now: float, fact: Fact) -> None:
        """Facts as such are not looked at; what they change is."""

    def action(self, now: float, action: Action) -> None:
        if type(action) is Attempt:
            self._begun.append(action)
            self._promised -= self._promised > 0

    def looked(self, now: float) -> None:
        """Tell what has changed since the last look: of each piece how it is now, whatever it went through."""
        self._promised = 0
        if not (self._changed or self._begun or self._finals or self._lingering):
            return
        news = News(finals=self._finals)
        self._finals = []
        wall = time.time()
        for attempt in self._begun:
            self._note_attempt(attempt, news)
        touched = dict.fromkeys([*(attempt.task for attempt in self._begun), *self._changed])
        self._begun.clear()
        self._changed.clear()
        for task in touched:
            piece = self._pieces.get(task.index)
            if piece is None:
                continue
            if task.state == RUNNING:
                assert task.gpu_id is not None
                assert task.started_s is not None
                numbers = [entry.number for entry in piece.entries if entry is not None]
                started_at = wall - (now - task.started_s) / self._pace
                news.started.append(Started(numbers, task.gpu_id, started_at, task.attempts - 1))
            elif task.state == QUEUED:
                piece.prune()
                piece.attempt = None
                numbers = [entry.number for entry in piece.entries if entry is not None]
                outcome = task.attempt.outcome if task.attempt is not None else None
                news.requeued.append(Requeued(numbers, task.attempts, outcome or "unknown"))
            elif task.state in FINAL_STATES:
                self._end(piece, now, wall, news)
        self._forget_ended()
        if news:
            self._tell(news)

    def _note_attempt(self, attempt: Attempt, news: News) -> None:
        piece = self._pieces.get(attempt.task.index)
        if piece is not None:
            if piece.attempt is not None:
                news.retries.append(piece.attempt.outcome or "unknown")
            piece.attempt = attempt

    def _forget_ended(self) -> None:
        still = []
        for task in self._lingering:
            if task.attempt is not None and task.attempt.ended_s is None:
                still.append(task)
            else:
                self._distributor.forget(task)
        self._lingering = still

    # --- predictions come in --------------------------------------------------------------------------------------

    def take(self, now: float, entries: Sequence[Entry]) -> None:
        """Make pieces of them and submit those that need not wait."""
        at = 0
        while at < len(entries):
            entry = entries[at]
            if entry.batch is None:
                self._take_single(now, entry)
                at += 1
                continue
            rows = self._fitting_rows(entries[at : at + self._rows])
            end = at + 1
            while end < len(entries) and end - at < rows and entries[end].batch == entry.batch:
                end += 1
            self._submit(self._new_piece(now, entries[at:end], end - at))
            at = end

    def _idle(self) -> int:
        """How many GPUs run nothing and are not promised. What waits from before does not count: it was passed over."""
        pool = self._distributor.pool
        return (pool.open & pool.by_load[0]).bit_count() - self._promised

    def _take_single(self, now: float, entry: Entry) -> None:
        at_once = self._idle() > 0 and self._has_idle(entry.like)
        if not at_once:
            piece = self._joinable.get(entry.like)
            if piece is not None and piece.open and piece.tokens >= self._bucket([entry]):
                piece.add(entry, self._asked_s(entry, now))
                self._piece_of[entry.number] = piece
                if not piece.submitted and len(piece.entries) >= piece.rows:
                    self._submit(piece)
                return
        piece = self._joinable[entry.like] = self._new_piece(now, [entry], self._fitting_rows([entry]))
        if at_once or not self._delay_s or piece.rows == 1:
            self._submit(piece)
        else:
            self._driver.post_at(now + self._delay_s, RANK_SUBMIT, self._submit_held, piece)

    def _has_idle(self, like: Like) -> bool:
        """Whether a GPU it may use runs nothing. For single_gpu that is one GPU, which may be promised already."""
        _, strategy, pin = like
        pool = self._distributor.pool
        mask = pool.open & pool.by_load[0]
        if pin is not None:
            mask &= 1 << pin
        narrowed = pin is not None or strategy == "single_gpu"
        if strategy == "single_gpu" and pin is None:
            mask &= pool.healthy & -pool.healthy
        before = self._joinable.get(like)
        return bool(mask) and not (narrowed and before is not None and before.open)

    def _new_piece(self, now: float, entries: Sequence[Entry], rows: int) -> Piece:
        priority, strategy, pin = entries[0].like
        tokens = self._bucket(entries)
        memory_bytes = reserved_bytes(self._model, rows, tokens)
        wanted = (memory_bytes, pin, strategy, (KIND, tokens, tokens, rows, "fp32"))
        demand = self._demands.get(wanted)
        if demand is None:
            demand = self._demands[wanted] = Demand(*wanted)
        generation = Generation(self._model, [])
        spec = TaskSpec(
            kind=KIND, input_size=tokens, output_size=tokens, batch=rows, priority=priority, generation=generation
        )
        index = self._next_index
        self._next_index += 1
        task = Task(
            index, spec, PRIORITIES[priority], demand, memory_bytes, self._timeout_s, self._retry_count, submitted_s=now
        )
        piece = self._pieces[index] = Piece(task, generation, tokens, rows)
        for entry in entries:
            piece.add(entry, self._asked_s(entry, now))
            self._piece_of[entry.number] = piece
        return piece

    def _asked_s(self, entry: Entry, now: float) -> float:
        """When it was asked for, so that what the journal took counts as waiting; at another pace that is nothing."""
        return now if self._pace != 1.0 else now - max(0.0, time.time() - entry.created_at)

    def _bucket(self, entries: Sequence[Entry]) -> int:
        """The power of two of tokens that the longest of them needs, at most what the model takes."""
        most = max(entry.prompt.tokens + entry.prompt.max_new_tokens for entry in entries)
        return min(self._model.context, max(SMALLEST_BUCKET, 1 << (most - 1).bit_length()))

    def _fitting_rows(self, entries: Sequence[Entry]) -> int:
        """Rows of a piece for these: batch_size, or half of it again and again until a device has the memory."""
        pin, tokens = entries[0].like[2], self._bucket(entries)
        devices = self._distributor.pool.devices
        usable = [device for device in (devices if pin is None else devices[pin : pin + 1]) if not device.lost]
        room = max((device.capacity_bytes for device in usable), default=0)
        rows = self._rows
        while rows > 1 and reserved_bytes(self._model, rows, tokens) > room:
            rows //= 2
        if rows < self._rows and tokens not in self._narrow:
            self._narrow.add(tokens)
            log.info("texts of up to %d tokens are computed %d at a time: more do not fit", tokens, rows)
        return rows

    def _submit(self, piece: Piece) -> None:
        self._promised += 1
        piece.submitted = True
        self._driver.post(TaskSubmitted(piece.task))

    def _submit_held(self, _now: float, piece: Piece) -> None:
        if not piece.submitted and not piece.empty:
            self._submit(piece)

    # --- predictions go out ---------------------------------------------------------------------------------------

    def cancel(self, now: float, request: tuple[Sequence[int], Callable[[list[int]], None]]) -> None:
        """End these predictions where they are not final; `reply` gets the numbers of those."""
        numbers, reply = request
        wall = time.time()
        ended = []
        for number in numbers:
            piece = self._piece_of.pop(number, None)
            if piece is not None:
                ended.append(number)
                self._finals.append(self._take_out(piece, number, now, wall))
        reply(ended)

    def _take_out(self, piece: Piece, number: int, now: float, wall: float) -> FinalTask:
        task = piece.task
        place = next(at for at, entry in enumerate(piece.entries) if entry is not None and entry.number == number)
        entry = piece.entries[place]
        assert entry is not None
        piece.entries[place] = None
        if task.state == QUEUED:
            piece.prune()
        if piece.empty:
            if piece.submitted:
                self._driver.post(CancelRequested(task.index))
            else:
                del self._pieces[task.index]
        gpu_id, started_at = (task.gpu_id, self._started_at(task, entry, now, wall)) if task.attempts else (None, None)
        return FinalTask(
            number,
            CANCELLED,
            gpu_id,
            started_at,
            max(wall, entry.created_at),
            max(0, task.attempts - 1),
            None,
            None,
            None,
        )

    def _started_at(self, task: Task, entry: Entry, now: float, wall: float) -> float | None:
        if task.started_s is None:
            return None
        return max(entry.created_at, wall - (now - task.started_s) / self._pace)

    def _end(self, piece: Piece, now: float, wall: float, news: News) -> None:
        """The piece is final, and so are its predictions."""
        task = piece.task
        del self._pieces[task.index]
        like = next((entry.like for entry in piece.entries if entry is not None), None)
        if like is not None and self._joinable.get(like) is piece:
            del self._joinable[like]
        self._lingering.append(task)
        assert task.finished_s is not None
        ended_at = wall - (now - task.finished_s) / self._pace
        for place, entry in enumerate(piece.entries):
            if entry is None:
                continue
            self._piece_of.pop(entry.number, None)
            started_at = self._started_at(task, entry, now, wall)
            result = error = code = None
            status: str = task.state
            if status == COMPLETED:
                result, measured = self._result(piece, place)
                news.measured.append(measured)
            else:
                error, code = task.error, task.error_code
            news.finals.append(
                FinalTask(
                    entry.number,
                    status,
                    task.gpu_id,
                    started_at,
                    max(ended_at, started_at or entry.created_at),
                    max(0, task.attempts - 1),
                    result,
                    error,
                    code,
                )
            )

    def _result(self, piece: Piece, place: int) -> tuple[str, Measured]:
        """What a completed prediction is told as, and its figures. Seconds are those of the run's clock."""
        attempt = piece.task.attempt
        assert attempt is not None
        assert attempt.detail is not None
        assert attempt.ended_s is not None
        detail = attempt.detail
        made = detail["generation"][place]
        queue_s = max(0.0, attempt.started_s - piece.asked_s[place])
        run_s = attempt.ended_s - attempt.started_s
        first_s = queue_s + made["time_to_first_token_s"]
        result = {
            **made,
            "time_to_first_token_s": first_s,
            "queue_s": queue_s,
            "run_s": run_s,
            "tokens_per_s": made["tokens"] / run_s if run_s > 0 else None,
            "model": detail["model"],
            "simulated": detail["simulated"],
            "gpu_id": attempt.gpu_id,
            "batch_rows": len(piece.entries),
        }
        return json.dumps(result), Measured(queue_s, run_s, first_s, made["tokens"], made["prompt_tokens"])
