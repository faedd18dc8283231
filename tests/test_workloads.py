"""Workloads: records, CSV files and generators; the order of ids, batches, and a message for every mistake."""

from __future__ import annotations

import csv
import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from altlas_core.errors import WorkloadError
from altlas_core.model import Call, TaskSpec
from altlas_core.workloads import Workload

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

WORK = {"duration_s": 1.0}


def only(record: dict[str, Any]) -> TaskSpec:
    (spec,) = Workload.from_records([record]).specs
    return spec


# Records


def test_a_record_takes_the_defaults_of_the_contract() -> None:
    spec = only({"duration_s": 2})
    assert spec == TaskSpec(submit_s=0.0, duration_s=2.0, kind="linear", priority="normal")
    assert (spec.input_size, spec.output_size, spec.batch) == (1024, 1024, 256)
    for field in (
        "iterations",
        "memory_bytes",
        "timeout_s",
        "retry_count",
        "gpu_id",
        "strategy",
        "cancel_s",
        "batch_id",
    ):
        assert getattr(spec, field) is None


def test_every_field_is_taken() -> None:
    record = {
        "submit_s": 1.0,
        "kind": "linear",
        "iterations": 10.0,
        "input_size": 2,
        "output_size": 3,
        "batch": 4,
        "memory_bytes": 5,
        "priority": "high",
        "timeout_s": 6.0,
        "retry_count": 0,
        "gpu_id": 7,
        "strategy": "mine",
        "cancel_s": 8.0,
    }
    spec = only(record)
    assert {name: getattr(spec, name) for name in record} == record


def test_tasks_are_in_order_of_submission_then_position() -> None:
    times = [3, 1, 2, 1, 3, 0]
    workload = Workload.from_records({"submit_s": t, "duration_s": 1, "gpu_id": i} for i, t in enumerate(times))
    assert [(spec.submit_s, spec.gpu_id) for spec in workload.specs] == [(0, 5), (1, 1), (1, 3), (2, 2), (3, 0), (3, 4)]
    assert workload.tasks(8) == list(workload.specs)
    assert len(workload) == 6


@pytest.mark.parametrize("kind", ["noop", "raise_error", "crash_worker"])
def test_kinds_that_end_by_themselves_take_no_time_unless_told(kind: str) -> None:
    assert only({"kind": kind}).duration_s == 0.0
    assert only({"kind": kind, "duration_s": 3}).duration_s == 3.0


@pytest.mark.parametrize(
    "number", [8, 8.0, np.int64(8), np.int8(8), np.float64(8), np.float32(8)], ids=lambda n: type(n).__name__
)
def test_numbers_of_any_type_become_pythons(number: Any) -> None:
    spec = only({"duration_s": number, "input_size": number, "timeout_s": number})
    assert (type(spec.duration_s), type(spec.input_size), type(spec.timeout_s)) == (float, int, float)
    assert (spec.duration_s, spec.input_size, spec.timeout_s) == (8.0, 8, 8.0)


@pytest.mark.parametrize("missing", [None, float("nan"), np.nan, np.float64("nan"), pd.NA, pd.NaT])
def test_a_missing_cell_means_the_default(missing: Any) -> None:
    assert only({"duration_s": 1, "gpu_id": missing, "input_size": missing, "kind": missing}) == TaskSpec(
        duration_s=1.0
    )


