"""A run's folder under the reports folder: its name, its assets, and the link `latest`."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from altlas_core.errors import ConfigError, nearest
from altlas_core.report.drawing_library import drawing_library

LATEST = "latest"
SHARED = ("report.css", "report.js", "scrub.js", "tables.js")
RESULTS = "results.json"
NAMED_AT_MOST = 5  # runs, in a message


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


def find_run(text: str, reports_dir: Path) -> Path:
    """The folder of a run, given as that folder, as its id or the beginning of it, or as `latest`.

    Raises ConfigError, which names the newest runs there are.
    """
    for given in (Path(text), reports_dir / text):
        if text and (given / RESULTS).is_file():
            return given.resolve()
    runs = run_ids(reports_dir)
    fitting = [name for name in runs if text and name.startswith(text)]
    if len(fitting) == 1:
        return (reports_dir / fitting[0]).resolve()
    if fitting:
        raise ConfigError(f"{text}: {len(fitting)} runs begin like that; give more of {_some(fitting)}")
    there = f"there are: {_some(runs)}" if runs else "there is none"
    raise ConfigError(f"{text}: is no run's folder and no run of {reports_dir}; {there}.{nearest(text, runs)}")


def run_ids(reports_dir: Path) -> list[str]:
    """The ids of the runs of a reports folder, newest first."""
    try:
        inside = [path for path in reports_dir.iterdir() if not path.is_symlink() and (path / RESULTS).is_file()]
    except OSError:
        return []
    return sorted((path.name for path in inside), reverse=True)


def _some(names: list[str]) -> str:
    more = len(names) - NAMED_AT_MOST
    return ", ".join(names[:NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def copy_assets(folder: Path, more: Sequence[str] = ()) -> None:
    """What all pages of the run share: the drawing library (from the installed plotly package), style and script."""
    (folder / "assets" / "plotly.min.js").write_text(drawing_library(), encoding="utf-8")
    own = resources.files("altlas_core.report") / "assets"
    for name in (*SHARED, *more):
        (folder / "assets" / name).write_text((own / name).read_text(encoding="utf-8"), encoding="utf-8")


def remove_scenario(folder: Path, name: str) -> None:
    """Remove what a scenario has left in a run's folder, where it did."""
    for path in (folder / f"{name}.ipynb", folder / f"{name}.html", folder / "events" / f"{name}.jsonl"):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / "exports" / name, ignore_errors=True)


def exports_of(folder: Path, name: str) -> list[str]:
    """The files that a scenario has exported, as paths inside a run's folder."""
    return sorted(str(path.relative_to(folder)) for path in (folder / "exports" / name).rglob("*") if path.is_file())


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
