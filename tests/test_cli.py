"""The command line: exit statuses, messages, and that every bad input is found before anything starts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import BAD, GOOD, result_cell

from altlas_core import cli


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every command runs in an empty folder, with no setting in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALTLAS_GPU__BACKEND", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "performence"], "Did you mean 'performance'?"),
        (["run", "--backend", "simulatd"], "Did you mean 'simulated'?"),
        (["run", "--devices", "8x A100-SXM4-80GBB"], "Did you mean 'A100-SXM4-80GB'?"),
        (["run", "--devices", "0x A100"], "0x A100"),
        (["run", "--set", "gpu.workload.timout=3"], "Did you mean 'gpu.workload.timeout'?"),
        (["run", "--set", "gpu.workload.timeout"], "is not KEY=VALUE"),
        (["run", "--set", "gpu.workload.timeout=-1"], "gpu.workload.timeout"),
        (["run", "--seed", "-3"], "--seed"),
        (["run", "--seed", str(2**63 - 1), "--repeat", "2"], "the last seed would be over"),
        (["run", "--time-scale", "0"], "--time-scale"),
        (["run", "--pace", "fast"], "--pace"),
        (["run", "--config", "missing.yaml"], "missing.yaml"),
        (["run", "--deadline", "-1"], "--deadline: -1"),
        (["run", "--notebook-deadline", "soon"], "--notebook-deadline: 'soon'"),
        (["run", "--resume", "nonsense"], "there is none"),
        (["run", "--resume", "latest", "--seed", "3"], "so --seed cannot be given"),
        (["run", "--set", "test.performance.enabled=false", "performance"], "switched off"),
        (["run", "--set", "test.performance.enabled=false", "--set", "test.detection.enabled=false"], "Nothing to run"),
        (["run", "--reports-dir", "a_file/reports"], "cannot be written"),
        (["run", "--reports-dir", ""], "--reports-dir: names no folder"),
        (["run", "--resume", "latest", "--reports-dir", ""], "--reports-dir: names no folder"),
        (["gpus", "--backend", "cud"], "Did you mean 'cuda'?"),
        (["config", "check", "missing.yaml"], "missing.yaml"),
        (["serve", "--host", "0.0.0.0"], "no API key is set"),
        (["serve", "--port", "70000"], "allowed: a whole number from 0"),
        (["serve", "--port", "http"], "--port http"),
        (["serve", "--pace", "0"], "a service runs in real time"),
        (["serve", "--set", "api.key_file=missing.keys"], "missing.keys"),
        (["serve", "--set", "api.journal=no_folder/journal.sqlite3"], "no_folder"),
        (["serve", "--set", "api.max_body_bytes=5"], "api.max_body_bytes"),
        (["serve", "--set", "predict.model=no_folder"], "predict.model"),
    ],
)
def test_bad_input_is_one_message_and_status_2_and_nothing_starts(
    arguments: list[str],
    said: str,
    notebooks: Callable[..., Path],
    own_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    notebooks(1, "performance", result_cell("performance"))
    notebooks(2, "gpu_detection", result_cell("gpu_detection"))
    (own_folder / "a_file").write_text("")
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert "Traceback" not in err
    assert out == ""
    assert not (own_folder / "reports").exists()


@pytest.mark.parametrize("arguments", [[], ["rnu"], ["run", "--sed", "1", "--nonsense"], ["config"]])
def test_a_command_that_is_none_ends_with_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2


def test_yaml_that_does_not_parse_names_file_and_line(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own_folder / "config.yaml").write_text("seed: 1\ngpu: [\n")
    assert cli.main(["config", "check"]) == 2
    assert "config.yaml, line" in capsys.readouterr().err


def test_config_check_takes_the_file_here_and_lists_what_differs(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["config", "check"]) == 0
    assert "the defaults: fine, 0 of" in capsys.readouterr().out
    (own_folder / "config.yaml").write_text("gpu:\n  workload:\n    timeout: 60\n")
    assert cli.main(["config", "check"]) == 0
    assert "gpu.workload.timeout: 60" in capsys.readouterr().out


def test_config_check_knows_the_device_names(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own_folder / "mine.yaml").write_text("gpu:\n  devices: ['2x A1000']\n")
    assert cli.main(["config", "check", "mine.yaml"]) == 2
    assert "A1000" in capsys.readouterr().err


def test_gpus_as_json_lists_the_machine_that_would_be_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gpus", "--json", "--devices", "2x H100", "--devices", "T4"]) == 0
    machine = json.loads(capsys.readouterr().out)
    assert [device["model"] for device in machine["devices"]] == ["H100-SXM5-80GB", "H100-SXM5-80GB", "T4"]


@pytest.mark.notebooks
@pytest.mark.parametrize(
    ("cells", "status", "verdict"),
    [
        ([result_cell("alpha", [GOOD])], 0, "PASSED"),
        ([result_cell("alpha", [GOOD, BAD])], 1, "FAILED"),
        (["1/0"], 3, "BROKE"),
    ],
)
def test_the_exit_status_of_a_run_is_its_verdict(
    cells: list[str], status: int, verdict: str, notebooks: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    notebooks(1, "alpha", *cells)
    assert cli.main(["run", "--backend", "simulated"]) == status
    out, err = capsys.readouterr()
    assert out.splitlines()[-2].startswith(verdict)
    assert Path(out.splitlines()[-1]).is_file()
    assert err == ""  # quiet where nobody watches


@pytest.mark.notebooks
def test_json_prints_the_results_file_and_nothing_else(
    notebooks: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    notebooks(1, "alpha", result_cell("alpha"))
    assert cli.main(["run", "--json", "--time-scale", "0.5", "--devices", "T4"]) == 0
    out, err = capsys.readouterr()
    printed = json.loads(out)
    report = Path(printed.pop("report"))
    assert printed == json.loads((report.parent / "results.json").read_text())
    assert "no effect" in err  # --time-scale is for real devices


def test_help_and_config_check_load_nothing_heavy(own_folder: Path) -> None:
    code = (
        "import sys\nfrom altlas_core import cli\nassert cli.main(['config', 'check']) == 0\n"
        "heavy = {'torch', 'pandas', 'plotly', 'papermill', 'pynvml', 'jinja2', 'nbformat'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=own_folder, check=False)
    assert done.returncode == 0, done.stderr


def test_a_fault_of_the_program_is_no_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    from altlas_core import commands

    def broken(_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(commands, "gpus", broken)
    assert cli.main(["gpus"]) == 3
