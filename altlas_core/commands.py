"""What each command of `altlas` does. Heavy packages load only where a command needs them."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from altlas_core.config import ENV_PREFIX, Settings, all_keys, load_config
from altlas_core.errors import ConfigError

if TYPE_CHECKING:
    from altlas_core.report.suite import RunOutcome

INTERRUPTED: Final = 130  # 128 + SIGINT, as shells say it
MAX_PORT: Final = 65_535
DEFAULT_FILE: Final = "config.yaml"
VERDICTS: Final = {"passed": "PASSED", "failed": "FAILED", "broke": "BROKE"}
# flag -> the key it sets
FLAGS: Final = {
    "--backend": "gpu.backend",
    "--devices": "gpu.devices",
    "--seed": "seed",
    "--time-scale": "run.time_scale",
    "--pace": "run.pace",
}


def run(arguments: argparse.Namespace) -> int:
    """`altlas run`: everything that can be wrong with the request is found before anything starts."""
    from altlas_core.backends.discover import discover
    from altlas_core.experiment import check_pace
    from altlas_core.report import notebooks
    from altlas_core.report.environment import Request
    from altlas_core.report.progress import progress_for
    from altlas_core.report.suite import run_suite

    config_path = _config_path(arguments.config)
    overrides = _overrides(arguments)
    settings = _load(config_path, overrides, arguments)
    chosen = notebooks.choose(notebooks.find_notebooks(notebooks.notebooks_dir()), arguments.scenarios, settings)
    machine = discover(settings)
    check_pace(settings, machine.provenance)
    _say_what_has_no_effect(arguments, machine.provenance)
    request = Request(config_path, overrides, from_environment(os.environ))
    with _terminated_like_interrupted():
        outcome = run_suite(settings, machine, chosen, Path(arguments.reports_dir), request, progress_for())
    _print_outcome(outcome, arguments.json)
    return INTERRUPTED if outcome.interrupted else outcome.exit_status


def gpus(arguments: argparse.Namespace) -> int:
    """`altlas gpus`: the devices a run would use, what was left out and why."""
    from altlas_core.backends.discover import discover
    from altlas_core.backends.gpus_table import render

    settings = _load(_config_path(arguments.config), _overrides(arguments), arguments)
    machine = discover(settings)
    print(json.dumps(machine.to_json(), indent=2) if arguments.json else render(machine))
    return 0


def serve(arguments: argparse.Namespace) -> int:
    """`altlas serve`: the HTTP API, until a signal ends it."""
    from altlas_core.backends.discover import discover
    from altlas_core.experiment import check_pace

    port = _port(arguments.port)
    settings = _load(_config_path(arguments.config), _overrides(arguments), arguments)
    if arguments.pace is not None and settings.run.pace == 0:
        raise ConfigError("--pace 0: a service runs in real time; allowed: above 0, e.g. 1, or 10 for ten times faster")
    machine = discover(settings)
    check_pace(settings, machine.provenance)
    _say_what_has_no_effect(arguments, machine.provenance)
    try:
        from altlas_core.api.server import run_server
    except ImportError as error:
        raise ConfigError(f"the HTTP API needs a package that is not installed: {error}; run make install") from None
    return run_server(settings, machine, arguments.host, port)


def _port(text: str) -> int:
    if not text.isdecimal() or not text.isascii() or not int(text) <= MAX_PORT:
        raise ConfigError(f"--port {text}: is no port; allowed: a whole number from 0 (any free one) to {MAX_PORT}")
    return int(text)


def config_check(arguments: argparse.Namespace) -> int:
    """`altlas config check`: silent success is no help, so it says what it read and what differs from the defaults."""
    from altlas_core.device_names import parse_devices
    from altlas_core.report.environment import changed_settings

    path = _config_path(arguments.file)
    settings = load_config(path)
    parse_devices(settings.gpu.devices)
    changed = changed_settings(settings)
    where = str(path) if path else f"no {DEFAULT_FILE} here, so the defaults"
    print(f"{where}: fine, {len(changed)} of {len(all_keys())} keys differ from their defaults")
    for name, value in changed.items():
        print(f"  {name}: {json.dumps(value)}")
    return 0


def from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings that the environment holds, by dotted key, for the command that repeats a run."""
    found = {}
    for name in sorted(environ):
        key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
        if name.startswith(ENV_PREFIX) and environ[name].strip() and (("." in key) or key in all_keys()):
            found[key] = environ[name]
    return found


def _config_path(given: str | None) -> Path | None:
    if given is not None:
        return Path(given)
    return Path(DEFAULT_FILE) if Path(DEFAULT_FILE).is_file() else None


def _overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """Dotted key -> value of --set and of the flags that stand for a key; a flag of its own wins."""
    found: dict[str, Any] = {}
    for text in arguments.set:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set {text}: is not KEY=VALUE, as in --set gpu.workload.timeout=60")
        found[name.strip()] = value
    for flag, key in FLAGS.items():
        value = getattr(arguments, flag[2:].replace("-", "_"), None)
        if value is not None:
            found[key] = value
    return found


def _load(path: Path | None, overrides: Mapping[str, Any], arguments: argparse.Namespace) -> Settings:
    try:
        return load_config(path, overrides, overrides_from="--set")
    except ConfigError as error:
        text = str(error)
        for flag, key in FLAGS.items():
            if getattr(arguments, flag[2:].replace("-", "_"), None) is not None:
                text = text.replace(f"--set {key}:", f"{flag}:")
        raise ConfigError(text) from None


def _say_what_has_no_effect(arguments: argparse.Namespace, provenance: str) -> None:
    if getattr(arguments, "time_scale", None) is not None and provenance == "simulated":
        print("altlas: --time-scale is for real devices; on simulated ones it has no effect.", file=sys.stderr)
    if arguments.pace is not None and provenance == "measured":
        print("altlas: --pace is for simulated devices; on real ones it has no effect.", file=sys.stderr)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: kernels stopped, the index says how far it came."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
