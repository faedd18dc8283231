"""What the commands of `altlas` but `run` do. Heavy packages load only where a command needs them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Final

from altlas_core.config import all_keys, load_config
from altlas_core.errors import ConfigError
from altlas_core.flags import DEFAULT_FILE, config_path, load, overrides_of, reports_dir, say_what_has_no_effect

MAX_PORT: Final = 65_535


def compare(arguments: argparse.Namespace) -> int:
    """`altlas compare`: two runs side by side, as a page. 1 where a check that held fails now."""
    from altlas_core.report.compare import default_folder, write_page
    from altlas_core.report.comparison import compare_runs
    from altlas_core.report.finished import read_run
    from altlas_core.report.folder import find_run

    reports = reports_dir(arguments)
    before, after = (read_run(find_run(text, reports)) for text in (arguments.before, arguments.after))
    comparison = compare_runs(before, after)
    index = write_page(comparison, default_folder(comparison) if arguments.out is None else Path(arguments.out))
    if arguments.json:
        print(json.dumps({**comparison.to_json(), "report": str(index)}, indent=2, allow_nan=False))
        return comparison.exit_status
    for warning in comparison.warnings:
        print(f"altlas: {warning}", file=sys.stderr)
    print(f"{comparison.verdict.upper()}  {comparison.text}")
    print(index)
    return comparison.exit_status


def gpus(arguments: argparse.Namespace) -> int:
    """`altlas gpus`: the devices a run would use, what was left out and why."""
    from altlas_core.backends.discover import discover
    from altlas_core.backends.gpus_table import render

    settings = load(config_path(arguments.config), overrides_of(arguments), arguments)
    machine = discover(settings)
    print(json.dumps(machine.to_json(), indent=2) if arguments.json else render(machine))
    return 0


def serve(arguments: argparse.Namespace) -> int:
    """`altlas serve`: the HTTP API, until a signal ends it."""
    from altlas_core.backends.discover import discover
    from altlas_core.experiment import check_pace

    port = _port(arguments.port)
    settings = load(config_path(arguments.config), overrides_of(arguments), arguments)
    if arguments.pace is not None and settings.run.pace == 0:
        raise ConfigError("--pace 0: a service runs in real time; allowed: above 0, e.g. 1, or 10 for ten times faster")
    machine = discover(settings)
    check_pace(settings, machine.provenance)
    say_what_has_no_effect(arguments, machine.provenance)
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

    path = config_path(arguments.file)
    settings = load_config(path)
    parse_devices(settings.gpu.devices)
    changed = changed_settings(settings)
    where = str(path) if path else f"no {DEFAULT_FILE} here, so the defaults"
    print(f"{where}: fine, {len(changed)} of {len(all_keys())} keys differ from their defaults")
    for name, value in changed.items():
        print(f"  {name}: {json.dumps(value)}")
    return 0
