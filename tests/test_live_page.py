"""The live page in a real browser against a stand-in server: it shows what the server says, and asks nobody else."""

from __future__ import annotations

import contextlib
import gzip
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_stand import Machine, Stand, free_port, running
from starlette.applications import Starlette
from starlette.testclient import TestClient

from altlas_core.api import page as page_package
from altlas_core.api.page import page_routes

HERE = Path(page_package.__file__).parent
KEY = "a-key-of-more-than-16-letters"
FAST_S = 0.2  # between two steps of the stand-in
PLOTS = "[...document.querySelectorAll('.plot')].filter(plot => plot.querySelector('.main-svg'))"
REFUSALS = re.compile(r"status of (401|409|422|429)")  # the browser itself reports these as errors of the console


class Visit:
    """The page opened in a context of its own, and everything that it complained about or asked other hosts for."""

    def __init__(self, browser: Any, url: str, width: int = 1400, scheme: str = "light") -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.complaints: list[str] = []
        self.page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda r: r.url.startswith((url, "data:")) or self.complaints.append(f"asked {r.url}"))
        self.page.goto(url)

    def live(self) -> Any:
        self.page.wait_for_selector("body[data-connection=live][data-loaded]")
        return self.page

    def until(self, true: str | Callable[[], bool]) -> None:
        """Wait until this JavaScript, or function, is true.

        (playwright's own wait_for_function needs eval, which the page forbids.)
        """
        for _ in range(400):
            if self.page.evaluate(true) if isinstance(true, str) else true():
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"still not true after 20 s: {true}")


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Visit]]:
    with contextlib.ExitStack() as stack:

        def start(stand: Stand | str, **options: Any) -> Visit:
            url = stand if isinstance(stand, str) else stack.enter_context(running(stand, free_port()))
            made = Visit(chromium, url, **options)
            stack.callback(made.context.close)
            return made

        yield start


def stand_of(gpus: int = 8, **options: Any) -> Stand:
    return Stand(Machine(gpus), **{"interval_s": FAST_S, **options})


@pytest.fixture
def client() -> TestClient:
    return TestClient(Starlette(routes=page_routes()))


# What is served


def test_the_page_forbids_itself_other_hosts_and_inline_scripts(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert "<script>" not in answer.text
    for reference in re.findall(r'(?:src|href)="(/[^"]*)"', answer.text):
        assert client.get(reference).status_code == 200, reference


def test_every_module_and_style_sheet_is_served_with_its_type(client: TestClient) -> None:
    for path in HERE.glob("*.[cj]s*"):
        answer = client.get(f"/assets/{path.name}")
        assert answer.content == path.read_bytes()
        assert (
            answer.headers["content-type"].split(";")[0] == {".css": "text/css", ".js": "text/javascript"}[path.suffix]
        )
    assert client.get("/assets/index.html").status_code == client.get("/assets/../page.py").status_code == 404


@pytest.mark.parametrize("path", ["/", "/assets/page.js", "/assets/plotly.min.js"])
def test_what_a_browser_has_is_not_sent_again(client: TestClient, path: str) -> None:
    first = client.get(path)
    assert first.headers["cache-control"] == "no-cache"
    for known in (first.headers["etag"], f'"other", W/{first.headers["etag"]}', "*"):
        again = client.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    ("accepted", "encoding"), [("gzip", "gzip"), ("br, gzip;q=0.5", "gzip"), ("gzip;q=0", None), ("", None)]
)
def test_plotly_is_gzipped_for_those_who_take_it(client: TestClient, accepted: str, encoding: str | None) -> None:
    with client.stream("GET", "/assets/plotly.min.js", headers={"Accept-Encoding": accepted}) as answer:
        sent = b"".join(answer.iter_raw())
        assert answer.headers.get("content-encoding") == encoding
        assert answer.headers["vary"] == "Accept-Encoding"
    plain = gzip.decompress(sent) if encoding else sent
    assert plain.lstrip().startswith(b"/**\n* plotly.js")


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]  # WCAG 2.2, relative luminance


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_and_lines_stand_out_as_wcag_aa_asks(scheme: int) -> None:
    block = re.findall(r":root \{(.*?)\}", (HERE / "page.css").read_text(), re.DOTALL)[scheme]
    colour = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", block))
    texts = [
        (ink, ground) for ink in ("ink", "ink-soft", "ink-faint", "link") for ground in ("paper", "raised", "sunk")
    ]
    texts += [(state, "raised") for state in ("good", "bad", "warn", "busy")]
    texts += [("ink", "bad-tint"), ("bad", "bad-tint"), ("warn", "warn-tint"), ("simulated", "simulated-tint")]
    texts += [("on-link", "link"), ("on-heat-0", "heat-0"), ("on-heat-1", "heat-1"), ("raised", "ink")]
    lines = [(f"gpu-{position}", "raised") for position in range(8)] + [("control", "raised")]
    low = [pair for pair in texts if contrast(*(colour[f"--{name}"] for name in pair)) < 4.5]
    low += [pair for pair in lines if contrast(*(colour[f"--{name}"] for name in pair)) < 3]
    assert low == []


