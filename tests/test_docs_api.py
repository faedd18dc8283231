"""docs/api.md holds: its examples run against a real server and answer as shown, its tables are those of the code."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import pytest
import yaml
from serving import Served, serving

import altlas_core
from altlas_core import cli
from altlas_core.api.errors import STATUS_OF_CODE
from altlas_core.api.schemas import GpuOptions, PredictionResult, PredictRequest
from altlas_core.config import all_keys
from altlas_core.model import ErrorCode
from altlas_core.text_models import describe_model

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "api.md"
TEXT: Final = PAGE.read_text(encoding="utf-8")
ADDRESS: Final = "http://127.0.0.1:8000"  # of the page's server
KEY: Final = "a-key-of-the-test-of-the-page"
SHELL_S: Final = 60.0  # for one block
CURL_TIMED_OUT: Final = 28  # the end of a stream that does not end: the block says --max-time


@dataclass(frozen=True)
class Block:
    """A fenced block. `keyed`: for a server with keys."""

    language: str
    keyed: bool
    text: str
    line: int

    @property
    def where(self) -> str:
        return f"docs/api.md:{self.line}"


def blocks() -> list[Block]:
    fence = re.compile(r"^```(\w+)( keyed)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [
        Block(found[1], bool(found[2]), found[3], TEXT.count("\n", 0, found.start()) + 1)
        for found in fence.finditer(TEXT)
    ]


def table_rows(first_header: str) -> list[list[str]]:
    """The cells of the tables whose first column has this header."""
    rows, inside = [], False
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            inside = False
        elif cells[0] == first_header:
            inside = True
        elif inside and not cells[0].startswith("---"):
            rows.append(cells)
    assert rows, f"docs/api.md has no table that begins with {first_header!r}"
    return rows


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def as_shown(shown: Any, got: Any) -> bool:
    """Whether an answer is the one shown. "..." stands for anything, last in a list for any more of it; a number with a
    decimal point is a measurement or a time, of which another one is as good."""
    if shown == "...":
        return True
    if isinstance(shown, dict):
        return isinstance(got, dict) and list(shown) == list(got) and all(as_shown(shown[k], got[k]) for k in shown)
    if isinstance(shown, list):
        if not isinstance(got, list):
            return False
        if shown[-1:] == ["..."]:
            shown, got = shown[:-1], got[: len(shown) - 1]
        return len(shown) == len(got) and all(map(as_shown, shown, got))
    if isinstance(shown, float):
        return isinstance(got, float)
    return type(shown) is type(got) and bool(shown == got)


def check_output(output: str, shown: Block) -> None:
    told = f"{shown.where} shows\n{shown.text}\nbut it was\n{output}"
    if shown.language == "json":
        assert as_shown(_sorted(json.loads(shown.text)), _sorted(json.loads(output))), told
    else:
        pattern = ".*".join(re.escape(part) for part in shown.text.strip().split("..."))
        assert re.fullmatch(pattern, output.strip(), re.DOTALL), told


def _sorted(value: Any) -> Any:
    return json.loads(json.dumps(value, sort_keys=True))


class Reader:
    """Somebody who types in all examples, from the first to the last."""

    def __init__(self, plain: Served, keyed: Served) -> None:
        self._servers = {False: plain, True: keyed}
        self._names: dict[str, Any] = {}

    def run(self, block: Block) -> str:
        server = self._servers[block.keyed]
        text = block.text.replace(ADDRESS, server.base)
        return self._python(block, text) if block.language == "python" else self._shell(block, text, server)

    def _python(self, block: Block, text: str) -> str:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(text, block.where, "exec"), self._names)
        return output.getvalue()

    def _shell(self, block: Block, text: str, server: Served) -> str:
        environ = {"PATH": os.environ["PATH"], "HOME": str(server.folder), "BASE": server.base, "ALTLAS_API_KEY": KEY}
        command = ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(
            command, cwd=server.folder, env=environ, capture_output=True, text=True, timeout=SHELL_S, check=False
        )
        allowed = {0, CURL_TIMED_OUT} if "--max-time" in text else {0}
        assert done.returncode in allowed, f"{block.where}: exit status {done.returncode}: {done.stderr}{done.stdout}"
        return done.stdout

    def close(self) -> None:
        for name in ("api", "keyed"):
            if name in self._names:
                self._names[name].close()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server that the page starts first."""
    with serving(tmp_path_factory.mktemp("page"), *first_command()) as server:
        yield server


def first_command() -> list[str]:
    return serve_commands()[0][2:]


def serve_commands() -> list[list[str]]:
    """Every `altlas serve ...` that the page shows, as arguments."""
    lines = [line for block in blocks() if block.language == "sh" for line in block.text.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("altlas serve")]


# --- examples ---------------------------------------------------------------------------------------------------------


