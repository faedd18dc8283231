"""`papermill --help-notebook` tells type and meaning of every parameter; 00_start_here is as tidy as the scenarios'."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from altlas_core.notebook import display, parameters
from altlas_core.notebook.refresh import NOTEBOOKS

PATHS = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
TOUR = NOTEBOOKS / "00_start_here.ipynb"
IGNORED = "nbval-ignore-output"  # what is in this computer, or what real devices did


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["cells"]
    return found


def test_there_are_notebooks_and_the_tour_is_the_first() -> None:
    assert PATHS[0] == TOUR
    assert len(PATHS) == 8


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_parameter_has_a_type_and_a_meaning(path: Path) -> None:
    from papermill.inspection import inspect_notebook

    found = inspect_notebook(str(path))
    assert found
    for name, told in found.items():
        assert name in parameters.PARAMETERS
        assert told["inferred_type_name"] in ("str", "int", "float", "dict"), name
        assert len(told["help"]) > 15, name


def test_the_tour_shows_figures_and_no_error() -> None:
    code = [cell for cell in cells(TOUR) if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum(display.FIGURE_MIME in output.get("data", {}) for output in outputs) >= 6
    assert all(cell["outputs"] for cell in code if "parameters" not in cell["metadata"].get("tags", []))


def test_the_tour_is_ten_minutes_of_short_cells() -> None:
    code = ["".join(cell["source"]) for cell in cells(TOUR) if cell["cell_type"] == "code"]
    assert max(source.count("\n") + 1 for source in code) <= 14
    words = sum(len("".join(cell["source"]).split()) for cell in cells(TOUR))
    assert words < 1500  # at 150 words a minute


def test_what_nbval_compares_of_the_tour_holds_nothing_of_a_computer() -> None:
    compared = [cell for cell in cells(TOUR) if IGNORED not in cell["metadata"].get("tags", [])]
    text = json.dumps(compared)
    for pattern in (r"/(home|root|work|tmp|usr)/", r"\b20\d\d-\d\d-\d\d", r"0x[0-9a-f]{8}"):
        assert not re.search(pattern, text), pattern
    assert [cell["id"] for cell in cells(TOUR)] == [f"cell-{i:02d}" for i in range(len(cells(TOUR)))]
    assert sum(IGNORED in cell["metadata"].get("tags", []) for cell in cells(TOUR)) == 2
