"""Run the benchmarks, each in a process of its own, one after the other.

    python -m benchmarks [NAME ...] [--quick] [--write-docs]

Tables on stdout, all results in build/benchmarks.json. --write-docs puts the tables of those that ran between their
markers in docs/benchmarks.md, with the date, the machine, and how busy other processes kept it meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.tables import TABLES

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "build" / "benchmarks.json"
QUIET_PERCENT = 3.0  # of the machine's CPU time taken by others; above it the figures are marked
CALLS = {"dispatch": ["benchmarks/dispatch.py", "--json"], "real_work": ["benchmarks/real_work.py"]}


def busy_s() -> float:
    """CPU seconds the whole machine has worked since it started (user, nice, system, irq, softirq)."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(int(fields[i]) for i in (0, 1, 2, 5, 6)) / os.sysconf("SC_CLK_TCK")


def children_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def run(name: str, quick: bool) -> dict[str, Any]:
    """One benchmark: its results, when it ran, and the share of the machine that others used meanwhile (percent)."""
    command = [sys.executable, *CALLS.get(name, ["-m", f"benchmarks.{name}"])]
    if quick:
        command += ["--tasks", "1000", "--rounds", "2"] if name == "dispatch" else ["--quick"]
    begin, busy, own = time.monotonic(), busy_s(), children_s()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    wall = time.monotonic() - begin
    others = max(0.0, busy_s() - busy - (children_s() - own))
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "quick": quick,
        "wall_s": wall,
        "others_percent": 100.0 * others / (wall * (os.cpu_count() or 1)),
        "found": json.loads(done.stdout),
    }


def machine() -> str:
    return f"{os.cpu_count()} cores {platform.machine().replace('_', '-')}, Python {platform.python_version()}"


def caption(result: dict[str, Any]) -> str:
    """When, where, and whether the machine was quiet."""
    others = result["others_percent"]
    quiet = "quiet machine" if others <= QUIET_PERCENT else "shared machine: read these with care"
    small = " A quick run: not to be quoted." if result["quick"] else ""
    return f"{result['date']}, {machine()}; {quiet} (others used {others:.0f} % of its CPU meanwhile).{small}"


def write_docs(name: str, text: str) -> None:
    """Put `text` between the markers of a benchmark in docs/benchmarks.md."""
    page = DOCS.read_text()
    marked = re.compile(f"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    page, count = marked.subn(lambda match: f"{match[1]}{text}\n{match[2]}", page)
    if count != 1:
        sys.exit(f"{DOCS}: markers <!-- {name} --> and <!-- end {name} --> are needed once, found {count} times")
    DOCS.write_text(page)


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TABLES)}; none = all")
    parser.add_argument("--quick", action="store_true", help="small runs, to see that all works")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/benchmarks.md")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(TABLES))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(TABLES)}")
    if options.quick and options.write_docs:
        parser.error("--quick runs are not written into the docs")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    broken = []
    for name in options.names or TABLES:
        try:
            results[name] = run(name, options.quick)
        except subprocess.CalledProcessError as error:
            print(f"\n## {name}: broke with exit status {error.returncode}", file=sys.stderr)
            broken.append(name)
            continue
        text = f"{caption(results[name])}\n\n{TABLES[name](results[name]['found'])}"
        print(f"\n## {name}\n\n{text}", flush=True)
        if options.write_docs:
            write_docs(name, text)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n")
    return 3 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
