"""The report of a large run: how many bytes its page has, and how long a browser takes to draw all its figures.

python -m benchmarks.report_page [--quick]
"""

from __future__ import annotations

import csv
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from altlas_core.report.pdf import find_chromium
from benchmarks.suite import folder_bytes
from benchmarks.timing import script, spread

SCENARIO = "own_workload"
LOAD = 1.05  # times what the machine can do: tasks wait
SLOTS = 4
TIMEOUT_S = 4.0  # about one task in fifty runs out of it: marks that must not be aggregated away
LIMIT_MS = 60_000
# When the last figure stood, on the page's own clock: milliseconds since navigation began.
WATCH = """
new MutationObserver(() => {
  if (document.documentElement.dataset.figures === "drawn") window.drawn_ms ??= performance.now();
}).observe(document, { attributes: true, attributeFilter: ["data-figures"], subtree: true });
"""


def write_workload(path: Path, gpus: int, tasks: int) -> None:
    """Poisson arrivals, exponential durations of 1 s in the mean, three priorities; the same file every time."""
    draw = random.Random(5)
    now = 0.0
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("submit_s", "duration_s", "priority", "timeout_s"))
        for _ in range(tasks):
            now += draw.expovariate(LOAD * gpus * SLOTS)
            priority = draw.choice(("high", "normal", "normal", "low"))
            rows.writerow((f"{now:.6f}", f"{draw.expovariate(1.0):.4f}", priority, TIMEOUT_S))


def make_report(folder: Path, gpus: int, tasks: int) -> Path:
    """The page of a run of that many tasks on that many simulated GPUs."""
    workload, reports = folder / "workload.csv", folder / "reports"
    write_workload(workload, gpus, tasks)
    command = [str(Path(sys.executable).with_name("altlas")), "run", SCENARIO, "--workload", str(workload)]
    command += ["--backend", "simulated", "--devices", f"{gpus}x A100-SXM4-80GB", "--reports-dir", str(reports)]
    command += ["--strategy", "least_loaded"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    page = reports / "latest" / f"{SCENARIO}.html"
    if done.returncode not in (0, 1) or not page.exists():
        raise RuntimeError(f"altlas run left no report (exit status {done.returncode}):\n{done.stdout}{done.stderr}")
    return page.resolve()


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium of this machine."""
    path = find_chromium()
    if path is None:
        raise RuntimeError("no Chromium on this machine (Debian: apt-get install chromium)")
    playwright: Any = import_module("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


def open_page(opened: Any, page: Path) -> tuple[int, float]:
    """(figures, seconds until all were drawn), with the network off and nothing in the browser's cache."""
    context = opened.new_context(offline=True, viewport={"width": 1400, "height": 900})
    tab = context.new_page()
    problems: list[str] = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
    tab.add_init_script(WATCH)
    tab.goto(page.as_uri())
    tab.wait_for_selector("html[data-figures=drawn]", timeout=LIMIT_MS)
    drawn_ms = float(tab.evaluate("window.drawn_ms"))
    figures = tab.locator(".figure").count()
    drawn = tab.locator(".figure .main-svg").first.is_visible() and tab.locator(".undrawn").count() == 0
    context.close()
    if problems or not drawn:
        raise RuntimeError(f"{page}: {problems or 'a figure was not drawn'}")
    return figures, drawn_ms / 1000


def measure(quick: bool) -> dict[str, Any]:
    gpus, tasks, rounds = (64, 2_000, 1) if quick else (1_000, 100_000, 7)
    with tempfile.TemporaryDirectory() as folder:
        page = make_report(Path(folder), gpus, tasks)
        with browser() as opened:
            open_page(opened, page)  # the first one reads the browser itself from the disk
            found = [open_page(opened, page) for _ in range(rounds)]
        return {
            "gpus": gpus,
            "tasks": tasks,
            "rounds": rounds,
            "figures": found[0][0],
            "page_bytes": page.stat().st_size,
            "assets_bytes": folder_bytes(page.parent / "assets"),
            "drawn_s": spread([seconds for _, seconds in found]),
        }


if __name__ == "__main__":
    script(__doc__, measure)
