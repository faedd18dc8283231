"""The routes of the API. Each answers with JSON text made once, or raises ApiError."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import FastAPI, Path, Query, Request
from fastapi.responses import Response, StreamingResponse

from altlas_core.api.direct import shorten
from altlas_core.api.errors import ApiError
from altlas_core.api.listing import list_batches, list_tasks
from altlas_core.api.parsing import KEY_PARAMETER, WAIT_PARAMETER, TaskFilter, checked, key_of, parsed, wait_of
from altlas_core.api.records import batch_name, number_of, task_name
from altlas_core.api.schemas import (
    LISTED,
    MOST_LISTED,
    BatchAccepted,
    BatchAnswer,
    BatchList,
    BatchRequest,
    Done,
    ErrorAnswer,
    GpuAnswer,
    GpuList,
    PredictAnswer,
    PredictRequest,
    Priority,
    State,
    Status,
    TaskAnswer,
    TaskList,
    Telemetry,
    prediction_of,
)

if TYPE_CHECKING:
    from altlas_core.api.service import Service

Limit = Annotated[int, Query(ge=1, le=MOST_LISTED)]
PREFIX: Final = "/api/v1"
SHOWN_S: Final = 5.0
_MEANINGS: Final = {
    400: "not JSON, a missing field, or a Host header that is not this server's",
    401: "a key is needed: Authorization: Bearer KEY",
    404: "there is no such thing, or not any more",
    409: "it is not in a state for that",
    413: "the body is too large",
    422: "a field is out of bounds: the error names it",
    429: "the queue is full: see Retry-After",
    503: "not ready, or shutting down: see Retry-After",
}


def _shaped(pattern: str) -> dict[str, Any]:
    """For the description only: the routes themselves say in better words what is wrong with an id."""
    return {"json_schema_extra": {"pattern": f"^{pattern}$"}}


_ID: Final = "-([0-9]{6}|[1-9][0-9]{6,17})"
_OLDER: Final = "only those older than this id; see `next`"
TaskId = Annotated[str, Path(**_shaped(f"task{_ID}"))]
BatchId = Annotated[str, Path(**_shaped(f"batch{_ID}"))]
GpuId = Annotated[str, Path(**_shaped("[0-9]{1,6}"))]
BeforeTask = Annotated[str | None, Query(max_length=30, description=_OLDER, **_shaped(f"task{_ID}"))]
BeforeBatch = Annotated[str | None, Query(max_length=30, description=_OLDER, **_shaped(f"batch{_ID}"))]
OfBatch = Annotated[str | None, Query(max_length=30, description="the tasks of this batch", **_shaped(f"batch{_ID}"))]


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What else a route may answer."""
    return {status: {"model": ErrorAnswer, "description": _MEANINGS[status]} for status in (400, 401, *statuses)}


def described(model: type[Any] | None = None) -> dict[str, Any]:
    """The description of what a route reads itself, for speed: ?wait, and for a POST its key and its body."""
    if model is None:
        return {"parameters": [WAIT_PARAMETER]}
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {"parameters": [WAIT_PARAMETER, KEY_PARAMETER], "requestBody": body}


def answer(text: str) -> Response:
    return Response(text.encode(), media_type="application/json")


def answer_of(value: Any) -> Response:
    return answer(json.dumps(value))


