"""Lines of a JSON lines file as records: one object a line, blank lines left out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

from altlas_core.errors import WorkloadError
from altlas_core.rules import RefusedError, Rule, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


def read_rows(path: Path, columns: Mapping[str, Rule]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line in the file, record) of each object. Raises WorkloadError for what is no such file, OSError as it comes."""
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_number)
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                record = decoder.decode(text) if text else None
            except UnicodeDecodeError as error:
                raise WorkloadError(
                    f"{path}, line {number}: is not UTF-8 text ({error.reason}). Save it as UTF-8."
                ) from None
            except RefusedError as problem:
                raise WorkloadError(f"{path}, line {number}: {problem}") from None
            except (ValueError, RecursionError) as problem:
                raise WorkloadError(f"{path}, line {number}: not usable JSON: {problem}") from None
            if not text:
                continue
            if not isinstance(record, dict):
                raise WorkloadError(
                    f"{path}, line {number}: {shown(record)} is no record; allowed: an object with {', '.join(columns)}"
                )
            yield number, record
    if not number:
        raise WorkloadError(f"{path}: is empty; allowed: one JSON object a line, with {', '.join(columns)}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object that says each thing once: which of two values was meant, nobody knows."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RefusedError(f"{shown(twice)} stands there twice; allowed: each name once")
    return made


def _no_number(text: str) -> NoReturn:
    raise RefusedError(f"{text} is no JSON value; allowed: finite numbers, or null for what is left out")
