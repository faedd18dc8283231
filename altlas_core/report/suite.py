"""Runs the notebooks of a suite side by side and writes reports/<run>/ as they end.

The folder is whole at every moment: index.html and results.json stand there from the start and grow.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from altlas_core.config import Settings
from altlas_core.report import environment, folder, gates, notebooks, pages, resume
from altlas_core.report.cells import Story, read_story
from altlas_core.report.environment import MachineLike, Request
from altlas_core.report.execute import Execution, NotebookRun
from altlas_core.report.history import read_history
from altlas_core.report.notebooks import Notebook
from altlas_core.report.numbers import humanize, value_text
from altlas_core.report.options import SuiteOptions
from altlas_core.report.outcome import ScenarioOutcome, read_outcome
from altlas_core.report.pdf import print_pages
from altlas_core.report.progress import Progress, Silent
from altlas_core.report.record import Record
from altlas_core.report.resume import SavedRun
from altlas_core.report.running import Deadlines, Runner, stopped_by_signals
from altlas_core.report.watch import Both, Watch, announce, serving

EXIT_STATUS: Final = {"passed": 0, "failed": 1, "broke": 3, "waiting": 3}


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
    options: SuiteOptions | None = None,
) -> RunOutcome:
    """Execute the chosen notebooks and write their reports.

    Raises ConfigError, before anything starts, where a notebook does not take the run's parameters or the reports
    folder cannot be written. Whatever a notebook does afterwards ends up in its page.
    """
    suite = _Suite(
        settings, machine, chosen, reports_dir, request or Request(), progress or Silent(), options or SuiteOptions()
    )
    return suite.run()


def notebook_parameters(
    settings: Settings, machine: MachineLike, request: Request, out_dir: Path | None
) -> dict[str, Any]:
    """What every scenario notebook is handed (see its cell tagged `parameters`).

    The backend is the one that was found once for the whole run, so that all scenarios run on the same machine.
    """
    return {
        "config": None if request.config_path is None else str(request.config_path.resolve()),
        "backend": environment.backend_setting(machine),
        "devices": list(settings.gpu.devices) or None,
        "seed": settings.seed,
        "time_scale": settings.run.time_scale,
        "pace": settings.run.pace,
        "workload": None if settings.run.workload is None else str(Path(settings.run.workload).resolve()),
        "strategy": request.strategy,
        "repeat": settings.run.repeat,
        "export": list(settings.run.export) or None,
        "overrides": {name: value for name, value in request.overrides.items() if name not in environment.OWN_FLAGS},
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
        options: SuiteOptions,
    ) -> None:
        self.settings, self.machine, self.request, self.progress = settings, machine, request, progress
        self.options = options
        self.chosen = {notebook.scenario: notebook for notebook in chosen}
        self.shown_parameters = notebook_parameters(settings, machine, request, None)
        for notebook in chosen:
            notebooks.check_parameters(notebook, self.shown_parameters)
        self.notes: list[str] = []
        if options.resume is None:
            started = datetime.now(UTC)
            self.folder = folder.create_run_folder(reports_dir.absolute(), started)
            run_id = self.folder.name
        else:
            self.folder = options.resume
            saved = resume.read_request(self.folder)
            run_id, started = saved.run_id, datetime.fromisoformat(saved.started)
            request = resume.whole_request(request, settings)
        self.parameters = notebook_parameters(settings, machine, request, self.folder)
        self.view = pages.RunView(
            run_id=run_id,
            started=started,
            seed=settings.seed,
            backend=machine.backend,
            provenance=machine.provenance,
            devices=environment.device_specs(settings, machine),
            facts=environment.facts(machine),
            settings=[(name, value_text(value)) for name, value in environment.changed_settings(settings).items()],
            command=environment.command(self.request, settings, machine, self._asked(), self._rules()),
            time_scale=settings.run.time_scale,
            pace=settings.run.pace,
            outcomes=[ScenarioOutcome(name) for name in self.chosen],
            history=read_history(self.folder.parent, run_id),
        )
        self.record = Record(self.folder, self.view, settings, machine, self.request)

    def run(self) -> RunOutcome:
        with resume.alone(self.folder), ExitStack() as stack:
            if self.options.resume is None:
                self._asked_now().write(self.folder)
            else:
                self._go_on()
            watch = Watch(self.folder, self.view, self._deadlines()) if self.options.watch else None
            if watch is not None:
                self.progress = Both(self.progress, watch)
            runner = self._runner()
            stack.enter_context(stopped_by_signals(runner.stop))
            folder.copy_assets(self.folder)
            self.record.write_overview()
            if watch is not None:
                announce(stack.enter_context(serving(watch)))
            self._execute(runner)
            outcome = self._finish(runner)
            if watch is not None:
                watch.finished(runner.interrupted)
            return outcome

    def _execute(self, runner: Runner) -> None:
        self.progress.opened(self._title(), self._left())
        try:
            with closing(runner.executions()) as executions:
                for name, execution in executions:
                    self._take(name, execution)
        finally:
            self.progress.closed()

    # --- what is asked --------------------------------------------------------------------------------------------

    def _asked_now(self) -> SavedRun:
        view, chosen, rules = self.view, list(self.chosen), self._rules()
        return resume.asked(view.run_id, view.started, chosen, self.settings, self.machine, self.request, rules)

    def _go_on(self) -> None:
        """Take over what an earlier process finished of this run."""
        saved = resume.read_request(self.folder)
        self.record.version, self.record.commit = saved.version, saved.commit
        self.record.earlier_s = resume.wall_s(self.folder)
        for name, wall_s in resume.ended_whole(self.folder).items():
            if name in self.chosen:
                outcome, story = self._read(name, Execution(wall_s, None))
                if outcome.status != "broke":
                    self.record.put(outcome, story)
        left = self._left()
        if not left:
            self.view.wall_s = self.record.earlier_s
            self.notes.append(f"nothing is missing in {self.folder.name}: all its scenarios ran to their end.")
        changes = saved.changes(self.machine)
        self.notes += [f"since this run began: {change}." for change in changes if left]
        lines = [*saved.resumed, *([resume.told(self.record.earlier_s, left, changes)] if left else [])]
        replace(saved, resumed=tuple(lines)).write(self.folder)
        self.view.facts = [*self.view.facts, *(("Resumed", line) for line in lines)]

    def _left(self) -> list[str]:
        """The scenarios that have not ended."""
        return [outcome.name for outcome in self.view.outcomes if outcome.status == "waiting"]

    def _asked(self) -> list[str]:
        """The scenarios to name in the command that repeats the run: none where it is simply all that are enabled."""
        found = notebooks.find_notebooks(next(iter(self.chosen.values())).path.parent)
        return [] if notebooks.choose(found, [], self.settings) == list(self.chosen.values()) else list(self.chosen)

    def _rules(self) -> list[str]:
        return [str(gate) for gate in self.options.gates]

    def _title(self) -> str:
        view = self.view
        return f"{view.run_id}: {view.backend}, {', '.join(view.devices)}, seed {view.seed}"

    def _jobs(self) -> int:
        """Real devices are used by one scenario at a time: two would measure each other."""
        side_by_side = self.machine.provenance == "simulated" and self.settings.run.pace == 0
        return min(environment.usable_cores(), len(self._left())) if side_by_side else 1

    # --- running --------------------------------------------------------------------------------------------------

    def _runner(self) -> Runner:
        runs = {
            name: NotebookRun(
                self.chosen[name].path,
                self.folder / f"{name}.ipynb",
                self.parameters,
                partial(self.progress.cell, name),
            )
            for name in self._left()
        }
        return Runner(runs, self._jobs(), self._deadlines(), self._started)

    def _deadlines(self) -> Deadlines:
        return Deadlines(self.settings.run.notebook_deadline, self.settings.run.deadline)

    def _started(self, name: str) -> None:
        """What an earlier try of this scenario has left goes. Called in the thread that executes it."""
        folder.remove_scenario(self.folder, name)
        self.progress.started(name)

    def _read(self, name: str, execution: Execution) -> tuple[ScenarioOutcome, Story]:
        """Judge an executed notebook."""
        notebook = _read_notebook(self.folder / f"{name}.ipynb") if execution.ran else None
        log = self.folder / "events" / f"{name}.jsonl"
        outcome = read_outcome(name, notebook, execution.error, execution.wall_s, log)
        gates.judge(outcome, self.options.gates)
        outcome.exports = folder.exports_of(self.folder, name)
        outcome.ran = execution.ran
        outcome.parameters = {key: value for key, value in self.shown_parameters.items() if key != "out_dir"}
        return outcome, read_story(notebook or {}, humanize(name))

    def _take(self, name: str, execution: Execution) -> None:
        """Write the page of an executed notebook; bring index and results up to date."""
        outcome, story = self._read(name, execution)
        self.record.put(outcome, story)
        self.record.write_page(outcome, story)
        self.record.write_overview()
        self.progress.ended(outcome)

    def _finish(self, runner: Runner) -> RunOutcome:
        """The folder as it stays."""
        self._judge_unanswered()
        self.view.wall_s = self.record.wall_s
        self.record.write_overview()
        self.record.write_junit()
        named = self.folder.name == self.view.run_id  # else it is a copy, which may lie anywhere
        if named and (note := folder.point_latest_to(self.folder)):
            self.notes.append(note)
        if self.options.pdf and not runner.interrupted:
            self.notes += print_pages(sorted(self.folder.glob("*.html")))
        if runner.cut_off:
            self.notes.append(f"to run what is missing: altlas run --resume {self._name_to_resume()}")
        view = self.view
        return RunOutcome(
            self.folder, view.status, view.outcomes, self.record.results(), runner.interrupted, self.notes
        )

    def _judge_unanswered(self) -> None:
        """A rule of --fail-if that no scenario had an answer to is a check that fails."""
        for name in gates.judge_unanswered(self.view.outcomes, self.options.gates):
            outcome = next(outcome for outcome in self.view.outcomes if outcome.name == name)
            notebook = _read_notebook(self.folder / f"{name}.ipynb")
            self.record.write_page(outcome, read_story(notebook or {}, humanize(name)))

    def _name_to_resume(self) -> str:
        """For a shell: the run's id, which is looked for in ./reports, or its folder where that lies elsewhere."""
        return shlex.quote(self.folder.name if self.folder.parent == Path("reports").absolute() else str(self.folder))


def _read_notebook(path: Path) -> Mapping[str, Any] | None:
    """The saved notebook, or None where there is none that can be read."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return notebook if isinstance(notebook, dict) and isinstance(notebook.get("cells"), list) else None
