"""What a run ran on and with, and the command that repeats it."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Protocol

import altlas_core
from altlas_core.config import Settings, to_dict
from altlas_core.device_names import group_name
from altlas_core.model import GIB, DeviceSpec

_GIT_LIMIT_S = 10


class MachineLike(Protocol):
    """What this layer needs to know of a machine (backends/machine.py)."""

    @property
    def backend(self) -> str: ...
    @property
    def devices(self) -> tuple[DeviceSpec, ...]: ...
    @property
    def provenance(self) -> str: ...
    @property
    def driver_version(self) -> str | None: ...


def altlas_version() -> str:
    return altlas_core.__version__


def git_commit() -> str | None:
    """The commit of the checkout the code runs from, with "-dirty" where files differ from it; None outside of git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_LIMIT_S, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def facts(machine: MachineLike) -> list[tuple[str, str]]:
    """Label and value of what the result may depend on. What does not apply is left out, what is unknown says N/A."""
    found = [
        ("Backend", machine.backend),
        ("Devices", ", ".join(device_lines(machine.devices))),
        ("Python", f"{platform.python_version()} ({platform.machine()}, {platform.system()} {platform.release()})"),
        ("torch", _package_version("torch")),
        ("CPU cores", str(usable_cores())),
    ]
    if any(device.kind == "cuda" for device in machine.devices):
        found.append(("NVIDIA driver", machine.driver_version or "N/A"))
    found += [
        ("ALT_LAS GPU Test", altlas_version()),
        ("Git commit", git_commit() or "N/A (no git checkout, or no commit yet)"),
    ]
    return found


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def device_lines(devices: Iterable[DeviceSpec]) -> list[str]:
    """ "8 × A100-SXM4-80GB, 80 GiB" per group of equal devices."""
    keys = [(group_name(device), device.memory_total_bytes) for device in devices]
    counted = [(key, sum(1 for _ in group)) for key, group in groupby(keys)]
    return [f"{count} × {name}, {memory / GIB:.4g} GiB" for (name, memory), count in counted]


def backend_setting(machine: MachineLike) -> str:
    """The gpu.backend that gives this machine again: devices of several kinds are for auto."""
    return "auto" if machine.backend == "mixed" else machine.backend


def device_specs(settings: Settings, machine: MachineLike) -> list[str]:
    """The device entries of the run as `--devices` takes them; where none were given, those that were chosen."""
    if settings.gpu.devices:
        return list(settings.gpu.devices)
    if machine.backend == "simulated":
        return [f"{sum(1 for _ in group)}x {model}" for model, group in groupby(d.model for d in machine.devices)]
    if machine.backend == "cpu":
        return [f"cpu:{len(machine.devices)}"]
    return [f"{device.kind}:{device.index}" for device in machine.devices]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found


def changed_settings(settings: Settings) -> dict[str, Any]:
    """The settings that differ from their defaults, by dotted key."""
    assert dataclasses.is_dataclass(settings)
    defaults = flat(to_dict(Settings()))
    return {name: value for name, value in flat(to_dict(settings)).items() if value != defaults.get(name)}


@dataclasses.dataclass(slots=True, frozen=True)
class Request:
    """How a run was asked for: `overrides` holds what --set and the environment said, by dotted key.

    `strategy`: what --strategy said, a name or "file.py:function" with the whole path.
    """

    config_path: Path | None = None
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    strategy: str | None = None


# Settings that have a flag of their own in `command`.
OWN_FLAGS: Final = frozenset(
    """gpu.backend gpu.devices seed run.time_scale run.pace run.workload run.repeat run.export run.deadline
    run.notebook_deadline""".split()
)


def command(
    request: Request,
    settings: Settings,
    machine: MachineLike,
    scenarios: Sequence[str] = (),
    fail_if: Sequence[str] = (),
) -> str:
    """The command line that repeats the run. What came from the environment stands in it as --set."""
    words = ["altlas", "run", *scenarios]
    if request.config_path is not None:
        words += ["--config", str(request.config_path)]
    words += ["--backend", backend_setting(machine)]
    for entry in device_specs(settings, machine):
        words += ["--devices", entry]
    words += ["--seed", str(settings.seed)]
    if request.strategy is not None:
        words += ["--strategy", request.strategy]
    if settings.run.workload is not None:
        words += ["--workload", settings.run.workload]
    if settings.run.repeat != 1:
        words += ["--repeat", str(settings.run.repeat)]
    for name in settings.run.export:
        words += ["--export", name]
    words += [word for rule in fail_if for word in ("--fail-if", rule)]
    for name, value in {**request.environment, **request.overrides}.items():
        if name not in OWN_FLAGS:
            words += ["--set", f"{name}={_as_text(value)}"]
    if settings.run.time_scale != 1:
        words += ["--time-scale", f"{settings.run.time_scale:g}"]
    for flag, value in (
        ("--pace", settings.run.pace),
        ("--deadline", settings.run.deadline),
        ("--notebook-deadline", settings.run.notebook_deadline),
    ):
        if value != 0:
            words += [flag, f"{value:g}"]
    return shlex.join(words)


def _as_text(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)


def _package_version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
