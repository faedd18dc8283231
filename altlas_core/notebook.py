"""What a scenario notebook calls: its parameters, the run, and showing what came of it.

`python -m altlas_core.notebook --refresh` executes notebooks/ on the default simulated machine and stores the outputs
that are committed, and that nbval compares.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from altlas_core.config import Settings
from altlas_core.errors import AltlasError, ConfigError, nearest
from altlas_core.experiment import load_settings
from altlas_core.figures.clocks import clocks
from altlas_core.figures.memory import memory_use
from altlas_core.figures.telemetry import READINGS, readings
from altlas_core.scenarios import SCENARIOS
from altlas_core.scenarios.common import ScenarioResult
from altlas_core.scenarios.measures import device_texts

if TYPE_CHECKING:
    import pandas as pd

FIGURE_MIME: Final = "application/vnd.plotly.v1+json"
RESULT_MIME: Final = "application/vnd.altlas.result+json"
INJECTED: Final = "# Parameters"  # how papermill begins the cell it adds, and how ours begins
MOST_ROWS: Final = 24


@dataclass(frozen=True, slots=True)
class Parameter:
    """`key`: the setting it stands for, None where it is none. `kinds`: the types its value may have, beside None."""

    key: str | None
    kinds: tuple[type, ...]
    allowed: str


PARAMETERS: Final = {
    "config": Parameter(None, (str, Path), "the path of a YAML file"),
    "backend": Parameter("gpu.backend", (str,), "simulated, cpu, cuda or auto"),
    "devices": Parameter("gpu.devices", (str, list, tuple), "a device spec such as '8x A100-SXM4-80GB', or a list"),
    "seed": Parameter("seed", (int, str), "a whole number, 0 or more"),
    "time_scale": Parameter("run.time_scale", (int, float, str), "a number above 0"),
    "pace": Parameter("run.pace", (int, float, str), "a number, 0 or more"),
    "overrides": Parameter(None, (dict,), "a mapping of full setting names, such as {'gpu.workload.timeout': 60}"),
    "out_dir": Parameter(None, (str, Path), "the path of a folder"),
}


class NotebookError(AltlasError):
    """A run that could not start or go on: shown in one line, without a traceback; the notebook has failed."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


# --- parameters ---------------------------------------------------------------------------------------------------