# What is shown

browser = pytest.mark.browser


@browser
def test_all_plots_are_drawn_with_units_and_nothing_complains(visit: Callable[..., Visit]) -> None:
    seen = visit(stand_of())
    page = seen.live()
    page.locator("#plots").scroll_into_view_if_needed()
    seen.until(f"{PLOTS}.length === 5")
    assert page.evaluate(f"{PLOTS}.map(plot => plot._fullData.length)") == [8, 8, 8, 8, 1]
    titles = page.evaluate(f"{PLOTS}.map(plot => plot._fullLayout.yaxis.title.text)")
    assert [re.search(r"\((.*)\)", title)[1] for title in titles] == ["%", "GiB", "°C", "W", "tasks"]  # type: ignore[index]
    assert seen.complaints == []


@browser
def test_a_gpu_has_one_colour_everywhere(visit: Callable[..., Visit]) -> None:
    seen = visit(stand_of(16))
    page = seen.live()
    page.locator("#plots").scroll_into_view_if_needed()
    seen.until(f"{PLOTS}.length === 5")
    lines = page.evaluate(f"{PLOTS}.slice(0, 4).map(plot => plot._fullData.map(t => [t.line.color, t.line.dash]))")
    assert all(line == lines[0] for line in lines)
    assert len({tuple(line) for line in lines[0]}) == 16
    swatches = page.evaluate(
        "[...document.querySelectorAll('.card')].map(card => [getComputedStyle(card).getPropertyValue('--own').trim(),"
        " getComputedStyle(card.querySelector('.swatch')).borderTopStyle])"
    )
    assert [[colour, {"dash": "dashed", "solid": "solid"}[dash]] for colour, dash in lines[0]] == swatches


@browser
def test_numbers_and_plots_move_on(visit: Callable[..., Visit]) -> None:
    stand = stand_of()
    seen = visit(stand)
    page = seen.live()
    plot = page.locator("#plot-utilization")
    plot.scroll_into_view_if_needed()
    seen.until(f"{PLOTS}.length > 0")
    before = plot.screenshot(), page.inner_text("#numbers"), page.inner_text("#gpus")
    seen.until(f"document.getElementById('numbers').innerText !== {before[1]!r}")
    seen.until(f"document.getElementById('gpus').innerText !== {before[2]!r}")
    later = stand.machine.now + 5
    seen.until(lambda: stand.machine.now > later)
    page.wait_for_timeout(1000)  # plots are drawn at most about once a second
    assert plot.screenshot() != before[0]


@browser
def test_what_was_not_read_is_not_zero_and_states_have_a_reason(visit: Callable[..., Visit]) -> None:
    page = visit(stand_of()).live()
    hot, lost, silent = (page.locator(".card").nth(position) for position in (3, 4, 5))
    page.wait_for_selector(".card[data-state=LOST]")
    assert "▲ UNHEALTHY" in hot.inner_text()
    assert "91 C is above max_temperature" in hot.inner_text()
    text = lost.inner_text()
    assert "✕ LOST" in text
    assert "fell off the bus" in text
    assert "N/A / 80.0 GiB" in text
    assert " 0 %" not in text
    assert re.search(r"Temperature\s+N/A\s+Power\s+N/A / 400 W", silent.inner_text())
    assert "simulated" in silent.inner_text()


