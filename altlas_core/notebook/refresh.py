"""Executes the notebooks in place and stores the outputs that are committed, and that nbval compares."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, Final

NOTEBOOKS: Final = Path(__file__).resolve().parents[2] / "notebooks"


def refresh(paths: Iterable[Path]) -> None:
    """Execute notebooks in place on the default machine; nothing of this computer or moment is kept in them."""
    import os

    nbformat: Any = import_module("nbformat")
    client: Any = import_module("nbclient").NotebookClient

    for name in [name for name in os.environ if name.startswith("ALTLAS_")]:
        del os.environ[name]
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        client(notebook, kernel_name="python3", record_timing=False).execute()
        _tidy(notebook)
        nbformat.write(notebook, path)


def _tidy(notebook: Any) -> None:
    """Metadata that say where and when go; cell ids are by position, so that they stay."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for position, cell in enumerate(notebook.cells):
        cell.id = f"cell-{position:02d}"
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}


def main(arguments: list[str]) -> int:
    """`--refresh [FILE ...]`: without files, all of notebooks/."""
    if arguments[:1] != ["--refresh"]:
        sys.stderr.write("usage: python -m altlas_core.notebook --refresh [FILE ...]\n")
        return 2
    refresh([Path(name) for name in arguments[1:]] or sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")))
    return 0
