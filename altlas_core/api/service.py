"""The engine with what the routes need around it: limits, events, repeated requests, the state in numbers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from altlas_core import __version__
from altlas_core.api.access_log import LineLog
from altlas_core.api.engine import Engine
from altlas_core.api.errors import ApiError
from altlas_core.api.hub import Hub
from altlas_core.api.metrics import GpuStats, Stats
from altlas_core.api.once import Once
from altlas_core.api.schemas import BatchRequest, PredictRequest
from altlas_core.errors import StrategyError
from altlas_core.model import PRIORITY_NAMES, QUEUED
from altlas_core.strategies import check_strategy


class Service:
    """One running API. Belongs to the event loop's thread."""

    def __init__(self, engine: Engine, log: LineLog) -> None:
        self.engine = engine
        self.log = log
        self.once = Once(engine)
        self.hub = Hub(self.status, self._gpus)
        engine.watchers.append(self.hub.changed)

    # --- what may be asked for ------------------------------------------------------------------------------------

    def check(self, asked: PredictRequest | BatchRequest, texts: Sequence[str]) -> None:
        """Raise ApiError naming the field that this service does not allow; shrink a default it has no room for."""
        limits = self.engine.parts.settings.predict
        longest = self.longest
        if asked.max_length > longest:
            if "max_length" in asked.model_fields_set:
                raise _invalid(f"max_length: {asked.max_length} tokens; allowed: 1 to {longest}")
            asked.max_length = longest
        if len(texts) > limits.max_texts:
            raise _invalid(f"texts: {len(texts)} texts; allowed: 1 to {limits.max_texts} (predict.max_texts)")
        if len(texts) > self.engine.max_queue:
            raise _invalid(f"texts: {len(texts)} texts; the queue never has room for more than {self.engine.max_queue}")
        for place, text in enumerate(texts):
            if len(text) > limits.max_text_chars:
                field = "text" if isinstance(asked, PredictRequest) else f"texts.{place}"
                most = f"{limits.max_text_chars} (predict.max_text_chars)"
                raise _invalid(f"{field}: {len(text)} characters; allowed: up to {most}")
        if asked.gpu_options is not None:
            self._check_options(asked.gpu_options.strategy, asked.gpu_options.pin)

    def _check_options(self, strategy: str | None, pin: int | None) -> None:
        if strategy is not None:
            try:
                check_strategy(strategy, self.engine.parts.settings.gpu.selection.strategies, "gpu_options.strategy")
            except StrategyError as error:
                raise _invalid(str(error)) from None
        count = len(self.engine.parts.machine.devices)
        if pin is not None and pin >= count:
            there = "GPU 0" if count == 1 else f"GPUs 0 to {count - 1}"
            raise _invalid(f"gpu_options.gpu_id: there is no GPU {pin}; this machine has {there}")

    @property
    def longest(self) -> int:
        """The largest max_length: of the settings, and what the model has room for beside one token of text."""
        parts = self.engine.parts
        return min(parts.settings.predict.max_length, parts.model.context - 1)

    async def cancel(self, numbers: Sequence[int]) -> list[int]:
        """See Engine.cancel. Raises ApiError while the service is not in a state for it."""
        if self.engine.draining:
            text = "the server is shutting down; send it again to the next one"
            raise ApiError("shutting_down", text, {"Retry-After": "5"})
        if not self.engine.opened:
            raise ApiError("not_ready", "the service is not ready; send it again in a moment", {"Retry-After": "5"})
        return await self.engine.cancel(numbers)

    # --- what is told ---------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What GET /status and the event of that name tell."""
        engine = self.engine
        parts = engine.parts
        limits = parts.settings.predict
        return {
            "version": __version__,
            "backend": parts.machine.backend,
            "provenance": parts.machine.provenance,
            "started_at": engine.started_at,
            "model": parts.model.name,
            "strategies": list(parts.settings.gpu.selection.strategies),
            "limits": {
                "max_text_chars": limits.max_text_chars,
                "max_length": self.longest,
                "max_texts": limits.max_texts,
                "max_queue": engine.max_queue,
            },
            "tasks": engine.by_state(),
            "tokens_total": engine.tokens,
            "tasks_per_s": engine.rate_per_s(),
            "queue_depth": engine.counts[QUEUED],
            "ready": engine.not_ready() is None,
        }

    def _gpus(self) -> dict[str, Any]:
        engine = self.engine
        gpus = engine.readings.gpus(engine.tasks_on)
        return {"time": time.time(), "queue_depth": engine.counts[QUEUED], "gpus": gpus}

    def stats(self) -> Stats:
        """What GET /metrics tells of the present."""
        engine = self.engine
        waiting = Counter(prediction.priority for prediction in engine.live.values() if prediction.status == QUEUED)
        return Stats(
            gpus=[self._gpu_stats(gpu) for gpu in engine.readings.gpus(engine.tasks_on)],
            queue_depth={name: waiting[name] for name in PRIORITY_NAMES},
            tasks=engine.by_state(),
            tokens_generated_total=engine.tokens,
            prompt_tokens_total=engine.prompt_tokens,
            journal_problem=engine.parts.journal.problem is not None,
            uptime_s=time.time() - engine.started_at,
            version=__version__,
            log_lines_dropped_total=self.log.dropped,
        )

    def _gpu_stats(self, gpu: dict[str, Any]) -> GpuStats:
        sample = self.engine.readings.samples.get(gpu["id"])
        return GpuStats(
            gpu["id"],
            gpu["name"],
            gpu["status"],
            gpu["task_count"],
            gpu["simulated"],
            gpu["uuid"] or "",
            gpu["utilization"],
            gpu["memory_used"],
            gpu["memory_free"],
            gpu["temperature"],
            gpu["power_usage"],
            None if sample is None else sample.xid,
        )


def _invalid(text: str) -> ApiError:
    return ApiError("invalid_field", text)
