"""Deadlines of a suite: what takes too long is killed, whatever it does, and the folder is whole all the same."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shlex
import signal
import threading
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest
from conftest import result_cell, write_notebook
from workers import wait_for

from altlas_core import cli
from altlas_core.backends.discover import discover
from altlas_core.config import load_config
from altlas_core.report import notebooks as nb
from altlas_core.report import running
from altlas_core.report.execute import Execution, NotebookRun
from altlas_core.report.outcome import ScenarioOutcome
from altlas_core.report.progress import TerminalProgress
from altlas_core.report.running import Deadlines, Runner, stopped_by_signals
from altlas_core.report.suite import RunOutcome, run_suite

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

STUBBORN = """\
import signal, subprocess
signal.signal(signal.SIGINT, signal.SIG_IGN)
subprocess.Popen(["sleep", "600"])
while True:
    pass
"""


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def run(base: Path, **overrides: Any) -> RunOutcome:
    settings = load_config(None, {"gpu.backend": "simulated", **overrides}, environ={})
    chosen = list(nb.find_notebooks(base / "nb").values())
    return run_suite(settings, discover(settings), chosen, base / "reports")


@pytest.mark.notebooks
def test_a_notebook_over_its_deadline_is_killed_and_its_page_says_so(tmp_path: Path) -> None:
    write_notebook(tmp_path / "nb", 1, "stubborn", STUBBORN, result_cell("stubborn"))
    before = children()
    outcome = run(tmp_path, **{"run.notebook_deadline": 1.5})
    assert (outcome.exit_status, outcome.interrupted) == (3, False)
    assert "did not end within 1.5 s (--notebook-deadline)" in (outcome.folder / "stubborn.html").read_text()
    assert json.loads((outcome.folder / "stubborn.ipynb").read_text())["cells"]  # as far as it came
    assert children() <= before
    assert any("altlas run --resume" in note for note in outcome.notes)


@pytest.mark.notebooks
def test_when_the_whole_deadline_is_over_the_rest_is_marked_not_run(tmp_path: Path) -> None:
    for number, name in enumerate(("first", "second", "third"), 1):
        write_notebook(tmp_path / "nb", number, name, STUBBORN, result_cell(name))
    before = children()
    outcome = run(tmp_path, **{"run.deadline": 1.0, "run.pace": 1})  # at a pace one runs at a time
    assert outcome.exit_status == 3
    assert children() <= before
    over = "the deadline of 1 s for the whole run was over (--deadline)"
    assert [(s.error, s.ran) for s in outcome.scenarios] == [
        (f"cut off: {over}", True),
        (f"not run: {over}", False),
        (f"not run: {over}", False),
    ]
    assert over in (outcome.folder / "index.html").read_text()
    assert json.loads((outcome.folder / "results.json").read_text())["passed"] is False
    assert (tmp_path / "reports" / "latest").resolve() == outcome.folder
    marks = [case.tag for case in ElementTree.parse(outcome.folder / "junit.xml").getroot().findall(".//testcase/*")]
    assert marks == ["error", "skipped", "skipped"]
    for page in outcome.folder.glob("*.html"):
        for link in re.findall(r'(?:src|href)="([^"#]+)"', page.read_text()):
            assert link.startswith("data:") or (outcome.folder / link).exists(), (page.name, link)


@pytest.mark.notebooks
def test_the_command_that_goes_on_runs_what_a_deadline_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "it's here"
    write_notebook(base / "nb", 1, "quick", result_cell("quick"))
    monkeypatch.setattr(nb, "notebooks_dir", lambda: base / "nb")
    stopped = run(base, **{"run.deadline": 1e-6, "run.notebook_deadline": 1e-6})
    assert [scenario.ran for scenario in stopped.scenarios] == [False]
    (told,) = [note for note in stopped.notes if "altlas run --resume" in note]
    command = shlex.split(told.partition(": altlas ")[2])
    assert command == ["run", "--resume", str(stopped.folder)]
    assert cli.main([*command, "--deadline", "1e-6"]) == 3  # one that is given counts
    assert cli.main(command) == 0


# --- the rules alone, without kernels ---------------------------------------------------------------------------------


class Fake:
    """A notebook that ends when it is killed, or as soon as it can (`at_once`), or never (`stuck`)."""

    def __init__(self, at_once: bool = False, stuck: bool = False) -> None:
        self.at_once, self.stuck = at_once, stuck
        self.killed = threading.Event()
        self.begun = threading.Event()
        self.why: str | None = None

    def execute(self) -> Execution:
        self.begun.set()
        if not self.at_once:
            self.killed.wait()
        return Execution(1.0, self.why and f"cut off: {self.why}")

    def kill(self, why: str) -> None:
        self.why = self.why or why
        if not self.stuck:
            self.killed.set()


def runner(runs: dict[str, Fake], deadlines: Deadlines = Deadlines(), jobs: int = 1) -> Runner:  # noqa: B008
    return Runner(runs, jobs, deadlines, lambda _: None)  # type: ignore[arg-type]


def test_a_deadline_of_a_notebook_leaves_the_others_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {"slow": Fake(), "quick": Fake(at_once=True), "slow too": Fake()}
    ended = list(runner(runs, Deadlines(notebook_s=0.02)).executions())
    late = "cut off: it did not end within 0.02 s (--notebook-deadline)"
    assert [(name, execution.error) for name, execution in ended] == [
        ("slow", late),
        ("quick", None),
        ("slow too", late),
    ]


def test_a_kernel_that_cannot_be_ended_is_left_behind_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "GRACE_S", 0.01)
    runs = {"stuck": Fake(stuck=True), "next": Fake(at_once=True)}
    ended = dict(runner(runs, Deadlines(notebook_s=0.01)).executions())
    assert "its kernel could not be ended" in (ended["stuck"].error or "")
    assert ended["next"].error is None
    runs["stuck"].killed.set()  # its thread ends, and nobody hears of it twice


def test_stop_ends_what_runs_and_begins_nothing_more() -> None:
    runs = {"one": Fake(), "two": Fake()}
    suite = runner(runs)
    threading.Thread(target=lambda: (runs["one"].begun.wait(), suite.stop(), suite.stop())).start()
    ended = dict(suite.executions())
    assert (suite.interrupted, suite.cut_off) == (True, True)
    assert ended == {
        "one": Execution(1.0, "cut off: the run was interrupted"),
        "two": Execution(0.0, "not run: the run was interrupted", ran=False),
    }
    assert not runs["two"].begun.is_set()


def test_nothing_is_begun_where_the_stop_comes_while_papermill_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {"one": Fake(), "two": Fake()}
    suite = runner(runs, jobs=2)
    monkeypatch.setattr(running, "prepare", suite.stop)
    why = "not run: the run was interrupted"
    assert dict(suite.executions()) == {name: Execution(0.0, why, ran=False) for name in runs}
    assert (suite.interrupted, suite.cut_off) == (True, True)
    assert not any(own.begun.is_set() for own in runs.values())


def test_nothing_is_begun_where_the_deadline_is_over_once_papermill_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {"one": Fake()}
    suite = runner(runs, Deadlines(whole_s=1e-6))
    monkeypatch.setattr(running, "prepare", lambda: wait_for(lambda: suite._patience_s() == 0))
    assert [(name, execution.ran) for name, execution in suite.executions()] == [("one", False)]
    assert (suite.interrupted, runs["one"].begun.is_set()) == (False, False)


def test_a_notebook_that_is_killed_before_it_begins_is_not_run(tmp_path: Path) -> None:
    own = NotebookRun(tmp_path / "any.ipynb", tmp_path / "out.ipynb", {})
    own.kill("the run was interrupted")
    assert own.execute() == Execution(0.0, "not run: the run was interrupted", ran=False)


def test_a_stop_that_comes_after_the_end_changes_nothing() -> None:
    suite = runner({"one": Fake(at_once=True)})
    assert dict(suite.executions())["one"].error is None
    suite.stop()
    assert (suite.interrupted, suite.cut_off) == (False, False)


def test_a_fault_around_a_notebook_breaks_that_one_alone() -> None:
    calls = itertools.count()

    def starts(_: str) -> None:
        if next(calls) == 0:
            raise OSError("no space left on device")

    runs: dict[str, Any] = {"one": Fake(at_once=True), "two": Fake(at_once=True)}
    ended = dict(Runner(runs, 1, Deadlines(), starts).executions())
    assert ended["one"].error == "it could not be executed: OSError: no space left on device"
    assert ended["two"].error is None


def test_signals_stop_the_suite_and_are_afterwards_what_they_were() -> None:
    heard: list[str] = []
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a job that a shell started in the background
    try:
        with stopped_by_signals(lambda: heard.append("stop")):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        assert heard == ["stop", "stop"]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_terminal_sees_what_runs_cell_by_cell_and_how_it_ended() -> None:
    out = io.StringIO()
    shown = TerminalProgress(out)
    shown.opened("the run", ["alpha", "beta"])
    shown.started("alpha")
    shown.cell("alpha", 3, 12, "Strategies")
    wait_for(lambda: "cell 3 of 12" in out.getvalue())
    assert "; 1 waiting" in out.getvalue()
    shown.ended(ScenarioOutcome("alpha", "broke", wall_s=2.0, error="did not end within 2 s (--notebook-deadline)"))
    shown.closed()
    assert "BROKE" in out.getvalue()
    assert "did not end within 2 s" in out.getvalue()