def parameters(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters in a notebook's globals(). Raises ConfigError for a name that is none, or a wrong type.

    Names are those assigned in cells that begin with "# Parameters": the notebook's own, and the one papermill adds.
    """
    for name in _assigned(namespace.get("In", ())):
        if name not in PARAMETERS:
            raise ConfigError(
                f"unknown parameter '{name}'; allowed: {', '.join(PARAMETERS)}.{nearest(name, PARAMETERS)}"
            )
    given = {name: namespace[name] for name in PARAMETERS if namespace.get(name) is not None}
    for name, value in given.items():
        parameter = PARAMETERS[name]
        if isinstance(value, bool) or not isinstance(value, parameter.kinds):
            raise ConfigError(f"parameter {name}: {value!r}; allowed: {parameter.allowed}, or None")
    return given


def _assigned(sources: Iterable[str]) -> Iterable[str]:
    for source in sources:
        if not source.lstrip().startswith(INJECTED):
            continue
        for node in ast.parse(source).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def settings(namespace: Mapping[str, Any]) -> Settings:
    """The settings that a notebook's parameters ask for. Raises ConfigError.

    A parameter goes before `overrides`, these before environment and file. Where none of them names a backend or a
    device the machine is simulated, also on a computer with a GPU: so a notebook's outputs are the same everywhere.
    """
    given = parameters(namespace)
    changed = dict(given.get("overrides", {}))
    changed |= {p.key: given[name] for name, p in PARAMETERS.items() if p.key is not None and name in given}
    try:
        found = load_settings(given.get("config"), changed)
        if found.gpu.backend == "auto" and not found.gpu.devices and "gpu.backend" not in changed:
            found = load_settings(given.get("config"), {**changed, "gpu.backend": "simulated"})
    except ConfigError as problem:
        text = str(problem)
        for name, parameter in PARAMETERS.items():
            if name in given and parameter.key is not None:
                text = text.replace(f"override {parameter.key}:", f"parameter {name}:")
        raise ConfigError(text.replace("override ", "parameter overrides: ")) from None
    return found


# --- a notebook's session -----------------------------------------------------------------------------------------


@dataclass(eq=False)
class Session:
    """A scenario that has run, and the parameter that says where its event log goes."""

    result: ScenarioResult
    out_dir: Path | None

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
        _display({"text/plain": text})

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
                _display({"text/plain": f"{figure['layout']['title']['text']}: N/A"})
        told = clocks(result, parts) if columns is READINGS else None
        if told is not None:
            show(told)

    def checks(self) -> None:
        """Show every check, those that failed first."""
        import pandas as pd

        ordered = sorted(self.result.checks, key=lambda check: check.passed)
        show_table(
            pd.DataFrame(
                {
                    "": ["✔" if check.passed else "✘ failed" for check in ordered],
                    "check": [check.name for check in ordered],
                    "expected": [check.expected for check in ordered],
                    "observed": [check.observed for check in ordered],
                }
            ),
            most_rows=len(ordered),
        )

    def finish(self) -> None:
        """Write the event log where out_dir asks for it, and hand over the result."""
        result = self.result
        if self.out_dir is not None:
            folder = self.out_dir / "events"
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"{result.name}.jsonl").open("w", encoding="utf-8", newline="") as file:
                file.writelines(result.event_lines())
        held = sum(check.passed for check in result.checks)
        verdict = "PASSED" if result.passed else "FAILED"
        text = f"{verdict}: {held} of {len(result.checks)} checks hold ({result.provenance})"
        _display({RESULT_MIME: result.to_json(), "text/plain": text})


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
        return Session(SCENARIOS[scenario].run(asked), None if out_dir is None else Path(out_dir))
    except AltlasError as problem:
        raise NotebookError(str(problem)) from None


# --- showing ------------------------------------------------------------------------------------------------------


def show(figure: Mapping[str, Any]) -> None:
    """Show a figure of altlas_core.figures: JupyterLab and the reports draw it with plotly.js."""
    title = str(figure["layout"]["title"]["text"]).replace("<br>", " ")
    _display({FIGURE_MIME: dict(figure), "text/plain": f"Figure: {title}"})


def show_table(frame: pd.DataFrame, most_rows: int = MOST_ROWS) -> None:
    """Show a table, numbers in few digits, at most `most_rows` rows; the last line says how many there are."""
    cut = frame.head(most_rows)
    rows = [[_cell(value) for value in row] for row in cut.itertuples(index=False)]
    head = "".join(f"<th>{escape(str(name))}</th>" for name in frame.columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    more = f"first {len(cut):,} of {len(frame):,} rows" if len(cut) < len(frame) else ""
    note = f"<p>{more}</p>" if more else ""
    html = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>{note}"
    _display({"text/html": html, "text/plain": _plain([list(map(str, frame.columns)), *rows], more)})


def _cell(value: Any) -> str:
    """Five significant digits at most; what is missing is N/A, never 0."""
    if isinstance(value, str):
        return value
    if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:
        return "N/A"
    if isinstance(value, float):
        if abs(value) >= 100_000:
            return f"{value:,.0f}"
        text = f"{value:.5g}"
        return f"{float(text):,.10g}" if "e" not in text else text
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _plain(rows: list[list[str]], more: str) -> str:
    if len(rows) == 1:
        return f"(no rows: {', '.join(rows[0])})"
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines + ([f"({more})"] if more else []))


def _display(bundle: Mapping[str, Any]) -> None:
    display: Any = import_module("IPython.display").display
    display(dict(bundle), raw=True)


# --- the committed outputs ----------------------------------------------------------------------------------------

NOTEBOOKS: Final = Path(__file__).resolve().parents[1] / "notebooks"


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
    """`--refresh [FILE ...]`: without files, all scenario notebooks."""
    if arguments[:1] != ["--refresh"]:
        sys.stderr.write("usage: python -m altlas_core.notebook --refresh [FILE ...]\n")
        return 2
    refresh([Path(name) for name in arguments[1:]] or [NOTEBOOKS / s.notebook for s in SCENARIOS.values()])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
