"""`altlas.live`: a dashboard where somebody can watch, figures of the whole run where nobody can. Without a browser."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import nbformat
import pytest

import altlas_core as altlas
from altlas_core.errors import AltlasError
from altlas_core.live import bars, crowd, frontend
from altlas_core.live.bars import MOST_BARS, RUNNING, Bars, Window
from altlas_core.live.canvas import BARS, HEAT, ORDER, QUEUE
from altlas_core.live.dashboard import WIDGET_MIME, Dashboard
from altlas_core.live.plots import Plots
from altlas_core.live.snapshot import AttemptView, GpuView, Snapshot
from altlas_core.live.still import ENDLESS_S, StillRun, still_bundle
from altlas_core.notebook.display import FIGURE_MIME
from altlas_core.notebook.session import NotebookError
from altlas_core.report.cells import read_story

WORK = altlas.Workload.poisson(rate_per_s=9, count=60, seed=1, duration_mean_s=2.0)


def settings(*devices: str, **more: Any) -> Any:
    own = {"gpu.devices": list(devices or ["4x A100"]), "gpu.selection.default_strategy": "least_loaded"}
    return altlas.load_config(overrides={**own, **more})


@pytest.fixture
def dashboards() -> Iterator[Callable[..., Dashboard]]:
    """Makes dashboards that are closed afterwards."""
    made: list[Dashboard] = []

    def make(asked: Any = None, workload: Any = WORK, **more: Any) -> Dashboard:
        made.append(altlas.live(asked or settings(), workload, mode="live", **more))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for dashboard in made:
        dashboard.close()


def until(dashboard: Dashboard, holds: Callable[[], bool]) -> None:
    """Draw until it holds: what is asked of a run happens on its own thread."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        dashboard.refresh()
        if holds():
            return
        threading.Event().wait(0.005)
    raise AssertionError(f"never held; {dashboard._machine.head}, {dashboard._machine.problem!r}")


def click_gpu(dashboard: Dashboard, gpu_id: int) -> None:
    dashboard._machine._handle_custom_msg({"select": gpu_id}, [])


# --- the name ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    ["import altlas_core as altlas", "from altlas_core.live.session import LiveSession", "import altlas_core.live"],
)
def test_live_is_the_function_and_also_the_package_whatever_was_imported_first(first: str) -> None:
    code = (
        f"{first}\nimport altlas_core as altlas\nfrom altlas_core.live.session import LiveSession\n"
        "from altlas_core.live import snapshot\nimport sys\n"
        "assert altlas.live.__name__ == 'live' and callable(altlas.live) and LiveSession and snapshot\n"
        "assert 'ipywidgets' not in sys.modules and 'plotly' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- which of the two -------------------------------------------------------------------------------------------------


def test_without_a_front_end_the_run_is_played_whole() -> None:
    made = altlas.live(settings(), WORK)
    assert isinstance(made, StillRun)
    assert made.session is None
    assert made.result.event_log_sha256 == altlas.run(settings(), WORK).event_log_sha256
    assert "60 tasks" in repr(made)
    assert "60 completed" in repr(made)
    assert "\n" not in repr(made)
    made.close()


def test_faults_and_seed_are_those_of_the_run() -> None:
    faults = [altlas.Fault(time_s=2.0, gpu_id=1, kind="lose_gpu")]
    made = altlas.live(settings(), WORK, seed=7, faults=faults)
    assert made.result is not None
    assert made.result.event_log_sha256 == altlas.run(settings(), WORK, seed=7, faults=faults).event_log_sha256


def test_still_runs_in_virtual_time_whatever_the_pace() -> None:
    made = altlas.live(settings(**{"run.pace": 0.001}), WORK)  # a run at that pace would take hours
    assert made.result is not None
    assert made.result.metrics["completed"] == 60


def test_of_an_endless_workload_its_first_two_minutes() -> None:
    made = altlas.live(settings())
    assert made.result is not None
    submitted = made.result.tasks.submitted_s
    assert ENDLESS_S - 5 < submitted.max() < ENDLESS_S
    assert "of an endless workload" in repr(made)


class FakeKernel:
    def __init__(self, metadata: dict[str, Any]) -> None:
        self.metadata = metadata

    def get_parent(self, _channel: str) -> dict[str, Any]:
        return {"header": {}, "metadata": self.metadata}


@pytest.fixture
def front_end(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], None]:
    """Execute cells on behalf of somebody who sends this with his requests."""
    import IPython

    def use(metadata: dict[str, Any]) -> None:
        shell = type("Shell", (), {"kernel": FakeKernel(metadata)})()
        monkeypatch.setattr(IPython, "get_ipython", lambda: shell)

    return use