def test_a_data_frame_will_do() -> None:
    frame = pd.DataFrame({"submit_s": [1, 0], "duration_s": [1.0, None], "iterations": [None, 5], "gpu_id": [None, 3]})
    first, second = Workload.from_records(frame).specs
    assert (first.iterations, first.duration_s, first.gpu_id) == (5.0, None, 3)
    assert (second.iterations, second.duration_s, second.gpu_id) == (None, 1.0, None)
    assert Workload.from_records(frame.to_dict("records")).specs == (first, second)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("record", "field", "part"),
    [
        ({}, "duration_s", "allowed: duration_s or iterations"),
        ({"kind": "sleep"}, "duration_s", "'sleep' must say how long it runs; allowed: duration_s"),
        ({"kind": "hang"}, "duration_s", "missing"),
        ({"duration_s": NAN}, "duration_s", "missing"),
        ({"duration_s": 1, "iterations": 1}, "duration_s", "one of the two"),
        ({"kind": "noop", "duration_s": 1, "iterations": 1}, "duration_s", "one of the two"),
        ({"kind": "sleep", "iterations": 3}, "iterations", "runs no kernel"),
        ({"duration_s": -1}, "duration_s", "-1 is out of range; allowed: a number of seconds from 0"),
        ({"duration_s": INF}, "duration_s", "inf"),
        ({"duration_s": 1e12}, "duration_s", "to 1000000000"),
        ({"duration_s": "2"}, "duration_s", "'2' is not a number"),
        ({"duration_s": True}, "duration_s", "True is not a number"),
        ({"duration_s": np.bool_(True)}, "duration_s", "is not a number"),
        ({"duration_s": 1j}, "duration_s", "is not a number"),
        ({"duration_s": np.array([1.0, 2.0])}, "duration_s", "is not a number"),
        ({"iterations": 0}, "iterations", "from 1"),
        ({"iterations": 1.5}, "iterations", "1.5 is not a whole number"),
        ({"submit_s": -0.1} | WORK, "submit_s", "-0.1"),
        ({"submit_s": 1e10} | WORK, "submit_s", "10000000000"),
        ({"kind": "linaer"} | WORK, "kind", "Did you mean 'linear'?"),
        ({"kind": 1} | WORK, "kind", "allowed: linear, mlp"),
        ({"input_size": 0} | WORK, "input_size", "from 1 to 1048576"),
        ({"input_size": 2**20 + 1} | WORK, "input_size", "1048577"),
        ({"input_size": 1024.5} | WORK, "input_size", "whole number"),
        ({"output_size": -1} | WORK, "output_size", "-1"),
        ({"batch": 0} | WORK, "batch", "0"),
        ({"memory_bytes": -1} | WORK, "memory_bytes", "-1"),
        ({"memory_bytes": 2**60} | WORK, "memory_bytes", "bytes"),
        ({"priority": "urgent"} | WORK, "priority", "high, normal, low"),
        ({"priority": "hihg"} | WORK, "priority", "Did you mean 'high'?"),
        ({"priority": 0} | WORK, "priority", "0 is not known"),
        ({"timeout_s": 0} | WORK, "timeout_s", "above 0"),
        ({"retry_count": -1} | WORK, "retry_count", "-1"),
        ({"gpu_id": -1} | WORK, "gpu_id", "-1"),
        ({"gpu_id": "0"} | WORK, "gpu_id", "'0'"),
        ({"strategy": ""} | WORK, "strategy", "text that is not blank"),
        ({"strategy": 3} | WORK, "strategy", "3"),
        ({"submit_s": 5, "cancel_s": 4.9} | WORK, "cancel_s", "4.9 is before submit_s 5"),
        ({"cancel_s": -1} | WORK, "cancel_s", "-1"),
        ({"items": 0} | WORK, "items", "from 1"),
        ({"items": 2.5} | WORK, "items", "2.5"),
        ({"dtype": "fp64"} | WORK, "dtype", "allowed: fp32, tf32, fp16, bf16"),
        ({"dtype": "tf32", "kind": "attention"} | WORK, "dtype", "tf32 with kind 'attention'; allowed: fp32, fp16"),
        ({"dtype": "bf16", "kind": "transfer"} | WORK, "dtype", "allowed: fp32"),
        ({"output_size": 100, "kind": "attention"} | WORK, "output_size", "allowed: multiples of 64"),
        ({"kind": "call"}, "call", "missing, and 'call' must say what to run"),
        ({"args": {"n": 1}} | WORK, "args", "given without call; allowed: together with call"),
        ({"call": "jobs:f", "kind": "sleep"} | WORK, "call", "given with kind 'sleep'"),
        ({"call": "jobs:f", "iterations": 3}, "iterations", "'call' runs no kernel"),
        ({"call": "jobs.f"}, "call", "'jobs.f' is no import path; allowed: the import path of a function"),
        ({"call": "jobs:"}, "call", "no import path"),
        ({"call": ":f"}, "call", "no import path"),
        ({"call": "my jobs:f"}, "call", "no import path"),
        ({"call": "jobs:f()"}, "call", "no import path"),
        ({"call": 3}, "call", "3 is no import path"),
        ({"call": "__main__:f"}, "call", "lives in __main__ (a notebook or a script), which a worker process cannot"),
        ({"call": lambda task: None}, "call", "is made inside a function"),
        ({"call": "jobs:f", "args": [1]}, "args", "[1] is no mapping"),
        ({"call": "jobs:f", "args": "n=1"}, "args", "'n=1' is not JSON"),
        ({"call": "jobs:f", "args": {1: 1}}, "args", "1 is no name of an argument"),
        ({"call": "jobs:f", "args": {"two words": 1}}, "args", "'two words' is no name of an argument"),
        ({"call": "jobs:f", "args": {"n": NAN}}, "args", "n: nan (float) is no JSON value"),
        ({"call": "jobs:f", "args": {"n": [{"a": np.float32(1)}]}}, "args", "n[0].a: "),
        ({"call": "jobs:f", "args": {"n": {1: 2}}}, "args", "n: {1: 2} (dict) is no JSON value"),
        ({"call": "jobs:f", "args": {"n": "x" * 70_000}}, "args", "characters of JSON; allowed: up to 65536"),
    ],
)
def test_a_bad_record_is_refused_with_position_field_value_and_what_is_allowed(
    record: dict[str, Any], field: str, part: str
) -> None:
    with pytest.raises(WorkloadError) as caught:
        Workload.from_records([WORK, WORK, record])
    assert str(caught.value).startswith(f"record 2: {field}: ")
    assert "; allowed: " in str(caught.value)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("record", "part"),
    [
        ({"durration_s": 1}, "unknown field 'durration_s'; allowed: submit_s, kind"),
        ({"durration_s": None}, "Did you mean 'duration_s'?"),
        ({1: 1}, "unknown field 1"),
        (3, "3 is not a record"),
        ("text", "'text' is not a record"),
        (None, "null is not a record"),
    ],
)
def test_what_is_no_record_is_refused(record: Any, part: str) -> None:
    with pytest.raises(WorkloadError, match=r"^record 1: ") as caught:
        Workload.from_records([WORK, record])
    assert part in str(caught.value)