def test_every_example_runs_in_order_and_answers_as_shown(
    plain: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("the examples need curl")
    monkeypatch.chdir(plain.folder)
    monkeypatch.setenv("ALTLAS_API_KEY", KEY)
    there = blocks()
    ran = {"bash": 0, "python": 0, "shown": 0}
    with serving(tmp_path, "--backend", "simulated", environ={"ALTLAS_API_KEY": KEY}) as keyed:
        reader = Reader(plain, keyed)
        try:
            for block, following in zip(there, [*there[1:], None], strict=True):
                if block.language not in ("bash", "python"):
                    continue
                if block.text.startswith("sqlite3 ") and shutil.which("sqlite3") is None:
                    continue
                output = reader.run(block)
                ran[block.language] += 1
                if following is not None and following.language in ("json", "text"):
                    check_output(output, following)
                    ran["shown"] += 1
        finally:
            reader.close()
    outputs = sum(block.language in ("json", "text") for block in there)
    assert ran["shown"] == outputs, "an output that is shown stands behind no example"
    assert ran["bash"] >= 10
    assert ran["python"] >= 8


@pytest.mark.parametrize(
    ("shown", "got", "alike"),
    [
        ({"a": 1, "b": 2.5}, {"a": 1, "b": 7.25}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": 1.5}, {"a": None}, False),
        ({"a": 1}, {"a": True}, False),
        ({"a": "..."}, {"a": [1, 2]}, True),
        ([1, "..."], [1, 2, 3], True),
        ([1, 2], [1, 2, 3], False),
    ],
)
def test_an_output_that_differs_is_found(shown: Any, got: Any, alike: bool) -> None:
    assert as_shown(shown, got) is alike


@pytest.mark.parametrize("command", serve_commands(), ids=shlex.join)
def test_every_way_to_start_it_is_one_that_the_command_line_knows(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The port is the first thing that is looked at once the rest has been understood."""
    assert cli.main([*command[1:], "--port", "70000"]) == 2
    assert "--port 70000" in capsys.readouterr().err


def test_every_setting_that_is_named_is_one() -> None:
    named = set(re.findall(r"--set ([a-z_.]+)=", TEXT)) | set(re.findall(r"`((?:gpu|predict|api)\.[a-z_.]+)`", TEXT))
    assert named
    assert named <= set(all_keys())


def test_the_scrape_configuration_is_yaml_of_the_page_s_server() -> None:
    (block,) = (block for block in blocks() if block.language == "yaml")
    (job,) = yaml.safe_load(block.text)["scrape_configs"]
    assert job["static_configs"] == [{"targets": [ADDRESS.removeprefix("http://")]}]


# --- tables -----------------------------------------------------------------------------------------------------------


def test_the_table_of_errors_is_that_of_the_code() -> None:
    rows = table_rows("status")
    told = {names_in(code)[0]: int(status) for status, code, _ in rows}
    assert len(told) == len(rows)
    assert told == STATUS_OF_CODE


def test_the_table_of_settings_has_every_key_and_its_default() -> None:
    settings = altlas_core.load_config()
    told = {names_in(key)[0]: yaml.safe_load(default) for key, default, _ in table_rows("key")}
    assert set(told) == {key for key in all_keys() if key.startswith(("predict.", "api."))}
    for key, default in told.items():
        value: Any = settings
        for part in key.split("."):
            value = getattr(value, part)
        assert default == (list(value) if isinstance(value, tuple) else value), key


def test_the_fields_of_requests_and_results_are_those_of_the_code() -> None:
    asked = {name for row in table_rows("field of a request") for name in names_in(row[0])}
    of_gpu = {f"gpu_options.{name}" for name, field in GpuOptions.model_fields.items() if not field.deprecated}
    fields = {name for name, field in PredictRequest.model_fields.items() if not field.deprecated}
    assert asked == fields - {"gpu_options"} | of_gpu
    told = {name for row in table_rows("field of a result") for name in names_in(row[0])}
    assert told == set(PredictionResult.model_fields)


def test_the_defaults_of_a_request_are_those_of_the_code() -> None:
    rows = {names_in(field)[0]: default for field, _, default in table_rows("field of a request")}
    for name in ("max_length", "temperature", "priority"):
        assert yaml.safe_load(rows[name].strip("`")) == PredictRequest.model_fields[name].default


def test_the_reasons_of_failed_tasks_are_those_of_the_code() -> None:
    """All but queue_full: a full queue refuses the request."""
    told = [names_in(code)[0] for code, _ in table_rows("`error_code`")]
    assert sorted(told) == sorted(set(get_args(ErrorCode)) - {"queue_full"})


def test_the_table_of_metrics_has_all_that_are_there(plain: Served) -> None:
    told = {name for row in table_rows("metric") for name in names_in(row[0])}
    there = re.findall(r"^# TYPE (\w+) ", plain.client.get("/metrics").text, re.MULTILINE)
    assert told == {name for name in there if not name.startswith("process_")}


def test_every_route_is_named(plain: Served) -> None:
    paths = plain.client.get("/openapi.json").json()["paths"]
    text = re.sub(r"\{\w+\}", "{}", TEXT)
    for path, methods in paths.items():
        assert re.sub(r"\{\w+\}", "{}", path) in text, path
        for method in methods:
            assert method.upper() in text


def test_what_is_said_of_the_embedded_model_is_so() -> None:
    model = describe_model(None)
    assert f"{model.parameters:,} parameters" in TEXT
    assert f"a context of {model.context:,}" in TEXT


def test_links_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("https://"):
            assert (PAGE.parent / target).exists(), target
