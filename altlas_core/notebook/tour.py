"""What notebooks without a scenario call: the settings of their parameters, and this computer's devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altlas_core.config import Settings
from altlas_core.errors import AltlasError
from altlas_core.notebook import parameters
from altlas_core.notebook.display import display
from altlas_core.notebook.session import NotebookError


def settings(namespace: Mapping[str, Any]) -> Settings:
    """The settings that a notebook's parameters ask for: see `parameters.settings`. Raises NotebookError."""
    try:
        return parameters.settings(namespace)
    except AltlasError as problem:
        raise NotebookError(str(problem)) from None


def show_machine(asked: Settings) -> None:
    """Show the devices that a run with these settings would use, and what was left out and why."""
    from altlas_core.backends.discover import discover
    from altlas_core.backends.gpus_table import render

    try:
        display({"text/plain": render(discover(asked))})
    except AltlasError as problem:
        raise NotebookError(str(problem)) from None