@pytest.mark.parametrize("records", [None, 3, "text", {"duration_s": 1}])
def test_what_is_no_list_of_records_is_refused(records: Any) -> None:
    with pytest.raises(WorkloadError, match="is not a list of records; allowed: a list of mappings"):
        Workload.from_records(records)


def test_cancelling_at_the_moment_of_submission_is_allowed() -> None:
    assert only({"submit_s": 5, "cancel_s": 5} | WORK).cancel_s == 5.0


# Functions and number formats


def test_an_import_path_as_kind_is_a_call_and_formats_have_torchs_names_too() -> None:
    assert only({"kind": "pack.jobs:go", "args": {"n": 1}}) == only({"call": "pack.jobs:go", "args": {"n": 1}})
    assert only({"kind": "pack.jobs:go"}).kind == "call"
    for name, ours in {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "tf32": "tf32"}.items():
        assert only({"dtype": name, "duration_s": 1}).dtype == ours
    with pytest.raises(WorkloadError, match="kind: '__main__:go' lives in __main__"):
        Workload.from_records([{"kind": "__main__:go"}])
    with pytest.raises(WorkloadError, match="dtype: 'int8' is not known; allowed: fp32, tf32, fp16, bf16"):
        Workload.from_records([{"dtype": "int8", "duration_s": 1}])