@browser
@pytest.mark.parametrize(("width", "scheme"), [(1400, "dark"), (900, "light"), (420, "light"), (420, "dark")])
@pytest.mark.parametrize("gpus", [8, 64])
def test_the_page_fits_every_width(visit: Callable[..., Visit], width: int, scheme: str, gpus: int) -> None:
    seen = visit(stand_of(gpus), width=width, scheme=scheme)
    page = seen.live()
    page.wait_for_selector(".card")
    page.locator("#plots").scroll_into_view_if_needed()
    seen.until(f"{PLOTS}.length > 0")
    page.wait_for_selector("tbody tr")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert seen.complaints == []


@browser
def test_plots_follow_a_change_to_dark(visit: Callable[..., Visit]) -> None:
    seen = visit(stand_of())
    page = seen.live()
    page.locator("#plots").scroll_into_view_if_needed()
    seen.until(f"{PLOTS}.length > 0")
    colour = f"{PLOTS}[0]._fullData[0].line.color"
    light = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    seen.until(f"{colour} !== {light!r}")


@browser
def test_text_of_tasks_is_never_html(visit: Callable[..., Visit]) -> None:
    stand = stand_of()
    evil = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    task = stand.machine.submit({"text": evil, "max_length": 8, "temperature": 0.0, evil: evil})
    task.update(status="FAILED", error=evil, error_code=evil, gpu_id=0, completed_at=task["created_at"])
    stand.machine.gpus[0].update(name=evil)
    seen = visit(stand)
    page = seen.live()
    page.get_by_role("button", name=task["id"], exact=True).click()
    page.wait_for_selector(".fields dd")
    assert page.locator(".fields").inner_text().count(evil) >= 4
    assert page.locator(".card").first.inner_text().count(evil) == 1
    assert page.locator("main img, main script, dialog img, dialog script").count() == 0
    assert "owned" not in page.title()
    assert seen.complaints == []


# Tasks


@browser
def test_a_filter_shows_tasks_of_one_state_and_keeps_up(visit: Callable[..., Visit]) -> None:
    seen = visit(stand_of())
    page = seen.live()
    page.get_by_role("radio", name="Failed").check()
    states = "[...document.querySelectorAll('tbody .state')].map(state => state.dataset.state)"
    seen.until(f"{states}.length > 0 && {states}.every(state => state === 'FAILED')")
    page.get_by_role("radio", name="Running").check()
    seen.until(f"{states}.length > 0 && {states}.every(state => state === 'RUNNING')")
    first = page.locator("tbody .link").first.inner_text()
    page.wait_for_selector(f"tbody .link:text-is('{first}')", state="detached")  # it ends, and leaves the list


@browser
def test_cancel_cancels_and_says_so(visit: Callable[..., Visit]) -> None:
    stand = stand_of(interval_s=3600.0)  # nothing else happens
    page = visit(stand).live()
    row = page.locator("tbody tr:has(.state[data-state=QUEUED])").first
    name = row.locator(".link").inner_text()
    row.get_by_role("button", name=f"Cancel {name}").click()
    page.wait_for_selector(f"#tasks-say:text-is('{name} is cancelled')")
    page.wait_for_selector(f"tbody tr:has(.link:text-is('{name}')) .state[data-state=CANCELLED]")
    assert f"DELETE /api/v1/tasks/{name}" in stand.calls
    assert not page.locator("dialog").is_visible()


@browser
def test_a_cancel_that_is_refused_says_why(visit: Callable[..., Visit]) -> None:
    stand = stand_of(interval_s=3600.0)
    page = visit(stand).live()
    row = page.locator("tbody tr:has(.state[data-state=QUEUED])").first
    name = row.locator(".link").inner_text()
    stand.machine.tasks[int(name.removeprefix("task-"))].update(status="COMPLETED")  # the page does not know yet
    row.get_by_role("button", name=f"Cancel {name}").click()
    page.wait_for_selector(f"#tasks-say.bad:text('{name} has ended already')")


