"""What comes in and goes out, as pydantic models: they check requests and describe the API at /docs."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from altlas_core.api.journal import StoredTask
from altlas_core.api.records import Prediction
from altlas_core.rules import MAX_SECONDS

Priority = Literal["high", "normal", "low"]
State = Literal["QUEUED", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"]
BatchState = Literal["QUEUED", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "PARTIAL"]
GpuState = Literal["AVAILABLE", "BUSY", "UNHEALTHY", "LOST"]

HARD_TEXT_CHARS: Final = 10**6  # the settings allow less
HARD_LENGTH: Final = 10**9
HARD_TEXTS: Final = 100_000
MOST_GPUS: Final = 65_535
LISTED: Final = 100  # by default
MOST_LISTED: Final = 1000

Text = Annotated[str, Field(max_length=HARD_TEXT_CHARS, description="what is to be continued")]


class _Request(BaseModel):
    """An unknown field is refused: a slip of the pen must not pass for a default."""

    model_config = ConfigDict(extra="forbid", strict=True)


class GpuOptions(_Request):
    """Where a prediction may run. `specific_gpu_id` is an older name of `gpu_id`; `batch_split` is accepted."""

    strategy: Annotated[str | None, Field(max_length=100, description="for these tasks instead of the default")] = None
    gpu_id: Annotated[int | None, Field(ge=0, le=MOST_GPUS, description="this GPU and no other")] = None
    specific_gpu_id: Annotated[int | None, Field(ge=0, le=MOST_GPUS, deprecated=True)] = None
    batch_split: Annotated[bool | None, Field(deprecated=True)] = None

    @model_validator(mode="after")
    def _one_gpu(self) -> GpuOptions:
        if self.gpu_id is not None and self.specific_gpu_id is not None and self.gpu_id != self.specific_gpu_id:
            raise ValueError("gpu_id and specific_gpu_id name different GPUs; give one of them")
        return self

    @property
    def pin(self) -> int | None:
        return self.specific_gpu_id if self.gpu_id is None else self.gpu_id


class _Asked(_Request):
    max_length: Annotated[int, Field(ge=1, le=HARD_LENGTH, description="most new tokens")] = 128
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False, description="0: the likeliest, always")] = (
        0.7
    )
    priority: Priority = "normal"
    gpu_options: GpuOptions | None = None
    duration: Annotated[
        float | None, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False, deprecated=True, description="has no effect")
    ] = None


class PredictRequest(_Asked):
    text: Text


class BatchRequest(_Asked):
    texts: Annotated[list[Text], Field(min_length=1, max_length=HARD_TEXTS)]


class TaskParams(BaseModel):
    text: str
    max_length: int
    temperature: float
    strategy: str | None = None
    gpu_id: int | None = None


class PredictionResult(BaseModel):
    """What was generated, and how fast. Times are seconds; on simulated devices they are the GPU model's."""

    text: str
    tokens: int
    prompt_tokens: int
    time_to_first_token_s: Annotated[float, Field(description="from acceptance to the first token")]
    queue_s: float
    run_s: float
    tokens_per_s: Annotated[float | None, Field(description="tokens / run_s")]
    finish_reason: Literal["stop", "length"]
    prompt_truncated: Annotated[bool, Field(description="whether only the end of the text fitted")]
    model: str
    simulated: bool
    gpu_id: int
    batch_rows: Annotated[int, Field(description="how many predictions were computed together")]


class TaskAnswer(BaseModel):
    id: str
    type: Literal["text_generation"]
    params: TaskParams
    priority: Priority
    batch_id: str | None
    status: State
    gpu_id: int | None
    created_at: Annotated[float, Field(description="Unix seconds, as the other times")]
    started_at: float | None
    completed_at: float | None
    result: PredictionResult | None
    error: str | None
    error_code: str | None
    retry_count: int


class PredictAnswer(BaseModel):
    task_id: str
    gpu_id: Annotated[int | None, Field(description="null while the task waits")]
    status: State
    task: Annotated[TaskAnswer | None, Field(description="with ?wait: the task as it is then")] = None


