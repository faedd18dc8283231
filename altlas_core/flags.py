"""What the flags of a command line ask for, as settings. A flag beats --set, that the environment, that the file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from altlas_core.config import ENV_PREFIX, Settings, all_keys, load_config
from altlas_core.errors import ConfigError
from altlas_core.own_strategy import resolve
from altlas_core.strategies import USER_STRATEGIES

DEFAULT_FILE: Final = "config.yaml"
GIVEN_A_WORKLOAD: Final = {"own_workload", "strategy_comparison"}  # the scenarios that run it
# flag -> the key it sets
FLAGS: Final = {
    "--backend": "gpu.backend",
    "--devices": "gpu.devices",
    "--seed": "seed",
    "--time-scale": "run.time_scale",
    "--pace": "run.pace",
    "--workload": "run.workload",
    "--strategy": "gpu.selection.default_strategy",
    "--repeat": "run.repeat",
    "--export": "run.export",
    "--deadline": "run.deadline",
    "--notebook-deadline": "run.notebook_deadline",
}


def from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings that the environment holds, by dotted key, for the command that repeats a run."""
    found = {}
    for name in sorted(environ):
        key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
        if name.startswith(ENV_PREFIX) and environ[name].strip() and (("." in key) or key in all_keys()):
            found[key] = environ[name]
    return found


def config_path(given: str | None) -> Path | None:
    """The settings file: the one given, else config.yaml where there is one here."""
    if given is not None:
        return Path(given)
    return Path(DEFAULT_FILE) if Path(DEFAULT_FILE).is_file() else None


def reports_dir(arguments: argparse.Namespace) -> Path:
    """The folder of --reports-dir. Raises ConfigError for an empty text, which would mean the working directory."""
    if not arguments.reports_dir.strip():
        raise ConfigError(
            "--reports-dir: names no folder; allowed: a folder, such as reports (. is the one you are in)"
        )
    return Path(arguments.reports_dir)


def overrides_of(arguments: argparse.Namespace) -> dict[str, Any]:
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
    if getattr(arguments, "workload", None) is not None:
        found[FLAGS["--workload"]] = json.dumps(arguments.workload)  # a path, whatever YAML would read in it
    if getattr(arguments, "strategy", None) is not None:
        found[FLAGS["--strategy"]] = resolve(arguments.strategy)
    return found


def load(path: Path | None, overrides: Mapping[str, Any], arguments: argparse.Namespace) -> Settings:
    """The settings of a command line. Raises ConfigError, which names flags as they were typed."""
    with naming_flags(arguments, "--set"):
        return load_config(path, overrides, extra_strategies=tuple(USER_STRATEGIES), overrides_from="--set")


@contextmanager
def naming_flags(arguments: argparse.Namespace, source: str) -> Iterator[None]:
    """Let a ConfigError raised inside name the flag that was typed instead of `source` and its key."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        for flag, key in FLAGS.items():
            if getattr(arguments, flag[2:].replace("-", "_"), None) is not None:
                text = text.replace(f"{source} {key}:", f"{flag}:")
        raise ConfigError(text) from None


def say_what_has_no_effect(arguments: argparse.Namespace, provenance: str) -> None:
    """Print a line for each flag that changes nothing on this machine or with these scenarios."""
    asked = getattr(arguments, "scenarios", [])
    if getattr(arguments, "workload", None) is not None and asked and not set(asked) & GIVEN_A_WORKLOAD:
        print(f"altlas: --workload is for {' and '.join(sorted(GIVEN_A_WORKLOAD))}.", file=sys.stderr)
    if getattr(arguments, "time_scale", None) is not None and provenance == "simulated":
        print("altlas: --time-scale is for real devices; on simulated ones it has no effect.", file=sys.stderr)
    if arguments.pace is not None and provenance == "measured":
        print("altlas: --pace is for simulated devices; on real ones it has no effect.", file=sys.stderr)
