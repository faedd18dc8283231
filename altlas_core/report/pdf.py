"""Pages as PDF, printed by a Chromium without a window."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from altlas_core.errors import ConfigError
from altlas_core.report.environment import usable_cores

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MOST_AT_ONCE: Final = 4
_LIMIT_S: Final = 120  # for one page
_DRAWING_MS: Final = 20_000  # of the page's own time, which ends at once when nothing is left to do
_SAID: Final = 200  # characters of what Chromium says


def find_chromium() -> str | None:
    """The program of the Chromium on this machine, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def require_chromium() -> str:
    """As find_chromium. Raises ConfigError, which says what to install."""
    found = find_chromium()
    if found is None:
        raise ConfigError(
            f"--pdf: prints with Chromium, and none is installed (looked for {', '.join(NAMES)}); "
            "to install it on Debian: apt-get install chromium; on Ubuntu: snap install chromium"
        )
    return found


def print_pages(pages: Sequence[Path]) -> list[str]:
    """Print each page beside itself: index.html -> index.pdf. Returns a note for each that could not be printed."""
    chromium = find_chromium()
    if chromium is None:
        return ["no PDF was made: no Chromium is installed"]
    with (
        tempfile.TemporaryDirectory(prefix="altlas-pdf-") as scratch,
        ThreadPoolExecutor(min(usable_cores(), MOST_AT_ONCE)) as pool,
    ):
        notes = pool.map(lambda page: _print(chromium, page, Path(scratch)), pages)
        return [note for note in notes if note is not None]


def _print(chromium: str, page: Path, scratch: Path) -> str | None:
    target = page.with_suffix(".pdf")
    fresh = scratch / target.name  # so that a run's folder never holds half a file
    command = [
        chromium,
        "--headless",
        "--disable-gpu",
        "--no-first-run",
        "--disable-extensions",
        "--disable-background-networking",
        f"--user-data-dir={scratch / page.stem}",
        f"--virtual-time-budget={_DRAWING_MS}",
        "--no-pdf-header-footer",
        f"--print-to-pdf={fresh}",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),  # Chromium has none for root
        page.absolute().as_uri(),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return f"{target.name} was not made: Chromium took more than {_LIMIT_S} s"
    except OSError as error:
        return f"{target.name} was not made: {chromium} does not start: {error.strerror or error}"
    if done.returncode or not fresh.is_file():
        said = (done.stderr.strip().splitlines() or ["no word why"])[-1][:_SAID]
        return f"{target.name} was not made: Chromium ended with status {done.returncode}: {said}"
    try:
        shutil.move(fresh, target)
    except OSError as error:
        return f"{target.name} was not made: {error.strerror or error}"
    return None
