"""The house stands: an import goes strictly down, time and chance stay above, and `import altlas_core` is light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import altlas_core

PACKAGE = Path(altlas_core.__file__).parent

# Half steps say which of two neighbours on a floor may know the other. Modules of one package (a name that ends in a
# dot) may know each other, without going round in a circle.
LAYERS: dict[str, float] = {
    "errors": 0,
    "model": 0.2,
    "generation": 0,
    "kinds": 0.2,
    "rules": 0.5,  # says which name is nearest, as errors does
    "yaml_text": 0,
    "gpu_model.catalog_data": 0,
    "gpu_model.catalog": 0.5,  # facts with names, which the settings may mention
    "device_names": 0.7,
    "events": 1,
    "strategies": 1,
    "calls": 1,
    "workload_csv": 1,
    "workload_jsonl": 1,
    "workload_parquet": 1,
    "workload_files": 1.2,
    "examples.": 0,
    "faults": 1,
    "config_schema": 1,
    "config": 1.5,
    "workloads": 1.5,
    "gpu_model.": 2,
    "task_queue": 2,
    "words": 2,
    "pool": 2.5,
    "hold": 2.7,
    "needs": 2.7,
    "intake": 3,
    "event_log": 3,
    "distributor": 3,
    "backends.worker.": 2.9,  # the worker program: its driver side may know it, never the other way
    "backends.": 3,
    "telemetry": 3.5,
    "drivers.": 4,
    "experiment": 5.5,
    "result": 5,
    "replay": 5,
    "scenarios.": 6,
    "figures.": 6,
    "report.": 7,
    "text_models": 1,
    "live.": 7.5,  # shows itself as notebooks show things
    "api.": 7,
    "notebook.": 7,
    "statistics": 5,
    "own_strategy": 5,
    "exports.": 4,
    "flags": 7.5,
    "run_command": 8,
    "commands": 8,
    "cli": 8.5,
}
# The front door and the version number, which anybody above the drivers may ask for.
FRONT = "altlas_core"


def modules() -> dict[str, Path]:
    """Every module by its name below altlas_core: "pool", "backends.nvml.", "backends" for the package itself."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts) or FRONT] = path
    return found


MODULES = modules()


def home(module: str) -> str:
    """The entry of LAYERS a module belongs to."""
    parts = module.split(".")
    packages = [".".join(parts[:depth]) + "." for depth in range(len(parts), 0, -1)]  # the narrowest first
    return module if module in LAYERS else next((package for package in packages if package in LAYERS), module)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module of the project that a file imports, anywhere in it, also for types alone; with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == FRONT:
                    yield alias.name.removeprefix(FRONT).lstrip(".") or FRONT, node.lineno
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == FRONT:
            base = (node.module or "").removeprefix(FRONT).lstrip(".")
            for alias in node.names:
                whole = f"{base}.{alias.name}".lstrip(".")
                yield whole if whole in MODULES else base or FRONT, node.lineno


def test_every_module_has_its_layer() -> None:
    homeless = [name for name in MODULES if name != FRONT and home(name) not in LAYERS]
    assert homeless == []


@pytest.mark.parametrize("name", [name for name in MODULES if name != FRONT])
def test_an_import_goes_strictly_down(name: str) -> None:
    wrong = []
    for target, line in imports(MODULES[name]):
        if target == FRONT:
            if LAYERS[home(name)] < 6:
                wrong.append(f"line {line}: the front door")
        elif home(target) != home(name) and not LAYERS[home(target)] < LAYERS[home(name)]:
            wrong.append(f"line {line}: {target} (layer {LAYERS[home(target)]:g})")
    assert wrong == [], f"{name} (layer {LAYERS[home(name)]:g}) imports {', '.join(wrong)}"


@pytest.mark.parametrize("package", [name for name in LAYERS if name.endswith(".")])
def test_inside_a_package_no_import_goes_round_in_a_circle(package: str) -> None:
    inside = {name for name in MODULES if home(name) == package and name != package[:-1]}
    edges = {name: {target for target, _ in imports(MODULES[name]) if target in inside} - {name} for name in inside}
    while edges:
        free = {name for name, targets in edges.items() if not targets & edges.keys()}
        assert free, f"a circle among {', '.join(sorted(edges))}"
        edges = {name: targets for name, targets in edges.items() if name not in free}


# --- no time, no chance below the drivers -----------------------------------------------------------------------------

LIVE = (
    "backends.supervision.",
    "backends.worker.",
    "backends.warm",
    "backends.nvml.",
    "backends.sampling.",
    "backends.host",
    "drivers.clock",
    "drivers.realtime",
)  # they live in real time
BELOW = [name for name in MODULES if name != FRONT and LAYERS[home(name)] <= 5.5 and not name.startswith(LIVE)]
FORBIDDEN_MODULES = {"time", "datetime", "secrets", "threading", "asyncio", "multiprocessing", "socket"}
ALLOWED_FROM_RANDOM = {"Random"}


def foreign_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Imported modules, and `module.name` where an imported module's attribute is used."""
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound[alias.asname or alias.name.split(".")[0]] = alias.name
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in bound:
            yield f"{bound[node.value.id]}.{node.attr}", node.lineno


@pytest.mark.parametrize("name", BELOW)
def test_below_the_drivers_nothing_reads_a_clock_sleeps_or_draws_at_random(name: str) -> None:
    wrong = []
    for used, line in foreign_names(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        top, _, rest = used.partition(".")
        if top in FORBIDDEN_MODULES or (top == "random" and rest and rest not in ALLOWED_FROM_RANDOM):
            wrong.append(f"line {line}: {used}")
        if used in ("uuid.uuid1", "uuid.uuid4", "os.urandom", "numpy.random"):
            wrong.append(f"line {line}: {used}")
    assert wrong == [], f"{name} uses {', '.join(wrong)}"


def test_the_two_readers_of_imports_above_do_see_them() -> None:
    text = "import time\nfrom random import random, Random\nimport random as r\nr.choice([1])\n"
    text += "def f():\n  from time import sleep"
    seen = {used for used, _ in foreign_names(ast.parse(text))}
    assert {"time", "random.random", "random.Random", "random.choice", "time.sleep"} <= seen
    assert ("events", "pool") not in {(name, target) for name in MODULES for target, _ in imports(MODULES[name])}
    assert "errors" in {target for target, _ in imports(MODULES["pool"])}
    assert "backends.warm" in {target for target, _ in imports(MODULES["scenarios"])}  # inside a function


# --- a light import ---------------------------------------------------------------------------------------------------

HEAVY = ["torch", "pandas", "plotly", "pynvml", "papermill", "fastapi", "numpy", "IPython", "nbformat", "ipywidgets"]


def loaded_by(statement: str) -> list[str]:
    code = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    found: list[str] = json.loads(done.stdout)
    return found


def test_import_altlas_core_loads_nothing_heavy() -> None:
    assert [name for name in HEAVY if name in loaded_by("import altlas_core")] == []


def test_a_run_without_its_tables_loads_nothing_heavy() -> None:
    run = (
        "import altlas_core as a; r = a.run(a.load_config(None, {'gpu.backend': 'simulated'}, environ={}), "
        "a.Workload.from_records([{'duration_s': 1}])); r.event_log_sha256; r.checks"
    )
    assert [name for name in HEAVY if name in loaded_by(run)] == []
