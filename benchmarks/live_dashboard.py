"""The live dashboard in JupyterLab: how often a second its machine and its figure are drawn anew, and what it costs.

python -m benchmarks.live_dashboard [--quick]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report_page import browser
from benchmarks.timing import script, spread

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

SOURCE = """\
import altlas_core as altlas

settings = altlas.load_config(
    overrides={{"gpu.devices": ["{gpus}x A100"], "gpu.selection.default_strategy": "least_loaded"}}
)
dashboard = altlas.live(settings)
dashboard"""
READY_S = 5.0  # until slots have filled
# Counted in the page: what its clock shows anew, and each drawing of the figure.
COUNT = """() => {
  window.shown = { clock: 0, figure: 0 };
  new MutationObserver(() => window.shown.clock++).observe(
    document.querySelector(".altlas-clock"), { childList: true, characterData: true, subtree: true });
  document.querySelector(".altlas-live .js-plotly-plot").on("plotly_afterplot", () => window.shown.figure++);
}"""


def rounds_of(page: Any, rounds: int, seconds: float) -> list[tuple[float, float]]:
    """(clock, figure) drawings a second, each round."""
    page.evaluate(COUNT)
    found = []
    for _ in range(rounds):
        before, began = page.evaluate("window.shown"), time.perf_counter()
        page.wait_for_timeout(1000 * seconds)
        after, took = page.evaluate("window.shown"), time.perf_counter() - began
        found.append(((after["clock"] - before["clock"]) / took, (after["figure"] - before["figure"]) / took))
    return found


def measure(quick: bool) -> dict[str, Any]:
    from jupyter_lab import lab, open_notebook, run_all, write_notebook

    gpus, rounds, seconds = (8, 1, 2.0) if quick else (64, 7, 5.0)
    with tempfile.TemporaryDirectory() as name, browser() as opened:
        folder = Path(name)
        (folder / "work").mkdir()
        write_notebook(folder / "work" / "live.ipynb", SOURCE.format(gpus=gpus))
        with lab(folder) as address:
            page, _ = open_notebook(opened, address, "live.ipynb")
            run_all(page)
            page.wait_for_selector(".altlas-live .js-plotly-plot .main-svg", timeout=60_000)
            page.wait_for_timeout(1000 * READY_S)
            found = rounds_of(page, rounds, seconds)
            page.context.close()
    return {
        "gpus": gpus,
        "rounds": rounds,
        "clock_per_s": spread([clock for clock, _ in found]),
        "figure_per_s": spread([figure for _, figure in found]),
    }


if __name__ == "__main__":
    script(__doc__, measure)
