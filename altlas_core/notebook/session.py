"""A scenario notebook's session: the run, and showing what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from altlas_core.errors import AltlasError, ConfigError
from altlas_core.exports import folder_name
from altlas_core.figures.clocks import clocks
from altlas_core.figures.memory import memory_use
from altlas_core.figures.telemetry import READINGS, readings
from altlas_core.notebook.display import display, show, show_checks, show_table
from altlas_core.notebook.parameters import parameters, settings
from altlas_core.notebook.repeats import Seen, observe, show_repeats, which_runs
from altlas_core.scenarios import SCENARIOS
from altlas_core.scenarios.common import ScenarioResult
from altlas_core.scenarios.measures import device_texts
from altlas_core.scenarios.repeats import Repeats, run_repeated

RESULT_MIME: Final = "application/vnd.altlas.result+json"


class NotebookError(AltlasError):
    """A run that could not start or go on: shown in one line, without a traceback; the notebook has failed."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


@dataclass(eq=False)
class Session:
    """A scenario that has run, and the parameter that says where its event log goes.

    Where it ran several times `result` is the first run, with the checks of all; `repeated` is what they say together.
    """

    result: ScenarioResult
    out_dir: Path | None
    repeated: Repeats[Seen] | None = None

    def machine(self) -> None:
        """Show in a line what the scenario ran on."""
        result = self.result
        clock = "virtual time" if result.provenance == "simulated" else "real time"
        settings = result.settings
        if result.provenance == "simulated" and settings.run.pace:
            clock = f"pace {settings.run.pace:g}"
        if result.provenance != "simulated" and settings.run.time_scale != 1:
            clock += f", every duration and timeout times {settings.run.time_scale:g}"
        text = f"{', '.join(device_texts(result.devices))} ({result.provenance}, {clock}), seed {settings.seed}"
        if self.repeated is not None:
            text += f"; the first of {which_runs(self.repeated)}, which are summed up before the checks"
        display({"text/plain": text})

    def table(self, name: str) -> None:
        """Show one of the scenario's tables; of a long one the first rows."""
        show_table(self.result.tables[name])

    def memory(self) -> None:
        """Show what tasks reserved and what they really used, where real devices measured it; else nothing."""
        table = self.result.tables.get("memory")
        if table is None:
            return
        show(
            memory_use(
                list(table["work"]),
                list(table["reserved together (GiB)"]),
                list(table["used together, peak (GiB)"]),
                self.result.provenance,
            )
        )
        show_table(table)

    def parts(self, run: str) -> list[tuple[float, str]]:
        """When each part of a run began, and its name: figures write it over the plot."""
        return [(phase.begin_s, phase.label) for phase in self.result.phases[run]]

    def readings(self, run: str, columns: Iterable[str] = READINGS) -> None:
        """Show readings of a run, a figure each; where a device has no such sensor, a line that says so.

        With all of them, the clocks of real GPUs.
        """
        result = self.result.runs[run]
        parts = self.parts(run) if run in self.result.phases else []
        for column in columns:
            figure = readings(result, column, parts)
            if any(value is not None for trace in figure["data"] for value in trace["y"]):
                show(figure)
            else:
                display({"text/plain": f"{figure['layout']['title']['text']}: N/A"})
        told = clocks(result, parts) if columns is READINGS else None
        if told is not None:
            show(told)

    def repeats(self) -> None:
        """Show what the runs say together: means, intervals, bands over time. Nothing where there was only one."""
        if self.repeated is not None:
            show_repeats(self.repeated, self.result)

    def checks(self) -> None:
        """Show every check, those that failed first."""
        show_checks(self.result.checks)

    def finish(self) -> None:
        """Write the event log and exports where out_dir asks for it, and hand over the result."""
        result = self.result
        if self.out_dir is not None:
            folder = self.out_dir / "events"
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"{result.name}.jsonl").open("w", encoding="utf-8", newline="") as file:
                file.writelines(result.event_lines())
        held = sum(check.passed for check in result.checks)
        verdict = "PASSED" if result.passed else "FAILED"
        bundle = result.to_json()
        where = ""
        if self.repeated is not None:
            bundle["repeats"] = self.repeated.to_json()
            where = f" in all {self.repeated.count} runs"
        text = f"{verdict}: {held} of {len(result.checks)} checks hold{where} ({result.provenance})"
        display({RESULT_MIME: bundle, "text/plain": text})
        if self.out_dir is not None:
            self._export(self.out_dir / "exports" / result.name)

    def _export(self, folder: Path) -> None:
        """Each run of the scenario in the formats that the settings ask for, a folder each."""
        formats = self.result.settings.run.export
        try:
            for label, run in self.result.runs.items() if formats else ():
                run.export(folder / folder_name(label), formats)
        except ConfigError as problem:
            raise NotebookError(str(problem)) from None


def start(scenario: str, namespace: Mapping[str, Any]) -> Session:
    """Run a scenario with the parameters in `namespace` (a notebook's globals()).

    A check that fails is part of the result. Raises NotebookError where there is nothing to judge: bad parameters, a
    device that is not there, a run that broke.
    """
    try:
        given = parameters(namespace)
        asked = settings(namespace)
        if scenario not in SCENARIOS:
            raise ConfigError(f"unknown scenario '{scenario}'; allowed: {', '.join(SCENARIOS)}.")
        out_dir = given.get("out_dir")
        result, repeated = run_repeated(SCENARIOS[scenario], asked, observe)
        return Session(result, None if out_dir is None else Path(out_dir), repeated)
    except AltlasError as problem:
        raise NotebookError(str(problem)) from None
