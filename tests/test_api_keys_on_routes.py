"""With keys set, nothing but the page, its assets and the two probes is answered without one."""

from __future__ import annotations

import base64
import http.client
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import httpx
import pytest
from fuzzing import logged
from serving import FAST, Served, serving
from starlette.routing import Mount

from altlas_core.api.app import make_app
from altlas_core.api.keys import HostNames, Keys

KEY, SECOND, WRONG = "first-key-of-the-tests", "second-key-of-the-tests", "no-key-of-the-tests"
DEVICES = ("--devices", "1x T4")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
IDS = {"task_id": "task-000001", "batch_id": "batch-000001", "gpu_id": "0"}
KNOWN = {
    "/", "/health", "/ready", "/metrics", "/docs", "/openapi.json", "/assets/page.js", "/assets/docs/swagger-ui.css",
    "/api/v1/predict", "/api/v1/predict/batch", "/api/v1/tasks", "/api/v1/tasks/task-000001", "/api/v1/batches",
    "/api/v1/batches/batch-000001", "/api/v1/gpus", "/api/v1/gpus/0", "/api/v1/telemetry", "/api/v1/status",
    "/api/v1/events",
}  # fmt: skip
# What a key would be asked for, written so that it might be taken for what is open.
DISGUISED = [
    "//api/v1/tasks", "/api//v1/tasks", "/./api/v1/tasks", "/health/../api/v1/tasks", "/health/", "/health//",
    "/assets/../api/v1/tasks", "/assets/%2e%2e/api/v1/tasks", "/assets/..%2fapi/v1/tasks", "/assets/docs/../../metrics",
    "/assets/docs/%2e%2e/%2e%2e/metrics", "/assets", "/ASSETS/page.js", "/Health", "/%68ealth/x", "/api/v1/tasks/",
    "/api/v1/tasks;/assets/", "/api/v1/tasks%00/assets/", "/api/v1/tasks%3f/assets/", "/assets/docs/..%5c..%5capp.py",
    "/assets/docs//etc/passwd", "/assets/docs/%2fetc/passwd", "/assets/docs/../../../../../../etc/passwd",
    "/assets/%252e%252e/api/v1/tasks",
]  # fmt: skip


def all_paths() -> list[str]:
    """From the application's own table of routes."""
    app = make_app(MagicMock(), Keys([]), HostNames("127.0.0.1"))
    found = []
    for route in app.routes:
        path = getattr(route, "path", "")
        if isinstance(route, Mount):
            path += "/swagger-ui.css"
        found.append(re.sub(r"{(\w+)[^}]*}", lambda name: IDS[name[1]], path))
    return sorted(set(found))


PATHS = all_paths()
OPEN = [path for path in PATHS if path in ("/", "/health", "/ready") or path.startswith("/assets/")]
CLOSED = [path for path in PATHS if path not in OPEN]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    environ = {"ALTLAS_API_KEY": f"{KEY}, {SECOND}"}
    with serving(tmp_path_factory.mktemp("keys"), *FAST, *DEVICES, environ=environ) as served:
        yield served


