"""Which scenario notebooks there are, which of them a run is to execute, and which parameters each takes."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from altlas_core.config import Settings
from altlas_core.errors import ConfigError, RunError, nearest
from altlas_core.scenarios import waits_to_be_asked

_NAME = re.compile(r"(?P<number>\d\d)_(?P<scenario>[a-z][a-z0-9_]*)\.ipynb")
CHECKOUT: Final = Path(__file__).resolve().parents[2]
_TOUR = "00"  # 00_start_here and the like are for people, not part of a suite
_SECTIONS = {"gpu_detection": "detection"}  # where the name under `test` is not the scenario's


@dataclass(slots=True, frozen=True)
class Notebook:
    """A scenario's notebook: `notebooks/03_concurrent_processing.ipynb` is the scenario concurrent_processing."""

    scenario: str
    path: Path


def notebooks_dir() -> Path:
    """The folder notebooks/ beside the package, as in a checkout installed with `pip install -e .`.

    Raises RunError where it is missing: an installed package without its checkout.
    """
    folder = CHECKOUT / "notebooks"
    if not folder.is_dir():
        raise RunError(
            f"The scenario notebooks were not found in {folder}. `altlas run` needs the source checkout: "
            "run `make install` (or `pip install -e .`) there."
        )
    return folder


def find_notebooks(folder: Path) -> dict[str, Notebook]:
    """Scenario name -> notebook, in the order of the numbers in the file names."""
    found: dict[str, Notebook] = {}
    for path in sorted(folder.glob("*.ipynb")):
        match = _NAME.fullmatch(path.name)
        if match and match["number"] != _TOUR:
            found[match["scenario"]] = Notebook(match["scenario"], path)
    if not found:
        raise RunError(f"There are no scenario notebooks (NN_name.ipynb) in {folder}.")
    return found


def enabled_key(scenario: str) -> str:
    """The dotted key of the setting that switches a scenario on or off."""
    return f"test.{_SECTIONS.get(scenario, scenario)}.enabled"


def choose(found: Mapping[str, Notebook], asked: Sequence[str], settings: Settings) -> list[Notebook]:
    """The notebooks to run: those asked for, else all that are enabled (own_workload only where a workload is given).

    Raises ConfigError on one that cannot run.
    """
    switched_off = {name for name in found if not _enabled(name, settings)}
    for name in asked:
        if name not in found:
            raise ConfigError(f"Unknown scenario '{name}'.{nearest(name, found)} There are: {', '.join(found)}.")
        if name in switched_off:
            raise ConfigError(
                f"The scenario '{name}' is switched off ({enabled_key(name)}: false). "
                f"To run it: --set {enabled_key(name)}=true"
            )
    wanted = asked or [name for name in found if not waits_to_be_asked(name, settings)]
    chosen = [notebook for name, notebook in found.items() if name not in switched_off and name in wanted]
    if not chosen:
        raise ConfigError("Nothing to run: every scenario has test.<scenario>.enabled: false.")
    return chosen


def _enabled(scenario: str, settings: Settings) -> bool:
    section = getattr(settings.test, enabled_key(scenario).split(".")[1], None)
    return bool(getattr(section, "enabled", True))


def parameter_names(path: Path) -> frozenset[str]:
    """The names assigned in the cell tagged `parameters`. Raises RunError on a file that is no such notebook."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tagged = [cell for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", [])]
        tree = ast.parse("".join("".join(cell["source"]) for cell in tagged[:1]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
        raise RunError(f"{path} cannot be read as a notebook: {error}") from error
    if not tagged:
        raise RunError(f"{path} has no cell tagged 'parameters', so a run cannot hand it any.")
    assigned = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    targets = [t for node in assigned for t in (node.targets if isinstance(node, ast.Assign) else [node.target])]
    return frozenset(target.id for target in targets if isinstance(target, ast.Name))


def check_parameters(notebook: Notebook, parameters: Mapping[str, Any]) -> None:
    """Raise ConfigError where a parameter is not one of the notebook's: papermill would only warn and ignore it."""
    known = parameter_names(notebook.path)
    for name in parameters:
        if name not in known:
            raise ConfigError(
                f"{notebook.path.name} has no parameter '{name}'.{nearest(name, known)} "
                f"It has: {', '.join(sorted(known))}."
            )
