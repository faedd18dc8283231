"""Figures of two runs over each other, and the page of `altlas compare` in a browser with the network cut."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finished_runs import check, scenario, write_run

import altlas_core as altlas
from altlas_core import cli
from altlas_core.figures import balance, queue_depth, readings, timeline
from altlas_core.report.overlay import pair_figures

FIRST, SECOND = "20260504-120000-aaaa", "20260504-130000-bbbb"


@pytest.fixture(scope="module")
def results() -> list[altlas.Result]:
    found = []
    for devices in ("1x T4", "3x T4"):
        settings = altlas.load_config(
            overrides={"gpu.devices": [devices], "gpu.selection.default_strategy": "least_loaded"}, environ={}
        )
        found.append(altlas.run(settings, altlas.Workload.poisson(5, 40, seed=3, duration_mean_s=2.0)))
    return found


class TestFigures:
    def test_lines_lie_in_one_plot_solid_and_dashed(self, results: list[altlas.Result]) -> None:
        figures = [[queue_depth(result)] for result in results]
        (pair,) = pair_figures(*figures, "one")
        ((letter, plot),) = pair.plots
        assert letter == ""
        names = [trace["name"] for trace in plot["data"] if trace["showlegend"]]
        assert [name[-4:] for name in names] == [" · A", " · B"] or [name[-1] for name in names] == ["A", "B"]
        lines = [trace["line"] for trace in plot["data"] if trace["showlegend"]]
        assert lines[0]["color"] == lines[1]["color"]
        assert (lines[0].get("dash", "solid"), lines[1]["dash"]) == ("solid", "dash")
        ends = [figure[0]["layout"]["xaxis"]["range"][1] for figure in figures]
        assert plot["layout"]["xaxis"]["range"] == [0, max(ends)]
        assert ends[0] != ends[1]
        assert plot["layout"]["showlegend"] is True

    def test_timelines_stand_under_each_other_over_the_same_time(self, results: list[altlas.Result]) -> None:
        figures = [[timeline(result)] for result in results]
        (pair,) = pair_figures(*figures, "one")
        assert [letter for letter, _ in pair.plots] == ["A", "B"]
        ranges = [plot["layout"]["xaxis"]["range"] for _, plot in pair.plots]
        assert ranges[0] == ranges[1] == [0, max(own[0]["layout"]["xaxis"]["range"][1] for own in figures)]
        assert [len(plot["layout"]["yaxis"]["tickvals"]) for _, plot in pair.plots] == [1, 3]

    def test_bars_stand_side_by_side(self) -> None:
        runs = [[balance({"random": counts, "round_robin": [2, 2]}, "simulated")] for counts in ([3, 1], [1, 3])]
        (pair,) = pair_figures(*runs, "one")
        ((_, plot),) = pair.plots
        assert plot["layout"]["barmode"] == "group"
        assert [trace["name"][-1] for trace in plot["data"]] == ["A", "B", "A", "B"]
        colours = [trace["marker"]["color"] for trace in plot["data"]]
        assert (colours[0], colours[2]) == (colours[1], colours[3])
        assert [bool(trace["marker"].get("pattern", {}).get("shape")) for trace in plot["data"]] == [False, True] * 2

    def test_figures_are_matched_by_what_they_draw_and_how_often(self, results: list[altlas.Result]) -> None:
        one, other = results
        before = [queue_depth(one), timeline(one), queue_depth(other)]
        after = [timeline(one), queue_depth(one), readings(one, "power_w")]
        pairs = pair_figures(before, after, "one")
        assert [pair.same for pair in pairs] == [True, True, False, False]
        assert [[letter for letter, _ in pair.plots] for pair in pairs] == [[], [], ["A"], ["B"]]

    def test_the_figures_given_stay_as_they_are(self, results: list[altlas.Result]) -> None:
        figures = [[timeline(result), queue_depth(result)] for result in results]
        before = json.dumps(figures)
        pair_figures(*figures, "one")
        assert json.dumps(figures) == before

    def test_other_axes_are_not_laid_over_each_other(self) -> None:
        def drawn(title: str, **more: Any) -> list[dict[str, Any]]:
            layout = {"meta": {"figure": "x"}, "xaxis": {"title": {"text": title}, **more}, "yaxis": {}}
            return [{"data": [{"type": "scatter", "mode": "lines", "y": [1, len(title)]}], "layout": layout}]

        for one, other in ((drawn("time (s)"), drawn("time (ms)")), (drawn("x"), drawn("xx", type="log"))):
            assert [letter for letter, _ in pair_figures(one, other, "one")[0].plots] == ["A", "B"]


@pytest.fixture(scope="module")
def page_of(tmp_path_factory: pytest.TempPathFactory) -> Path:
    reports = tmp_path_factory.mktemp("compare") / "reports"
    entries, drawn = [], []
    for strategy in ("least_loaded", "single_gpu"):
        overrides = {"gpu.devices": ["4x T4"], "gpu.selection.default_strategy": strategy}
        settings = altlas.load_config(overrides=overrides, environ={})
        result = altlas.run(settings, altlas.Workload.poisson(12, 60, seed=3, duration_mean_s=2.0))
        figures = [timeline(result), queue_depth(result), readings(result, "power_w")]
        counts = [int((result.attempts["gpu_id"] == gpu).sum()) for gpu in range(4)]
        figures.append(balance({strategy: counts}, "simulated"))
        entries.append(scenario([check("a", strategy == "least_loaded")], dict(result.metrics)))
        drawn.append(figures)
    for run_id, entry, figures in zip((FIRST, SECOND), entries, drawn, strict=True):
        write_run(reports, run_id, {"one": entry}, {"one": figures})
    out = reports.parent / "there"
    assert cli.main(["compare", FIRST, SECOND, "--reports-dir", str(reports), "--out", str(out)]) == 1
    return out / "index.html"


@pytest.fixture(scope="module")
def visit(chromium: Any, page_of: Path) -> Iterator[tuple[Any, list[str]]]:
    context = chromium.new_context(viewport={"width": 1400, "height": 900}, offline=True)
    page, complaints = context.new_page(), list[str]()
    page.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"failed {request.url}"))
    page.goto(page_of.as_uri())
    page.wait_for_selector("html[data-figures=drawn]")
    yield page, complaints
    context.close()


@pytest.mark.browser
class TestPage:
    def test_every_figure_is_drawn_with_the_network_cut(self, visit: tuple[Any, list[str]]) -> None:
        page, complaints = visit
        assert page.locator(".figure").count() == page.locator(".figure .main-svg:first-child").count() == 5
        assert page.locator(".undrawn").count() == 0
        assert complaints == []
        legend = page.locator(".figure").nth(2).locator(".legendtext").all_text_contents()
        assert [text[-1] for text in legend] == ["A", "B"]

    def test_tables_sort_and_what_holds_in_both_is_folded(self, visit: tuple[Any, list[str]]) -> None:
        page, _ = visit
        assert page.locator("table.turns").first.is_visible()
        table = page.locator("table.changes").first
        table.locator("thead button", has_text="In percent").click()
        shown = [text for text in table.locator("td:nth-child(5)").all_inner_texts() if text]
        numbers = [float(text.removesuffix(" %").replace("−", "-").replace("\u202f", "")) for text in shown]
        assert numbers == sorted(numbers)
        assert len(numbers) > 2

    @pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 420)])
    def test_it_can_be_used_by_everybody(self, scheme: str, width: int, visit: tuple[Any, list[str]]) -> None:
        axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
        page, _ = visit
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        grave = [
            (found["id"], found["nodes"][0]["html"][:200])
            for found in axe.run(page).response["violations"]
            if found["impact"] in ("serious", "critical")
        ]
        assert grave == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