def test_a_call_is_a_kind_of_its_own_with_arguments_as_equal_text() -> None:
    spec = only({"call": "pack.jobs:Trainer.go", "args": {"steps": 3, "at": [1, 2.5]}, "duration_s": 5})
    assert spec == TaskSpec(kind="call", duration_s=5.0, call=Call("pack.jobs:Trainer.go", '{"at":[1,2.5],"steps":3}'))
    assert only({"kind": "call", "call": "jobs:f", "args": '{"n": 1}'}).call == Call("jobs:f", '{"n":1}')
    without = only({"call": "jobs:f"})
    assert (without.call, without.duration_s) == (Call("jobs:f", "{}"), None)  # as long as it takes


def test_a_function_itself_stands_for_its_import_path() -> None:
    assert only({"call": csv.reader}).call == Call("_csv:reader")
    assert only({"call": json.JSONEncoder.encode}).call == Call("json.encoder:JSONEncoder.encode")


def test_a_number_format_is_taken(tmp_path: Path) -> None:
    assert only({"dtype": "bf16"} | WORK).dtype == "bf16"
    assert only(WORK).dtype == "fp32"
    text = 'call,args,dtype,duration_s\njobs:f,"{""n"": 1}",,2\n,,tf32,1\n'
    assert Workload.from_csv(csv_file(tmp_path, text)).specs == (
        TaskSpec(kind="call", call=Call("jobs:f", '{"n":1}'), duration_s=2.0),
        TaskSpec(dtype="tf32", duration_s=1.0),
    )


# Batches


def sizes(tasks: Iterable[TaskSpec]) -> list[tuple[str | None, float | None]]:
    return [(task.batch_id, task.duration_s) for task in tasks]


def test_a_batch_is_cut_into_pieces_of_at_most_batch_size_items() -> None:
    workload = Workload.from_records([{"duration_s": 0.5, "items": 20, "priority": "high"}])
    tasks = workload.tasks(8)
    assert sizes(tasks) == [("batch-0000", 4.0), ("batch-0000", 4.0), ("batch-0000", 2.0)]
    assert {task.priority for task in tasks} == {"high"}
    assert len(workload.tasks(20)) == len(workload.tasks(100)) == 1
    assert len(workload.tasks(1)) == 20


def test_a_piece_runs_its_items_iterations() -> None:
    assert [task.iterations for task in Workload.from_records([{"iterations": 3, "items": 5}]).tasks(2)] == [6, 6, 3]


def test_batches_are_numbered_by_submission_and_single_tasks_keep_their_place() -> None:
    workload = Workload.from_records(
        [
            {"submit_s": 2, "duration_s": 1, "items": 2},
            {"submit_s": 1, "duration_s": 10},
            {"submit_s": 0, "duration_s": 2, "items": 3},
            {"submit_s": 0, "duration_s": 7, "items": 1},
        ]
    )
    assert sizes(workload.tasks(2)) == [
        ("batch-0000", 4.0),
        ("batch-0000", 2.0),
        (None, 7.0),
        (None, 10.0),
        ("batch-0001", 2.0),
    ]


# CSV


