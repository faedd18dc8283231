"""What can only be shown on a CUDA device, in one table and a results.json: some minutes of work.

    python benchmarks/gpu_check.py [--device cuda:0] [--out build/gpu_check/results.json]

Without a GPU it says what was looked for, lists everything as skipped and exits 0. Exit status 1: a check failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any, Final

from gpu_checks import Check, plan
from gpu_stand import Finding, Stand

from altlas_core.backends import warm
from altlas_core.backends.discover import discover
from altlas_core.backends.machine import Machine
from altlas_core.config import load_config
from altlas_core.errors import AltlasError, DeviceError

WORDS: Final = {True: "passed", False: "FAILED", None: "skipped"}
WIDTHS: Final = (34, 38, 52)


def find(device: str) -> Machine:
    """The device as a machine of one. Raises DeviceError where it is not there."""
    machine = discover(load_config(overrides={"gpu.devices": [device]}, environ={}))
    if len(machine.devices) != 1 or machine.devices[0].simulated:
        raise AltlasError(f"--device {device}: name one real device, such as cuda:0 or cpu:1")
    return machine


def look(checks: Sequence[Check], stand: Stand, say: Any = print) -> list[tuple[Check, Finding, float]]:
    """Make the checks in order. One that breaks is a failed check; the others go on."""
    rows = []
    for group, members in groupby(checks, key=lambda check: check.warm):
        with nullcontext() if group is None else warm.keep():
            for check in members:
                begin = time.perf_counter()
                try:
                    finding = check.look(stand)
                except Exception as error:
                    finding = Finding(
                        False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                    )
                rows.append((check, finding, time.perf_counter() - begin))
                say(f"{WORDS[finding.passed]:8}{check.name} ({rows[-1][2]:.1f} s)")
    return rows


def skip(checks: Sequence[Check]) -> list[tuple[Check, Finding, float]]:
    return [(check, Finding(None, "no CUDA device here"), 0.0) for check in checks]


def table(rows: Sequence[tuple[Check, Finding, float]]) -> str:
    """check, expected, observed: one row each, long texts over several lines."""
    lines = [_line(("check", "expected", "observed"), "")]
    for check, finding, _ in rows:
        texts = (check.name, check.expected, finding.observed)
        columns = [textwrap.wrap(text, width) for text, width in zip(texts, WIDTHS, strict=True)]
        words = (WORDS[finding.passed], *[""] * max(map(len, columns)))
        lines += map(_line, zip_longest(*columns, fillvalue=""), words)
    return "\n".join(lines)


def _line(cells: Sequence[str], word: str) -> str:
    padded = "  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True))
    return f"{word:8}{padded}".rstrip()


def results(rows: Sequence[tuple[Check, Finding, float]], machine: Machine | None, why: str | None) -> dict[str, Any]:
    """What results.json holds. `passed` is None where nothing could be looked at."""
    import torch

    outcomes = [finding.passed for _, finding, _ in rows]
    spec = None if machine is None else machine.devices[0]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "card": None if spec is None else spec.name,
        "compute_capability": None
        if spec is None or spec.compute_capability is None
        else list(spec.compute_capability),
        "memory_total_bytes": None if spec is None else spec.memory_total_bytes,
        "driver": None if machine is None else machine.driver_version,
        "driver_cuda": None if machine is None else machine.cuda_version,
        "cuda": torch.version.cuda,
        "torch": str(torch.__version__),
        "python": sys.version.split()[0],
        "passed": None if set(outcomes) <= {None} else False not in outcomes,
        "skipped_because": why,
        "checks": [
            {
                "name": check.name,
                "passed": finding.passed,
                "expected": check.expected,
                "observed": finding.observed,
                "seconds": round(seconds, 3),
                "figures": finding.figures,
            }
            for check, finding, seconds in rows
        ],
    }


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="default cuda:0; cpu:1 tries the checks themselves")
    parser.add_argument("--out", type=Path, default=Path("build/gpu_check/results.json"), metavar="FILE")
    options = parser.parse_args(arguments)
    machine, why = None, None
    try:
        machine = find(options.device)
    except DeviceError as error:
        if not options.device.startswith("cuda"):
            raise
        why = str(error)
        print(why)
        rows = skip(plan())
    else:
        stand = Stand(options.device, machine, options.out.resolve().parent / "reports")
        print(f"{machine.devices[0].name}, driver {machine.driver_version or 'N/A'}")
        rows = look(plan(kill_grace_s=stand.kill_grace_s), stand)
    found = results(rows, machine, why)
    print(table(rows))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(options.out)
    return 1 if found["passed"] is False else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except AltlasError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
