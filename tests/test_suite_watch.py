"""`altlas run --watch`: what the live page tells, whom it answers, and the page itself in a real browser."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import BAD, GOOD, result_cell, write_notebook

from altlas_core.backends.discover import discover
from altlas_core.config import load_config
from altlas_core.report import notebooks as nb
from altlas_core.report import suite, watch
from altlas_core.report.history import EarlierRun
from altlas_core.report.options import SuiteOptions
from altlas_core.report.outcome import CheckResult, ScenarioOutcome
from altlas_core.report.pages import RunView
from altlas_core.report.running import Deadlines
from altlas_core.report.watch import Watch, serving

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

WAITS = """\
# Waits for somebody
import pathlib, time
while not pathlib.Path({path!r}).exists():
    time.sleep(0.01)
"""


def view_of(*names: str) -> RunView:
    return RunView(
        run_id="20260102-000000-aaaa", started=datetime.now(UTC), seed=42, backend="simulated", provenance="simulated",
        devices=["8x T4"], facts=[], settings=[], command="", time_scale=1, pace=0,
        outcomes=[ScenarioOutcome(name) for name in names],
    )  # fmt: skip


@pytest.fixture
def told(tmp_path: Path) -> Watch:
    folder = tmp_path / "reports" / "20260102-000000-aaaa"
    (folder / "events").mkdir(parents=True)
    (folder / "index.html").write_text("the index")
    (tmp_path / "reports" / "secret.txt").write_text("not of this run")
    (folder / "out").symlink_to(tmp_path / "reports" / "secret.txt")
    return Watch(folder, view_of("alpha", "beta"), Deadlines())


def test_a_scenario_waits_runs_cell_by_cell_and_ends(told: Watch) -> None:
    def alpha() -> dict[str, Any]:
        found: dict[str, Any] = told.state()[1]["scenarios"][0]
        return found

    assert alpha()["status"] == "waiting"
    versions = [told.state()[0]]
    told.started("alpha")
    assert (alpha()["status"], alpha()["cell"]) == ("running", None)
    versions.append(told.state()[0])
    told.cell("alpha", 3, 12, "Strategies")
    assert alpha()["cell"] == {"number": 3, "count": 12, "about": "Strategies"}
    versions.append(told.state()[0])
    check = CheckResult("<b>", False, "1", "2")
    ended = ScenarioOutcome("alpha", "failed", [check], wall_s=4.5)
    told.view.outcomes = [ended, told.view.outcomes[1]]
    told.ended(ended)
    assert (alpha()["status"], alpha()["cell"], alpha()["elapsed_s"]) == ("failed", None, 4.5)
    assert alpha()["checks"] == [{"name": "<b>", "passed": False, "expected": "1", "observed": "2"}]
    versions.append(told.state()[0])
    assert versions == sorted(set(versions))


def test_the_events_end_with_the_run(told: Watch) -> None:
    async def heard() -> list[dict[str, Any]]:
        found = []
        async for event in told.events():
            found.append(json.loads(event.removeprefix("data: ")))
            told.finished(interrupted=True)
        return found

    first, last = asyncio.run(heard())
    assert first["ended"] is None
    assert last["ended"]["verdict"] == "Interrupted"


def test_the_time_left_until_the_deadline_is_told(told: Watch) -> None:
    assert told.state()[1]["deadline_left_s"] is None
    told.deadlines = Deadlines(whole_s=1000.0)
    assert 900 < told.state()[1]["deadline_left_s"] <= 1000


def test_how_long_a_scenario_takes_is_known_from_earlier_runs_on_the_same_devices(tmp_path: Path) -> None:
    def entry(wall_s: float, *checks: dict[str, Any]) -> dict[str, Any]:
        return {"wall_s": wall_s, "checks": [GOOD, *checks]}

    broke = {"name": "the notebook ran to its end", "passed": False}
    earlier = {
        "20260101-000003-cccc": ("8x T4", {"alpha": entry(1.0, broke)}),
        "20260101-000002-bbbb": ("2x L4", {"alpha": entry(2.0)}),
        "20260101-000001-aaaa": ("8x T4", {"alpha": entry(3.0), "beta": entry(4.0)}),
    }
    view = view_of("alpha", "beta")
    history = []
    for run_id, (devices, scenarios) in earlier.items():
        (tmp_path / run_id).mkdir()
        (tmp_path / run_id / "results.json").write_text(json.dumps({"scenarios": scenarios}))
        history.append(
            EarlierRun(run_id, "passed", view.started, "simulated", (devices,), 42, 1, 1, 1.0, frozenset(scenarios))
        )
    view.history = history
    assert watch.expected_s(view, tmp_path) == {"alpha": 3.0, "beta": 4.0}


def asked(address: str, path: str, host: str | None = None, method: str = "GET") -> tuple[int, str]:
    port = int(address.rstrip("/").rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.putrequest(method, path, skip_host=host is not None)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def test_it_serves_this_computer_the_files_of_this_run_and_nothing_else(told: Watch) -> None:
    with serving(told) as address:
        assert address.startswith("http://127.0.0.1:")
        assert asked(address, "/run/index.html") == (200, "the index")
        assert asked(address, "/run/index.html", host="localhost")[0] == 200
        assert asked(address, "/", host="evil.example")[0] == 400
        for path in ("/run/../secret.txt", "/run/%2e%2e/secret.txt", "/run//etc/passwd", "/run/out", "/run/", "/x"):
            status, text = asked(address, path)
            assert status == 404, path
            assert "not of this run" not in text
        assert asked(address, "/", method="POST")[0] == 405
        assert asked(address, "/assets/../watch.py")[0] == 404
        page = asked(address, "/")[1]
        assert 'data-scenario="alpha"' in page
    with pytest.raises(ConnectionRefusedError):
        asked(address, "/")


# --- in a browser -----------------------------------------------------------------------------------------------------


class Visit:
    """The live page, and everything it complained about."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.page = browser.new_context(**options).new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._note)
        self.address = address
        self.page.goto(address)

    def _note(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:")):
            self.complaints.append(f"asked for {request.url}")

    def text(self, scenario: str) -> str:
        found: str = self.page.locator(f"[data-scenario={scenario}]").inner_text()
        return found


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, threading.Thread]]:
    """A suite in another thread: alpha has failed a check, beta waits for the file `go`."""
    base = tmp_path_factory.mktemp("watched")
    write_notebook(base / "nb", 1, "alpha", result_cell("alpha", [GOOD, BAD]))
    write_notebook(base / "nb", 2, "beta", "1", WAITS.format(path=str(base / "go")), result_cell("beta"))
    settings = load_config(None, {"gpu.backend": "simulated", "run.deadline": 600, "run.pace": 1}, environ={})
    chosen = list(nb.find_notebooks(base / "nb").values())
    addresses: list[str] = []
    there = threading.Event()

    def announced(address: str) -> None:
        addresses.append(address)
        there.set()

    patch = pytest.MonkeyPatch()
    patch.setattr(suite, "announce", announced)
    options = SuiteOptions(watch=True)
    thread = threading.Thread(
        target=suite.run_suite,
        args=(settings, discover(settings), chosen, base / "reports"),
        kwargs={"options": options},
    )
    thread.start()
    assert there.wait(60)
    yield addresses[0], base, thread
    (base / "go").touch()
    thread.join()
    patch.undo()