def test_a_front_end_that_tells_the_cell_gets_the_dashboard(front_end: Any) -> None:
    front_end({"cellId": "abc", "deletedCells": []})
    first = altlas.live(settings(), WORK, autostart=False)
    assert isinstance(first, Dashboard)
    again = altlas.live(settings(), WORK, autostart=False)  # the cell is executed again
    assert isinstance(again, Dashboard)
    assert first.comm is None  # closed
    assert again.comm is not None
    front_end({"cellId": "other"})
    other = altlas.live(settings(), WORK, autostart=False)
    assert again.comm is not None
    again.close()
    other.close()


def test_a_program_that_executes_notebooks_tells_no_cell(front_end: Any) -> None:
    front_end({})
    assert frontend.cell_id() is None
    assert isinstance(altlas.live(settings(), WORK), StillRun)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mode": "lve"}, "mode: 'lve'; allowed: auto, live, still. Did you mean 'live'?"),
        ({"mode": 3}, "mode: 3; allowed"),
        ({"workload": [1]}, "list is no workload"),
        ({"workload": [1], "mode": "live"}, "list is no workload"),
        ({"settings": {"seed": 1}}, "dict is no settings"),
        ({"settings": {"seed": 1}, "mode": "live"}, "dict is no settings"),
        ({"seed": -1}, "seed: -1"),
        ({"faults": [altlas.Fault(time_s=1, gpu_id=99, kind="lose_gpu")]}, "99 is not there"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(NotebookError) as caught:
        altlas.live(**{"settings": settings(), "workload": WORK, **arguments})
    assert isinstance(caught.value, AltlasError)
    lines = caught.value._render_traceback_()
    assert len(lines) == 1
    assert "\n" not in lines[0]
    assert said in lines[0]


# --- the still picture ------------------------------------------------------------------------------------------------


@pytest.mark.notebooks
def test_an_executed_notebook_has_the_figures_and_always_the_same_ones() -> None:
    from nbclient import NotebookClient

    source = (
        "import altlas_core as altlas\n"
        "work = altlas.Workload.poisson(rate_per_s=9, count=60, seed=1, duration_mean_s=2.0)\n"
        "altlas.live(altlas.load_config(overrides={'gpu.devices': ['4x A100']}), work)"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for _ in range(2)])
    NotebookClient(notebook, timeout=120).execute()
    first, second = (cell.outputs for cell in notebook.cells)
    assert [output["data"] for output in first] == [output["data"] for output in second]
    figures = [output["data"][FIGURE_MIME] for output in first if FIGURE_MIME in output["data"]]
    assert [figure["layout"]["meta"]["figure"] for figure in figures] == [
        "machine",
        "timeline",
        "queue_depth",
        "latency_over_time",
    ]
    assert all("text/plain" in output["data"] for output in first)
    assert all(WIDGET_MIME not in output["data"] for output in first)
    assert "widgets" not in notebook.metadata
    story = read_story(notebook, "")
    assert story.figure_count == 8
    assert story.error is None


def test_a_run_without_tasks_leaves_figures_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from altlas_core.live import still

    shown: list[Any] = []
    monkeypatch.setattr(still, "show", shown.append)
    monkeypatch.setattr(still, "display", shown.append)
    monkeypatch.setattr(still, "show_table", lambda *_: None)
    altlas.live(settings(), altlas.Workload())._ipython_display_()
    assert len(shown) == 5


# --- the dashboard ----------------------------------------------------------------------------------------------------


def test_before_it_starts_everything_is_there_and_nothing_can_be_broken(dashboards: Any) -> None:
    dashboard = dashboards(autostart=False)
    dashboard.refresh()
    controls, machine = dashboard._controls, dashboard._machine
    assert machine.head["state"] == "ready"
    assert machine.head["clock"] == "0.0 s"
    assert machine.health == ["AVAILABLE"] * 4
    assert controls.first.description == "Start"
    assert not controls.first.disabled
    assert not controls.step.disabled
    assert controls.stop.disabled
    assert all(button.disabled for button in controls.breaks.values())
    assert dashboard.result is None


