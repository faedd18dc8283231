"""The scenario notebooks: thin, reproducible to the last figure, and strict about their parameters."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from altlas_core.errors import ConfigError
from altlas_core.notebook import display, parameters, session
from altlas_core.scenarios import SCENARIOS

FOLDER = Path(__file__).parents[1] / "notebooks"
PATHS = [FOLDER / scenario.notebook for scenario in SCENARIOS.values()]
MOST_CODE_LINES = 60
by_name = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["cells"]
    return found


def parameters_cell(path: Path) -> str:
    return next("".join(cell["source"]) for cell in cells(path) if "parameters" in cell["metadata"].get("tags", []))


def environment(**more: str) -> dict[str, str]:
    """The process's, without settings of ours, and with this checkout first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ALTLAS_")}
    return {**kept, "PYTHONPATH": str(FOLDER.parent), "PYDEVD_DISABLE_FILE_VALIDATION": "1", **more}


def nbval(*paths: Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "--nbval", "-p", "no:cacheprovider", *map(str, paths)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(**more), cwd=FOLDER.parent, check=False
    )


def papermill(tmp_path: Path, number: int, *options: str, text: str = "") -> tuple[int, dict[str, Any], str]:
    """Run a notebook by hand, from a folder that has nothing to do with it: exit status, notebook, messages."""
    out = tmp_path / "out.ipynb"
    arguments = [str(PATHS[number]), str(out), *options, "--no-progress-bar", "--log-level", "ERROR"]
    done = subprocess.run(
        [sys.executable, "-m", "papermill", *arguments],
        capture_output=True, text=True, env=environment(), cwd=tmp_path, check=False,
    )  # fmt: skip
    return done.returncode, json.loads(out.read_text()) if out.is_file() else {}, done.stdout + done.stderr


def outputs(notebook: dict[str, Any], mime: str) -> list[Any]:
    found = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return [output["data"][mime] for output in found if mime in output.get("data", {})]


# --- the files ----------------------------------------------------------------------------------------------------


@by_name
def test_it_is_thin(path: Path) -> None:
    code = ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code"]
    lines = [line for source in code for line in source.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= MOST_CODE_LINES


@by_name
def test_it_begins_with_plain_words_and_the_parameters(path: Path) -> None:
    first, second = cells(path)[:2]
    assert first["cell_type"] == "markdown"
    assert "".join(first["source"]).startswith("# ")
    assert second["metadata"]["tags"] == ["parameters"]
    assert parameters_cell(path) == parameters_cell(PATHS[0])


def test_its_parameters_are_the_documented_ones() -> None:
    source = parameters_cell(PATHS[0])
    names = [node.target.id for node in ast.parse(source).body]  # type: ignore[attr-defined]
    assert names == list(parameters.PARAMETERS)
    assert source.startswith(parameters.INJECTED)
    assert all("#" in line for line in source.splitlines())


@by_name
def test_its_outputs_hold_nothing_of_a_computer_or_a_moment(path: Path) -> None:
    text = path.read_text()
    for pattern in (
        r"/(home|root|work|tmp|usr)/",
        r"\b20\d\d-\d\d-\d\d",
        r"iopub|shell\.execute_reply",
        r"0x[0-9a-f]{8}",
    ):
        assert not re.search(pattern, text), pattern
    assert [cell["id"] for cell in cells(path)] == [f"cell-{i:02d}" for i in range(len(cells(path)))]
    assert all(set(cell["metadata"]) <= {"tags"} for cell in cells(path))


@by_name
def test_its_last_output_is_the_result(path: Path) -> None:
    result = cells(path)[-1]["outputs"][-1]["data"]
    bundle = result[session.RESULT_MIME]
    assert bundle["scenario"] == path.stem[3:]
    assert bundle["passed"] is True
    assert bundle["backend"] == "simulated"
    assert "".join(result["text/plain"]).startswith("PASSED")


# --- executed again -----------------------------------------------------------------------------------------------


@pytest.mark.notebooks
def test_one_changed_number_is_found(tmp_path: Path) -> None:
    """nbval compares figures, tables and the result bundle for real (`make test-notebooks`: all outputs)."""
    for part, mime in {"figure": display.FIGURE_MIME, "table": "text/html", "result": session.RESULT_MIME}.items():
        data = json.loads(PATHS[2].read_text())
        shown = [o["data"] for cell in data["cells"] for o in cell.get("outputs", []) if mime in o.get("data", {})]
        if part == "figure":
            shown[1][mime]["data"][0]["y"][0] += 1
        elif part == "table":
            shown[0][mime] = [line.replace("10", "11") for line in shown[0][mime]]
        else:
            shown[0][mime]["virtual_s"] += 1e-9
        (tmp_path / f"{part}.ipynb").write_text(json.dumps(data))
    done = nbval(*sorted(tmp_path.glob("*.ipynb")))
    assert done.returncode == 1
    assert re.search(r"3 failed, \d+ passed", done.stdout), done.stdout[-500:]
    for part in ("figure", "table", "result"):
        assert re.search(rf"FAILED \S*{part}\.ipynb", done.stdout), done.stdout[-500:]


@pytest.mark.notebooks
def test_it_runs_by_hand_from_anywhere_with_devices_as_text(tmp_path: Path) -> None:
    options = ("-p", "devices", "2x T4", "-p", "seed", "7", "-p", "out_dir", str(tmp_path / "run"))
    status, made, messages = papermill(tmp_path, 2, *options)
    assert status == 0, messages
    bundle = outputs(made, session.RESULT_MIME)[0]
    assert bundle["devices"] == ["2x T4"]
    assert bundle["seed"] == 7
    log = (tmp_path / "run" / "events" / "concurrent_processing.jsonl").read_bytes()
    assert hashlib.sha256(log).hexdigest() == bundle["event_log_sha256"]


@pytest.mark.notebooks
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("-p", "devcies", "cpu:2"), "unknown parameter 'devcies'"),
        (("-p", "seed", "many"), "parameter seed: 'many'"),
        (("-p", "devices", "2x A1000"), "A1000"),
        (("-y", "overrides: {gpu.workload.timeuot: 3}"), "parameter overrides: "),
    ],
    ids=["unknown", "type", "device", "override"],
)
def test_a_bad_parameter_ends_it_with_one_clear_line(tmp_path: Path, options: tuple[str, ...], told: str) -> None:
    status, made, messages = papermill(tmp_path, 0, *options)
    assert status != 0
    errors = [o for cell in made["cells"] for o in cell.get("outputs", []) if o["output_type"] == "error"]
    assert len(errors) == 1
    assert errors[0]["ename"] == "NotebookError"
    assert told in errors[0]["evalue"]
    assert len(errors[0]["traceback"]) == 1
    assert "Did you mean" in errors[0]["evalue"] or "allowed" in errors[0]["evalue"], messages


