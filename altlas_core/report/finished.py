"""A run that has ended, read back from its folder: what it was asked, what it measured, what its notebooks drew."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from altlas_core.errors import ConfigError
from altlas_core.report.cells import FIGURE_MIME, LEFT_OUT_TAG
from altlas_core.report.environment import flat
from altlas_core.report.files import RAN_TO_ITS_END
from altlas_core.report.folder import RESULTS
from altlas_core.report.history import EarlierRun, earlier_run
from altlas_core.report.resume import SavedRun, read_request

Figure = Mapping[str, Any]
BROKE: Final = "broke"


@dataclass(eq=False)
class FinishedRun:
    """`results` is what results.json holds, `told` the same in a few words; `saved` None where it is not known what the
    run was asked."""

    folder: Path
    results: Mapping[str, Any]
    told: EarlierRun
    saved: SavedRun | None

    @property
    def run_id(self) -> str:
        return self.told.run_id

    @property
    def scenarios(self) -> Mapping[str, Mapping[str, Any]]:
        scenarios: Mapping[str, Mapping[str, Any]] = self.results["scenarios"]
        return scenarios

    @cached_property
    def settings(self) -> dict[str, Any] | None:
        """By dotted key; None where they are not known."""
        return None if self.saved is None else flat(self.saved.settings)

    def status(self, scenario: str) -> str | None:
        """passed, failed or broke; None where the run has no such scenario."""
        entry = self.scenarios.get(scenario)
        if entry is None:
            return None
        if any(check["name"] == RAN_TO_ITS_END for check in entry["checks"]):
            return BROKE
        return "passed" if entry["passed"] else "failed"

    def figures(self, scenario: str) -> list[Figure]:
        """What the scenario's notebook drew, in its order. Nothing where there is no notebook that can be read."""
        try:
            notebook = json.loads((self.folder / f"{scenario}.ipynb").read_text(encoding="utf-8"))
            return list(_figures(notebook))
        except (OSError, ValueError, AttributeError, TypeError):
            return []


def read_run(folder: Path) -> FinishedRun:
    """Raises ConfigError where results.json cannot be used, or the run has not ended."""
    path = folder / RESULTS
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        told = earlier_run(results)
        _look_through(results["scenarios"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be used: {type(error).__name__}: {error}; give another run") from None
    if not told.scenarios:
        raise ConfigError(f"{told.run_id} has no scenario that has ended, so there is nothing to compare")
    try:
        saved = read_request(folder)
    except ConfigError:
        saved = None
    return FinishedRun(folder, results, told, saved)


def _look_through(scenarios: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise KeyError or TypeError where a scenario lacks what will be asked of it."""
    for entry in scenarios.values():
        for name in ("passed", "provenance", "metrics"):
            entry[name]
        for check in entry["checks"]:
            for name in ("name", "passed", "expected", "observed"):
                check[name]


def _figures(notebook: Mapping[str, Any]) -> Iterator[Figure]:
    for cell in notebook.get("cells", []):
        if LEFT_OUT_TAG in cell.get("metadata", {}).get("tags", []):
            continue
        for output in cell.get("outputs", []):
            figure = output.get("data", {}).get(FIGURE_MIME)
            if isinstance(figure, Mapping):
                yield figure