def test_the_whole_run_is_drawn_once_it_has_ended_and_then_nothing_is_sent(dashboards: Any) -> None:
    dashboard = dashboards(settings(**{"run.pace": 1e6}))
    assert dashboard.session.wait(20)
    until(dashboard, lambda: dashboard._machine.head["state"] == "ended")
    result = dashboard.result
    assert result.event_log_sha256 == altlas.run(settings(), WORK).event_log_sha256
    figure = dashboard._plots.widget
    finished = figure.data[BARS + ORDER.index("finished")]
    assert len(finished.x) == 3 * 60
    assert list(figure.layout.xaxis.range) == [0.0, result.virtual_s]
    assert ["completed", "60"] in dashboard._machine.figures
    assert dashboard._controls.first.description == "Run again"
    until(dashboard, lambda: not dashboard.refresh())
    frame = dashboard._machine.frame
    assert not dashboard.refresh()
    assert dashboard._machine.frame == frame


def test_pause_step_and_go_on(dashboards: Any) -> None:
    dashboard = dashboards()
    controls, machine = dashboard._controls, dashboard._machine
    until(dashboard, lambda: machine.head["state"] == "running")
    controls.first.click()
    until(dashboard, lambda: machine.head["state"] == "paused")
    assert controls.first.description == "Go on"
    before = dashboard.session.snapshot().time_s
    assert dashboard.session.snapshot().time_s == before
    controls.step.click()
    until(dashboard, lambda: dashboard.session.snapshot().time_s > before)
    until(dashboard, lambda: machine.head["state"] == "paused")
    controls.first.click()
    until(dashboard, lambda: machine.head["state"] == "running")
    controls.stop.click()
    until(dashboard, lambda: machine.head["state"] == "ended")
    controls.first.click()
    until(dashboard, lambda: machine.head["state"] == "running")
    assert dashboard.session.snapshot().run == 2


def test_the_chosen_gpu_is_broken_and_mended(dashboards: Any) -> None:
    dashboard = dashboards()
    controls, machine = dashboard._controls, dashboard._machine
    until(dashboard, lambda: machine.head["state"] == "running")
    controls.first.click()
    click_gpu(dashboard, 3)
    until(dashboard, lambda: controls.target.value == "GPU 3:")
    assert controls.breaks["return_gpu"].disabled
    controls.breaks["lose_gpu"].click()
    until(dashboard, lambda: machine.health[3] == "LOST")
    assert machine.health.count("LOST") == 1
    assert "GPU 3 lost" in machine.news[-1]
    assert [kind for kind, button in controls.breaks.items() if not button.disabled] == ["return_gpu"]
    controls.breaks["return_gpu"].click()
    until(dashboard, lambda: machine.health[3] != "LOST")
    controls.breaks["overheat"].click()
    until(dashboard, lambda: machine.health[3] == "UNHEALTHY")
    assert "3" in machine.reasons
    assert not controls.breaks["cool_down"].disabled
    controls.breaks["cool_down"].click()
    until(dashboard, lambda: machine.health[3] != "UNHEALTHY")
    click_gpu(dashboard, -1)
    until(dashboard, lambda: controls.target.value == "The busiest GPU:")
    click_gpu(dashboard, 4)  # there is none
    assert machine.selected == -1


def test_what_is_refused_is_said_in_a_line_and_the_fields_show_what_holds(dashboards: Any) -> None:
    dashboard = dashboards(autostart=False)
    controls = dashboard._controls
    controls.strategy.options = [*controls.strategy.options, "cleverest"]
    controls.strategy.value = "least_loaded"
    controls.strategy.value = "cleverest"
    assert "unknown strategy 'cleverest'" in dashboard._machine.problem
    until(dashboard, lambda: controls.strategy.value == "least_loaded")
    controls.breaks["cool_down"].click()
    assert "cool_down" in dashboard._machine.problem
    controls.rate.value = 2.0
    assert dashboard._machine.problem == ""
    assert dashboard.session.snapshot().rate_factor == 2.0


def test_another_machine_is_a_fresh_run_that_goes_on_where_one_ran(dashboards: Any) -> None:
    dashboard = dashboards()
    controls, machine = dashboard._controls, dashboard._machine
    until(dashboard, lambda: machine.head["state"] == "running")
    controls.count.value = 70
    until(dashboard, lambda: len(machine.health) == 70 and machine.head["state"] == "running")
    controls.first.click()
    until(dashboard, lambda: machine.head["state"] == "paused")
    controls.kind.value = "T4"
    until(dashboard, lambda: machine.gpus[0]["name"] == "T4" and machine.head["state"] == "ready")
    controls.slots.value = 7
    until(dashboard, lambda: machine.gpus[0]["slots"] == 7)
    assert machine.problem == ""


