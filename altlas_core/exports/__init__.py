"""A run as files for other programs: tables as CSV or Parquet, and a trace for Perfetto or chrome://tracing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from altlas_core.config_schema import EXPORT_FORMATS
from altlas_core.errors import ConfigError, nearest
from altlas_core.exports.run import Run
from altlas_core.exports.tables import tables, write_csv, write_parquet
from altlas_core.exports.trace import write_trace

TRACE: Final = "trace.json"


def export(run: Run, folder: str | Path, formats: Iterable[str] = EXPORT_FORMATS) -> list[Path]:
    """Write a run's files into `folder`, which is made where it is not there, and return their paths.

    csv, parquet: tasks, attempts, telemetry and queue, a file each. trace: trace.json. Files of the same names are
    replaced. Raises ConfigError for an unknown format, or a folder that cannot be written.
    """
    asked = [formats] if isinstance(formats, str) else list(formats)
    for name in asked:
        if name not in EXPORT_FORMATS:
            allowed = ", ".join(EXPORT_FORMATS)
            raise ConfigError(f"export: unknown format '{name}'; allowed: {allowed}.{nearest(name, EXPORT_FORMATS)}")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        return _write(run, Path(folder), asked)
    except OSError as error:
        raise ConfigError(
            f"export: {folder} cannot be written: {error.strerror or error}; give a folder that can be, with room in it"
        ) from None


def _write(run: Run, folder: Path, formats: Iterable[str]) -> list[Path]:
    written = []
    made = tables(run) if {"csv", "parquet"} & set(formats) else {}
    for name, table in made.items():
        for ending, write in (("csv", write_csv), ("parquet", write_parquet)):
            if ending in formats:
                written.append(folder / f"{name}.{ending}")
                write(table, written[-1])
    if "trace" in formats:
        written.append(folder / TRACE)
        write_trace(run, written[-1])
    return written


def folder_name(label: str) -> str:
    """A run's label as the name of a folder, on any file system."""
    return re.sub(r"[^\w.-]+", "-", label).strip(".-") or "run"
