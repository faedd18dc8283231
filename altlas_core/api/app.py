"""The application: routes, errors and the gate before them."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import Match

from altlas_core import __version__
from altlas_core.api.errors import ApiError
from altlas_core.api.gate import OPEN_PATHS, Gate
from altlas_core.api.journal import JournalError
from altlas_core.api.metrics import CONTENT_TYPE
from altlas_core.api.page import page_routes
from altlas_core.api.parsing import refused
from altlas_core.api.routes import add_routes, answer_of, errors
from altlas_core.api.schemas import BatchRequest, Health, PredictRequest, Ready

if TYPE_CHECKING:
    from altlas_core.api.keys import HostNames, Keys
    from altlas_core.api.service import Service

log = logging.getLogger("altlas.api")

ABOUT: Final = """Text prediction over a pool of GPUs: real, or simulated. Every error is
`{"error": "what is wrong and what to do", "code": "..."}`. Where keys are set, send `Authorization: Bearer KEY`."""
REF: Final = "#/components/schemas/{model}"


def make_app(service: Service, keys: Keys, hosts: HostNames) -> FastAPI:
    app = FastAPIOffline(
        title="ALT_LAS GPU Test",
        version=__version__,
        description=ABOUT,
        redoc_url=None,
        redirect_slashes=False,
        license_info={"name": "MIT"},
        static_url="/assets/docs",
        favicon_url="data:,",
    )
    add_routes(app, service)
    _add_probes(app, service)
    app.router.routes.extend(page_routes())
    _add_errors(app)
    app.openapi = lambda: _openapi(app, service, bool(keys))  # type: ignore[method-assign]
    settings = service.engine.parts.settings
    app.add_middleware(
        Gate,
        keys=keys,
        hosts=hosts,
        log=service.log,
        max_body_bytes=settings.api.max_body_bytes,
        metrics=service.engine.parts.metrics,
    )
    return app


def _add_probes(app: FastAPI, service: Service) -> None:
    engine = service.engine

    @app.get("/health", response_model=Health, summary="Alive?", responses=errors())
    async def health() -> Response:
        return answer_of({"status": "ok", "version": __version__, "uptime_s": time.time() - engine.started_at})

    @app.get("/ready", response_model=Ready, responses=errors(503), summary="A usable device and an open journal?")
    async def ready() -> Response:
        problem = engine.not_ready()
        if problem is not None:
            code = "shutting_down" if engine.draining else "not_ready"
            raise ApiError(code, problem, {"Retry-After": "5"})
        return answer_of({"ready": True})

    @app.get("/metrics", response_class=Response, summary="For Prometheus", responses=_metrics_answers())
    async def metrics() -> Response:
        return Response(engine.parts.metrics.render(service.stats()), media_type=CONTENT_TYPE)


def _metrics_answers() -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors()}


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(_request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(JournalError)
    async def unreadable(_request: Request, error: JournalError) -> Response:
        log.error("the journal could not be read: %s", error)
        return ApiError(
            "not_ready", "the journal cannot be read; see the server's log", {"Retry-After": "10"}
        ).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        return refused(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        path = request.url.path[:100]
        if error.status_code == 405:
            allowed = _allowed_methods(app, request)
            text = f"{request.method} is not possible on {path}; allowed: {allowed}"
            return ApiError("method_not_allowed", text, {"Allow": allowed}).response()
        return ApiError("not_found", f"there is nothing at {path}; /docs lists what there is").response()


def _allowed_methods(app: FastAPI, request: Request) -> str:
    """Of all routes at this path: the error itself knows those of the first only."""
    matching = (route for route in app.routes if route.matches(request.scope)[0] is not Match.NONE)
    return ", ".join(sorted({method for route in matching for method in getattr(route, "methods", None) or ()}))


def _openapi(app: FastAPI, service: Service, with_keys: bool) -> dict[str, Any]:
    """FastAPI's description, with the bodies that the routes parse themselves and the bounds of this service."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = document["components"]["schemas"]
        for model in (PredictRequest, BatchRequest):
            schema = model.model_json_schema(ref_template=REF)
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        _tell_limits(schemas, service)
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for operation in (each for path in document["paths"].values() for each in path.values()):
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]  # FastAPI's own, of routes that refuse nothing so
        if with_keys:
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}]
            for path in OPEN_PATHS & document["paths"].keys():
                document["paths"][path]["get"]["security"] = []
        app.openapi_schema = document
    return app.openapi_schema


def _tell_limits(schemas: dict[str, Any], service: Service) -> None:
    """What Service.check allows here: often less than the models do."""
    parts = service.engine.parts
    limits = parts.settings.predict
    one, many = schemas["PredictRequest"]["properties"], schemas["BatchRequest"]["properties"]
    one["text"]["maxLength"] = many["texts"]["items"]["maxLength"] = limits.max_text_chars
    for length in (one["max_length"], many["max_length"]):
        length["maximum"], length["default"] = service.longest, min(length["default"], service.longest)
    many["texts"]["maxItems"] = min(limits.max_texts, service.engine.max_queue)
    options = schemas["GpuOptions"]["properties"]
    for name in ("gpu_id", "specific_gpu_id"):
        options[name]["anyOf"][0]["maximum"] = len(parts.machine.devices) - 1
    options["strategy"]["anyOf"][0] = {"type": "string", "enum": [*parts.settings.gpu.selection.strategies]}
