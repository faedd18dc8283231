"""How notebooks show figures and tables: JupyterLab and the reports draw both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from altlas_core.model import Check

if TYPE_CHECKING:
    import pandas as pd

FIGURE_MIME: Final = "application/vnd.plotly.v1+json"
# No button offers to upload a figure.
STAYS_HERE: Final = {"displaylogo": False, "showSendToCloud": False, "plotlyServerURL": ""}
MOST_ROWS: Final = 24


def show(figure: Mapping[str, Any]) -> None:
    """Show a figure of altlas_core.figures: JupyterLab and the reports draw it with plotly.js."""
    title = str(figure["layout"]["title"]["text"]).replace("<br>", " ")
    display({FIGURE_MIME: {**figure, "config": STAYS_HERE}, "text/plain": f"Figure: {title}"})


def show_table(frame: pd.DataFrame, most_rows: int = MOST_ROWS) -> None:
    """Show a table, numbers in few digits, at most `most_rows` rows; the last line says how many there are."""
    cut = frame.head(most_rows)
    rows = [[cell_text(value) for value in row] for row in cut.itertuples(index=False)]
    head = "".join(f"<th>{escape(str(name))}</th>" for name in frame.columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    more = f"first {len(cut):,} of {len(frame):,} rows" if len(cut) < len(frame) else ""
    note = f"<p>{more}</p>" if more else ""
    html = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>{note}"
    display({"text/html": html, "text/plain": _plain([list(map(str, frame.columns)), *rows], more)})


def show_checks(checks: Sequence[Check]) -> None:
    """Show every check, those that failed first."""
    import pandas as pd

    ordered = sorted(checks, key=lambda check: check.passed)
    show_table(
        pd.DataFrame(
            {
                "": ["✔" if check.passed else "✘ failed" for check in ordered],
                "check": [check.name for check in ordered],
                "expected": [check.expected for check in ordered],
                "observed": [check.observed for check in ordered],
            }
        ),
        most_rows=len(ordered),
    )


def cell_text(value: Any) -> str:
    """Five significant digits at most; what is missing is N/A, never 0."""
    if isinstance(value, str):
        return value
    if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:
        return "N/A"
    if isinstance(value, float):
        if abs(value) >= 100_000:
            return f"{value:,.0f}"
        text = f"{value:.5g}"
        return f"{float(text):,.10g}" if "e" not in text else text
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _plain(rows: list[list[str]], more: str) -> str:
    if len(rows) == 1:
        return f"(no rows: {', '.join(rows[0])})"
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines + ([f"({more})"] if more else []))


def display(bundle: Mapping[str, Any]) -> None:
    """Show a MIME bundle as it is."""
    shown: Any = import_module("IPython.display").display
    shown(dict(bundle), raw=True)
