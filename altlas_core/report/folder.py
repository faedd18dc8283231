"""A run's folder under the reports folder: its name, its assets, and the link `latest`."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from altlas_core.errors import ConfigError

LATEST = "latest"


def create_run_folder(reports_dir: Path, started: datetime) -> Path:
    """Make reports_dir/<UTC time>-<suffix>/ with its inner folders. Raises ConfigError where it cannot be written."""
    stamp = started.astimezone(UTC).strftime("%Y%m%d-%H%M%S")
    try:
        reports_dir.mkdir(parents=True, exist_ok=True)
        folder = _make_unique(reports_dir, stamp)
        (folder / "events").mkdir()
        (folder / "assets").mkdir()
    except OSError as error:
        raise ConfigError(
            f"The reports folder {reports_dir} cannot be written: {error.strerror or error}. "
            "Choose another one with --reports-dir DIR."
        ) from error
    return folder


def _make_unique(reports_dir: Path, stamp: str) -> Path:
    while True:
        folder = reports_dir / f"{stamp}-{secrets.token_hex(2)}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder


def copy_assets(folder: Path) -> None:
    """What all pages of the run share: the drawing library (from the installed plotly package), style and script."""
    source = resources.files("plotly") / "package_data" / "plotly.min.js"
    with resources.as_file(source) as path:
        shutil.copyfile(path, folder / "assets" / "plotly.min.js")
    own = resources.files("altlas_core.report") / "assets"
    for name in ("report.css", "report.js"):
        (folder / "assets" / name).write_text((own / name).read_text(encoding="utf-8"), encoding="utf-8")


def point_latest_to(folder: Path) -> str | None:
    """Let the link `latest` name the folder, in one step. Returns None, or why it was left alone."""
    link = folder.parent / LATEST
    if link.exists() and not link.is_symlink():
        return f"{link} is no link, so it was left alone"
    fresh = folder.parent / f".{LATEST}-{folder.name}"
    try:
        fresh.symlink_to(folder.name, target_is_directory=True)
        fresh.replace(link)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        return f"the link {link} could not be set: {error.strerror or error}"
    return None


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader never sees half of it."""
    fresh = path.with_name(f".{path.name}.part")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
