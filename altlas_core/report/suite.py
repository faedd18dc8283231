"""Runs the notebooks of a suite side by side and writes reports/<run>/ as they end.

The folder is whole at every moment: index.html and results.json stand there from the start and grow.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from altlas_core.config import Settings
from altlas_core.report import environment, files, folder, notebooks, pages
from altlas_core.report.cells import Story, read_story
from altlas_core.report.environment import MachineLike, Request
from altlas_core.report.execute import Execution, execute, kill_kernels, prepare
from altlas_core.report.notebooks import Notebook
from altlas_core.report.numbers import humanize, value_text
from altlas_core.report.outcome import ScenarioOutcome, read_outcome
from altlas_core.report.progress import Progress, Silent

EXIT_STATUS: Final = {"passed": 0, "failed": 1, "broke": 3, "waiting": 3}
CUT_OFF: Final = "the run was interrupted before this scenario ended"


@dataclass(slots=True)
class RunOutcome:
    """A finished (or interrupted) run. `results` is what results.json holds; `notes` are for a person to read."""

    folder: Path
    status: str
    scenarios: Sequence[ScenarioOutcome]
    results: dict[str, Any]
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        return EXIT_STATUS[self.status]

    @property
    def index(self) -> Path:
        return self.folder / "index.html"


def run_suite(
    settings: Settings,
    machine: MachineLike,
    chosen: Sequence[Notebook],
    reports_dir: Path,
    request: Request | None = None,
    progress: Progress | None = None,
) -> RunOutcome:
    """Execute the chosen notebooks and write their reports.

    Raises ConfigError, before anything starts, where a notebook does not take the run's parameters or the reports
    folder cannot be written. Whatever a notebook does afterwards ends up in its page.
    """
    suite = _Suite(settings, machine, chosen, reports_dir, request or Request(), progress or Silent())
    return suite.run()


def notebook_parameters(
    settings: Settings, machine: MachineLike, request: Request, out_dir: Path | None
) -> dict[str, Any]:
    """What every scenario notebook is handed (see its cell tagged `parameters`).

    The backend is the one that was found once for the whole run, so that all scenarios run on the same machine.
    """
    own = {"gpu.backend", "gpu.devices", "seed", "run.time_scale", "run.pace"}
    return {
        "config": None if request.config_path is None else str(request.config_path.resolve()),
        "backend": environment.backend_setting(machine),
        "devices": list(settings.gpu.devices) or None,
        "seed": settings.seed,
        "time_scale": settings.run.time_scale,
        "pace": settings.run.pace,
        "overrides": {name: value for name, value in request.overrides.items() if name not in own},
        "out_dir": None if out_dir is None else str(out_dir),
    }


class _Suite:
    def __init__(
        self,
        settings: Settings,
        machine: MachineLike,
        chosen: Sequence[Notebook],
        reports_dir: Path,
        request: Request,
        progress: Progress,
    ) -> None:
        self.settings, self.machine, self.request, self.progress = settings, machine, request, progress
        self.chosen = {notebook.scenario: notebook for notebook in chosen}
        for notebook in chosen:
            notebooks.check_parameters(notebook, notebook_parameters(settings, machine, request, None))
        self.began = time.perf_counter()
        started = datetime.now(UTC)
        self.folder = folder.create_run_folder(reports_dir.absolute(), started)
        self.parameters = notebook_parameters(settings, machine, request, self.folder)
        self.stories: dict[str, Story] = {}
        self.notes: list[str] = []
        self.version, self.commit = environment.altlas_version(), environment.git_commit()
        self.view = pages.RunView(
            run_id=self.folder.name,
            started=started,
            seed=settings.seed,
            backend=machine.backend,
            provenance=machine.provenance,
            devices=environment.device_specs(settings, machine),
            facts=environment.facts(machine),
            settings=[(name, value_text(value)) for name, value in environment.changed_settings(settings).items()],
            command=environment.command(request, settings, machine, self._asked()),
            time_scale=settings.run.time_scale,
            pace=settings.run.pace,
            outcomes=[ScenarioOutcome(name) for name in self.chosen],
        )

    def run(self) -> RunOutcome:
        folder.copy_assets(self.folder)
        self._write_overview()
        self.progress.opened(self._title(), list(self.chosen))
        interrupted = False
        try:
            for name, execution in self._executions():
                self._take(name, execution)
        except KeyboardInterrupt:
            interrupted = True
            self._cut_off()
        finally:
            self.progress.closed()
        return self._finish(interrupted)

    def _asked(self) -> list[str]:
        """The scenarios to name in the command that repeats the run: none where it is simply all that are enabled."""
        found = notebooks.find_notebooks(next(iter(self.chosen.values())).path.parent)
        return [] if notebooks.choose(found, [], self.settings) == list(self.chosen.values()) else list(self.chosen)

    def _title(self) -> str:
        view = self.view
        return f"{view.run_id}: {view.backend}, {', '.join(view.devices)}, seed {view.seed}"

    def _jobs(self) -> int:
        """Real devices are used by one scenario at a time: two would measure each other."""
        side_by_side = self.machine.provenance == "simulated" and self.settings.run.pace == 0
        return min(environment.usable_cores(), len(self.chosen)) if side_by_side else 1

    def _executions(self) -> Iterator[tuple[str, Execution]]:
        """Scenario and execution, in the order in which they end."""
        prepare()
        pool = ThreadPoolExecutor(self._jobs(), thread_name_prefix="notebook")
        try:
            futures: dict[Future[Execution], str] = {pool.submit(self._execute, name): name for name in self.chosen}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            kill_kernels()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _execute(self, name: str) -> Execution:
        self.progress.started(name)
        return execute(self.chosen[name].path, self.folder / f"{name}.ipynb", self.parameters)

    def _take(self, name: str, execution: Execution) -> None:
        """Judge an executed notebook and write its page; bring index and results up to date."""
        notebook = _read_notebook(self.folder / f"{name}.ipynb")
        log = self.folder / "events" / f"{name}.jsonl"
        outcome = read_outcome(name, notebook, execution.error, execution.wall_s, log)
        outcome.parameters = {key: value for key, value in self.parameters.items() if key != "out_dir"}
        story = read_story(notebook or {}, humanize(name))
        self.stories[name] = story
        self.view.titles[name], self.view.leads[name] = story.title, story.lead
        self.view.outcomes = [outcome if old.name == name else old for old in self.view.outcomes]
        self._write_page(outcome)
        self._write_overview()
        self.progress.ended(outcome)

    def _cut_off(self) -> None:
        for outcome in self.view.outcomes:
            if outcome.status == "waiting":
                self._take(outcome.name, Execution(0.0, CUT_OFF))

    def _write_page(self, outcome: ScenarioOutcome) -> None:
        command = environment.command(self.request, self.settings, self.machine, [outcome.name])
        page = pages.scenario_page(self.view, outcome, self.stories[outcome.name], command)
        folder.write_text(self.folder / f"{outcome.name}.html", page)

    def _write_overview(self) -> None:
        folder.write_text(self.folder / "index.html", pages.index_page(self.view))
        folder.write_text(self.folder / "results.json", json.dumps(self._results(), indent=2, allow_nan=False) + "\n")

    def _results(self) -> dict[str, Any]:
        view = self.view
        wall_s = time.perf_counter() - self.began if view.wall_s is None else view.wall_s
        ended = [outcome for outcome in view.outcomes if outcome.status != "waiting"]
        return {
            "run_id": view.run_id,
            "altlas_version": self.version,
            "git_commit": self.commit,
            "seed": view.seed,
            "backend": view.backend,
            "devices": list(view.devices),
            "started_at": view.started.isoformat(timespec="seconds"),
            "wall_s": round(wall_s, 3),
            "passed": view.status == "passed",
            "scenarios": {outcome.name: files.scenario_json(outcome, view.provenance) for outcome in ended},
        }

    def _finish(self, interrupted: bool) -> RunOutcome:
        view = self.view
        view.wall_s = time.perf_counter() - self.began
        self._write_overview()
        junit = files.junit_xml(view.outcomes, view.run_id, view.started.isoformat(timespec="seconds"))
        folder.write_text(self.folder / "junit.xml", junit)
        note = folder.point_latest_to(self.folder)
        if note:
            self.notes.append(note)
        return RunOutcome(self.folder, view.status, view.outcomes, self._results(), interrupted, self.notes)


def _read_notebook(path: Path) -> Mapping[str, Any] | None:
    """The saved notebook, or None where there is none that can be read."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return notebook if isinstance(notebook, dict) and isinstance(notebook.get("cells"), list) else None
