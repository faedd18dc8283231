"""Rows of a workload Parquet file as records. What a column's type can never mean is refused before any row is read."""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from altlas_core.errors import WorkloadError, nearest
from altlas_core.rules import Number, Rule, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

ROWS_AT_A_TIME: Final = 16_384
_PANDAS_INDEX: Final = re.compile(r"__index_level_\d+__")  # what pandas adds of its own


def read_rows(path: Path, columns: Mapping[str, Rule]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row from 1, record) of each row; nulls are left out. Raises WorkloadError for what is no such file, OSError as
    it comes."""
    pa: Any = import_module("pyarrow")
    parquet: Any = import_module("pyarrow.parquet")
    with path.open("rb") as raw:
        if not raw.read(1):
            raise WorkloadError(f"{path}: is empty; allowed: a Parquet file with columns among {', '.join(columns)}")
        raw.seek(0)
        try:
            file = parquet.ParquetFile(raw)
            schema = file.schema_arrow
            names = [name for name in schema.names if not _PANDAS_INDEX.fullmatch(name)]
            _check_columns(path, names, schema, columns)
            number = 0
            for batch in file.iter_batches(ROWS_AT_A_TIME, columns=names):
                lists = [_values(batch.column(name), columns[name], pa) for name in names]
                for cells in zip(*lists, strict=True):
                    number += 1
                    yield number, {name: cell for name, cell in zip(names, cells, strict=True) if cell is not None}
        except (pa.ArrowException, OSError) as problem:  # ArrowInvalid, or an OSError of pyarrow's about its content
            reason = str(problem).strip().splitlines()[0].rstrip(".") if str(problem).strip() else "damaged"
            raise WorkloadError(f"{path}: not usable Parquet: {reason}.") from None


def _check_columns(path: Path, names: list[str], schema: Any, columns: Mapping[str, Rule]) -> None:
    for name in names:
        if name not in columns:
            raise WorkloadError(
                f"{path}: unknown column {shown(name)}; allowed: {', '.join(columns)}.{nearest(name, columns)}"
            )
        if names.count(name) > 1:
            raise WorkloadError(f"{path}: column {name} stands there twice; allowed: each column once")
        kind, rule = schema.field(name).type, columns[name]
        allowed = _allowed(name, kind, rule)
        if allowed is not None:
            raise WorkloadError(f"{path}: column {name}: is of type {kind}; allowed: {allowed}")


def _allowed(name: str, kind: Any, rule: Rule) -> str | None:
    """What a column's type should be; None where it will do. A column of nothing but nulls is of no type, and will."""
    types: Any = import_module("pyarrow").types
    plain = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_null(plain):
        return None
    if isinstance(rule, Number):
        numeric = types.is_integer(plain) or types.is_floating(plain) or types.is_decimal(plain)
        return None if numeric else f"a column of numbers, each {rule.allowed}"
    text = types.is_string(plain) or types.is_large_string(plain) or types.is_string_view(plain)
    if name == "args":
        mapping = types.is_struct(plain) or types.is_map(plain)
        return None if text or mapping else "JSON text, a struct, or a map of names to values"
    return None if text else "a column of text"


def _values(column: Any, rule: Rule, pa: Any) -> list[Any]:
    """The cells as Python's own objects."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
    if pa.types.is_decimal(column.type) and isinstance(rule, Number):
        column = column.cast(pa.float64())
    cells: list[Any] = column.to_pylist()
    if pa.types.is_map(kind):
        return [None if cell is None else dict(cell) for cell in cells]
    if pa.types.is_struct(kind):  # every row of a struct has all of its fields: null means that it was not given
        return [cell and {name: value for name, value in cell.items() if value is not None} for cell in cells]
    return cells