def test_the_fields_follow_the_session(dashboards: Any) -> None:
    dashboard = dashboards(autostart=False)
    session, controls = dashboard.session, dashboard._controls
    session.set_strategy("random")
    session.set_pace(None)
    session.rebuild(["2x A100", "1x T4"])
    until(dashboard, lambda: controls.strategy.value == "random" and controls.pace.value is None)
    assert controls.kind.value == "2x A100, 1x T4"
    assert controls.count.value == 3
    assert controls.count.disabled
    assert session.snapshot().run == 2  # following is no wish of anybody
    session.set_pace(5.0)
    until(dashboard, lambda: controls.pace.value == 5.0)


def test_what_real_devices_cannot_do_is_disabled(dashboards: Any) -> None:
    dashboard = dashboards(settings("cpu:2"), autostart=False)
    controls = dashboard._controls
    assert (controls.count.value, controls.kind.value) == (2, "CPU device")
    assert controls.pace.disabled
    assert controls.step.disabled
    assert not controls.first.disabled
    assert controls.breaks["overheat"].disabled
    assert dashboard._machine.head["pace"] == "real time"


def test_no_frame_is_sent_before_the_browser_has_drawn_the_one_before_last(dashboards: Any) -> None:
    dashboard = dashboards(autostart=False)
    machine = dashboard._machine
    dashboard.refresh()
    dashboard._sent_s = float("inf")  # as if it had just been sent, for as long as this test lasts
    machine.frame += 2
    assert not dashboard._may_send()
    machine._handle_custom_msg({"seen": machine.frame - 1}, [])
    assert dashboard._may_send()
    machine.frame += 2
    assert not dashboard._may_send()
    dashboard._say("a click is answered at once")
    assert dashboard._may_send() or machine.problem  # its own thread may already have drawn it


def test_a_frame_that_cannot_be_drawn_is_said_and_the_next_ones_come(dashboards: Any, monkeypatch: Any) -> None:
    dashboard = dashboards(autostart=False)
    follow = dashboard._controls.follow
    failed = threading.Event()

    def fail(_: Any) -> None:
        failed.set()
        raise ValueError("nothing fits")

    monkeypatch.setattr(dashboard._controls, "follow", fail)
    dashboard._touch()
    assert failed.wait(10)
    monkeypatch.setattr(dashboard._controls, "follow", follow)
    until(dashboard, lambda: dashboard._machine.problem == "ValueError: nothing fits")
    dashboard.session.start()
    until(dashboard, lambda: dashboard._machine.head["state"] == "running")
    assert dashboard._thread.is_alive()


def test_while_another_cell_runs_frames_are_sent_without_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    import IPython
    from IPython.core.events import EventManager

    events = EventManager(None, {"pre_run_cell": lambda: None, "post_run_cell": lambda: None})
    shell = type("Shell", (), {"events": events})()
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    cells = frontend.CellWatch()
    seen = [cells.busy]  # in the cell that makes it
    events.trigger("post_run_cell", None)
    seen.append(cells.busy)
    events.trigger("pre_run_cell", None)
    seen.append(cells.busy)
    assert seen == [True, False, True]
    cells.close()
    events.trigger("post_run_cell", None)
    assert cells.busy  # it does not listen any more
    cells.close()


def test_closing_ends_the_run_the_thread_and_the_widgets(dashboards: Any) -> None:
    dashboard = dashboards()
    dashboard.close()
    assert not dashboard._thread.is_alive()
    assert dashboard.comm is None
    assert dashboard._plots.widget.comm is None
    assert dashboard.session.snapshot().state == "ended"
    assert set(dashboard._bundle()) == {"text/html", "text/plain"}
    dashboard.close()


def test_beside_the_widget_there_is_always_a_still_form(dashboards: Any) -> None:
    dashboard = dashboards(autostart=False)
    bundle = dashboard._bundle()
    assert set(bundle) == {WIDGET_MIME, "text/html", "text/plain"}
    output = nbformat.v4.new_output("display_data", data=bundle)
    cell = nbformat.v4.new_code_cell("dashboard", outputs=[output])
    blocks = read_story(nbformat.v4.new_notebook(cells=[cell]), "").blocks
    assert [block.kind for block in blocks] == ["code", "note"]
    assert blocks[1].html.count("<tr>") == 5
    assert "ready at 0.0 s" in blocks[1].html