def asked(server: Served, method: str, path: str, **headers: str) -> tuple[int, httpx.Headers]:
    """Status and headers: the event stream has no end to wait for."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with server.client.stream(method, path, headers=named) as answer:
        return answer.status_code, answer.headers


def basic(key: str) -> str:
    return "Basic " + base64.b64encode(f"altlas:{key}".encode()).decode()


def test_the_table_of_routes_is_complete() -> None:
    assert set(PATHS) >= KNOWN
    assert set(OPEN) >= {"/", "/health", "/ready", "/assets/page.js", "/assets/docs/swagger-ui.css"}


# --- what is closed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CLOSED)
def test_a_route_is_closed_to_every_method_without_a_key_of_ours(server: Served, path: str) -> None:
    for method in METHODS:
        status, headers = asked(server, method, path)
        assert (status, headers["www-authenticate"]) == (401, 'Bearer realm="altlas"'), method
        sent = [f"Bearer {WRONG}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer", KEY, basic(KEY)]
        sent += [
            f"Basic {KEY}",
            f"Token {KEY}",
            f"Digest {KEY}",
            f"Bearer {KEY}, Bearer {SECOND}",
            f"Bearer {KEY} {SECOND}",
        ]
        for value in sent:
            status, headers = asked(server, method, path, authorization=value)
            assert status == 401, (method, value)
            assert headers["www-authenticate"] == 'Bearer realm="altlas", error="invalid_token"'


@pytest.mark.parametrize("path", CLOSED)
def test_a_route_is_open_with_either_key(server: Served, path: str) -> None:
    for key in (KEY, SECOND):
        for scheme in ("Bearer", "bearer"):
            status, headers = asked(server, "GET", path, authorization=f"{scheme} {key}")
            assert status in (200, 404, 405)
            assert "www-authenticate" not in headers


def test_a_refusal_has_the_body_of_every_error_and_shows_no_key(server: Served) -> None:
    answer = server.client.get("/api/v1/tasks", headers={"Authorization": f"Bearer {WRONG}"})
    assert set(answer.json()) == {"error", "code"}
    assert answer.json()["code"] == "unauthorized"
    assert WRONG not in answer.text


@pytest.mark.parametrize("query", [f"key={KEY}", f"api_key={KEY}", f"access_token={KEY}"])
def test_a_key_in_the_query_opens_nothing(server: Served, query: str) -> None:
    assert server.client.get(f"/api/v1/tasks?{query}").status_code == 401
    assert server.client.get("/api/v1/tasks", headers={"Cookie": f"key={KEY}"}).status_code == 401


def test_nothing_is_done_for_a_request_without_a_key(server: Served) -> None:
    signed = {"Authorization": f"Bearer {KEY}"}
    before = server.client.get("/api/v1/status", headers=signed).json()["tasks"]
    assert server.client.post("/api/v1/predict", json={"text": "a"}).status_code == 401
    assert server.client.post("/api/v1/predict/batch", json={"texts": ["a"]}).status_code == 401
    assert server.client.get("/api/v1/status", headers=signed).json()["tasks"] == before


@pytest.mark.parametrize("target", DISGUISED)
def test_a_path_in_disguise_opens_nothing(server: Served, target: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)  # sends the path as it is
    connection.request("GET", target)
    answer = connection.getresponse()
    assert answer.status in (401, 404)
    text = answer.read().decode()
    connection.close()
    assert '"code"' in text
    assert 'tasks":' not in text
    assert "root:" not in text


# --- what is open -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", OPEN)
def test_the_page_its_assets_and_the_probes_ask_for_no_key(server: Served, path: str) -> None:
    for headers in ({}, {"authorization": f"Bearer {WRONG}"}, {"authorization": f"Bearer {KEY}"}):
        assert asked(server, "GET", path, **headers)[0] == 200


def test_no_key_is_ever_in_the_log(server: Served) -> None:
    marked = "marked-wrong-key-0123456789"
    for value in (f"Bearer {KEY}", f"Bearer {marked}", basic(KEY), f"Bearer {SECOND}"):
        asked(server, "GET", f"/api/v1/tasks?key={marked}&token={KEY}", authorization=value, x_request_id="last-one")
    status, _ = asked(server, "POST", "/api/v1/predict", authorization=f"Bearer {KEY}", x_request_id="the-end")
    assert status == 400
    lines = logged(server, "the-end")
    text = "\n".join(lines)
    assert "last-one" in text
    secret = [KEY, SECOND, marked, WRONG, basic(KEY).split()[1]]
    assert [each for each in secret if each in text] == []
    assert not [line for line in lines if "Traceback" in line]


# --- the key file, and other hosts ------------------------------------------------------------------------------------


def test_on_all_addresses_with_a_key_file_only_its_keys_open(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# who may call\n{KEY}\n\n  {SECOND}  \n")
    file.chmod(0o644)
    arguments = (*FAST, *DEVICES, "--host", "0.0.0.0", "--set", f"api.key_file={file}")
    allowed = ("--set", 'api.allowed_hosts=["gpus.example"]')
    with serving(tmp_path, *arguments, *allowed) as served:
        assert asked(served, "GET", "/api/v1/tasks")[0] == 401
        assert asked(served, "GET", "/api/v1/tasks", authorization=f"Bearer {WRONG}")[0] == 401
        for key in (KEY, SECOND):
            assert asked(served, "GET", "/api/v1/tasks", authorization=f"Bearer {key}")[0] == 200
        assert asked(served, "GET", "/health", host="gpus.example")[0] == 200
        assert asked(served, "GET", "/health", host="other.example")[0] == 400
        warnings = [line for line in served.lines if "chmod 600" in line]
        assert len(warnings) == 1
        assert KEY not in "\n".join(served.lines)


def refused_start(folder: Path, *arguments: str, environ: dict[str, str] | None = None) -> str:
    server = Served(folder, *FAST, *DEVICES, *arguments, environ=environ)
    try:
        assert server.process.wait(60) == 2
        with pytest.raises(httpx.ConnectError):
            server.client.get("/health")
    finally:
        server.close()
    text = "\n".join(server.lines)
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_another_host_without_a_key_does_not_start(tmp_path: Path, host: str) -> None:
    text = refused_start(tmp_path, "--host", host)
    assert f"--host {host}" in text
    assert "ALTLAS_API_KEY" in text
    assert not list(tmp_path.glob("*.sqlite3"))


def test_a_key_that_can_be_none_does_not_start_and_is_not_shown(tmp_path: Path) -> None:
    text = refused_start(tmp_path, environ={"ALTLAS_API_KEY": f"{KEY},tooshort"})
    assert "key 2 of the environment variable ALTLAS_API_KEY" in text
    assert "tooshort" not in text
    assert KEY not in text


def test_a_key_file_that_is_not_there_does_not_start(tmp_path: Path) -> None:
    assert "key file" in refused_start(tmp_path, "--set", f"api.key_file={tmp_path / 'none'}")


# --- the Host header --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/health", "/api/v1/tasks", "/assets/page.js"])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", ""]
)
def test_another_name_is_refused_also_with_a_key(server: Served, path: str, host: str) -> None:
    answer = server.client.get(path, headers={"Host": host, "Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 400
    assert answer.json()["code"] == "bad_host"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:80", socket.gethostname()])
def test_the_names_of_this_machine_are_taken(server: Served, host: str) -> None:
    assert server.client.get("/health", headers={"Host": host}).status_code == 200


def raw(server: Served, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(request)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        return received


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET http://localhost/health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
    ],
)
def test_two_names_or_none_are_refused(server: Served, head: bytes) -> None:
    assert raw(server, head).startswith(b"HTTP/1.1 400 ")


def test_a_key_sent_twice_opens_nothing(server: Served) -> None:
    signed = f"Authorization: Bearer {KEY}\r\n".encode()
    head = b"GET /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + signed * 2
    assert raw(server, head + b"\r\n").startswith(b"HTTP/1.1 401 ")


def test_no_answer_lets_a_page_of_another_site_read_it(server: Served) -> None:
    origin: dict[str, Any] = {"Origin": "https://evil.example", "Authorization": f"Bearer {KEY}"}
    preflight = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    for path in PATHS:
        for method, headers in (("GET", origin), ("OPTIONS", preflight)):
            with server.client.stream(method, path, headers=headers) as answer:
                assert not [name for name in answer.headers if name.startswith("access-control-")]