@pytest.mark.notebooks
def test_a_failing_check_is_shown_and_does_not_stop_it(tmp_path: Path) -> None:
    status, made, messages = papermill(tmp_path, 1, "-y", "overrides: {gpu.workload.timeout: 3}")
    assert status == 0, messages
    bundle = outputs(made, session.RESULT_MIME)[0]
    assert bundle["passed"] is False
    assert any("✘ failed" in "".join(table) for table in outputs(made, "text/html"))


# --- parameters ---------------------------------------------------------------------------------------------------


def test_without_parameters_the_machine_is_simulated_also_where_there_is_a_gpu() -> None:
    assert parameters.settings({}).gpu.backend == "simulated"


def test_devices_decide_the_backend_and_auto_can_be_asked_for() -> None:
    assert parameters.settings({"devices": "cpu:2"}).gpu.backend == "auto"
    assert parameters.settings({"backend": "auto"}).gpu.backend == "auto"
    assert parameters.settings({"devices": ["T4", "L4"]}).gpu.devices == ("T4", "L4")


def test_parameters_go_before_overrides_and_these_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("seed: 1\ngpu: {workload: {timeout: 11, batch_size: 3}}\n")
    found = parameters.settings({"config": str(path), "seed": 3, "overrides": {"seed": 2, "gpu.workload.timeout": 22}})
    assert (found.seed, found.gpu.workload.timeout, found.gpu.workload.batch_size) == (3, 22, 3)


@pytest.mark.parametrize(
    ("namespace", "told"),
    [
        ({"In": ["", "# Parameters\nseeed = 3\n"]}, "Did you mean 'seed'?"),
        ({"In": ["# Parameters\nseed: int = 3\nfoo, = (1,)\nbar = 2\n"]}, "unknown parameter 'bar'"),
        ({"overrides": "seed=3"}, "parameter overrides: 'seed=3'; allowed: a mapping"),
        ({"seed": True}, "parameter seed: True"),
        ({"seed": -1}, "parameter seed: -1"),
        ({"time_scale": 0}, "parameter time_scale: 0"),
        ({"devices": 3}, "parameter devices: 3"),
        ({"config": "no/such.yaml"}, "no such file"),
    ],
)
def test_a_bad_parameter_names_itself_and_what_is_allowed(namespace: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        parameters.settings(namespace)


def test_other_names_of_a_session_are_no_parameters() -> None:
    assert parameters.parameters({"In": ["foo = 3", "run = 1"], "foo": 3, "seed": 5}) == {"seed": 5}


# --- tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "N/A"), (float("nan"), "N/A"), (0.0, "0"), (1234567.8, "1,234,568"), (0.0275318, "0.027532"),
     (1.5e-9, "1.5e-09"),      (12345.678, "12,346"), (20, "20"), (True, "True"), ("a<b", "a<b")],
)  # fmt: skip
def test_numbers_in_tables_are_short_and_what_is_missing_is_not_zero(value: Any, text: str) -> None:
    assert display.cell_text(value) == text


def test_long_tables_say_how_many_rows_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd

    shown: list[Any] = []
    monkeypatch.setattr(display, "display", shown.append)
    display.show_table(pd.DataFrame({"<n>": range(100)}))
    assert "first 24 of 100 rows" in shown[0]["text/html"]
    assert "<th>&lt;n&gt;</th>" in shown[0]["text/html"]
    assert shown[0]["text/plain"].count("\n") == 25