# --- what is drawn ----------------------------------------------------------------------------------------------------


def gpu(gpu_id: int, running: int = 1, name: str = "A100") -> GpuView:
    return GpuView(gpu_id, name, "AVAILABLE", None, 50.0, 2**30, 2**33, 40.0, 100.0, 400.0, running, 4, True)


def shot(gpus: int, time_s: float = 0.0, attempts: tuple[AttemptView, ...] = (), **more: Any) -> Snapshot:
    nothing = dict.fromkeys(("latency_p50_s", "latency_p95_s", "latency_p99_s", "wait_p50_s", "throughput_per_s"))
    counts = dict.fromkeys(("submitted", "queued", "running", "completed", "failed", "cancelled"), 0)
    series = ("queue_times_s", "queue_depths", "latency_times_s", "latency_p50_series", "latency_p95_series")
    told: dict[str, Any] = {
        "state": "running",
        "error": None,
        "run": 1,
        "time_s": time_s,
        "pace": 1.0,
        "can_pace": True,
    }
    told |= {"provenance": "simulated", "strategy": "random", "rate_factor": 1.0, "seed": 42, "slots": 4}
    told |= {"device_texts": (f"{gpus}x A100",), "gpus": tuple(map(gpu, range(gpus))), "attempts": attempts}
    told |= {"next_since": 0, "news": (), **{name: [] for name in series}, **nothing, **counts, **more}
    return Snapshot(**told)


def attempt(number: int, started_s: float, ended_s: float | None = None, gpu_id: int = 0, lane: int = 0) -> AttemptView:
    outcome = None if ended_s is None else "finished"
    return AttemptView(
        f"{number}.1", gpu_id, lane, f"task-{number:06d}", "linear", "normal", started_s, ended_s, outcome
    )


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], dict[str, Any], list[int]]]:
    """What figures made from now on send."""
    from plotly.graph_objects import FigureWidget

    messages: list[Any] = []
    update = FigureWidget.plotly_update

    def note(self: Any, style: Any, layout: Any, traces: Any) -> None:
        messages.append((style, layout, traces))
        update(self, style, layout, traces)

    monkeypatch.setattr(FigureWidget, "plotly_update", note)
    return messages


def test_a_frame_sends_only_the_bars_that_have_changed(sent: Any) -> None:
    plots = Plots(2, 4)
    running, finished = BARS + ORDER.index(RUNNING), BARS + ORDER.index("finished")
    plots.show(shot(2, 1.0, (attempt(0, 0.0), attempt(1, 0.2, 0.8, 1))), 1.0)
    assert sent[0][2] == list(range(QUEUE + 3))  # of a new run everything
    plots.show(shot(2, 1.5), 1.5)
    assert sent[1][2] == [running]
    assert sent[1][1] == {}
    plots.show(shot(2, 2.0, (attempt(0, 0.0, 1.9),)), 2.0)
    assert sent[2][2] == [running, finished]
    assert len(plots.widget.data[finished].x) == 6
    assert len(plots.widget.data[running].x) == 0


def test_frames_that_come_too_soon_draw_nothing_and_lose_nothing(sent: Any) -> None:
    plots = Plots(2, 4)
    plots.show(shot(2, 1.0), 1.0)
    plots.show(shot(2, 1.1, (attempt(0, 0.0),)), 1.1)
    assert len(sent) == 1
    plots.show(shot(2, 1.3), 1.3)
    assert len(plots.widget.data[BARS + ORDER.index(RUNNING)].x) == 3
    plots.show(shot(2, 1.31, state="paused"), 1.31)  # of a run that stands there may be no later frame
    assert len(sent) == 3


def test_a_slow_browser_draws_the_figure_less_often() -> None:
    plots = Plots(2, 4)
    plots.took(0.3)
    assert plots.show(shot(2, 1.0), 1.0)
    assert not plots.show(shot(2, 1.5), 1.55)
    assert plots.show(shot(2, 1.6), 1.65)
    plots.took(100.0)
    assert plots.show(shot(2, 2.6), 2.7)  # once a second at least
    plots.took(0.01)
    assert not plots.show(shot(2, 2.7), 2.8)
    assert plots.show(shot(2, 2.9), 2.95)


