"""Ctrl-C in a running suite, and going on with it later: `altlas run --resume`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest
from conftest import BAD, GOOD, result_cell, write_notebook
from finished_runs import broke, scenario, write_run
from workers import PATIENCE_S, wait_for

from altlas_core import cli
from altlas_core.report import notebooks as nb
from altlas_core.report import resume

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

HERE = str(Path(__file__).parent)
# A run on a real device whose worker does not hear that it should end, unless the file `repaired` is there.
HOLDS_A_WORKER = f"""\
import json, os, pathlib, sys
import altlas_core as altlas
if not pathlib.Path("repaired").exists():
    os.environ["PYTHONPATH"] = {HERE!r}
    sys.path.append({HERE!r})
    pathlib.Path("kernel.pid").write_text(str(os.getpid()))
    call = {{"call": "leaving:start_children", "args": {{"pids": str(pathlib.Path("task.pids").resolve())}}}}
    altlas.run(altlas.load_config(overrides={{"gpu.devices": ["cpu:1"]}}), altlas.Workload.from_records([call]))
"""
ENDLESS = "import pathlib, time\nwhile not pathlib.Path('repaired').exists():\n    time.sleep(0.01)"
PROGRAM = """
import sys
from pathlib import Path
from altlas_core import cli
from altlas_core.report import notebooks
notebooks.notebooks_dir = lambda: Path("nb").resolve()
sys.exit(cli.main(["run", "--backend", "simulated", "--seed", "7", "--set", "gpu.workload.timeout=77"]))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("stopped")
    write_notebook(base / "nb", 1, "quick", "print('hello')", result_cell("quick", [GOOD, BAD]))
    write_notebook(base / "nb", 2, "holds", "print('before')", HOLDS_A_WORKER, result_cell("holds"))
    write_notebook(base / "nb", 3, "endless", "print('as far as it came')", ENDLESS, result_cell("endless"))
    write_notebook(base / "nb", 4, "late", "print(overrides)", result_cell("late"))
    (base / "config.yaml").write_text("gpu:\n  selection:\n    default_strategy: round_robin\n")
    return base