@browser
def test_details_open_from_the_keyboard_and_show_all_fields(visit: Callable[..., Visit]) -> None:
    stand = stand_of(interval_s=3600.0)
    page = visit(stand).live()
    opener = page.locator("tbody .link").first
    name = opener.inner_text()
    opener.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".fields dd")
    fields = page.locator(".fields dt").all_inner_texts()
    assert {"params.text", "params.max_length", "priority", "created_at", "retry_count", "error"} <= set(fields)
    assert page.get_by_role("dialog", name=name).is_visible()
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="hidden")


# The form


@browser
def test_the_form_sends_what_it_says_and_shows_the_answer(visit: Callable[..., Visit]) -> None:
    stand = stand_of()
    seen = visit(stand)
    page = seen.live()
    page.get_by_label("Text", exact=True).fill("Open <b>the</b>")
    page.get_by_label("Max. length").fill("40")
    page.get_by_label("Temperature", exact=True).fill("0")
    page.get_by_label("Priority").select_option("high")
    page.get_by_label("Strategy").select_option("least_loaded")
    page.get_by_label("GPU id").fill("2")
    page.get_by_role("button", name="Predict").click()
    page.wait_for_selector(".generated")
    shown = page.inner_text("#predict-result")
    assert "Open <b>the</b> are written to the file object" in shown
    for words in ("20 after 16", "18 ms", "412.6 tokens/s", "GPU 2, simulated"):
        assert words in shown
    options = {"strategy": "least_loaded", "gpu_id": 2}
    body = {"text": "Open <b>the</b>", "max_length": 40, "temperature": 0, "priority": "high", "gpu_options": options}
    assert stand.predictions == [body]
    assert seen.complaints == []


@browser
def test_a_refused_field_is_named_marked_and_focused(visit: Callable[..., Visit]) -> None:
    seen = visit(stand_of())
    page = seen.live()
    page.get_by_label("Temperature", exact=True).fill("9")
    page.get_by_role("button", name="Predict").click()
    page.wait_for_selector("#f-temperature[aria-invalid=true]")
    assert "temperature: 9 is not allowed; allowed: 0 to 2" in page.inner_text("#predict-result")
    assert page.evaluate("document.activeElement.id") == "f-temperature"
    page.get_by_label("Temperature", exact=True).fill("1")
    page.get_by_role("button", name="Predict").click()
    page.wait_for_selector(".generated")
    assert page.locator("[aria-invalid]").count() == 0
    assert [text for text in seen.complaints if not REFUSALS.search(text)] == []


@browser
@pytest.mark.parametrize(("text", "said"), [("full", "Try again in 3 s."), ("fail", "FAILED: worker process ended")])
def test_a_prediction_that_fails_says_why(visit: Callable[..., Visit], text: str, said: str) -> None:
    page = visit(stand_of()).live()
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_role("button", name="Predict").click()
    page.wait_for_selector("#predict-result .bad")
    assert said in page.inner_text("#predict-result")


# Keys and connections


@browser
def test_a_key_is_asked_for_until_one_is_right_and_kept_in_the_tab_alone(visit: Callable[..., Visit]) -> None:
    seen = visit(stand_of(key=KEY))
    page = seen.page
    page.wait_for_selector("body[data-connection=key]")
    assert not page.locator("#plots").is_visible()
    page.get_by_label("API key", exact=True).fill("not-the-right-one-at-all")
    page.get_by_role("button", name="Use this key").click()
    page.wait_for_selector("#key-say:text('not accepted')")
    page.get_by_label("API key", exact=True).fill(KEY)
    page.keyboard.press("Enter")
    seen.live()
    page.wait_for_selector(".card")
    assert not page.locator("#key-form").is_visible()
    assert KEY in page.evaluate("Object.values(sessionStorage)")
    assert page.evaluate("localStorage.length + document.cookie.length") == 0
    assert KEY not in page.url
    assert [text for text in seen.complaints if not REFUSALS.search(text)] == []


