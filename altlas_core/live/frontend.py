"""Who shows what a cell makes: somebody who can watch and click, or a program that executes notebooks."""

from __future__ import annotations

import sys
from typing import Any, Protocol


class Closable(Protocol):
    def close(self) -> None: ...


_OPEN: dict[str, Closable] = {}  # by the cell that made it


def cell_id() -> str | None:
    """The cell that is being executed, where a front end has told.

    JupyterLab, Notebook and VS Code send a cell's id with every request to execute it; nbclient, papermill and nbval
    send none, nor has plain Python one.
    """
    ipython: Any = sys.modules.get("IPython")  # what runs inside it has loaded it
    kernel = getattr(ipython.get_ipython(), "kernel", None) if ipython else None
    if kernel is None:
        return None
    request = kernel.get_parent("shell") or {}
    return (request.get("metadata") or {}).get("cellId")


class CellWatch:
    """Whether the kernel is executing a cell: until it has, it takes no message from the browser."""

    def __init__(self) -> None:
        ipython: Any = sys.modules.get("IPython")
        shell = ipython.get_ipython() if ipython else None
        self._events = getattr(shell, "events", None)
        self.busy = self._events is not None  # with the cell that makes this
        if self._events is not None:
            self._events.register("pre_run_cell", self._begins)
            self._events.register("post_run_cell", self._ends)

    def _begins(self, _info: Any) -> None:
        self.busy = True

    def _ends(self, _result: Any) -> None:
        self.busy = False

    def close(self) -> None:
        events, self._events = self._events, None
        if events is not None:
            events.unregister("pre_run_cell", self._begins)
            events.unregister("post_run_cell", self._ends)


def take_over(cell: str | None, newest: Closable) -> None:
    """Close what this cell made before: its output has just been replaced, and nobody could see or stop it."""
    if cell is None:
        return
    if cell in _OPEN:
        _OPEN[cell].close()
    _OPEN[cell] = newest
