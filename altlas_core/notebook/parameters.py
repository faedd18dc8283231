"""The parameters of the scenario notebooks: their names, types and meanings, and the settings they ask for."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from altlas_core.config import Settings
from altlas_core.errors import ConfigError, nearest
from altlas_core.experiment import load_settings
from altlas_core.own_strategy import resolve
from altlas_core.rules import shown

INJECTED: Final = "# Parameters"  # how papermill begins the cell it adds, and how ours begins


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
    "workload": Parameter("run.workload", (str, Path), "the path of a CSV, Parquet or JSON lines file"),
    "strategy": Parameter("gpu.selection.default_strategy", (str,), "a strategy's name, or 'file.py:function'"),
    "repeat": Parameter("run.repeat", (int, str), "a whole number, 1 or more"),
    "export": Parameter("run.export", (str, list, tuple), "csv, parquet, trace, or a list of them"),
    "overrides": Parameter(None, (dict,), "a mapping of full setting names, such as {'gpu.workload.timeout': 60}"),
    "out_dir": Parameter(None, (str, Path), "the path of a folder"),
}


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
            raise ConfigError(f"parameter {name}: {shown(value)}; allowed: {parameter.allowed}, or None")
    return given


def _assigned(sources: Iterable[str]) -> Iterable[str]:
    for source in sources:
        if not source.lstrip().startswith(INJECTED):
            continue
        for node in ast.parse(source).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def settings(namespace: Mapping[str, Any]) -> Settings:
    """The settings that a notebook's parameters ask for. Raises ConfigError, StrategyError.

    A parameter goes before `overrides`, these before environment and file. Where none of them names a backend or a
    device the machine is simulated, also on a computer with a GPU: so a notebook's outputs are the same everywhere.
    """
    given = parameters(namespace)
    changed = dict(given.get("overrides", {}))
    if "strategy" in given:
        given["strategy"] = resolve(given["strategy"])
    if "workload" in given:
        given["workload"] = json.dumps(str(given["workload"]))  # a path, whatever YAML would read in it
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
