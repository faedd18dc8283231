"""Rows of a workload CSV file as records, each with the line it stands on. Text becomes numbers here."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any, Final

from altlas_core.errors import WorkloadError, nearest
from altlas_core.rules import Number, RefusedError, Rule, shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

CACHE_SIZE: Final = 4096  # equal cells share one object; a file of different times must not fill memory


def read_rows(path: Path, columns: Mapping[str, Rule]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line in the file, record) of each row that is not blank. Empty cells are left out.

    Raises WorkloadError for what is no such file, OSError and UnicodeDecodeError as they come.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from _rows(path, csv.reader(file, strict=True), columns)


def _rows(path: Path, reader: Any, columns: Mapping[str, Rule]) -> Iterator[tuple[int, dict[str, Any]]]:
    header: list[str] = []
    cells_seen: dict[str, float] = {}
    line = 1
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                pass
            elif not header:
                header = _header(cells, columns)
            else:
                yield line, _record(header, cells, columns, cells_seen)
            line = reader.line_num + 1
    except RefusedError as problem:
        raise WorkloadError(f"{path}, row {line}: {problem}") from None
    except csv.Error as problem:
        raise WorkloadError(f"{path}, row {line}: not usable CSV: {problem}") from None
    if not header:
        raise WorkloadError(f"{path}: is empty; allowed: a header row with names among {', '.join(columns)}, then rows")


def _header(cells: list[str], columns: Collection[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    for place, name in enumerate(names, 1):
        if name not in columns:
            hint = " Columns are separated by commas." if ";" in name or "\t" in name else nearest(name, columns)
            raise RefusedError(f"unknown column {shown(name)} (number {place}); allowed: {', '.join(columns)}.{hint}")
        if names.count(name) > 1:
            raise RefusedError(f"column {name} stands there twice; allowed: each column once")
    return names


def _record(
    header: list[str], cells: list[str], columns: Mapping[str, Rule], cells_seen: dict[str, float]
) -> dict[str, Any]:
    if len(cells) != len(header):
        raise RefusedError(f"{len(cells)} cells; allowed: {len(header)}, one for each of {', '.join(header)}")
    record: dict[str, Any] = {}
    for name, cell in zip(header, cells, strict=True):
        value = cell.strip()
        rule = columns[name]
        if not value:
            continue
        if not isinstance(rule, Number):
            record[name] = value
        elif value in cells_seen:
            record[name] = cells_seen[value]
        else:
            record[name] = number = _number(name, value, rule)
            if len(cells_seen) < CACHE_SIZE:
                cells_seen[value] = number
    return record


def _number(column: str, text: str, rule: Number) -> float:
    try:
        value = int(text) if text.isdecimal() and len(text) < 20 else float(text)
        if value != value:  # NaN in a record means: left out; written into a file it is a mistake
            raise ValueError
    except ValueError:
        raise RefusedError(f"column {column}: {shown(text)} is not a number; allowed: {rule.allowed}") from None
    return value
