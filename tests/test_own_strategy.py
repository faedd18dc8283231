"""A strategy in a user's own file: found, registered, run; and a line that says what is wrong with one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import altlas_core as altlas
from altlas_core import cli
from altlas_core.errors import StrategyError
from altlas_core.notebook import parameters, session
from altlas_core.own_strategy import absolute, resolve
from altlas_core.strategies import USER_STRATEGIES

GOOD = '''\
from dataclasses import dataclass

from beside import LAST


@dataclass
class Memory:
    calls: int = 0


def choose(task, gpus):
    """The last GPU that is offered."""
    return gpus[LAST]


def one_argument(task):
    return None


def random(task, gpus):
    return None


number = 3
'''


@pytest.fixture(autouse=True)
def none_registered() -> Iterator[None]:
    before = dict(USER_STRATEGIES)
    USER_STRATEGIES.clear()
    yield
    USER_STRATEGIES.clear()
    USER_STRATEGIES.update(before)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a strategy in my.py."""
    (tmp_path / "my.py").write_text(GOOD)
    (tmp_path / "beside.py").write_text("LAST = -1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def gpu_ids(strategy: str) -> list[int]:
    settings = parameters.settings({"strategy": strategy, "devices": "4x A100"})
    result = altlas.run(settings, altlas.Workload.from_records([{"duration_s": 1.0}] * 3))
    return [task.gpu_id for task in result.task_list if task.gpu_id is not None]


def test_a_name_stays_a_name() -> None:
    assert resolve("round_robin") == "round_robin"
    assert resolve("no_such") == "no_such"  # the settings know which there are
    assert absolute("round_robin") == "round_robin"


def test_a_function_in_a_file_runs_under_its_name(folder: Path) -> None:
    assert gpu_ids("my.py:choose") == [3, 3, 3]
    assert list(USER_STRATEGIES) == ["choose"]
    assert absolute("my.py:choose") == f"{folder}/my.py:choose"


def test_a_changed_file_is_read_anew(folder: Path) -> None:
    resolve("my.py:choose")
    (folder / "my.py").write_text("def choose(task, gpus):\n    return gpus[1]  # now another one\n")
    assert gpu_ids("my.py:choose") == [1, 1, 1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no.py:choose", "no.py: no such file; allowed: a strategy's name, or a function in a file"),
        ("my.py", "strategy 'my.py': allowed: a strategy's name, or a function in a file as \"my.py:choose\""),
        ("my.py:", "strategy 'my.py:': allowed: "),
        ("my:choose", "strategy 'my:choose': allowed: "),
        ("my.py:chose", "my.py: has no function 'chose'. Did you mean 'choose'? There are: "),
        ("my.py:one_argument", "my.py: strategy 'one_argument' must accept two arguments: choose(task, gpus)"),
        ("my.py:number", "my.py: strategy 'number': 3 cannot be called"),
        ("my.py:random", "'random' is built in; give the function a name of its own"),
        ("raises.py:choose", "raises.py, line 4: cannot be imported: ValueError: no luck"),
        ("syntax.py:choose", "syntax.py, line 2: cannot be imported: SyntaxError: "),
        ("leaves.py:choose", "leaves.py, line 1: cannot be imported: SystemExit: 3"),
        ("lost.py:choose", "lost.py, line 1: cannot be imported: ModuleNotFoundError: "),
        ("binary.py:choose", "binary.py: cannot be imported: SyntaxError: "),
        ("empty.py:choose", "empty.py: has no function 'choose'. It has no function."),
        (".:choose", "strategy '.:choose': allowed: "),
        ("folder.py:choose", "folder.py: is a directory"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_told_in_one_line(folder: Path, text: str, told: str) -> None:
    (folder / "raises.py").write_text(
        'def inner():\n    import beside\n    int("3")\n    raise ValueError("no\\nluck")\ninner()\n'
    )
    (folder / "syntax.py").write_text("fine = 1\ndef choose(:\n")
    (folder / "leaves.py").write_text("raise SystemExit(3)\n")
    (folder / "lost.py").write_text("import nowhere_at_all\n")
    (folder / "binary.py").write_bytes(b"\x00\xff")
    (folder / "empty.py").write_text("")
    (folder / "folder.py").mkdir()
    with pytest.raises(StrategyError) as caught:
        resolve(text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not USER_STRATEGIES


def test_a_bad_strategy_is_bad_input_of_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "own_workload", "--strategy", "my.py:chose"]) == 2
    assert "has no function 'chose'" in capsys.readouterr().err
    assert cli.main(["run", "own_workload", "--strategy", "round_robn"]) == 2
    assert "--strategy: 'round_robn' is not among" in capsys.readouterr().err
    assert not (folder / "reports").exists()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("1 / 0", "strategy 'choose' raised ZeroDivisionError: division by zero (task-000000)"),
        ("99", "strategy 'choose' chose 99 for task-000000; it must return one of the GPUs it was offered"),
    ],
)
def test_a_strategy_that_breaks_in_a_run_is_named_in_one_line(folder: Path, answer: str, told: str) -> None:
    (folder / "my.py").write_text(f"def choose(task, gpus):\n    return {answer}\n")
    namespace: dict[str, Any] = {"strategy": "my.py:choose"}
    with pytest.raises(session.NotebookError) as caught:
        session.start("own_workload", namespace)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_the_file_prints_is_not_part_of_our_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "talks.py"
    path.write_text("print('hello')\n\n\ndef talkative(task, gpus):\n    return gpus[0]\n")
    assert resolve(f"{path}:talkative") == "talkative"
    assert capsys.readouterr() == ("", "hello\n")


def test_the_function_may_import_what_lies_beside_its_file_when_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("def first(gpus):\n    return gpus[0]\n")
    path = tmp_path / "late.py"
    path.write_text("def imports_late(task, gpus):\n    from beside_it import first\n\n    return first(gpus)\n")
    name = resolve(f"{path}:imports_late")
    settings = altlas.load_config(None, {"gpu.devices": ["2x A100"], "gpu.selection.default_strategy": name}, {})
    result = altlas.run(settings, altlas.Workload.from_records([{"duration_s": 1.0}]))
    assert list(result.tasks.state) == ["COMPLETED"]
