"""Makes docs/report.png from the latest report: `.venv/bin/python docs/take_picture.py [REPORT_FOLDER]`.

Needs Chromium (Debian: apt-get install chromium) and the test extras.
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from altlas_core.report.pdf import find_chromium

HERE = Path(__file__).resolve().parent
MAX_BYTES = 200_000


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "reports" / "latest"
    browser_path = find_chromium()
    if browser_path is None or not (folder / "error_handling.html").is_file():
        sys.exit("Chromium and a report are needed: apt-get install chromium; make report")
    picture = HERE / "report.png"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 1180})
        page.goto((folder / "error_handling.html").resolve().as_uri())
        page.wait_for_selector(".main-svg")
        # The verdict, the summary and the figure of the lost GPU; the long list in between is left out of the picture.
        page.evaluate(
            """() => {
                const figures = [...document.querySelectorAll('figure')];
                const lost = figures.find(figure => figure.innerText.includes('lost with their GPU'));
                const main = lost.closest('main') || document.body;
                document.querySelector('#summary').closest('section').after(lost);
            }"""
        )
        page.wait_for_timeout(500)
        page.screenshot(path=picture)
        browser.close()
    size = picture.stat().st_size
    print(f"{picture.relative_to(HERE.parent)}: {size / 1000:.0f} kB")
    if size > MAX_BYTES:
        sys.exit(f"too large for a README: at most {MAX_BYTES / 1000:.0f} kB")


if __name__ == "__main__":
    main()
