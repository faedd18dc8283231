"""A run's tables as CSV and Parquet. What is missing is empty, or null: never a zero."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from altlas_core.exports.run import Run, sayable

if TYPE_CHECKING:
    import pandas as pd

WORDS: Final = ("kind", "priority", "state", "error_code", "outcome", "provenance")  # columns of a few words


def tables(run: Run) -> dict[str, Any]:
    """The run's Arrow tables by name. `detail` of an attempt is JSON text, which has no infinity: that is null."""
    pa: Any = import_module("pyarrow")
    attempts = run.attempts.assign(detail=run.attempts["detail"].map(_json_text).astype("object"))
    frames = {"tasks": run.tasks, "attempts": attempts, "telemetry": run.telemetry, "queue": run.queue_depth}
    return {name: pa.Table.from_pandas(_worded(frame), preserve_index=False) for name, frame in frames.items()}


def write_parquet(table: Any, path: Path) -> None:
    import_module("pyarrow.parquet").write_table(table, path, compression="zstd")


def write_csv(table: Any, path: Path) -> None:
    """Comma, header, UTF-8; texts in quotes."""
    pa: Any = import_module("pyarrow")
    plain = pa.schema(
        [(field.name, pa.string() if pa.types.is_dictionary(field.type) else field.type) for field in table.schema]
    )
    import_module("pyarrow.csv").write_csv(table.cast(plain), path)


def _worded(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of a few words as categories, texts as such also where there is none."""
    texts = frame.astype({name: "string" for name in (*WORDS, "error", "detail") if name in frame})
    return texts.astype({name: "category" for name in WORDS if name in frame})


def _json_text(detail: dict[str, Any] | None) -> str | None:
    return None if detail is None else json.dumps(sayable(detail), sort_keys=True)
