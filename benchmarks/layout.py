"""Markdown tables, and numbers in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Found = dict[str, Any]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns padded to one width, so that it reads well as text too; all but the first to the right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    marks = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def text(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join([first, *rest]) + " |"

    return "\n".join([text(lines[0]), text(marks), *map(text, lines[1:])])


def between(values: Found, scale: float = 1.0, digits: int = 0) -> str:
    """median (lowest to highest)"""
    low, median, high = (f"{values[key] * scale:,.{digits}f}" for key in ("min", "median", "max"))
    return f"{median} ({low} to {high})"
