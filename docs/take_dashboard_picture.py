"""Makes docs/dashboard.png from a dashboard in JupyterLab: `.venv/bin/python docs/take_dashboard_picture.py`.

Starts a JupyterLab of its own, runs eight simulated GPUs for half a minute, loses one of them on the way, and
photographs the page. Needs Chromium (Debian: apt-get install chromium) and the test extras.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from altlas_core.report.pdf import find_chromium

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
from jupyter_lab import lab, open_notebook, run_all, write_notebook  # noqa: E402

MAX_BYTES = 200_000
SIZE = {"width": 1240, "height": 1300}
SOURCE = """\
import altlas_core as altlas

settings = altlas.load_config(
    overrides={"gpu.devices": ["8x H100"], "gpu.selection.default_strategy": "least_loaded"}
)
altlas.live(settings)"""


def run_for(page: Any, seconds: float) -> None:
    """Of the dashboard's clock."""
    reached = f"parseFloat(document.querySelector('.altlas-clock').textContent) >= {seconds}"
    page.wait_for_function(reached, timeout=300_000)


def photograph(browser: Any, address: str, picture: Path) -> None:
    page, _ = open_notebook(browser, address, "dashboard.ipynb", **SIZE)
    page.get_by_role("tab", name=re.compile("File Browser")).click()  # so that it makes room
    run_all(page)
    page.wait_for_selector(".altlas-live .js-plotly-plot .main-svg", timeout=60_000)
    run_for(page, 13.0)
    page.locator('[data-gpu="3"]').click()
    page.locator(".altlas-live button", has_text="Lose it").click()
    run_for(page, 28.0)
    page.locator(".altlas-live").evaluate("element => element.scrollIntoView({block: 'end'})")
    page.screenshot(path=picture)


def main() -> None:
    browser_path = find_chromium()
    if browser_path is None:
        sys.exit("Chromium is needed: apt-get install chromium")
    picture = HERE / "dashboard.png"
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        (Path(folder) / "work").mkdir()
        write_notebook(Path(folder) / "work" / "dashboard.ipynb", SOURCE)
        with lab(Path(folder)) as address:
            browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
            photograph(browser, address, picture)
            browser.close()
    size = picture.stat().st_size
    print(f"{picture.relative_to(HERE.parent)}: {size / 1000:.0f} kB")
    if size > MAX_BYTES:
        sys.exit(f"too large for a README: at most {MAX_BYTES / 1000:.0f} kB")


if __name__ == "__main__":
    main()