class BatchAccepted(BaseModel):
    batch_id: str
    task_ids: list[str]
    status: BatchState
    tasks: Annotated[list[TaskAnswer] | None, Field(description="with ?wait: the tasks as they are then")] = None


class TaskList(BaseModel):
    tasks: list[TaskAnswer]
    next: Annotated[str | None, Field(description="give it as `before` for the next page; null: this was the last")]


class BatchAnswer(BaseModel):
    id: str
    batch_id: str
    type: Literal["text_generation"]
    priority: Priority
    status: BatchState
    created_at: float
    task_count: int
    counts: dict[State, int]
    task_ids: list[str]


class BatchList(BaseModel):
    batches: list[BatchAnswer]
    next: str | None


class GpuAnswer(BaseModel):
    """A reading that is missing is null, never 0."""

    id: int
    name: str
    uuid: str | None
    simulated: bool
    compute_capability: str | None
    memory_total: Annotated[int, Field(description="bytes")]
    memory_used: int | None
    memory_free: int | None
    utilization: Annotated[float | None, Field(description="percent of the last while in which a kernel ran")]
    temperature: Annotated[float | None, Field(description="degrees C")]
    power_usage: Annotated[float | None, Field(description="W")]
    power_limit: Annotated[float | None, Field(description="W")]
    status: GpuState
    reason: str | None
    processes: Annotated[list[str], Field(description="ids of the tasks that run on it")]
    task_count: int
    slots: int
    slots_used: Annotated[int, Field(description="each holds tasks that are computed together")]


class GpuList(BaseModel):
    gpus: list[GpuAnswer]


class GpuHistory(BaseModel):
    id: int
    utilization: list[float | None]
    memory_used: list[float | None]
    temperature: list[float | None]
    power_usage: list[float | None]


class Telemetry(BaseModel):
    """The last five minutes; `time` is Unix seconds, the lists are as long as it."""

    interval_s: float
    time: list[float]
    gpus: list[GpuHistory]
    queue_depth: list[int]


class Limits(BaseModel):
    max_text_chars: int
    max_length: int
    max_texts: int
    max_queue: int


class Status(BaseModel):
    version: str
    backend: str
    provenance: Literal["measured", "simulated", "mixed"]
    started_at: float
    model: str
    strategies: list[str]
    limits: Limits
    tasks: dict[State, int]
    tokens_total: int
    tasks_per_s: Annotated[float, Field(description="that ended, over the last 10 s")]
    queue_depth: int
    ready: bool


class Done(BaseModel):
    success: Literal[True]
    message: str


class Health(BaseModel):
    status: Literal["ok"]
    version: str
    uptime_s: float


class Ready(BaseModel):
    ready: Literal[True]


class ErrorAnswer(BaseModel):
    error: Annotated[str, Field(description="what is wrong and what to do")]
    code: str


# --- between requests, predictions and the journal --------------------------------------------------------------------


def prediction_of(text: str, asked: _Asked, now: float) -> Prediction:
    """A prediction without a number yet."""
    options = asked.gpu_options
    strategy, pin = (None, None) if options is None else (options.strategy, options.pin)
    params = {"text": text, "max_length": asked.max_length, "temperature": asked.temperature}
    if strategy is not None:
        params["strategy"] = strategy
    if pin is not None:
        params["gpu_id"] = pin
    return Prediction(
        0,
        text,
        asked.max_length,
        asked.temperature,
        asked.priority,
        strategy,
        pin,
        json.dumps(params, ensure_ascii=False),
        now,
    )


def options_json(prediction: Prediction) -> str:
    """What the journal keeps beside the params."""
    if prediction.strategy is None and prediction.pin is None:
        return "{}"
    return json.dumps({"strategy": prediction.strategy, "gpu_id": prediction.pin})


def from_journal(stored: StoredTask) -> Prediction:
    """An unfinished task of an earlier process, to be run again."""
    params: dict[str, Any] = json.loads(stored.params)
    options: dict[str, Any] = json.loads(stored.options)
    return Prediction(
        stored.id,
        params["text"],
        params["max_length"],
        params["temperature"],
        stored.priority,
        options.get("strategy"),
        options.get("gpu_id"),
        stored.params,
        stored.created_at,
        batch=stored.batch_id,
        committed=True,
    )
