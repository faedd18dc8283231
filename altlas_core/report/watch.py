"""--watch: a live page of a running suite, on this computer alone, by server-sent events; it ends with the suite."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
import webbrowser
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from altlas_core.report import pages
from altlas_core.report.outcome import ScenarioOutcome
from altlas_core.report.progress import Progress
from altlas_core.report.resume import ended_whole
from altlas_core.report.running import Deadlines

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST: Final = "127.0.0.1"
LOOK_S: Final = 0.1  # how often the server looks for something new to tell
ENDING_S: Final = 5.0  # for those who watch to hear of the end
MOST_EARLIER: Final = 3  # runs to look for how long a scenario takes
ASSETS: Final = Path(__file__).with_name("assets")


class Watch:
    """What the page tells, and the progress that it hears of. Times are seconds."""

    def __init__(self, folder: Path, view: pages.RunView, deadlines: Deadlines) -> None:
        self.folder, self.view, self.deadlines = folder, view, deadlines
        self._lock = threading.Lock()
        self._version = 0
        self._began_s = time.monotonic()
        self._since_s: dict[str, float] = {}
        self._cells: dict[str, dict[str, Any]] = {}
        self._ended: dict[str, Any] | None = None
        self._closing = False
        self._expected = expected_s(view, folder.parent)

    # --- progress: any thread ------------------------------------------------------------------------------------

    def opened(self, title: str, scenarios: list[str]) -> None: ...

    def started(self, scenario: str) -> None:
        with self._changed():
            self._since_s[scenario] = time.monotonic()

    def cell(self, scenario: str, number: int, count: int, about: str) -> None:
        with self._changed():
            self._cells[scenario] = {"number": number, "count": count, "about": about}

    def ended(self, outcome: ScenarioOutcome) -> None:
        with self._changed():
            self._since_s.pop(outcome.name, None)
            self._cells.pop(outcome.name, None)

    def closed(self) -> None: ...

    def finished(self, interrupted: bool) -> None:
        """The suite is over and its folder as it stays."""
        with self._changed():
            status = self.view.status
            self._ended = {"status": status, "verdict": "Interrupted" if interrupted else pages.VERDICTS[status]}

    def close(self) -> None:
        """Tell nothing more, whether the suite is over or not."""
        self._closing = True

    @contextmanager
    def _changed(self) -> Iterator[None]:
        with self._lock:
            yield
            self._version += 1

    # --- what is told --------------------------------------------------------------------------------------------

    def state(self) -> tuple[int, dict[str, Any]]:
        """A number that grows with every change, and how things stand."""
        with self._lock:
            now, whole_s = time.monotonic(), self.deadlines.whole_s
            elapsed_s = now - self._began_s
            return self._version, {
                "scenarios": [self._scenario(outcome, now) for outcome in self.view.outcomes],
                "elapsed_s": elapsed_s if self.view.wall_s is None else self.view.wall_s,
                "deadline_left_s": max(0.0, whole_s - elapsed_s) if whole_s else None,
                "ended": self._ended,
            }

    def _scenario(self, outcome: ScenarioOutcome, now: float) -> dict[str, Any]:
        name = outcome.name
        since_s = self._since_s.get(name)
        running = outcome.status == "waiting" and since_s is not None
        checks = [
            {"name": check.name, "passed": check.passed, "expected": check.expected, "observed": check.observed}
            for check in outcome.checks
        ]
        return {
            "name": name,
            "status": "running" if running else outcome.status,
            "cell": self._cells.get(name) if running else None,
            "elapsed_s": now - since_s if running and since_s is not None else outcome.wall_s,
            "expected_s": self._expected.get(name),
            "checks": checks,
            "error": outcome.error,
        }

    async def events(self) -> AsyncIterator[str]:
        """The state whenever it has changed, as server-sent events; the last one says that the suite has ended."""
        told = -1
        while True:
            version, state = self.state()
            if version != told:
                told = version
                yield f"data: {json.dumps(state)}\n\n"
            if state["ended"] is not None or self._closing:
                return
            await asyncio.sleep(LOOK_S)

    def page(self) -> str:
        return pages.watch_page(self.view, (self.folder / "index.html").as_uri(), str(self.folder / "index.html"))


class Both:
    """Two displays of progress as one."""

    def __init__(self, first: Progress, second: Progress) -> None:
        self._all = (first, second)

    def opened(self, title: str, scenarios: list[str]) -> None:
        for one in self._all:
            one.opened(title, scenarios)

    def started(self, scenario: str) -> None:
        for one in self._all:
            one.started(scenario)

    def cell(self, scenario: str, number: int, count: int, about: str) -> None:
        for one in self._all:
            one.cell(scenario, number, count, about)

    def ended(self, outcome: ScenarioOutcome) -> None:
        for one in self._all:
            one.ended(outcome)

    def closed(self) -> None:
        for one in self._all:
            one.closed()


def expected_s(view: pages.RunView, reports_dir: Path) -> Mapping[str, float]:
    """Real seconds of each scenario in the newest of a few earlier runs on the same devices in which it ended."""
    found: dict[str, float] = {}
    alike = [run for run in view.history if (run.backend, run.devices) == (view.backend, tuple(view.devices))]
    for run in alike[:MOST_EARLIER]:
        found = ended_whole(reports_dir / run.run_id) | found
    return found


@contextmanager
def serving(watch: Watch) -> Iterator[str]:
    """Meanwhile the page is there; yields its address. Who watches hears of the end before it goes."""
    import uvicorn

    config = uvicorn.Config(
        make_app(watch),
        host=HOST,
        port=0,
        log_config=None,
        log_level="critical",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=int(ENDING_S),
    )
    listening = config.bind_socket()
    listening.listen()  # whoever comes before the server has started waits for it
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), name="watch", daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{listening.getsockname()[1]}/"
    finally:
        watch.close()
        server.should_exit = True  # it finishes the answers it has begun
        thread.join(ENDING_S + 1)
        listening.close()


def make_app(watch: Watch) -> Starlette:
    """The page, its events, the files it is made of, and those of the run's folder. Answers to this computer's names
    alone, so that no page of another site can read it under a name of its own."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, StreamingResponse
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    headers = {"cache-control": "no-store", "x-content-type-options": "nosniff", "x-frame-options": "DENY"}

    async def page(_: Request) -> Response:
        return HTMLResponse(watch.page(), headers=headers)

    async def events(_: Request) -> Response:
        return StreamingResponse(watch.events(), media_type="text/event-stream", headers=headers)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/events", events),
            Mount("/assets", StaticFiles(directory=ASSETS)),
            Mount("/run", StaticFiles(directory=watch.folder)),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)],
    )


def announce(address: str) -> None:
    """Say where the page is; open it where a person sits at a terminal of a desktop."""
    sys.stderr.write(f"altlas: live page of this run: {address}\n")
    sys.stderr.flush()
    desktop = sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    if desktop and sys.stderr.isatty() and not os.environ.get("CI"):
        webbrowser.open(address)
