"""Makes docs/live-page.png from a running `altlas serve`: `.venv/bin/python docs/take_page_picture.py`.

Starts a server of eight simulated GPUs, gives it work for a minute, and photographs the page. Needs Chromium (Debian:
apt-get install chromium) and the test extras.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import sync_playwright

from altlas_core.report.pdf import find_chromium

HERE = Path(__file__).resolve().parent
MAX_BYTES = 200_000
PORT = 8951
LOADED_S = 120.0
SERVE = ("--devices", "6x A100", "--devices", "2x H100")
PROMPTS = ("Return the number of", "Open a file and ", "Raise ValueError if ", "This module provides ", "The class")


@contextmanager
def serving(folder: str) -> Iterator[str]:
    command = [sys.executable, "-m", "altlas_core.cli", "serve", "--port", str(PORT), *SERVE]
    more = ["--set", "gpu.selection.default_strategy=least_loaded"]
    process = subprocess.Popen([*command, *more], cwd=folder, stderr=subprocess.DEVNULL)
    base = f"http://127.0.0.1:{PORT}"
    try:
        for _ in range(200):
            try:
                if httpx.get(f"{base}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield base
    finally:
        process.terminate()
        process.wait(30)


def load(base: str, seconds: float) -> None:
    """More and less work by turns, from a seed."""
    dice = random.Random(7)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        texts = [dice.choice(PROMPTS) for _ in range(dice.choice((60, 200, 500)))]
        priority = dice.choice(("high", "normal", "normal", "low"))
        httpx.post(f"{base}/api/v1/predict/batch", json={"texts": texts, "max_length": 500, "priority": priority})
        time.sleep(dice.choice((0.1, 0.4, 0.8)))


def main() -> None:
    browser_path = find_chromium()
    if browser_path is None:
        sys.exit("Chromium is needed: apt-get install chromium")
    picture = HERE / "live-page.png"
    with tempfile.TemporaryDirectory() as folder, serving(folder) as base, sync_playwright() as playwright:
        load(base, LOADED_S)
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 1060})
        page.goto(base)
        page.wait_for_selector(".main-svg")
        load(base, 3.0)
        for _ in range(4):
            httpx.post(f"{base}/api/v1/predict/batch", json={"texts": list(PROMPTS) * 160, "max_length": 500})
        time.sleep(1.2)  # so that the page has heard of them
        page.screenshot(path=picture)
        browser.close()
    size = picture.stat().st_size
    print(f"{picture.relative_to(HERE.parent)}: {size / 1000:.0f} kB")
    if size > MAX_BYTES:
        sys.exit(f"too large for a README: at most {MAX_BYTES / 1000:.0f} kB")


if __name__ == "__main__":
    main()
