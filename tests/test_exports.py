"""Exports: tables that come back as they were, and a trace that keeps the rules of its format."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import result_cell

import altlas_core as altlas
from altlas_core import cli
from altlas_core.errors import ConfigError
from altlas_core.exports import folder_name
from altlas_core.exports.trace import trace_events
from altlas_core.notebook.session import NotebookError, start

TABLES = ("tasks", "attempts", "telemetry", "queue")
# What each phase of the format must have (Trace Event Format, "Event Descriptions").
NEEDED = {
    "X": {"name", "cat", "ts", "dur", "pid", "tid"},
    "C": {"name", "ts", "pid", "args"},
    "i": {"name", "ts", "pid", "tid", "s"},
    "M": {"name", "pid", "args"},
}


def play() -> altlas.Result:
    """Tasks that complete, wait, time out, are too large, and one that is cancelled; a GPU lost and one overheated."""
    records: list[dict[str, Any]] = [
        {"submit_s": 0.1 * n, "duration_s": 1.0 + 0.1 * n % 7, "priority": ("high", "low")[n % 2]} for n in range(60)
    ]
    records += [
        {"submit_s": 1.0, "duration_s": 50.0, "timeout_s": 3.0},
        {"submit_s": 0.0, "duration_s": 50.0, "cancel_s": 4.5, "gpu_id": 3},
        {"submit_s": 2.5, "duration_s": 1.0, "memory_bytes": 2**40},
    ]
    faults = [
        altlas.Fault(time_s=5.0, gpu_id=1, kind="lose_gpu", duration_s=8.0),
        altlas.Fault(time_s=2.0, gpu_id=2, kind="overheat", value=99.0, duration_s=6.0),
        altlas.Fault(time_s=3.0, gpu_id=0, kind="crash_worker"),
    ]
    settings = altlas.load_config(
        overrides={
            "gpu.devices": ["4x T4"],
            "gpu.selection.default_strategy": "least_loaded",
            "gpu.detection.health_check_interval": 1,
        },
        environ={},
    )
    return altlas.run(settings, altlas.Workload.from_records(records), faults=faults)


@pytest.fixture(scope="module")
def result() -> altlas.Result:
    return play()


@pytest.fixture(scope="module")
def folder(result: altlas.Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "new" / "one"
    written = result.export(folder)
    assert sorted(path.name for path in written) == sorted(path.name for path in folder.iterdir())
    return folder


def frames(result: altlas.Result) -> dict[str, pd.DataFrame]:
    return dict(zip(TABLES, (result.tasks, result.attempts, result.telemetry, result.queue_depth), strict=True))


def plain(frame: pd.DataFrame) -> list[list[Any]]:
    """The cells, missing ones as None."""
    return [[None if pd.isna(cell) else cell for cell in row] for row in frame.astype(object).to_numpy().tolist()]


@pytest.mark.parametrize("name", TABLES)
class TestTables:
    def test_parquet_comes_back_with_values_and_types(self, name: str, result: altlas.Result, folder: Path) -> None:
        whole, read = frames(result)[name], pd.read_parquet(folder / f"{name}.parquet")
        assert list(read.columns) == list(whole.columns)
        assert plain(read) == plain(whole)
        types = {column: str(kind) for column, kind in read.dtypes.items()}
        expected = {"gpu_id": "Int64" if name == "tasks" else "int64", "memory_used_bytes": "Int64"}
        expected |= dict.fromkeys(("kind", "state", "priority", "outcome", "error_code", "provenance"), "category")
        expected |= dict.fromkeys(("attempts", "attempt", "queued_tasks", "running_tasks"), "int64")
        assert {column: kind for column, kind in types.items() if column in expected} == {
            column: kind for column, kind in expected.items() if column in types
        }
        assert all(kind == "float64" for column, kind in types.items() if column.endswith(("_s", "_pct", "_c", "_w")))

    def test_csv_comes_back_with_values(self, name: str, result: altlas.Result, folder: Path) -> None:
        whole = frames(result)[name]
        read = pd.read_csv(folder / f"{name}.csv", dtype={"gpu_id": "Int64", "memory_used_bytes": "Int64"})
        assert list(read.columns) == list(whole.columns)
        assert plain(read) == plain(whole)


def test_what_is_missing_is_empty_and_never_a_zero(result: altlas.Result, folder: Path) -> None:
    lost = result.telemetry["utilization_pct"].isna()
    assert lost.any()
    rows = (folder / "telemetry.csv").read_text().splitlines()[1:]
    assert {row.split(",")[2] for row, gone in zip(rows, lost, strict=True) if gone} == {""}
    never = next(row for row in (folder / "tasks.csv").read_text().splitlines() if "too_large" in row)
    assert ',,0,2.5,,2.5,"too_large"' in never


def test_the_detail_of_an_attempt_is_json_text(result: altlas.Result, tmp_path: Path) -> None:
    attempt = result.log.attempts()[0]
    other = play()
    other.log.attempts()[0].detail = {"tflops": 1.5, "worst_error": math.inf, "dtype": "fp32"}
    other.export(tmp_path, ["parquet", "csv", "trace"])
    read = pd.read_parquet(tmp_path / "attempts.parquet")["detail"]
    assert json.loads(read[0]) == {"dtype": "fp32", "tflops": 1.5, "worst_error": None}
    assert read[1:].isna().all()
    assert json.loads(pd.read_csv(tmp_path / "attempts.csv")["detail"][0])["tflops"] == 1.5
    assert attempt.detail is None
    json.loads((tmp_path / "trace.json").read_text(), parse_constant=pytest.fail)


def test_only_the_formats_asked_for_are_written(result: altlas.Result, tmp_path: Path) -> None:
    assert [path.name for path in result.export(tmp_path, "trace")] == ["trace.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]
    assert result.export(tmp_path / "none", []) == []


def test_an_unknown_format_is_refused(result: altlas.Result, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"unknown format 'parket'; allowed: csv, parquet, trace. Did you mean 'parquet'"
    ):
        result.export(tmp_path / "new", ["csv", "parket"])
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_told_in_one_line(result: altlas.Result, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as problem:
        result.export(tmp_path / "file" / "below")
    assert "file/below cannot be written: Not a directory" in str(problem.value)
    assert "\n" not in str(problem.value)
    if os.access(tmp_path / "file", os.W_OK) and os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(ConfigError, match="Permission denied"):
            result.export(tmp_path / "closed")


def test_a_label_becomes_a_folder_name() -> None:
    assert [folder_name(label) for label in ("limited", "8 GPUs: a/b", "..", "größer")] == [
        "limited",
        "8-GPUs-a-b",
        "run",
        "größer",
    ]


@pytest.fixture(scope="module")
def trace(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "trace.json").read_text(), parse_constant=pytest.fail)
    return loaded


@pytest.fixture(scope="module")
def events(trace: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = trace["traceEvents"]
    return found


class TestTrace:
    def test_every_event_has_what_its_phase_must_have(self, events: list[dict[str, Any]]) -> None:
        for event in events:
            assert NEEDED[event["ph"]] <= event.keys(), event
            assert event["ts"] >= 0
            assert event.get("dur", 0) >= 0
            assert event.get("s", "t") in ("g", "p", "t")
            if event["ph"] == "C":
                assert all(isinstance(value, float | int) for value in event["args"].values())

    def test_times_go_up_on_every_thread_and_counter(self, events: list[dict[str, Any]]) -> None:
        tracks = defaultdict(list)
        for event in events:
            if event["ph"] != "M":
                track = event["name"] if event["ph"] == "C" else event["tid"]
                tracks[event["pid"], track].append(event["ts"])
        assert all(times == sorted(times) for times in tracks.values())

    def test_nothing_overlaps_on_a_thread(self, events: list[dict[str, Any]]) -> None:
        ends: dict[tuple[int, int], float] = {}
        for event in events:
            if event["ph"] == "X":
                thread = event["pid"], event["tid"]
                assert event["ts"] >= round(ends.get(thread, 0.0), 6)
                ends[thread] = event["ts"] + event["dur"]
        assert len(ends) == 16  # all slots of the four GPUs were needed

    def test_every_thread_has_a_name_and_belongs_to_one_process(self, events: list[dict[str, Any]]) -> None:
        named = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
        used = {(event["pid"], event["tid"]) for event in events if event["ph"] in "Xi"}
        assert used <= named.keys()
        assert len({tid for _, tid in named}) == len(named)
        processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
        assert processes == {1: "GPU 0: T4", 2: "GPU 1: T4", 3: "GPU 2: T4", 4: "GPU 3: T4", 5: "scheduler"}

    def test_every_attempt_is_there_as_it_was(self, events: list[dict[str, Any]], result: altlas.Result) -> None:
        drawn = sorted(
            (e["ts"] / 1e6, e["dur"] / 1e6, e["pid"] - 1, e["name"], e["args"]["attempt"])
            for e in events
            if e["ph"] == "X"
        )
        table = result.attempts
        seconds = table["ended_s"] - table["started_s"]
        rows = sorted(
            zip(table["started_s"], seconds, table["gpu_id"], table["task_id"], table["attempt"], strict=True)
        )
        assert [row[2:] for row in drawn] == [row[2:] for row in rows]
        assert [row[:2] for row in drawn] == [pytest.approx(row[:2], abs=1e-8) for row in rows]
        outcomes = {e["args"]["outcome"] for e in events if e["ph"] == "X"}
        assert {"finished", "timeout", "cancelled", "device_lost", "worker_crashed"} == outcomes

    def test_what_befell_gpus_and_tasks_are_instants(self, events: list[dict[str, Any]]) -> None:
        marks = {(e["name"], e["pid"] - 1, e["ts"] / 1e6) for e in events if e["ph"] == "i" and e["s"] == "p"}
        assert ("GPU lost", 1, 5.0) in marks
        assert ("GPU back", 1, 13.0) in marks
        assert ("worker crashed", 0, 3.0) in marks
        assert {(name, gpu) for name, gpu, _ in marks if "healthy" in name} == {
            ("healthy again", 1),
            ("unhealthy", 2),
            ("healthy again", 2),
        }
        own = {e["name"].rpartition(": ")[2]: e["ts"] / 1e6 for e in events if e["ph"] == "i" and e["s"] == "t"}
        assert own["timeout"] == pytest.approx(4.0)
        assert own["cancelled"] == 4.5
        assert own["too_large"] == 2.5

    def test_a_counter_says_at_each_time_what_was_read(
        self, events: list[dict[str, Any]], result: altlas.Result
    ) -> None:
        table = result.telemetry
        for name, column, factor in (
            ("memory in use (GiB)", "memory_used_bytes", 2**-30),
            ("temperature (°C)", "temperature_c", 1),
        ):
            held = [
                (e["ts"] / 1e6, e["args"]["value"])
                for e in events
                if e["ph"] == "C" and e["name"] == name and e["pid"] == 4
            ]
            own = table[(table["gpu_id"] == 3) & table[column].notna()]
            for time_s, value in zip(own["time_s"], own[column], strict=True):
                assert [v for t, v in held if t <= time_s][-1] == pytest.approx(value * factor, abs=0.006)

    def test_a_mean_stands_at_the_beginning_of_its_period(
        self, events: list[dict[str, Any]], result: altlas.Result
    ) -> None:
        held = [
            (e["ts"] / 1e6, e["args"]["value"])
            for e in events
            if e["ph"] == "C" and e["name"].startswith("util") and e["pid"] == 1
        ]
        table = result.telemetry[result.telemetry["gpu_id"] == 0]
        times, values = list(table["time_s"]), list(table["utilization_pct"])
        assert len(set(values)) > 1
        for begin_s, value in zip(times[:-1], values[1:], strict=True):
            assert [v for t, v in held if t <= begin_s][-1] == pytest.approx(value, abs=0.006)

    def test_waiting_tasks_are_counted(self, events: list[dict[str, Any]], result: altlas.Result) -> None:
        depths = [e["args"]["value"] for e in events if e["ph"] == "C" and e["name"] == "tasks waiting"]
        assert max(depths) == result.queue_depth["queued_tasks"].max() > 0

    def test_it_says_where_its_numbers_come_from(self, trace: dict[str, Any], result: altlas.Result) -> None:
        assert trace["otherData"]["provenance"] == "simulated"
        assert trace["otherData"]["length_s"] == result.virtual_s


def test_an_attempt_that_has_not_ended_lasts_until_the_end_of_the_run() -> None:
    result = play()
    attempt = result.log.attempts()[3]
    attempt.ended_s = attempt.outcome = None
    event = next(e for e in trace_events(result) if e["ph"] == "X" and e["name"] == attempt.task.task_id)
    assert event["args"]["outcome"] == "not ended"
    assert event["ts"] + event["dur"] == pytest.approx(1e6 * result.virtual_s)


def test_a_run_of_a_thousand_gpus_is_written_row_by_row(tmp_path: Path) -> None:
    settings = altlas.load_config(
        overrides={"gpu.devices": ["1000x T4"], "gpu.selection.default_strategy": "least_loaded"}, environ={}
    )
    result = altlas.run(settings, altlas.Workload.poisson(rate_per_s=400, count=4000, seed=1, duration_mean_s=5.0))
    result.export(tmp_path)
    assert len(pd.read_parquet(tmp_path / "telemetry.parquet")) == len(result.telemetry)
    lines = (tmp_path / "trace.json").read_text().splitlines()
    assert sum('"ph":"X"' in line for line in lines) == 4000
    assert max(map(len, lines)) < 1000  # an event a line


class TestNotebook:
    def test_each_run_of_its_scenario_gets_a_folder(self, tmp_path: Path) -> None:
        start("concurrent_processing", {"export": ["csv", "trace"], "out_dir": str(tmp_path)}).finish()
        found = {str(path.relative_to(tmp_path)) for path in (tmp_path / "exports").rglob("*") if path.is_file()}
        names = [f"{name}.csv" for name in TABLES] + ["trace.json"]
        runs = ("limited", "all_at_once")
        assert found == {f"exports/concurrent_processing/{run}/{name}" for run in runs for name in names}
        tasks = pd.read_csv(tmp_path / "exports/concurrent_processing/limited/tasks.csv")
        assert len(tasks) == 20

    def test_without_out_dir_or_formats_nothing_is_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        start("gpu_detection", {"export": "csv"}).finish()
        assert list(tmp_path.iterdir()) == []
        start("gpu_detection", {"out_dir": "out"}).finish()
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["events"]

    def test_one_that_cannot_be_written_leaves_the_result(self, tmp_path: Path, capsys: Any) -> None:
        (tmp_path / "exports").write_text("")
        session = start("gpu_detection", {"export": "csv", "out_dir": str(tmp_path)})
        with pytest.raises(NotebookError, match="cannot be written"):
            session.finish()
        assert (tmp_path / "events" / "gpu_detection.jsonl").is_file()
        assert "PASSED" in capsys.readouterr().out


@pytest.mark.notebooks
def test_the_page_of_a_scenario_links_to_its_exports(notebooks: Callable[..., Path], tmp_path: Path) -> None:
    write = "import pathlib\nat = pathlib.Path(out_dir, 'exports', 'first', 'one run')\nat.mkdir(parents=True)\n"
    notebooks(1, "first", write + "(at / f'{export[0]}.txt').write_text('')", result_cell("first"))
    reports = tmp_path / "reports"
    assert cli.main(["run", "--backend", "simulated", "--export", "trace", "--reports-dir", str(reports)]) == 0
    page = (reports / "latest" / "first.html").read_text()
    assert 'href="exports/first/one%20run/trace.txt"' in page
    assert "--export trace" in page