@browser
def test_the_page_comes_back_after_the_server_did(visit: Callable[..., Visit]) -> None:
    port = free_port()
    with running(stand_of(8), port) as url:
        seen = visit(url)
        page = seen.live()
        page.wait_for_selector(".card")
    page.wait_for_selector("body[data-connection=reconnecting]")
    page.wait_for_selector("#lost:text('No connection')")
    with running(stand_of(3), port):
        seen.live()
        seen.until("document.querySelectorAll('.card').length === 3")
        assert not page.locator("#lost").is_visible()
        page.locator("#plots").scroll_into_view_if_needed()
        seen.until(f"{PLOTS}.length > 0 && {PLOTS}[0]._fullData.length === 3")


@browser
def test_a_page_that_was_too_slow_loads_the_lists_again(visit: Callable[..., Visit]) -> None:
    stand = stand_of()
    seen = visit(stand)
    page = seen.live()
    before = stand.calls.count("GET /api/v1/telemetry")
    stand.tell("lagged", {})
    seen.until(lambda: stand.calls.count("GET /api/v1/telemetry") > before)
    assert page.locator("body").get_attribute("data-connection") == "live"


# Many GPUs, many hours


@browser
@pytest.mark.slow
def test_1024_gpus_are_tiles_that_the_keyboard_reaches_and_an_update_is_short(visit: Callable[..., Visit]) -> None:
    seen = visit(stand_of(1024, interval_s=1.0))
    page = seen.live()
    page.wait_for_selector(".tile[data-state=LOST]")
    assert page.locator(".tiles .tile").count() == 1024
    assert "✕" in page.locator(".tiles .tile[data-state=LOST]").first.inner_text()
    page.locator(".tiles .tile[tabindex='0']").focus()
    page.keyboard.press("End")
    page.wait_for_selector(".tile-card h3:text-is('GPU 1023')")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(".tile-card h3:text-is('GPU 1022')")
    page.set_viewport_size({"width": 1400, "height": 2200})  # all of it is seen, so all of it is drawn
    seen.until(f"{PLOTS}.length === 5")
    assert page.evaluate(f"{PLOTS}.map(plot => plot._fullData.length)") == [3, 3, 3, 3, 1]
    print(f"\n1,024 GPUs: {cost_of_updates(seen, seconds=6)}")
    assert seen.complaints == []


def cost_of_updates(seen: Visit, seconds: float) -> str:
    """Where the page's time goes, as the browser itself counts it, per second (there is one update a second)."""
    session = seen.context.new_cdp_session(seen.page)
    session.send("Performance.enable")

    def read() -> dict[str, float]:
        return {entry["name"]: entry["value"] for entry in session.send("Performance.getMetrics")["metrics"]}

    before = read()
    seen.page.wait_for_timeout(seconds * 1000)
    after = read()
    costs = []
    for name, key in {"script": "ScriptDuration", "style": "RecalcStyleDuration", "layout": "LayoutDuration"}.items():
        costs.append(f"{1000 * (after[key] - before[key]) / seconds:.0f} ms {name}")
    return ", ".join(costs) + " per update"


@browser
@pytest.mark.slow
def test_a_page_that_is_open_for_hours_does_not_grow(visit: Callable[..., Visit]) -> None:
    stand = stand_of(interval_s=0.005)  # about a quarter of an hour in five seconds
    seen = visit(stand)
    page = seen.live()
    page.locator("#plots").scroll_into_view_if_needed()
    session = seen.context.new_cdp_session(page)
    sizes = []
    for _ in range(3):
        goal = stand.machine.now + 450
        seen.until(lambda goal=goal: stand.machine.now > goal)  # type: ignore[misc]
        session.send("HeapProfiler.collectGarbage")
        sizes.append(
            (session.send("Runtime.getHeapUsage")["usedSize"], page.evaluate("document.querySelectorAll('*').length"))
        )
    print(f"\nheap bytes, elements after each 7.5 minutes: {sizes}")
    seen.until(f"{PLOTS}.length > 0")
    assert page.evaluate(f"Math.max(...{PLOTS}.flatMap(plot => plot.data.map(trace => trace.y.length)))") <= 302
    assert page.locator("tbody tr").count() <= 100
    assert sizes[-1][1] < 1.2 * sizes[0][1]
    assert sizes[-1][0] < 1.5 * sizes[0][0]
    assert seen.complaints == []
