"""Report pages in a real browser with the network cut: every figure is drawn, nothing is asked for, nothing fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import BAD, GOOD, figure_cell, result_cell, write_notebook
from report_pages import write_report

from altlas_core.backends.discover import discover
from altlas_core.config import load_config
from altlas_core.report.notebooks import find_notebooks
from altlas_core.report.suite import run_suite

pytestmark = [pytest.mark.browser, pytest.mark.notebooks]

TABLE = "import pandas as pd\npd.DataFrame({f'column {i}': [i * 1000.5, 'text that is long'] for i in range(20)})"
WEBGL = (
    "from IPython.display import display\ndisplay({'application/vnd.plotly.v1+json': {'data': "
    "[{'type': 'scattergl', 'mode': 'markers', 'y': list(range(1000))}], 'layout': {}}}, raw=True)"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("browser")
    write_notebook(
        base / "nb", 1, "alpha", figure_cell(), TABLE, figure_cell("Second", height=500), WEBGL, result_cell("alpha")
    )
    write_notebook(base / "nb", 2, "beta", figure_cell(), result_cell("beta", [GOOD, BAD]), "1/0")
    settings = load_config(None, {"gpu.backend": "simulated"}, environ={})
    notebooks = list(find_notebooks(base / "nb").values())
    return run_suite(settings, discover(settings), notebooks, base / "reports").folder


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with three figures over the 8 s of one run, a figure that is not over time, and tables."""
    return write_report(tmp_path_factory.mktemp("timed")) / "passed.html"


class Visit:
    """A page opened from disk, and everything it complained about or asked the network for."""

    def __init__(self, browser: Any, width: int = 1400, scheme: str = "light") -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, reduced_motion="reduce"
        )
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"failed {request.url}"))
        self.page.on("request", self._note)

    def _note(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.complaints.append(f"asked for {request.url}")

    def open(self, path: Path) -> Any:
        self.page.goto(path.as_uri())
        if self.page.locator(".figure").count():
            self.page.wait_for_selector("html[data-figures=drawn]")
        return self.page


@pytest.fixture
def visit(chromium: Any) -> Iterator[Any]:
    visits: list[Visit] = []

    def start(**options: Any) -> Visit:
        visits.append(Visit(chromium, **options))
        return visits[-1]

    yield start
    for made in visits:
        made.context.close()


@pytest.fixture(scope="module")
def tab(chromium: Any) -> Iterator[Visit]:
    """One tab that tests share where each opens its page anew: the second load finds the library compiled."""
    made = Visit(chromium)
    yield made
    made.context.close()


@pytest.mark.parametrize(("name", "figures"), [("index", 0), ("alpha", 3), ("beta", 1)])
def test_every_figure_is_drawn_and_nothing_complains(report: Path, visit: Any, name: str, figures: int) -> None:
    opened = visit()
    page = opened.open(report / f"{name}.html")
    drawn = page.eval_on_selector_all(
        ".figure", "all => all.map(f => [f.querySelectorAll('.main-svg').length, f._fullData.length])"
    )
    assert len(drawn) == figures
    assert all(svgs > 0 and traces > 0 for svgs, traces in drawn)
    assert page.locator(".modebar-btn").count() > 0 or not figures
    assert page.locator('[data-title*="Share" i], [data-title*="cloud" i]').count() == 0  # nothing can be uploaded
    assert opened.complaints == []


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (900, "dark"), (420, "light")])
def test_pages_fit_every_width(report: Path, visit: Any, width: int, scheme: str) -> None:
    opened = visit(width=width, scheme=scheme)
    for path in sorted(report.glob("*.html")):
        page = opened.open(path)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path.name
        for box in page.eval_on_selector_all(
            ".figure .main-svg", "all => all.map(f => [f.getBoundingClientRect().right, innerWidth])"
        ):
            assert box[0] <= box[1]


def test_figures_follow_a_change_to_dark(report: Path, visit: Any) -> None:
    page = visit().open(report / "alpha.html")
    colour = "document.querySelector('.figure')._fullLayout.font.color"
    light = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{colour} !== '{light}'")


def test_print_is_light_whatever_the_screen_is(report: Path, visit: Any) -> None:
    page = visit(scheme="dark").open(report / "beta.html")
    page.emulate_media(media="print")
    background = page.eval_on_selector("html", "e => getComputedStyle(e).backgroundColor")
    tint = page.eval_on_selector(".verdict", "e => getComputedStyle(e).backgroundColor")
    assert background == "rgb(255, 255, 255)"
    assert min(map(int, tint.removeprefix("rgb(").removesuffix(")").split(","))) > 200


def test_a_dark_screen_prints_light_figures_with_all_evidence(timed: Path, visit: Any) -> None:
    page = visit(scheme="dark").open(timed)
    colour = "getComputedStyle(document.querySelector('.figure .xtick text')).fill"
    light = visit().open(timed).evaluate(colour)
    assert page.evaluate(colour) != light
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(colour) == light
    assert page.locator("table.checks td").first.is_visible()
    assert not page.locator("details.code").first.is_visible()
    assert not page.locator(".scrub").first.is_visible()
    page.emulate_media(media="screen", color_scheme="dark")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(colour) != light