def csv_file(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "jobs.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_csv_file_gives_the_same_as_its_records(tmp_path: Path) -> None:
    text = (
        "\ufeffsubmit_s, duration_s,iterations,kind,priority,gpu_id,strategy,items\r\n"
        "1.5,2,,,high,0,random,\r\n"
        "\r\n"
        "0,,10, linear ,,,,\r\n"
        ',1e1,,"sleep",,,,3\r\n'
    )
    records = [
        {"submit_s": 1.5, "duration_s": 2, "priority": "high", "gpu_id": 0, "strategy": "random"},
        {"submit_s": 0, "iterations": 10},
        {"duration_s": 10, "kind": "sleep", "items": 3},
    ]
    assert Workload.from_csv(csv_file(tmp_path, text)) == Workload.from_records(records)
    assert Workload.from_csv(str(csv_file(tmp_path, text))).items == {1: 3}


@pytest.mark.parametrize(
    ("text", "where", "part"),
    [
        ("duration_s\n1\nabc\n", "row 3: column duration_s: ", "'abc' is not a number; allowed: a number of seconds"),
        ("duration_s\n1\n\n\n-5\n", "row 5: column duration_s: ", "-5 is out of range; allowed: "),
        ('strategy,duration_s\n"a\nb",1\nx,inf\n', "row 4: column duration_s: ", "inf"),
        ("duration_s\nnan\n", "row 2: column duration_s: ", "'nan' is not a number; allowed: "),
        ("duration_s\n1\n2\n3 s\n", "row 4: column duration_s: ", "'3 s'"),
        ("duration_s,gpu_id\n1,1.5\n", "row 2: column gpu_id: ", "1.5 is not a whole number"),
        ("duration_s,kind\n1,linaer\n", "row 2: column kind: ", "Did you mean 'linear'?"),
        ("duration_s,priority\n1,HIGH\n", "row 2: column priority: ", "Did you mean 'high'?"),
        ("submit_s\n1\n", "row 2: column duration_s: ", "missing"),
        ("submit_s,duration_s,cancel_s\n5,1,4\n", "row 2: column cancel_s: ", "4 is before submit_s 5"),
        ("duration_s,gpu_id\n1\n", "row 2: ", "1 cells; allowed: 2"),
        ("duration_s,gpu_id\n1,2,3\n", "row 2: ", "3 cells; allowed: 2"),
        ("durations_s\n1\n", "row 1: ", "unknown column 'durations_s' (number 1); allowed: submit_s"),
        ("durations_s\n1\n", "row 1: ", "Did you mean 'duration_s'?"),
        ("submit_s;duration_s\n1;2\n", "row 1: ", "separated by commas"),
        ("duration_s,\n1,\n", "row 1: ", "unknown column ''"),
        ("duration_s,duration_s\n1,1\n", "row 1: ", "column duration_s stands there twice"),
        ('duration_s,kind\n1,"linear\n', "row 2: ", "not usable CSV"),
    ],
)
def test_a_bad_row_is_named_with_file_row_column_value_and_what_is_allowed(
    tmp_path: Path, text: str, where: str, part: str
) -> None:
    path = csv_file(tmp_path, text)
    with pytest.raises(WorkloadError) as caught:
        Workload.from_csv(path)
    assert str(caught.value).startswith(f"{path}, {where}")
    assert part in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"\n\n", b" , \n"])
