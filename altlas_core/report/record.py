"""Writes what a run leaves in its folder, so that it is whole at every moment: pages, results.json, junit.xml."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from altlas_core.config import Settings
from altlas_core.report import environment, files, folder, gates, pages
from altlas_core.report.cells import Story
from altlas_core.report.environment import MachineLike, Request
from altlas_core.report.outcome import ScenarioOutcome


class Record:
    """The folder of a run and what its pages say. `earlier_s`: real seconds it took before it was gone on with."""

    def __init__(
        self, path: Path, view: pages.RunView, settings: Settings, machine: MachineLike, request: Request
    ) -> None:
        self.path, self.view = path, view
        self.version, self.commit = environment.altlas_version(), environment.git_commit()
        self.earlier_s = 0.0
        self._settings, self._machine, self._request = settings, machine, request
        self._began_s = time.perf_counter()

    @property
    def wall_s(self) -> float:
        """Real seconds until now, or until the end."""
        if self.view.wall_s is not None:
            return self.view.wall_s
        return self.earlier_s + time.perf_counter() - self._began_s

    def put(self, outcome: ScenarioOutcome, story: Story) -> None:
        """Let this be what became of a scenario."""
        view, name = self.view, outcome.name
        view.titles[name], view.leads[name], view.findings[name] = story.title, story.lead, story.findings
        view.outcomes = [outcome if old.name == name else old for old in view.outcomes]

    def write_page(self, outcome: ScenarioOutcome, story: Story) -> None:
        command = environment.command(
            self._request, self._settings, self._machine, [outcome.name], gates.rules_about(outcome)
        )
        page = pages.scenario_page(self.view, outcome, story, command)
        folder.write_text(self.path / f"{outcome.name}.html", page)

    def write_overview(self) -> None:
        """index.html and results.json as things stand."""
        folder.write_text(self.path / "index.html", pages.index_page(self.view))
        results = json.dumps(self.results(), indent=2, allow_nan=False)
        folder.write_text(self.path / folder.RESULTS, results + "\n")

    def write_junit(self) -> None:
        junit = files.junit_xml(self.view.outcomes, self.view.run_id, self.view.started)
        folder.write_text(self.path / "junit.xml", junit)

    def results(self) -> dict[str, Any]:
        """What results.json holds."""
        view = self.view
        ended = [outcome for outcome in view.outcomes if outcome.status != "waiting"]
        return {
            "run_id": view.run_id,
            "altlas_version": self.version,
            "git_commit": self.commit,
            "seed": view.seed,
            "backend": view.backend,
            "devices": list(view.devices),
            "started_at": view.started.isoformat(timespec="seconds"),
            "wall_s": round(self.wall_s, 3),
            "passed": view.status == "passed",
            "scenarios": {outcome.name: files.scenario_json(outcome, view.provenance) for outcome in ended},
        }