def add_routes(app: FastAPI, service: Service) -> None:  # noqa: C901  one function for each route, and nothing else
    """On the app itself: a router included costs every request a tenth of its time."""
    engine = service.engine

    # --- predictions ----------------------------------------------------------------------------------------------

    @app.post(
        f"{PREFIX}/predict",
        response_model=PredictAnswer,
        responses=errors(409, 413, 422, 429, 503),
        openapi_extra=described(PredictRequest),
        summary="Continue a text",
    )
    async def predict(request: Request) -> Response:
        wait, key = wait_of(request), key_of(request)
        body = await parsed(request, PredictRequest)
        asked = body.model
        service.check(asked, [asked.text])
        prediction = prediction_of(asked.text, asked, time.time())

        def told() -> str:
            return f'{{"task_id":"{task_name(prediction.number)}","gpu_id":null,"status":"QUEUED"}}'

        if key is None:
            await engine.accept([prediction])
            first = None
        else:
            first = await service.once.answer(key, request.url.path, body.raw, [prediction], told)
        if wait <= 0:
            return answer(told() if first is None else first)
        name = task_name(prediction.number) if first is None else json.loads(first)["task_id"]
        await engine.wait_for(name, wait)
        task = engine.tell(name)
        if task is None:
            raise _no_task(name)
        state = json.loads(task)
        gpu_id = json.dumps(state["gpu_id"])
        return answer(f'{{"task_id":"{name}","gpu_id":{gpu_id},"status":"{state["status"]}","task":{task}}}')

    @app.post(
        f"{PREFIX}/predict/batch",
        response_model=BatchAccepted,
        responses=errors(409, 413, 422, 429, 503),
        openapi_extra=described(BatchRequest),
        summary="Continue many texts",
    )
    async def predict_batch(request: Request) -> Response:
        wait, key = wait_of(request), key_of(request)
        body = await parsed(request, BatchRequest)
        asked = body.model
        service.check(asked, asked.texts)
        now = time.time()
        predictions = [prediction_of(text, asked, now) for text in asked.texts]
        for prediction in predictions:
            prediction.batch = 0  # its number comes with theirs

        def told() -> str:
            first = predictions[0].number
            names = [task_name(prediction.number) for prediction in predictions]
            return json.dumps({"batch_id": batch_name(first), "task_ids": names, "status": "QUEUED"})

        if key is None:
            await engine.accept(predictions)
            text = told()
        else:
            text = await service.once.answer(key, request.url.path, body.raw, predictions, told)
        if wait <= 0:
            return answer(text)
        accepted = json.loads(text)
        until = time.monotonic() + wait
        for name in accepted["task_ids"]:
            await engine.wait_for(name, max(0.0, until - time.monotonic()))
        number = number_of(accepted["batch_id"], "batch")
        view = None if number is None else engine.batch(number)
        if view is None:
            raise _no_batch(accepted["batch_id"])
        accepted["status"] = view.to_json()["status"]
        tasks = [task for name in accepted["task_ids"] if (task := engine.tell(name)) is not None]
        return answer(f'{json.dumps(accepted)[:-1]},"tasks":[{",".join(tasks)}]}}')

    # --- tasks ----------------------------------------------------------------------------------------------------

    @app.get(f"{PREFIX}/tasks", response_model=TaskList, responses=errors(422), summary="The tasks, newest first")
    async def tasks(
        limit: Limit = LISTED,
        before: BeforeTask = None,
        status: State | None = None,
        priority: Priority | None = None,
        batch: OfBatch = None,
        gpu: Annotated[int | None, Query(ge=0, le=65_535, description="those that run or ran on this GPU")] = None,
    ) -> Response:
        wanted = TaskFilter(checked("before", before, "task"), status, priority, checked("batch", batch, "batch"), gpu)
        texts, more = await list_tasks(engine, wanted, limit)
        following = "null" if more is None else f'"{task_name(more)}"'
        return answer(f'{{"tasks":[{",".join(texts)}],"next":{following}}}')

    @app.get(
        f"{PREFIX}/tasks/{{task_id}}",
        response_model=TaskAnswer,
        responses=errors(404, 422),
        openapi_extra=described(),
        summary="One task",
    )
    async def task(request: Request, task_id: TaskId) -> Response:
        wait = wait_of(request)
        if wait > 0:
            await engine.wait_for(task_id, wait)
        text = engine.tell(task_id)
        if text is None:
            raise _no_task(task_id)
        return answer(text)

    @app.delete(
        f"{PREFIX}/tasks/{{task_id}}", response_model=Done, responses=errors(404, 409, 503), summary="Cancel a task"
    )
    async def cancel_task(task_id: TaskId) -> Response:
        found = engine.find(task_id)
        number = number_of(task_id, "task")
        if found is None or number is None:
            raise _no_task(task_id)
        if not await service.cancel([number]):
            await engine.wait_for(task_id, SHOWN_S)  # it has ended, and that is about to be shown
            raise ApiError("conflict", f"{task_id} is {_state(service, task_id)} already; there is nothing to cancel")
        return answer_of({"success": True, "message": f"{task_id} was cancelled"})

    # --- batches --------------------------------------------------------------------------------------------------

    @app.get(f"{PREFIX}/batches", response_model=BatchList, responses=errors(422), summary="The batches, newest first")
    async def batches(limit: Limit = LISTED, before: BeforeBatch = None) -> Response:
        return answer(await list_batches(engine, checked("before", before, "batch"), limit))

    @app.get(f"{PREFIX}/batches/{{batch_id}}", response_model=BatchAnswer, responses=errors(404), summary="One batch")
    async def batch(batch_id: BatchId) -> Response:
        number = number_of(batch_id, "batch")
        view = None if number is None else engine.batch(number)
        if view is None:
            raise _no_batch(batch_id)
        return answer_of(view.to_json())

    @app.delete(
        f"{PREFIX}/batches/{{batch_id}}",
        response_model=Done,
        responses=errors(404, 409, 503),
        summary="Cancel what is not done",
    )
    async def cancel_batch(batch_id: BatchId) -> Response:
        number = number_of(batch_id, "batch")
        view = None if number is None else engine.batch(number)
        if view is None:
            raise _no_batch(batch_id)
        ended = await service.cancel(range(view.number, view.number + view.size))
        if not ended:
            raise ApiError("conflict", f"all tasks of {batch_id} have ended already; there is nothing to cancel")
        return answer_of(
            {"success": True, "message": f"{len(ended)} of {view.size} tasks of {batch_id} were cancelled"}
        )

    # --- devices --------------------------------------------------------------------------------------------------

    @app.get(f"{PREFIX}/gpus", response_model=GpuList, responses=errors(), summary="The GPUs as they are now")
    async def gpus() -> Response:
        return answer_of({"gpus": engine.readings.gpus(engine.tasks_on)})

    @app.get(f"{PREFIX}/gpus/{{gpu_id}}", response_model=GpuAnswer, responses=errors(404), summary="One GPU")
    async def gpu(gpu_id: GpuId) -> Response:
        devices = engine.parts.distributor.pool.devices
        if not gpu_id.isascii() or not gpu_id.isdigit() or len(gpu_id) > 6 or int(gpu_id) >= len(devices):
            there = "GPU 0" if len(devices) == 1 else f"GPUs 0 to {len(devices) - 1}"
            raise ApiError("not_found", f"there is no GPU {gpu_id[:60]}; this machine has {there}")
        number = int(gpu_id)
        readings = engine.readings
        last = readings.rounds[-1] if readings.rounds else None
        return answer_of(readings.gpu(devices[number], last, engine.tasks_on(number)))

    @app.get(
        f"{PREFIX}/telemetry", response_model=Telemetry, responses=errors(), summary="The last five minutes of readings"
    )
    async def telemetry() -> Response:
        return await asyncio.to_thread(lambda: answer_of(engine.readings.history()))

    @app.get(f"{PREFIX}/status", response_model=Status, responses=errors(), summary="The service in a few numbers")
    async def status() -> Response:
        return answer_of(service.status())

    @app.get(
        f"{PREFIX}/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}, **errors(503)},
        summary="Server-sent events: status, gpus, task, lagged",
    )
    async def events() -> StreamingResponse:
        if service.hub.full:
            raise ApiError("not_ready", "too many listen already; try again later", {"Retry-After": "10"})
        return StreamingResponse(service.hub.stream(), media_type="text/event-stream")

    shorten(app, predict, predict_batch, task)


def _no_task(name: str) -> ApiError:
    return ApiError("not_found", f"there is no task {name[:60]}, or it is no longer kept")


def _no_batch(name: str) -> ApiError:
    return ApiError("not_found", f"there is no batch {name[:60]}, or it is no longer kept")


def _state(service: Service, name: str) -> str:
    found = service.engine.find(name)
    return "no longer kept" if found is None else found.status
