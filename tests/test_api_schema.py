"""The description at /openapi.json and the server agree: schemathesis sends what it allows, and what it does not."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.schemas import BaseSchema
from serving import FAST, Served, serving

KEY = "a-key-for-the-tests"
SIGNED = {"Authorization": f"Bearer {KEY}"}
EXAMPLES = 25  # for each operation, beside those that the bounds in the description give
STREAM = "/api/v1/events"  # never ends: see tests/test_api_routes.py
LIMITS = ("--set", "predict.max_text_chars=99", "--set", "predict.max_length=7", "--set", "predict.max_texts=3")
CONFIG = {"generation": {"max-examples": EXAMPLES, "deterministic": True}, "headers": SIGNED}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("schema")
    with serving(folder, *FAST, "--devices", "4x A100", *LIMITS, environ={"ALTLAS_API_KEY": KEY}) as served:
        served.client.headers.update(SIGNED)
        yield served


@pytest.fixture
def described(server: Served) -> BaseSchema:
    config = SchemathesisConfig.from_dict(CONFIG)
    schema = schemathesis.openapi.from_url(f"{server.base}/openapi.json", headers=SIGNED, config=config)
    schema.hook("map_body")(_whole_numbers)
    schema.hook("filter_body")(_one_gpu)
    return schema.exclude(path=STREAM)


def _whole_numbers(_context: Any, body: Any) -> Any:
    """5.0 is an integer to a JSON Schema; to this server, 5 is."""
    if isinstance(body, dict):
        return {name: _whole_numbers(_context, value) for name, value in body.items()}
    if isinstance(body, list):
        return [_whole_numbers(_context, value) for value in body]
    return int(body) if isinstance(body, float) and body.is_integer() else body


def _one_gpu(_context: Any, body: Any) -> bool:
    """gpu_id and its older name may not differ, which no JSON Schema can say."""
    options = body.get("gpu_options") if isinstance(body, dict) else None
    if not isinstance(options, dict):
        return True
    return len({str(options.get(name)) for name in ("gpu_id", "specific_gpu_id") if options.get(name) is not None}) < 2


@pytest.mark.parametrize("phase", ["coverage", "fuzzing"])
def test_what_is_described_is_answered_as_described(server: Served, described: BaseSchema, phase: str) -> None:
    """Every check that schemathesis has: among others no 5xx, no status, type or body that the description lacks, no
    good request refused, no bad one taken, no method, header or key that counts for nothing."""
    server.predict(wait=20, max_length=2)
    described.config.phases.update(phases=[phase])
    answers: Counter[str] = Counter()
    statuses: set[int] = set()
    wrong: list[str] = []
    for event in from_schema(described).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            wrong.append(repr(getattr(event, "value", None) or getattr(event, "exception", event)))
        if isinstance(event, events.ScenarioFinished):
            answers[event.recorder.label] += len(event.recorder.interactions)
            statuses |= {each.response.status_code for each in event.recorder.interactions.values() if each.response}
            wrong += _failures(event.recorder)
    assert wrong == []
    operations = {result.ok().label for result in described.get_all_operations()}
    assert {label for label, count in answers.items() if count} == operations
    assert sum(answers.values()) > 200
    assert statuses >= {200, 401, 404, 409, 422}
    assert not [line for line in server.lines if "Traceback" in line]


def _failures(recorder: Any) -> list[str]:
    found = [
        f"{recorder.label}: {check.failure_info.failure}\n{check.failure_info.code_sample[:500]}"
        for checks in recorder.checks.values()
        for check in checks
        if check.failure_info is not None
    ]
    lost = [interaction for interaction in recorder.interactions.values() if interaction.response is None]
    return found + [f"{recorder.label}: no answer to {interaction.request.uri}" for interaction in lost]


def test_what_is_there_is_shown_as_described(server: Served, described: BaseSchema) -> None:
    """The answers that ids made up do not reach: finished tasks, batches, cancelled ones, a GPU."""
    batch = server.client.post("/api/v1/predict/batch?wait=20", json={"texts": ["a", "b"], "max_length": 2}).json()
    path_parameters = {"task_id": batch["task_ids"][0], "batch_id": batch["batch_id"], "gpu_id": "3"}
    seen = set()
    for result in described.get_all_operations():
        operation = result.ok()
        names = re.findall(r"{(\w+)}", operation.path)
        if names:
            case = operation.Case(path_parameters={name: path_parameters[name] for name in names})
            answer = case.call_and_validate(headers=SIGNED)
            seen.add((operation.method, operation.path, answer.status_code))
    assert {(method.upper(), status) for method, _, status in seen} == {("GET", 200), ("DELETE", 409)}
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("path", "body"), [("/predict", {"text": "a"}), ("/predict/batch", {"texts": ["a", "b"], "priority": "high"})]
)
@pytest.mark.parametrize("wait", [0, 20])
def test_a_prediction_is_answered_as_described(
    described: BaseSchema, path: str, body: dict[str, Any], wait: int
) -> None:
    """Also where the usual default, 128 tokens, is more than this server allows."""
    operation = described[f"/api/v1{path}"]["POST"]
    case = operation.Case(body=body, query={"wait": wait}, media_type="application/json")
    assert case.call_and_validate(headers=SIGNED).status_code == 200


def test_every_reference_of_the_description_leads_somewhere(server: Served) -> None:
    document = server.client.get("/openapi.json").json()
    references = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)))
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references <= known
    assert len(references) > 10


def test_the_description_says_the_bounds_of_this_server(server: Served) -> None:
    schemas = server.client.get("/openapi.json").json()["components"]["schemas"]
    one, many = schemas["PredictRequest"]["properties"], schemas["BatchRequest"]["properties"]
    assert (one["text"]["maxLength"], one["max_length"]["maximum"], one["max_length"]["default"]) == (99, 7, 7)
    assert (many["texts"]["maxItems"], many["texts"]["items"]["maxLength"]) == (3, 99)
    assert schemas["GpuOptions"]["properties"]["gpu_id"]["anyOf"][0]["maximum"] == 3


def test_the_description_says_where_a_key_is_needed(server: Served) -> None:
    document = server.client.get("/openapi.json").json()
    assert document["security"] == [{"key": []}]
    open_paths = {
        path for path, methods in document["paths"].items() for each in methods.values() if each.get("security") == []
    }
    assert open_paths == {"/health", "/ready"}


def test_a_method_that_is_not_possible_is_told_all_that_are(server: Served) -> None:
    for path in ("/api/v1/tasks/task-000001", "/api/v1/batches/batch-000001"):
        answer = server.client.put(path)
        assert answer.status_code == 405
        assert {"GET", "DELETE"} <= set(answer.headers["allow"].split(", "))