@pytest.fixture(scope="module")
def stopped(base: Path) -> tuple[int, str, str, list[int]]:
    """Exit status and output of a suite that got SIGTERM and Ctrl-C: one scenario had ended, two ran, one waited."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ALTLAS_")}
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=base,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ended = {"quick"}
    wait_for(lambda: set(results(base)["scenarios"]) == ended and (base / "task.pids").exists())
    family = [child.pid for child in psutil.Process(program.pid).children(recursive=True)]
    family += [int(pid) for pid in (base / "task.pids").read_text().split()]
    program.send_signal(signal.SIGTERM)
    program.send_signal(signal.SIGINT)
    try:
        out, err = program.communicate(timeout=PATIENCE_S)
    finally:
        program.kill()
    return program.returncode, out, err, family


def folder(base: Path) -> Path:
    (found,) = [path for path in (base / "reports").iterdir() if not path.is_symlink()]
    return found


def results(base: Path) -> dict[str, Any]:
    for path in base.glob("reports/2*/results.json"):
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    return {"scenarios": {}}


@pytest.fixture
def inside(base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(base)
    monkeypatch.delenv("ALTLAS_GPU__BACKEND", raising=False)
    monkeypatch.setattr(nb, "notebooks_dir", lambda: base / "nb")
    return base


@pytest.mark.notebooks
class TestStoppedRun:
    def test_it_says_so_and_how_to_go_on(self, stopped: tuple[int, str, str, list[int]], base: Path) -> None:
        status, out, err, _ = stopped
        assert status == 130, err
        assert out.splitlines()[-2].startswith("INTERRUPTED")
        assert f"altlas run --resume {folder(base).name}" in err
        assert "Traceback" not in err

    def test_no_process_is_left(self, stopped: tuple[int, str, str, list[int]]) -> None:
        family = stopped[3]
        assert len(family) >= 6  # two kernels, a worker, its keeper, two of the task
        wait_for(lambda: not any(map(psutil.pid_exists, family)))

    def test_what_had_ended_is_whole_and_the_rest_says_what_became_of_it(
        self, stopped: tuple[int, str, str, list[int]], base: Path
    ) -> None:
        run = folder(base)
        told = {name: entry["checks"][-1]["observed"] for name, entry in results(base)["scenarios"].items()}
        assert told == {
            "quick": BAD["observed"],
            "holds": "cut off: the run was interrupted",
            "endless": "cut off: the run was interrupted",
            "late": "not run: the run was interrupted",
        }
        assert "as far as it came" in (run / "endless.html").read_text()
        assert "not run" in (run / "index.html").read_text()
        assert (run.parent / "latest").resolve() == run
        assert not (run / "late.ipynb").exists()
        root = ElementTree.parse(run / "junit.xml").getroot()
        counts = [root.attrib[name] for name in ("tests", "failures", "errors", "skipped")]
        assert counts == ["5", "1", "2", "1"]

    def test_resume_runs_what_is_missing_with_the_settings_of_then(
        self, stopped: tuple[int, str, str, list[int]], inside: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        run = folder(inside)
        kept = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.glob("**/quick*")}
        before = results(inside)
        (inside / "repaired").touch()
        (inside / "config.yaml").write_text("gpu:\n  selection:\n    default_strategy: random\n")
        monkeypatch.setenv("ALTLAS_GPU__WORKLOAD__BATCH_SIZE", "3")
        assert cli.main(["run", "--resume", run.name[:-1], "--json"]) == 1  # quick failed a check then
        after = json.loads(capsys.readouterr().out)
        assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in kept} == kept
        assert len(kept) == 3  # page, notebook, event log
        assert (after["run_id"], after["started_at"]) == (before["run_id"], before["started_at"])
        assert after["scenarios"]["quick"] == before["scenarios"]["quick"]
        assert {name: entry["passed"] for name, entry in after["scenarios"].items()} == {
            "quick": False, "holds": True, "endless": True, "late": True,
        }  # fmt: skip
        assert after["wall_s"] > before["wall_s"]
        page = unescape((run / "late.html").read_text())  # it prints the settings it got
        for asked in ("'gpu.workload.timeout': 77", "round_robin", "'gpu.workload.batch_size': 8"):
            assert asked in page
        index = (run / "index.html").read_text()
        assert "Resumed" in index
        assert "to run holds, endless, late" in index
        root = ElementTree.parse(run / "junit.xml").getroot()
        assert [root.attrib[name] for name in ("tests", "failures", "errors", "skipped")] == ["5", "1", "0", "0"]

    def test_where_nothing_is_missing_it_says_so_with_the_status_of_that_run(
        self, stopped: tuple[int, str, str, list[int]], inside: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = results(inside)
        assert cli.main(["run", "--resume", "latest"]) == 1
        assert "nothing is missing" in capsys.readouterr().err
        assert results(inside) == before

    def test_a_copy_is_still_that_run_and_leaves_the_folder_around_it_alone(
        self, stopped: tuple[int, str, str, list[int]], inside: Path, tmp_path: Path
    ) -> None:
        copy = shutil.copytree(folder(inside), tmp_path / "copy")
        assert cli.main(["run", "--resume", str(copy)]) == 1
        assert json.loads((copy / "results.json").read_text())["run_id"] == folder(inside).name
        assert list(tmp_path.iterdir()) == [copy]

    @pytest.mark.parametrize("flag", [["--seed", "3"], ["quick"], ["--set", "seed=3"], ["--devices", "T4"]])
    def test_what_the_earlier_run_was_asked_cannot_be_changed(
        self, flag: list[str], stopped: object, inside: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["run", "--resume", "latest", *flag]) == 2
        assert "--resume takes what the earlier run was asked" in capsys.readouterr().err

    def test_a_bad_deadline_beside_it_names_its_flag(
        self, stopped: object, inside: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["run", "--resume", "latest", "--deadline", "soon"]) == 2
        assert capsys.readouterr().err.startswith("altlas: --deadline:")

    def test_a_run_that_is_running_cannot_be_gone_on_with(
        self, stopped: object, inside: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with resume.alone(folder(inside)):
            assert cli.main(["run", "--resume", "latest"]) == 2
        assert "is running now" in capsys.readouterr().err

    def test_what_has_changed_since_is_said(self, stopped: object, inside: Path) -> None:
        from altlas_core.backends.discover import discover

        saved = resume.read_request(folder(inside))
        machine = discover(saved.settings_again())
        assert saved.changes(machine) == []
        other = discover(saved.settings_again().__class__())
        saved.facts["torch"] = "1.0"  # type: ignore[index]
        assert any(change.startswith("torch was 1.0, is now") for change in saved.changes(other))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda _: None, "has no request.json"),
        (lambda run: (run / "request.json").write_text("{"), "cannot be used"),
        (lambda run: (run / "request.json").write_text('{"format": 99}'), "another version"),
        (lambda run: (run / "request.json").write_text('{"format": 1, "request": {"config_path": null}}'), "anew"),
        (lambda run: (run / "results.json").unlink(), "there is none"),
    ],
)
def test_a_run_that_cannot_be_gone_on_with_is_one_clear_line(
    damage: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "reports" / "20260101-000000-abcd"
    run.mkdir(parents=True)
    (run / "results.json").write_text("{}")
    damage(run)
    assert cli.main(["run", "--resume", run.name]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("started", "yesterday"),
        ("started", 5),
        ("settings", "x"),
        ("scenarios", 7),
        ("scenarios", [["a"]]),
        ("scenarios", []),
        ("facts", [1]),
        ("inputs", None),
        ("inputs", {"a": 1}),
        ("resumed", [1]),
        ("request.overrides", "zz"),
        ("request.strategy", 1),
    ],
)
def test_a_damaged_request_is_one_clear_line_that_names_the_place(
    place: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, "20260101-000000-abcd", {"performance": scenario()})
    saved = json.loads((run / "request.json").read_text())
    section, _, key = place.rpartition(".")
    (saved[section] if section else saved)[key] = value
    (run / "request.json").write_text(json.dumps(saved))
    assert cli.main(["run", "--resume", str(run)]) == 2
    err = capsys.readouterr().err
    assert "request.json cannot be used" in err
    assert "run it anew" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("damaged", [None, 5, [], {}, {"checks": [], "wall_s": None}, {"checks": [1], "wall_s": 1.0}])
def test_what_cannot_be_read_in_the_results_is_absent(damaged: Any, tmp_path: Path) -> None:
    odd = [{**scenario(), "wall_s": wall_s} for wall_s in ("x", None, -1.0, float("nan"), True)]
    named = {f"odd {number}": entry for number, entry in enumerate(odd)}
    whole = {"good": scenario(), "broke": scenario([broke()]), "damaged": scenario(), **named}
    run = write_run(tmp_path, "20260101-000000-abcd", whole)
    assert resume.wall_s(run) == 3.0
    results = json.loads((run / "results.json").read_text())
    results["scenarios"]["damaged"] = damaged
    (run / "results.json").write_text(json.dumps({**results, "wall_s": damaged}))
    assert resume.ended_whole(run) == {"good": 1.0}
    assert resume.wall_s(run) == (damaged if damaged == 5 else 0.0)
    (run / "results.json").write_text(json.dumps({"scenarios": damaged}))
    assert resume.ended_whole(run) == {}


def test_a_run_is_found_by_folder_id_and_beginning(tmp_path: Path) -> None:
    from altlas_core.errors import ConfigError
    from altlas_core.report.folder import find_run

    for name in ("20260101-000000-aaaa", "20260101-000001-bbbb"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text("{}")
    (tmp_path / "latest").symlink_to("20260101-000001-bbbb")
    first, second = sorted(path.resolve() for path in tmp_path.glob("2*"))
    assert find_run(str(first), Path("elsewhere")) == first
    assert find_run("20260101-000000", tmp_path) == first
    assert find_run("latest", tmp_path) == second
    with pytest.raises(ConfigError, match="2 runs begin like that"):
        find_run("2026", tmp_path)
    with pytest.raises(ConfigError, match=r"there are: 20260101-000001-bbbb, 20260101-000000-aaaa"):
        find_run("nonsense", tmp_path)