def test_bars_are_bounded_and_know_how_far_back_they_reach() -> None:
    kept = Bars()
    kept.add(attempt(number, number * 0.1, number * 0.1 + 1) for number in range(5000))
    lines = kept.lines("finished", 4, (0.0, 1e9), 600.0)
    assert len(lines["x"]) == 3 * MOST_BARS
    assert kept.reach_s(501.0) == pytest.approx(MOST_BARS * 0.1)
    assert kept.lines("finished", 4, (490.0, 520.0), 501.0)["customdata"][0] == 4891


def test_a_bar_lies_within_its_gpu_and_tells_its_task() -> None:
    lines = bars.lines_of([attempt(7, 1.0, 3.0, gpu_id=5, lane=lane) for lane in range(6)], 4, (0.0, 10.0), 9.0)
    assert {round(float(y)) for y in lines["y"] if y == y} == {5}
    assert lines["x"][0] == 1.0
    assert 2.9 < lines["x"][1] < 3.0  # a gap before the next
    assert set(lines["customdata"]) == {7}


def test_the_window_stands_still_until_the_present_leaves_it() -> None:
    window = Window()
    window.follow(0.0, 1.0, 0.0)
    assert window.span == (0.0, 30.0)
    assert not window.follow(29.9, 1.0, 29.9)
    assert window.follow(30.1, 1.0, 30.1)
    assert window.span == (7.6, 37.6)
    assert window.follow(31.0, 10.0, 250.0)  # ten times as fast: as much of it as is known
    assert window.end_s - window.begin_s == 200.0
    assert window.follow(2.0, 1.0, 2.0)  # another run
    assert window.span == (0.0, 30.0)


def test_a_thousand_gpus_are_a_picture_of_bounded_size(sent: Any) -> None:
    plots = Plots(1000, 4)
    for frame in range(400):
        plots.show(shot(1000, frame * 1.0, (attempt(frame, 0.0, 1.0, frame),)), frame * 1.0)
    heat = plots.widget.data[HEAT]
    assert heat.visible
    assert len(heat.z) <= crowd.MOST_ROWS
    assert len(heat.z[0]) <= crowd.MOST_COLUMNS
    assert not any(trace.visible for trace in plots.widget.data[BARS : BARS + len(ORDER)])
    assert "mean of 8 GPUs" in plots.widget.layout.annotations[0].text


def test_a_long_run_ends_as_a_picture_of_all_of_it(dashboards: Any) -> None:
    many = altlas.Workload.poisson(rate_per_s=40, count=MOST_BARS + 1, seed=1, duration_mean_s=0.5)
    dashboard = dashboards(settings(**{"run.pace": 1e6}), many)
    assert dashboard.session.wait(30)
    until(dashboard, lambda: dashboard._finished == 1)
    heat = dashboard._plots.widget.data[HEAT]
    assert heat.visible
    assert len(heat.z) == 4
    assert max(map(max, heat.z)) > 0


def test_narrow_dashboards_have_their_plots_in_a_column() -> None:
    plots = Plots(8, 4)
    plots.show(shot(8), 1.0)
    plots.arrange(1000)
    wide = plots.widget.layout.height
    assert list(plots.widget.layout.xaxis2.domain) != [0.0, 1.0]
    plots.arrange(380)
    assert list(plots.widget.layout.xaxis2.domain) == [0.0, 1.0]
    assert plots.widget.layout.height > wide
    assert plots.widget.layout.width == 380


def test_the_still_form_escapes_what_it_shows_and_is_bounded() -> None:
    told = shot(30, news=("1 s  <b>lost</b>",))
    told = replace(told, gpus=(gpu(0, name="<i>"), *told.gpus[1:]))
    html = still_bundle(told)["text/html"]
    assert "&lt;i&gt;" in html
    assert "&lt;b&gt;lost" in html
    assert html.count("<tr>") == 25
    assert "first 24 of 30 GPUs" in html


def test_a_map_is_shown_from_its_second_column_on() -> None:
    plots = Plots(100, 4)
    plots.show(shot(100, 0.0), 1.0)
    assert not plots.widget.data[HEAT].visible
    plots.show(shot(100, 1.0, state="paused"), 2.0)
    assert plots.widget.data[HEAT].visible