@pytest.mark.browser
@pytest.mark.notebooks
def test_the_page_follows_a_suite_to_its_end_and_stays(
    running: tuple[str, Path, threading.Thread], chromium: Any
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    address, base, thread = running
    visits = [
        Visit(chromium, address, viewport={"width": 1400, "height": 900}),
        Visit(chromium, address, viewport={"width": 420, "height": 900}, color_scheme="dark"),
    ]
    for visit in visits:
        page = visit.page
        page.wait_for_function(
            "document.querySelector('[data-scenario=beta]').innerText.includes('Waits for somebody')"
        )
        assert "cell 4 of 5: Waits for somebody" in visit.text("beta")
        assert "nothing <is> lost: expected 0 tasks & none, observed 3 tasks" in visit.text("alpha")
        assert "until the deadline" in page.locator("#deadline").inner_text()
        assert page.locator("h1").inner_text() == "Running"
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.request.get(page.locator("[data-scenario=alpha] h3 a").evaluate("a => a.href")).ok
        assert grave(Axe().run(page)) == []
    (base / "go").touch()
    for visit in visits:
        page = visit.page
        page.wait_for_selector("html[data-watch=over]")
        assert page.locator("h1").inner_text() == "Failed"
        assert "Beta: Passed" in page.locator("#news").text_content()
        assert page.get_by_role("link", name="index.html").get_attribute("href").endswith("/index.html")
        assert page.locator("#path").inner_text() == str((base / "reports" / "latest").resolve() / "index.html")
        assert grave(Axe().run(page)) == []
        assert visit.complaints == []
    thread.join()
    run = (base / "reports" / "latest").resolve()
    assert {path.name for path in run.glob("*.html")} == {"index.html", "alpha.html", "beta.html"}


@pytest.mark.browser
def test_a_suite_that_is_killed_is_said_to_be_gone_and_asked_no_more(told: Watch, chromium: Any) -> None:
    with serving(told) as address:
        visit = Visit(chromium, address)
        visit.page.wait_for_function("document.querySelector('.say').innerText.startsWith('0 of 2')")
    visit.page.wait_for_selector("html[data-watch=over]")
    assert "not there any more" in visit.page.locator(".verdict").inner_text()


def grave(found: Any) -> list[str]:
    return [
        f"{violation['id']}: {node['html']}"
        for violation in found.response["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
