"""Workload files: the same tasks from CSV, Parquet and JSON lines; one clear line for whatever is wrong with one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from altlas_core import Workload
from altlas_core.errors import WorkloadError
from altlas_core.examples import mixed_jobs
from altlas_core.model import Call
from altlas_core.scenarios.given import EXAMPLE

RECORDS: list[dict[str, Any]] = [
    {"submit_s": 0.5, "duration_s": 2.0, "priority": "high", "memory_bytes": 2**30, "timeout_s": 9.0, "cancel_s": 4.0},
    {"submit_s": 0.0, "iterations": 10, "kind": "mlp", "input_size": 512, "gpu_id": 3, "strategy": "random"},
    {"call": "jobs:train", "args": {"steps": 3}, "retry_count": 0},
    {"duration_s": 1.0, "dtype": "bf16", "items": 9},
]
COLUMNS = list(dict.fromkeys(name for record in RECORDS for name in record))


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def csv_file(path: Path) -> Path:
    rows = [[record.get(name, "") for name in COLUMNS] for record in RECORDS]
    cells = [
        ['"' + json.dumps(c).replace('"', '""') + '"' if isinstance(c, dict) else str(c) for c in row] for row in rows
    ]
    return write(path, "\n".join([",".join(COLUMNS), *(",".join(row) for row in cells)]) + "\n")


def jsonl_file(path: Path) -> Path:
    return write(path, "\n\n".join(json.dumps(record) for record in RECORDS) + "\n")


def parquet_file(path: Path) -> Path:
    """As pyarrow writes records: nullable integers, args a struct."""
    columns = {name: [record.get(name) for record in RECORDS] for name in COLUMNS}
    pq.write_table(pa.table(columns), path)
    return path


def pandas_file(path: Path) -> Path:
    """As pandas writes a table: NaN for what is missing, text as categories, args as JSON text, an index of its own."""
    frame = pd.DataFrame(RECORDS, columns=COLUMNS, index=[7, 5, 3, 1])
    frame["args"] = [None if not isinstance(cell, dict) else json.dumps(cell) for cell in frame["args"]]
    frame["priority"] = frame["priority"].astype("category")
    frame.to_parquet(path)
    return path


def map_file(path: Path) -> Path:
    """args as a map, decimals for seconds."""
    columns: dict[str, Any] = {name: [record.get(name) for record in RECORDS] for name in COLUMNS}
    columns["args"] = pa.array(
        [list(c.items()) if c else None for c in columns["args"]], pa.map_(pa.string(), pa.int64())
    )
    columns["duration_s"] = pa.array(columns["duration_s"], pa.float64()).cast(pa.decimal128(9, 3))
    pq.write_table(pa.table(columns), path)
    return path


FILES: list[tuple[str, Callable[[Path], Path]]] = [
    ("a.csv", csv_file),
    ("a.jsonl", jsonl_file),
    ("a.NDJSON", jsonl_file),
    ("a.parquet", parquet_file),
    ("b.parquet", pandas_file),
    ("c.pq", map_file),
]


@pytest.mark.parametrize(("name", "make"), FILES, ids=[name for name, _ in FILES])
def test_every_format_gives_the_same_tasks(tmp_path: Path, name: str, make: Callable[[Path], Path]) -> None:
    expected = Workload.from_records(RECORDS)
    assert expected.specs[1].call == Call("jobs:train", '{"steps":3}')
    assert Workload.from_file(make(tmp_path / name)) == expected


def test_a_null_in_a_struct_was_not_given_one_in_json_was(tmp_path: Path) -> None:
    records = [{"call": "jobs:train", "args": {"steps": 3, "name": None}}, {"call": "jobs:eval", "args": {"name": "x"}}]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    assert [spec.call.arguments for spec in Workload.from_parquet(tmp_path / "a.parquet").specs if spec.call] == [
        '{"steps":3}',
        '{"name":"x"}',
    ]
    write(tmp_path / "a.jsonl", json.dumps(records[0]))
    (spec,) = Workload.from_jsonl(tmp_path / "a.jsonl").specs
    assert spec.call is not None
    assert spec.call.arguments == '{"name":null,"steps":3}'


def parquet_bytes(tmp_path: Path, table: Any) -> bytes:
    pq.write_table(table, tmp_path / "made.parquet")
    return (tmp_path / "made.parquet").read_bytes()


BAD_TEXT = [
    ("a.txt", "duration_s\n1\n", r"a\.txt: ends in '\.txt'; allowed: \.csv, \.parquet, \.pq, \.jsonl, \.ndjson"),
    ("a.json", "[]", r"ends in '\.json'.*Did you mean '\.jsonl'\?"),
    ("trace", "duration_s\n1\n", r"trace: has no ending; allowed"),
    ("a.csv", "", r"a\.csv: is empty"),
    ("a.csv", "duration_s\n", r"a\.csv: holds no task"),
    ("a.csv", b"duration_s\n\xff\n", r"a\.csv: is not UTF-8 text"),
    (
        "a.csv",
        "duration_s\n1\nx\n",
        r"a\.csv, row 3: column duration_s: 'x' is not a number; allowed: a number of seconds",
    ),
    ("a.csv", "duration_s\n1\n-1\n", r"a\.csv, row 3: column duration_s: -1 is out of range"),
    ("a.jsonl", "", r"a\.jsonl: is empty; allowed: one JSON object a line"),
    ("a.jsonl", "\n \n", r"a\.jsonl: holds no task"),
    ("a.jsonl", b'{"duration_s": 1}\n{"kind": "\xff"}', r"a\.jsonl, line 2: is not UTF-8 text"),
    ("a.jsonl", '{"duration_s": 1}\n\n{"duration_s": }', r"a\.jsonl, line 3: not usable JSON: Expecting value"),
    ("a.jsonl", "[" * 100_000, r"a\.jsonl, line 1: not usable JSON: maximum recursion"),
    ("a.jsonl", "[1]", r"a\.jsonl, line 1: \[1\] is no record; allowed: an object with submit_s"),
    ("a.jsonl", "null", r"a\.jsonl, line 1: null is no record"),
    ("a.jsonl", '{"duration_s": NaN}', r"a\.jsonl, line 1: NaN is no JSON value"),
    (
        "a.jsonl",
        '{"duration_s": 1, "duration_s": 2}',
        r"line 1: 'duration_s' stands there twice; allowed: each name once",
    ),
    ("a.jsonl", '{"duraton_s": 1}', r"line 1: unknown field 'duraton_s'.*Did you mean 'duration_s'\?"),
    ("a.jsonl", '{"duration_s": "1"}', r"line 1: duration_s: '1' is not a number; allowed: a number of seconds"),
    ("a.parquet", "", r"a\.parquet: is empty; allowed: a Parquet file"),
    ("a.parquet", "PAR1 no more", r"a\.parquet: not usable Parquet: "),
]


@pytest.mark.parametrize(
    ("name", "content", "told"), BAD_TEXT, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(BAD_TEXT)]
)
def test_a_bad_file_is_told_in_one_line(tmp_path: Path, name: str, content: str | bytes, told: str) -> None:
    with pytest.raises(WorkloadError, match=told) as caught:
        Workload.from_file(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)


ONE = {"duration_s": [1.0]}
BAD_TABLES = [
    ({"duraton_s": [1.0]}, r"unknown column 'duraton_s'.*Did you mean 'duration_s'\?"),
    ({"submit_s": pd.to_datetime(["2020-01-01"]), **ONE}, r"column submit_s: is of type timestamp"),
    ({"submit_s": pa.array([1], pa.duration("s")), **ONE}, r"column submit_s: is of type duration"),
    ({"duration_s": ["1"]}, r"column duration_s: is of type string; allowed: a column of numbers"),
    ({"gpu_id": [True], **ONE}, r"column gpu_id: is of type bool; allowed: a column of numbers, each a whole number"),
    ({"priority": [0], **ONE}, r"column priority: is of type int64; allowed: a column of text"),
    ({"args": [3], **ONE}, r"column args: is of type int64; allowed: JSON text, a struct, or a map"),
    ({"duration_s": [1.0, -2.0]}, r"row 2: column duration_s: -2 is out of range"),
    ({"duration_s": [1.0, None]}, r"row 2: column duration_s: missing"),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "told"), BAD_TABLES, ids=[str(i) for i in range(len(BAD_TABLES))])
def test_a_column_that_can_mean_nothing_is_refused_by_its_type(tmp_path: Path, columns: Any, told: str) -> None:
    path = write(tmp_path / "a.parquet", parquet_bytes(tmp_path, pa.table(columns)))
    with pytest.raises(WorkloadError, match=rf"^{re.escape(str(path))}(, |: ){told}") as caught:
        Workload.from_file(path)
    assert "\n" not in str(caught.value)


def test_a_column_given_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1.0]), pa.array([2.0])], names=["duration_s", "duration_s"])
    path = write(tmp_path / "a.parquet", parquet_bytes(tmp_path, table))
    with pytest.raises(WorkloadError, match="column duration_s stands there twice"):
        Workload.from_file(path)


def test_damage_in_the_middle_of_a_parquet_file_is_told(tmp_path: Path) -> None:
    content = bytearray(parquet_bytes(tmp_path, pa.table({"duration_s": [float(n) for n in range(5000)]})))
    content[4:64] = bytes(60)
    with pytest.raises(WorkloadError, match="not usable Parquet"):
        Workload.from_file(write(tmp_path / "a.parquet", bytes(content)))


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.jsonl"])
def test_what_is_not_there_or_no_file_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(WorkloadError, match=r"no such file\. Give a "):
        Workload.from_file(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(WorkloadError, match=r"is a directory\. Give a "):
        Workload.from_file(tmp_path / name)


def test_the_example_is_what_its_script_draws() -> None:
    assert EXAMPLE.read_text() == mixed_jobs.csv_text()
    assert len(Workload.from_file(EXAMPLE)) == 120


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(WorkloadError, match="is no regular file"):
        Workload.from_file(tmp_path / "pipe.csv")