def test_a_file_without_a_header_is_refused(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(WorkloadError, match="is empty; allowed: a header row"):
        Workload.from_csv(csv_file(tmp_path, text))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path, part in (
        (tmp_path / "absent.csv", "no such file"),
        (tmp_path, "is a directory"),
        (csv_file(tmp_path, b"duration_s\n\xff\n"), "is not UTF-8"),
    ):
        with pytest.raises(WorkloadError, match=part) as caught:
            Workload.from_csv(path)
        assert str(path) in str(caught.value)


# Generators


def test_poisson_gives_the_same_tasks_for_the_same_seed_only() -> None:
    first = Workload.poisson(10, 100, seed=1, duration_mean_s=2)
    assert first == Workload.poisson(10, 100, seed=1, duration_mean_s=2)
    assert first != Workload.poisson(10, 100, seed=2, duration_mean_s=2)


def test_poisson_arrivals_and_durations_have_the_asked_means() -> None:
    specs = Workload.poisson(5, 20_000, seed=3, duration_mean_s=0.5).specs
    gaps = np.diff([0.0, *(spec.submit_s for spec in specs)])
    assert len(specs) == 20_000
    assert gaps.mean() == pytest.approx(1 / 5, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 5, rel=0.03)
    assert np.mean([spec.duration_s for spec in specs if spec.duration_s]) == pytest.approx(0.5, rel=0.03)


def test_poisson_fills_a_span() -> None:
    specs = Workload.poisson(5, span_s=1000, seed=3, duration_s=1).specs
    assert specs[0].submit_s >= 0
    assert specs[-1].submit_s <= 1000
    assert len(specs) == pytest.approx(5000, rel=0.05)


def test_poisson_draws_a_field_given_as_a_list_and_leaves_the_arrivals_alone() -> None:
    plain = Workload.poisson(5, 300, duration_s=1).specs
    mixed = Workload.poisson(5, 300, duration_s=1, priority=["high", "low"], input_size=(8, 16)).specs
    assert [spec.submit_s for spec in plain] == [spec.submit_s for spec in mixed]
    assert {(spec.priority, spec.input_size) for spec in mixed} == {
        ("high", 8),
        ("high", 16),
        ("low", 8),
        ("low", 16),
    }


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"rate_per_s": 0, "count": 1, "duration_s": 1}, "rate_per_s: 0"),
        ({"rate_per_s": NAN, "count": 1, "duration_s": 1}, "rate_per_s: nan"),
        ({"rate_per_s": 1, "count": -1, "duration_s": 1}, "count: -1"),
        ({"rate_per_s": 1, "count": 10**9, "duration_s": 1}, "count: 1000000000"),
        ({"rate_per_s": 1, "duration_s": 1}, "either count or span_s"),
        ({"rate_per_s": 1, "count": 1, "span_s": 1, "duration_s": 1}, "either count or span_s"),
        ({"rate_per_s": 1, "span_s": -1, "duration_s": 1}, "span_s: -1"),
        ({"rate_per_s": 1e6, "span_s": 1e6, "duration_s": 1}, "at most 10000000 tasks"),
        ({"rate_per_s": 1, "count": 1, "duration_mean_s": 0}, "duration_mean_s: 0"),
        ({"rate_per_s": 1, "count": 1, "duration_mean_s": 1, "duration_s": 1}, "duration_mean_s"),
        ({"rate_per_s": 1, "count": 1, "duration_s": 1, "seed": -1}, "seed: -1"),
        ({"rate_per_s": 1, "count": 1, "durations": 1}, "unknown field 'durations'"),
        ({"rate_per_s": 1, "count": 1, "duration_s": 1, "priority": "urgent"}, "priority"),
    ],
)
def test_bad_arguments_of_poisson_are_refused(arguments: dict[str, Any], part: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        Workload.poisson(**arguments)
    assert part in str(caught.value)


def test_uniform_spaces_equal_tasks_evenly() -> None:
    specs = Workload.uniform(3, interval_s=0.5, start_s=1, iterations=7, priority="low").specs
    assert [(spec.submit_s, spec.iterations, spec.priority) for spec in specs] == [
        (1.0, 7.0, "low"),
        (1.5, 7.0, "low"),
        (2.0, 7.0, "low"),
    ]
    assert {spec.submit_s for spec in Workload.uniform(5, duration_s=1).specs} == {0.0}
    with pytest.raises(WorkloadError, match="count: -1"):
        Workload.uniform(-1, duration_s=1)


# Size


def test_a_task_is_small_and_shares_what_is_equal(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "duration_s,kind,priority,strategy\n" + "2.5,sleep,high,random\n" * 100)
    specs = Workload.from_csv(path).specs
    assert not hasattr(specs[0], "__dict__")
    assert sys.getsizeof(specs[0]) <= 176
    for field in ("kind", "priority", "duration_s", "submit_s"):
        assert len({id(getattr(spec, field)) for spec in specs}) == 1, field
