"""The whole suite as a user runs it: `altlas run` on the default simulated machine, reports included.

python -m benchmarks.suite [--quick]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.timing import script, spread


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def run_once(reports: Path) -> dict[str, Any]:
    altlas = Path(sys.executable).with_name("altlas")
    command = [str(altlas), "run", "--backend", "simulated", "--reports-dir", str(reports)]
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall_s = time.perf_counter() - begin
    folders = [path for path in reports.iterdir() if path.is_dir() and not path.is_symlink()]
    if len(folders) != 1 or not (folders[0] / "results.json").exists():
        raise RuntimeError(f"altlas run left no report (exit status {done.returncode}):\n{done.stdout}{done.stderr}")
    results = json.loads((folders[0] / "results.json").read_text())
    scenarios = {name: found["wall_s"] for name, found in results["scenarios"].items()}
    return {
        "wall_s": wall_s,
        "exit_status": done.returncode,
        "passed": results["passed"],
        "folder_bytes": folder_bytes(folders[0]),
        "scenario_wall_s": scenarios,
    }


def measure(quick: bool) -> dict[str, Any]:
    rounds = []
    for _ in range(1 if quick else 3):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(run_once(Path(folder)))
    return {
        "rounds": len(rounds),
        "passed": all(found["passed"] for found in rounds),
        "scenarios": sorted(rounds[0]["scenario_wall_s"]),
        "wall_s": spread([found["wall_s"] for found in rounds]),
        "folder_bytes": max(found["folder_bytes"] for found in rounds),
        "scenario_wall_s": {
            name: spread([found["scenario_wall_s"][name] for found in rounds]) for name in rounds[0]["scenario_wall_s"]
        },
    }


if __name__ == "__main__":
    script(__doc__, measure)
