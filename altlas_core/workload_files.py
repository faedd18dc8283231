"""Workload files of every format as records, each with its place in the file; what is wrong with a file, in a line.

The ending tells the format: CSV (.csv), Parquet (.parquet, .pq) or JSON lines (.jsonl, .ndjson).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from altlas_core import workload_csv, workload_jsonl, workload_parquet
from altlas_core.errors import WorkloadError, nearest
from altlas_core.rules import Rule

if TYPE_CHECKING:
    from pathlib import Path

Rows = Iterator[tuple[int, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Format:
    """`noun`: what such a file is called. `place`: what stands before the number of a record, and before its field."""

    noun: str
    endings: tuple[str, ...]
    place: tuple[str, str]
    read: Callable[[Path, Mapping[str, Rule]], Rows]


CSV: Final = Format("a CSV file with a header row", (".csv",), ("row", "column "), workload_csv.read_rows)
PARQUET: Final = Format("a Parquet file", (".parquet", ".pq"), ("row", "column "), workload_parquet.read_rows)
JSON_LINES: Final = Format(
    "a file with one JSON object a line", (".jsonl", ".ndjson"), ("line", ""), workload_jsonl.read_rows
)
FORMATS: Final = {ending: each for each in (CSV, PARQUET, JSON_LINES) for ending in each.endings}


def format_of(path: Path) -> Format:
    """By the ending of its name. Raises WorkloadError."""
    ending = path.suffix.lower()
    if ending not in FORMATS:
        told = f"ends in '{ending}'" if ending else "has no ending"
        raise WorkloadError(f"{path}: {told}; allowed: {', '.join(FORMATS)}.{nearest(ending, FORMATS)}")
    return FORMATS[ending]


def read(path: Path, file_format: Format, columns: Mapping[str, Rule]) -> Rows:
    """(place in the file, record) of each record; the fields' values are checked by whoever reads them.

    Raises WorkloadError where the file cannot be read, is not of this format, or has a column that is none.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise WorkloadError(f"{path}: is no regular file. Give {file_format.noun}.")
    try:
        yield from file_format.read(path, columns)
    except FileNotFoundError:
        raise WorkloadError(f"{path}: no such file. Give {file_format.noun}.") from None
    except IsADirectoryError:
        raise WorkloadError(f"{path}: is a directory. Give {file_format.noun}.") from None
    except UnicodeDecodeError as error:
        raise WorkloadError(f"{path}: is not UTF-8 text ({error.reason}). Save it as UTF-8.") from None
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read: {error.strerror or error}.") from None
