"""The live dashboard where it lives: a JupyterLab server of its own, opened by Chromium, with the network off."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_lab import lab, open_notebook, run_all, write_notebook

pytestmark = [pytest.mark.browser, pytest.mark.notebooks]

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
TOUR = "00_start_here.ipynb"
SOURCE = """\
import altlas_core as altlas
settings = altlas.load_config(
    overrides={"gpu.devices": ["8x A100"], "gpu.selection.default_strategy": "least_loaded"}
)
dashboard = altlas.live(settings)
dashboard"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "work").mkdir()
    write_notebook(folder / "work" / "dashboard.ipynb", SOURCE)
    shutil.copy(NOTEBOOKS / TOUR, folder / "work")
    with lab(folder) as address:
        yield address


def clock(page: Any) -> float:
    """Seconds on the dashboard's clock."""
    wait_for(page, "document.querySelector('.altlas-clock')?.textContent")
    return float(page.locator(".altlas-clock").text_content().removesuffix(" s").replace(",", ""))


def button(page: Any, text: str) -> Any:
    return page.locator(".altlas-live button", has_text=re.compile(rf"^\s*{text}$"))


def wait_for(page: Any, condition: str) -> None:
    """Until a JavaScript expression holds of the page."""
    page.wait_for_function(condition, timeout=30_000)


def state(page: Any, text: str) -> None:
    wait_for(page, f"document.querySelector('.altlas-state').textContent === '{text}'")


def no_traceback(page: Any) -> None:
    errors = page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]')
    assert errors.all_inner_texts() == []
    assert "Traceback" not in page.locator(".jp-Notebook").inner_text()


def test_the_dashboard_moves_obeys_and_can_be_used_by_everybody(chromium: Any, server: str) -> None:
    page, wrong = open_notebook(chromium, server, "dashboard.ipynb", height=1500)
    run_all(page)
    page.wait_for_selector(".altlas-live .js-plotly-plot .main-svg", timeout=60_000)
    dashboard = page.locator(".altlas-live")
    assert page.locator(".altlas-gpu").count() == 8

    # it moves
    before, picture = clock(page), dashboard.screenshot()
    wait_for(page, f"parseFloat(document.querySelector('.altlas-clock').textContent) > {before + 1}")
    assert dashboard.screenshot() != picture
    wait_for(page, "document.querySelectorAll('.altlas-live .scatterlayer .js-line').length >= 4")

    # pause, step, go on
    button(page, "Pause").click()
    state(page, "paused")
    stood = clock(page)
    page.wait_for_timeout(300)
    assert clock(page) == stood
    button(page, "Step").click()
    wait_for(page, f"parseFloat(document.querySelector('.altlas-clock').textContent) !== {stood}")
    state(page, "paused")
    button(page, "10x").click()
    button(page, "Go on").click()
    state(page, "running")
    wait_for(page, f"parseFloat(document.querySelector('.altlas-clock').textContent) > {stood + 5}")

    # break a GPU and mend it, by mouse and by keyboard
    page.locator(".altlas-gpu").nth(2).click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    wait_for(page, "document.querySelector('[data-gpu=\"3\"]').getAttribute('aria-pressed') === 'true'")
    button(page, "Lose it").click()
    wait_for(page, "document.querySelector('[data-gpu=\"3\"]').dataset.health === 'LOST'")
    assert "LOST" in page.locator('[data-gpu="3"]').inner_text()
    assert button(page, "Lose it").is_disabled()
    assert "GPU 3 lost" in page.locator(".altlas-news").inner_text()
    axe_finds_nothing_serious(page)
    button(page, "Return it").click()
    wait_for(page, "document.querySelector('[data-gpu=\"3\"]').dataset.health !== 'LOST'")

    # another machine, which goes on running; with so many GPUs the timeline is a map
    count = page.locator(".altlas-live input[type=number]").first
    count.fill("70")
    count.press("Enter")
    wait_for(page, "document.querySelectorAll('.altlas-gpu').length === 70")
    state(page, "running")
    wait_for(page, "document.querySelector('.altlas-live .heatmaplayer image') !== null")

    # the end leaves the whole run
    button(page, "Stop").click()
    state(page, "ended")
    page.wait_for_selector(".altlas-live .js-plotly-plot .main-svg")
    assert button(page, "Run again").is_enabled()
    assert not page.locator(".altlas-problem").is_visible()
    no_traceback(page)
    assert wrong == []
    page.context.close()


def axe_finds_nothing_serious(page: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page, context=".altlas-live").response["violations"]
    serious = [
        (one["id"], [node["html"][:200] for node in one["nodes"][:3]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_the_tour_runs_whole_and_its_dashboard_moves(chromium: Any, server: str) -> None:
    page, wrong = open_notebook(chromium, server, TOUR)
    run_all(page)
    page.wait_for_selector(".altlas-clock", timeout=60_000)
    page.locator(".altlas-live").scroll_into_view_if_needed()
    before = clock(page)
    wait_for(page, f"parseFloat(document.querySelector('.altlas-clock').textContent) > {before + 1}")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=90_000)
    waiting = [text for text in page.locator(".jp-InputArea-prompt").all_inner_texts() if "*" in text]
    assert waiting == []
    no_traceback(page)
    assert wrong == []
    page.context.close()
