"""`altlas run`: what is asked of the suite, anew or of an earlier run, and what is printed of its outcome."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from altlas_core.config import Settings, with_overrides
from altlas_core.errors import ConfigError, nearest
from altlas_core.flags import (
    FLAGS,
    config_path,
    from_environment,
    load,
    naming_flags,
    overrides_of,
    reports_dir,
    say_what_has_no_effect,
)
from altlas_core.own_strategy import absolute, resolve
from altlas_core.strategies import USER_STRATEGIES

if TYPE_CHECKING:
    from altlas_core.backends.machine import Machine
    from altlas_core.report.environment import Request
    from altlas_core.report.notebooks import Notebook
    from altlas_core.report.options import SuiteOptions
    from altlas_core.report.suite import RunOutcome

INTERRUPTED: Final = 130  # 128 + SIGINT, as shells say it
VERDICTS: Final = {"passed": "PASSED", "failed": "FAILED", "broke": "BROKE"}
BESIDE_RESUME: Final = ("--deadline", "--notebook-deadline", "--watch", "--pdf", "--json", "--reports-dir")


@dataclass(slots=True, frozen=True)
class Asked:
    """All that a suite needs to know."""

    settings: Settings
    machine: Machine
    chosen: list[Notebook]
    request: Request
    options: SuiteOptions


def run(arguments: argparse.Namespace) -> int:
    """`altlas run`: everything that can be wrong with the request is found before anything starts."""
    from altlas_core.report.pdf import require_chromium
    from altlas_core.report.progress import progress_for
    from altlas_core.report.suite import run_suite

    reports = reports_dir(arguments)
    if arguments.pdf:
        require_chromium()
    asked = _anew(arguments) if arguments.resume is None else _again(arguments)
    outcome = run_suite(
        asked.settings,
        asked.machine,
        asked.chosen,
        reports,
        asked.request,
        progress_for(),
        asked.options,
    )
    _print_outcome(outcome, arguments.json)
    return INTERRUPTED if outcome.interrupted else outcome.exit_status


def _anew(arguments: argparse.Namespace) -> Asked:
    """A run of its own."""
    from altlas_core.backends.discover import discover
    from altlas_core.experiment import check_pace
    from altlas_core.report import notebooks
    from altlas_core.report.environment import Request
    from altlas_core.report.gates import parse_gates
    from altlas_core.report.options import SuiteOptions
    from altlas_core.scenarios.given import check_given
    from altlas_core.scenarios.repeats import check_seeds

    path = config_path(arguments.config)
    overrides = overrides_of(arguments)
    settings = load(path, overrides, arguments)
    chosen = notebooks.choose(notebooks.find_notebooks(notebooks.notebooks_dir()), arguments.scenarios, settings)
    gates = parse_gates(arguments.fail_if, [notebook.scenario for notebook in chosen])
    machine = discover(settings)
    check_pace(settings, machine.provenance)
    check_given(settings, machine.devices)
    check_seeds(settings)
    say_what_has_no_effect(arguments, machine.provenance)
    strategy = None if arguments.strategy is None else absolute(arguments.strategy)
    if strategy is not None:
        del overrides[FLAGS["--strategy"]]  # a name that only this process knows
    request = Request(path, overrides, from_environment(os.environ), strategy)
    return Asked(settings, machine, chosen, request, SuiteOptions(gates, watch=arguments.watch, pdf=arguments.pdf))


def _again(arguments: argparse.Namespace) -> Asked:
    """An earlier run that is gone on with, by its own settings."""
    from altlas_core.backends.discover import discover
    from altlas_core.report import notebooks, resume
    from altlas_core.report.folder import find_run
    from altlas_core.report.gates import parse_gates
    from altlas_core.report.options import SuiteOptions
    from altlas_core.scenarios.given import check_given

    _refuse_beside_resume(arguments)
    folder = find_run(arguments.resume, reports_dir(arguments))
    saved = resume.read_request(folder)
    if saved.request.strategy is not None:
        resolve(saved.request.strategy)
    deadlines = {
        key: value
        for key, value in (
            ("run.deadline", arguments.deadline),
            ("run.notebook_deadline", arguments.notebook_deadline),
        )
        if value is not None
    }
    with naming_flags(arguments, "override"):
        settings = with_overrides(saved.settings_again(tuple(USER_STRATEGIES)), deadlines, tuple(USER_STRATEGIES))
    found = notebooks.find_notebooks(notebooks.notebooks_dir())
    for name in saved.scenarios:
        if name not in found:
            raise ConfigError(f"{folder.name}: its scenario '{name}' is no more.{nearest(name, found)}")
    machine = discover(settings)
    check_given(settings, machine.devices)
    chosen = [found[name] for name in saved.scenarios]
    gates = parse_gates(saved.fail_if, saved.scenarios)
    options = SuiteOptions(gates, resume=folder, watch=arguments.watch, pdf=arguments.pdf)
    return Asked(settings, machine, chosen, saved.request, options)


def _refuse_beside_resume(arguments: argparse.Namespace) -> None:
    """What an earlier run was asked stays as it was."""
    allowed = {flag[2:].replace("-", "_") for flag in BESIDE_RESUME} | {"resume", "command"}
    for name, value in vars(arguments).items():
        if name not in allowed and value not in (None, [], False):
            typed = "a scenario" if name == "scenarios" else f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"--resume takes what the earlier run was asked, so {typed} cannot be given; "
                f"allowed beside it: {', '.join(BESIDE_RESUME)}"
            )


def _print_outcome(outcome: RunOutcome, as_json: bool) -> None:
    for note in outcome.notes:
        print(f"altlas: {note}", file=sys.stderr)
    index = _short(outcome.index)
    if as_json:
        print(json.dumps({**outcome.results, "report": str(index)}, indent=2))
        return
    for scenario in outcome.scenarios:
        for check in scenario.failures:
            print(f"{scenario.name}: {check.name}: expected {check.expected}; observed {check.observed}")
        if scenario.error:
            print(f"{scenario.name}: {scenario.error}")
    passed = sum(scenario.passed_count for scenario in outcome.scenarios)
    checks = sum(len(scenario.checks) for scenario in outcome.scenarios)
    count = len(outcome.scenarios)
    scenarios = "1 scenario" if count == 1 else f"{count} scenarios"
    seconds = outcome.results["wall_s"]
    verdict = "INTERRUPTED" if outcome.interrupted else VERDICTS[outcome.status]
    print(f"{verdict}  {passed} of {checks} checks hold, {scenarios}, {seconds:.1f} s")
    print(index)


def _short(path: Path) -> Path:
    """Relative to where the user is, if it lies below."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
