"""Report pages for everybody: axe-core finds nothing serious, figures can be read, the keyboard does it all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_pages import write_report

pytestmark = pytest.mark.browser

LOOKS = [(1400, "light"), (420, "dark")]
LEAST_CONTRAST = 4.5  # WCAG 2.2 AA, for text of this size

# The contrast of every text of the figures with what their cards are painted with; text on bars has the bars' colours.
CONTRASTS = """
() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = colour.slice(0, 3).map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const texts = [...document.querySelectorAll(".figure text")];
  return texts.filter((text) => !text.closest(".bars") && text.textContent.trim()).map((text) => {
    const style = getComputedStyle(text);
    const behind = light(rgb(getComputedStyle(text.closest(".plot")).backgroundColor));
    const front = light(rgb(style.fill));
    const opacity = Number(style.fillOpacity) * Number(style.opacity);
    const ratio = (Math.max(front, behind) + 0.05) / (Math.min(front, behind) + 0.05);
    return [text.textContent, opacity < 1 ? 0 : ratio];
  });
}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("a11y"))


@pytest.fixture(scope="module")
def page(chromium: Any) -> Iterator[Any]:
    """One tab for all tests; its content security policy is off, for axe-core is put into the page."""
    context = chromium.new_context(offline=True, reduced_motion="reduce", bypass_csp=True)
    yield context.new_page()
    context.close()


def opened(page: Any, path: Path, width: int = 1400, scheme: str = "light") -> Any:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(path.as_uri())
    if page.locator(".figure").count():
        page.wait_for_selector("html[data-figures=drawn]")
    return page


@pytest.mark.parametrize("name", ["index", "passed", "failed", "broke"])
def test_axe_finds_nothing(made: Path, page: Any, name: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    opened(page, made / f"{name}.html")
    for width, scheme in LOOKS:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        found = axe.run(page).response["violations"]
        told = [(one["impact"], one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found]
        assert [one for one in told if one[0] in ("serious", "critical")] == [], (width, scheme)


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_the_text_of_figures_can_be_read(made: Path, page: Any, width: int, scheme: str) -> None:
    opened(page, made / "passed.html", width, scheme)
    ratios = page.evaluate(CONTRASTS)
    assert len(ratios) > 30
    assert [one for one in ratios if one[1] < LEAST_CONTRAST] == []


def test_the_keyboard_reaches_what_the_mouse_does(made: Path, page: Any) -> None:
    opened(page, made / "passed.html")
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("(e => `${e.tagName} ${e.ariaLabel || e.textContent.trim()}`)(document.activeElement)")
        )
    assert reached[0] == "A Skip to the content"
    wanted = [
        "A What to know",
        "SUMMARY All 3 checks hold: what was expected, what was observed",
        "BUTTON wait (s)",
        "BUTTON Zoom in around the cursor",
    ]
    assert [one for one in wanted if one not in reached] == []
    assert any(one.startswith("INPUT Time, 0 to 8") for one in reached)


def test_links_on_the_page_lead_to_what_they_say(made: Path, page: Any) -> None:
    opened(page, made / "passed.html")
    links = page.eval_on_selector_all(
        ".findings a, .contents a",
        "all => all.map(a => [a.textContent, document.querySelector(a.getAttribute('href'))?.textContent ?? null])",
    )
    assert len(links) == 4 + 7
    for said, found in links:
        assert found is not None, said
        assert " ".join(said.split()) in " ".join(found.split())
