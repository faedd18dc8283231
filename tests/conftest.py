"""Fixtures shared by the tests: small scenario notebooks, a simulated machine, a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from altlas_core.report.pdf import find_chromium

PARAMETERS = """\
config = None
backend = None
devices = None
seed = 42
time_scale = 1.0
pace = 0.0
workload = None
strategy = None
repeat = 1
export = None
overrides = {}
out_dir = None
"""

RESULT = """\
import hashlib, pathlib
nan = float("nan")
from IPython.display import display
log = '{{"seed": %d}}\\n' % seed
if out_dir is not None:
    pathlib.Path(out_dir, "events", "{name}.jsonl").write_text(log)
display({{"application/vnd.altlas.result+json": {{
    "scenario": "{name}", "passed": {passed}, "provenance": "simulated", "virtual_s": 12.5,
    "metrics": {metrics!r}, "backend": backend, "devices": devices, "seed": seed,
    "event_log_sha256": hashlib.sha256(log.encode()).hexdigest(), "checks": {checks!r},
}}, "text/plain": "the result"}}, raw=True)
"""

GOOD = {"name": "ids are unique", "passed": True, "expected": "8 different ids", "observed": "8 different ids"}
BAD = {"name": "nothing <is> lost", "passed": False, "expected": "0 tasks & none", "observed": "3 tasks"}
METRICS = {"makespan_s": 12.5, "tasks": 20, "by_strategy": {"random": {"p99_wait_s": 0.25}}, "odd": float("nan")}


def figure_cell(title: str = "All is well", **layout: Any) -> str:
    figure = {
        "data": [{"type": "scatter", "x": [0, 1, 2], "y": [1, 3, 2], "name": "a </script> b"}],
        "layout": {"title": {"text": title}, "xaxis": {"title": {"text": "time (s)"}}, **layout},
    }
    return (
        "from IPython.display import display\n"
        f"display({{'application/vnd.plotly.v1+json': {figure!r}, 'text/plain': 'figure'}}, raw=True)"
    )


def result_cell(name: str, checks: list[dict[str, Any]] | None = None, metrics: dict[str, Any] | None = None) -> str:
    checks = [GOOD] if checks is None else checks
    passed = all(check["passed"] for check in checks)
    return RESULT.format(name=name, passed=passed, metrics=metrics or METRICS, checks=checks)


def write_notebook(folder: Path, number: int, name: str, *cells: str, title: str | None = None) -> Path:
    """A scenario notebook. A cell that starts with `%%md` is Markdown; the `parameters` cell comes first."""
    made = [nbformat.v4.new_markdown_cell(title or f"# {name}\n\nWhat {name} shows.")]
    made.append(nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}))
    for source in cells:
        text = source.removeprefix("%%md\n")
        make = nbformat.v4.new_markdown_cell if text != source else nbformat.v4.new_code_cell
        made.append(make(text))
    notebook = nbformat.v4.new_notebook(cells=made)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number:02d}_{name}.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write notebooks into a folder that `altlas run` then takes for the scenarios'."""
    from altlas_core.report import notebooks as module

    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(module, "notebooks_dir", lambda: folder)
    return lambda number, name, *cells, **more: write_notebook(folder, number, name, *cells, **more)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium of this machine, driven by playwright, whose event loop must not outlive the module."""
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (make test installs it)"
    )
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def shared_workers(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An open backend of two CPU devices for the tests of a module, with as many spare workers as its SPARES says."""
    from workers import Bench

    bench = Bench(spare_workers=getattr(request.module, "SPARES", 0))
    yield bench
    bench.backend.close()


@pytest.fixture
def bench(shared_workers: Any) -> Any:
    """Every test finds all workers ready and nothing running: opening again sees to that."""
    shared_workers.open()
    return shared_workers