def test_a_figure_that_cannot_be_drawn_says_so_and_the_others_stand(report: Path, visit: Any, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(report, copy)
    page_text = (copy / "alpha.html").read_text()
    (copy / "alpha.html").write_text(
        page_text.replace('<script type="application/json">{', '<script type="application/json">{{', 1)
    )
    page = visit().open(copy / "alpha.html")
    assert page.locator(".undrawn").count() == 1
    assert "could not be drawn" in page.locator(".undrawn").inner_text()
    assert page.locator(".figure:has(.main-svg)").count() == 2


def test_the_page_reads_in_order_for_a_screen_reader(report: Path, visit: Any) -> None:
    page = visit().open(report / "beta.html")
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    assert page.locator(".story > h2").all_inner_texts() == ["Evidence"]
    assert page.eval_on_selector_all(".figure", "all => all.every(f => f.getAttribute('aria-label'))")


def column(page: Any, position: int) -> list[str]:
    found: list[str] = page.eval_on_selector_all(
        f".output table tbody td:nth-child({position})", "all => all.map(cell => cell.textContent)"
    )
    return found


def test_tables_sort_by_click_and_by_key(timed: Path, tab: Visit) -> None:
    page = tab.open(timed)
    wait = page.locator(".output th", has_text="wait (s)")
    wait.locator("button").click()
    assert column(page, 2) == ["9.5", "10", "1,200.5", "N/A"]
    assert wait.get_attribute("aria-sort") == "ascending"
    assert page.locator("[role=status]").inner_text() == "Sorted by wait (s), ascending."
    page.keyboard.press("Enter")
    assert column(page, 2) == ["1,200.5", "10", "9.5", "N/A"]  # what is missing stays last
    assert wait.get_attribute("aria-sort") == "descending"
    page.locator(".output th", has_text="note").locator("button").click()
    assert column(page, 3) == ["a", "a", "b", "c"]
    assert column(page, 1)[:2] == ["single_gpu", "least_loaded"]  # equal ones stay as they were
    assert wait.get_attribute("aria-sort") is None


def test_checks_sort_by_their_verdict(timed: Path, tab: Visit) -> None:
    page = tab.open(timed.with_name("failed.html"))
    verdicts = "[...document.querySelectorAll('.checks tbody tr')].map(row => row.className)"
    assert page.evaluate(verdicts)[0] == "failed"
    page.locator(".checks th", has_text="Verdict").locator("button").click()
    page.locator(".checks th", has_text="Verdict").locator("button").click()
    assert page.evaluate(verdicts)[-1] == "failed"


def ranges(page: Any) -> list[list[float]]:
    found: list[list[float]] = page.eval_on_selector_all(
        ".figure", "all => all.map(f => f._fullLayout.xaxis.range.map(end => Math.round(end * 100) / 100))"
    )
    return found


def test_the_slider_moves_one_time_over_all_figures_of_a_run(timed: Path, tab: Visit) -> None:
    page = tab.open(timed)
    assert page.locator(".scrub").count() == 1
    assert page.locator(".cursor:visible").count() == 0
    slider = page.locator(".scrub input")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".cursor:visible").count() == 3
    for _ in range(40):
        page.keyboard.press("PageUp")
        if float(slider.input_value()) >= 4:
            break
    said = slider.get_attribute("aria-valuetext")
    assert said.endswith("s: 4 tasks running, 4 waiting")
    assert said == page.locator(".scrub .now").inner_text()
    labels = page.eval_on_selector_all(".cursor", "all => all.map(c => c.dataset.label)")
    assert labels == ["4 running", "4", "100 %"]
    lines = page.eval_on_selector_all(
        ".figure:has(.cursor)",
        "all => all.map(f => f._fullLayout.xaxis.p2l(parseFloat(f.querySelector('.cursor').style.left) "
        "- f._fullLayout.xaxis._offset))",
    )
    assert lines == pytest.approx([float(slider.input_value())] * 3, abs=0.01)
    assert tab.complaints == []


def test_the_slider_tells_what_waits_where_no_figure_of_the_queue_is_drawn(timed: Path, tab: Visit) -> None:
    alone = timed.with_name("alone.html")
    alone.write_text(re.sub(r'<figure class="plot" id="figure-2">.*?</figure>', "", timed.read_text(), flags=re.S))
    page = tab.open(alone)
    assert page.locator(".figure").count() == 3
    assert page.locator(".scrub .now").inner_text() == "0 s: 4 tasks running, 12 waiting"


def test_the_mouse_moves_the_time_too(timed: Path, tab: Visit) -> None:
    page = tab.open(timed)
    page.locator("#figure-2 .nsewdrag").hover(force=True)
    page.wait_for_selector("#figure-1 .cursor:not([hidden])")
    assert float(page.locator(".scrub input").input_value()) == pytest.approx(4, abs=0.2)


def test_figures_of_a_run_zoom_together(timed: Path, tab: Visit) -> None:
    page = tab.open(timed)
    before = ranges(page)
    page.evaluate(
        "Plotly.relayout(document.querySelectorAll('.figure')[1], {'xaxis.range[0]': 2, 'xaxis.range[1]': 3})"
    )
    page.wait_for_function("document.querySelectorAll('.figure')[2]._fullLayout.xaxis.range[0] === 2")
    assert ranges(page) == [[2, 3], [2, 3], [2, 3], before[3]]
    page.locator("#figure-1 .nsewdrag").dblclick()
    page.wait_for_function("document.querySelectorAll('.figure')[2]._fullLayout.xaxis.range[0] < 2")
    assert ranges(page) == before
    page.get_by_role("button", name="Zoom in around the cursor").press("Enter")
    page.wait_for_function("document.querySelectorAll('.figure')[2]._fullLayout.xaxis.range[1] < 5")
    assert ranges(page)[0] == ranges(page)[1] == ranges(page)[2]
    page.get_by_role("button", name="Show the whole run").press("Enter")
    page.wait_for_function("document.querySelectorAll('.figure')[2]._fullLayout.xaxis.range[1] > 7")
    assert ranges(page) == before
