"""Reports: what a run leaves behind, whatever its notebooks do."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nbformat
import pytest
from conftest import BAD, GOOD, figure_cell, result_cell, write_notebook
from report_pages import outcomes, view

from altlas_core.backends.discover import discover
from altlas_core.config import load_config
from altlas_core.errors import ConfigError, RunError
from altlas_core.report import cells, numbers, pages
from altlas_core.report import notebooks as nb
from altlas_core.report.drawing_library import compiled_at_once, drawing_library
from altlas_core.report.environment import Request, command
from altlas_core.report.outcome import ScenarioOutcome, read_outcome
from altlas_core.report.sanitize import clean_html
from altlas_core.report.suite import RunOutcome, notebook_parameters, run_suite

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def run(folder: Path, reports: Path, *scenarios: str, **overrides: Any) -> RunOutcome:
    settings = load_config(None, {"gpu.backend": "simulated", **overrides}, environ={})
    chosen = nb.choose(nb.find_notebooks(folder), scenarios, settings)
    return run_suite(settings, discover(settings), chosen, reports, Request(None, overrides))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> RunOutcome:
    """One run of a scenario that passes, one that fails a check, one that raises, one whose kernel dies."""
    base = tmp_path_factory.mktemp("mixed")
    write_notebook(base / "nb", 0, "start_here", "1/0")
    write_notebook(
        base / "nb", 1, "good", "%%md\n## Part <b>one</b>", "print('hello')", figure_cell(), result_cell("good")
    )
    write_notebook(base / "nb", 2, "bad", figure_cell(), result_cell("bad", [GOOD, BAD]))
    write_notebook(
        base / "nb", 3, "raises", figure_cell(), "raise ValueError('no <kernel> here')", result_cell("raises")
    )
    write_notebook(base / "nb", 4, "dies", "print('before')", "import os; os._exit(7)", result_cell("dies"))
    return run(base / "nb", base / "reports")


@pytest.mark.notebooks
class TestMixedRun:
    def test_a_broken_notebook_does_not_stop_the_others(self, mixed: RunOutcome) -> None:
        assert {s.name: s.status for s in mixed.scenarios} == {
            "good": "passed",
            "bad": "failed",
            "raises": "broke",
            "dies": "broke",
        }
        assert mixed.exit_status == 3

    def test_the_folder_holds_what_the_contract_says(self, mixed: RunOutcome) -> None:
        names = ["good", "bad", "raises", "dies"]
        found = {path.name for path in mixed.folder.iterdir()}
        pages = {"index.html", *(f"{name}.html" for name in names)}
        data = {"results.json", "junit.xml", "request.json"}
        assert found == pages | data | {"assets", "events", *(f"{name}.ipynb" for name in names)}
        assert {path.name for path in (mixed.folder / "events").iterdir()} == {"good.jsonl", "bad.jsonl"}
        assert {path.name for path in mixed.folder.parent.iterdir()} == {"latest", mixed.folder.name}
        assert (mixed.folder.parent / "latest").resolve() == mixed.folder
        assert sum(path.stat().st_size for path in mixed.folder.rglob("*") if path.is_file()) < 8e6

    def test_results_json_has_the_agreed_keys(self, mixed: RunOutcome) -> None:
        results = json.loads((mixed.folder / "results.json").read_text(), parse_constant=pytest.fail)
        assert set(results) == set(
            "run_id altlas_version git_commit seed backend devices started_at wall_s passed scenarios".split()
        )
        assert (results["run_id"], results["seed"], results["passed"]) == (mixed.folder.name, 42, False)
        assert results["devices"] == ["8x A100-SXM4-80GB"]
        for scenario in results["scenarios"].values():
            assert set(scenario) == set("passed wall_s virtual_s provenance checks metrics event_log_sha256".split())
            assert all(set(check) == {"name", "passed", "expected", "observed"} for check in scenario["checks"])
        good = results["scenarios"]["good"]
        assert (good["passed"], good["virtual_s"], good["provenance"]) == (True, 12.5, "simulated")
        assert good["metrics"]["odd"] is None
        assert results["scenarios"]["raises"]["checks"][-1]["observed"] == "ValueError: no <kernel> here"

    def test_junit_has_a_suite_per_scenario_and_a_case_per_check(self, mixed: RunOutcome) -> None:
        root = ElementTree.parse(mixed.folder / "junit.xml").getroot()
        suites = {suite.attrib["name"]: suite for suite in root}
        assert list(suites) == ["good", "bad", "raises", "dies"]
        assert [case.attrib["name"] for case in suites["bad"]] == [GOOD["name"], BAD["name"]]
        assert [child.tag for child in suites["bad"][1]] == ["failure"]
        assert BAD["observed"] in suites["bad"][1][0].attrib["message"]
        assert suites["raises"][0][0].tag == "error"
        assert (root.attrib["tests"], root.attrib["failures"], root.attrib["errors"]) == ("5", "1", "2")

    def test_a_broken_notebook_leaves_its_partial_page(self, mixed: RunOutcome) -> None:
        page = (mixed.folder / "raises.html").read_text()
        assert "ValueError: no &lt;kernel&gt; here" in page
        assert "Traceback" in page
        assert page.count('<div class="figure"') == 1
        assert "before" in (mixed.folder / "dies.html").read_text()

    def test_the_verdict_comes_first_and_failures_before_figures(self, mixed: RunOutcome) -> None:
        page = (mixed.folder / "bad.html").read_text()
        main = page[page.index("<main") :]
        order = [
            main.index(text)
            for text in (
                "<h1>Failed",
                "Simulated: times",
                "What failed</h2>",
                "What to know</h2>",
                "Checks</h2>",
                "<figure",
            )
        ]
        assert order == sorted(order)
        assert "nothing &lt;is&gt; lost" in main
        rows = re.findall(r'<tr class="(passed|failed)">', main)
        assert rows == ["failed", "passed"]

    def test_pages_name_no_other_place_than_their_own_folder(self, mixed: RunOutcome) -> None:
        for page in mixed.folder.glob("*.html"):
            for link in re.findall(r'(?:src|href)="([^"]+)"', page.read_text()):
                path, _, anchor = link.partition("#")
                there = mixed.folder / path if path else page
                assert link.startswith("data:") or there.exists(), (page.name, link)
                assert not anchor or f'id="{anchor}"' in there.read_text(), (page.name, link)

    def test_a_figure_cannot_end_its_script_element(self, mixed: RunOutcome) -> None:
        page = (mixed.folder / "good.html").read_text()
        (data,) = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
        assert json.loads(data)["data"][0]["name"] == "a </script> b"

    def test_the_page_tells_how_to_repeat_it(self, mixed: RunOutcome) -> None:
        page = unescape((mixed.folder / "good.html").read_text())
        assert "altlas run good --backend simulated --devices '8x A100-SXM4-80GB' --seed 42" in page


@pytest.mark.notebooks
def test_a_notebook_gets_the_settings_of_the_run(tmp_path: Path) -> None:
    write_notebook(tmp_path / "nb", 1, "alpha", "print([seed, backend, devices, overrides])", result_cell("alpha"))
    overrides = {"seed": "7", "gpu.devices": ["2x T4"], "gpu.workload.timeout": "60"}
    outcome = run(tmp_path / "nb", tmp_path / "reports", **overrides)
    page = unescape((outcome.folder / "alpha.html").read_text())
    assert "[7, 'simulated', ['2x T4'], {'gpu.workload.timeout': '60'}]" in page
    assert outcome.results["devices"] == ["2x T4"]


def test_an_unwritable_reports_folder_is_bad_input(tmp_path: Path) -> None:
    write_notebook(tmp_path / "nb", 1, "alpha", result_cell("alpha"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written.*--reports-dir"):
        run(tmp_path / "nb", tmp_path / "file" / "reports")


def test_a_parameter_the_notebook_does_not_have_is_an_error(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "nb", 1, "alpha", result_cell("alpha"))
    notebook = nbformat.read(path, 4)
    notebook.cells[1].source = notebook.cells[1].source.replace("seed = 42", "sed: int = 42")
    nbformat.write(notebook, path)
    with pytest.raises(ConfigError, match=r"no parameter 'seed'. Did you mean 'sed'\?"):
        run(tmp_path / "nb", tmp_path / "reports")
    assert not (tmp_path / "reports").exists()


def test_notebooks_come_in_the_order_of_their_numbers_without_the_tour(tmp_path: Path) -> None:
    for number, name in ((10, "ten"), (0, "start_here"), (2, "two")):
        write_notebook(tmp_path, number, name)
    assert list(nb.find_notebooks(tmp_path)) == ["two", "ten"]
    with pytest.raises(RunError, match="no scenario notebooks"):
        nb.find_notebooks(tmp_path / "empty")


def test_gpu_detection_is_switched_by_test_detection() -> None:
    settings = load_config(None, {"test.detection.enabled": False}, environ={})
    found = {name: nb.Notebook(name, Path(name)) for name in ("gpu_detection", "performance")}
    assert [notebook.scenario for notebook in nb.choose(found, [], settings)] == ["performance"]


def test_the_command_repeats_what_flags_environment_and_file_said() -> None:
    overrides = {"gpu.workload.timeout": "60", "seed": "7", "run.time_scale": "0.1", "gpu.backend": "cpu"}
    settings = load_config(None, {**overrides, "gpu.devices": ["cpu:2"]}, environ={})
    request = Request(Path("my config.yaml"), overrides, {"telemetry.interval": "2", "gpu.workload.timeout": "9"})
    assert command(request, settings, discover(settings), ["performance"]) == (
        "altlas run performance --config 'my config.yaml' --backend cpu --devices cpu:2 --seed 7 "
        "--set telemetry.interval=2 --set gpu.workload.timeout=60 --time-scale 0.1"
    )
    parameters = notebook_parameters(settings, discover(settings), request, None)
    assert (parameters["time_scale"], parameters["devices"], parameters["seed"]) == (0.1, ["cpu:2"], 7)


def bundle(**changes: Any) -> dict[str, Any]:
    whole = {"scenario": "alpha", "passed": True, "checks": [GOOD], "metrics": {}, "provenance": "simulated"}
    return {**whole, **changes}


def judged(content: dict[str, Any] | None, log: Path = Path("none.jsonl"), error: str | None = None) -> ScenarioOutcome:
    data = {} if content is None else {"application/vnd.altlas.result+json": content}
    notebook = {"cells": [{"cell_type": "code", "outputs": [{"output_type": "display_data", "data": data}]}]}
    return read_outcome("alpha", notebook, error, 1.0, log)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "without handing over a result"),
        (bundle(scenario="beta"), "the result of 'beta'"),
        (bundle(checks=[]), "made no check"),
        (bundle(passed=False), "contradicts itself"),
        (bundle(checks=[BAD]), "contradicts itself"),
        (bundle(checks=[{**GOOD, "passed": "yes"}]), "neither true nor false"),
        (bundle(provenance="guessed"), "provenance is 'guessed'"),
        (bundle(event_log_sha256="0" * 64), "wrote no event log"),
        ({"scenario": "alpha"}, "not whole"),
    ],
)
def test_a_result_that_cannot_be_trusted_breaks_the_scenario(content: dict[str, Any] | None, said: str) -> None:
    outcome = judged(content)
    assert outcome.status == "broke"
    assert outcome.error is not None
    assert said in outcome.error


def test_an_event_log_other_than_the_hashed_one_breaks_the_scenario(tmp_path: Path) -> None:
    log = tmp_path / "alpha.jsonl"
    log.write_text("abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert judged(bundle(event_log_sha256=digest), log).status == "passed"
    log.write_text("abd")
    assert "is not the one of the result" in (judged(bundle(event_log_sha256=digest), log).error or "")


def test_a_notebook_that_raises_after_its_result_keeps_its_checks_but_broke() -> None:
    outcome = judged(bundle(), error="ValueError: late")
    assert (outcome.status, outcome.passed_count, outcome.error) == ("broke", 1, "ValueError: late")


@pytest.mark.parametrize(
    ("source", "clean"),
    [
        ("<script>alert(1)</script>ok", "ok"),
        ("<style>p{}</style><p onclick='x()'>a</p>", "<p>a</p>"),
        ("<img src='https://example.org/x.png' alt='x'>", '<img alt="x">'),
        ("<a href='javascript:x()'>a</a>", "<a>a</a>"),
        ("<b>open <i>both", "<b>open <i>both</i></b>"),
        ("a < b & c", "a &lt; b &amp; c"),
        ("</div></body>x", "x"),
        ("<iframe src='https://example.org'>in</iframe>", ""),
    ],
)
def test_html_of_a_cell_is_reduced_to_what_is_harmless(source: str, clean: str) -> None:
    assert clean_html(source) == clean


def test_columns_of_numbers_are_marked_with_their_heads() -> None:
    table = (
        "<table><thead><tr><th></th><th>name</th><th>s</th></tr></thead><tbody>"
        "<tr><th>0</th><td>a</td><td>1.5</td></tr><tr><th>1</th><td>2</td><td>-3</td></tr></tbody></table>"
    )
    marked = clean_html(table)
    assert '<th scope="col">name</th><th scope="col" class="num">s</th>' in marked
    assert '<th scope="row">1</th>' in marked
    assert '<td class="num">-3</td>' in marked


@pytest.mark.parametrize(
    ("output", "kind", "shown"),
    [
        ({"output_type": "stream", "name": "stdout", "text": ["\x1b[31mred\x1b[0m <x>"]}, "text", "red &lt;x&gt;"),
        ({"output_type": "display_data", "data": {"image/png": "aGk="}}, "image", "data:image/png;base64,aGk="),
        ({"output_type": "display_data", "data": {"image/svg+xml": "<svg/>"}}, "image", "data:image/svg+xml;base64,"),
        ({"output_type": "execute_result", "data": {"text/plain": ["1 < 2"]}}, "text", "1 &lt; 2"),
        (
            {"output_type": "display_data", "data": {cells.WIDGET_MIME: {}, "text/plain": "Button()"}},
            "note",
            "<pre>Button()</pre>",
        ),
    ],
)
def test_every_kind_of_output_becomes_a_block(output: dict[str, Any], kind: str, shown: str) -> None:
    story = cells.read_story({"cells": [{"cell_type": "code", "source": "", "outputs": [output]}]}, "title")
    (block,) = story.blocks
    assert block.kind == kind
    assert shown in block.html


def test_markdown_loads_no_picture_and_obeys_no_html() -> None:
    made = cells.markdown("![p](https://example.org/p.png) <script>x</script> **b**")
    assert "<img" not in made
    assert "<script" not in made
    assert "<strong>b</strong>" in made


@pytest.mark.parametrize(
    ("name", "value", "row"),
    [
        ("makespan_s", 12.25, ("Makespan", "12.25 s")),
        ("peak_memory_bytes", 3 * 2**30, ("Peak memory", "3 GiB")),
        ("throughput_tasks_per_s", 1234567.8, ("Throughput", "1\u202f234\u202f568 tasks/s")),
        ("peak_memory_bytes", 24 * 2**20, ("Peak memory", "24 MiB")),
        ("p50_s", 2.5, ("Latency p50", "2.5 s")),
        ("wait_p95_s", 2.5, ("Wait p95", "2.5 s")),
        ("energy_j", 214_619_759.0, ("Energy", "214.6 MJ")),
        ("energy_j", 12_500.0, ("Energy", "12.5 kJ")),
        ("energy_j", 950.0, ("Energy", "950 J")),
        ("gpu_count", 8, ("GPU count", "8")),
        ("by_strategy", {"random": {"p99_s": 0.00012}}, ("By strategy · random · latency p99", "0.00012 s")),
        ("power_w", None, ("Power", "N/A")),
        ("share_pct", float("nan"), ("Share", "N/A")),
        ("whole", True, ("Whole", "yes")),
    ],
)
def test_metrics_read_with_their_units(name: str, value: Any, row: tuple[str, str]) -> None:
    assert numbers.metric_rows({name: value}) == [row]


@pytest.mark.parametrize(
    ("value", "half_width", "text"),
    [
        (12.345, 0.45, "12.35 ±\u00a00.45"),
        (123456.7, 1234.0, "123\u202f457 ±\u00a01\u202f234"),
        (0.00012, 0.00001, "0.000120 ±\u00a00.000010"),
        (8.5, 0.0, "8.5 ±\u00a00"),
        (8.5, 1e-16, "8.5 ±\u00a00"),
        (8.5, float("nan"), "8.5"),
    ],
)
def test_a_spread_has_two_digits_and_its_mean_goes_as_far(value: float, half_width: float, text: str) -> None:
    assert numbers.plus_minus(value, half_width) == text


def test_what_several_runs_measured_is_shown_with_its_spread() -> None:
    summary = {"n": 5, "mean": 12.345, "stdev": 0.4, "ci95_low": 11.9, "ci95_high": 12.8, "min": 11.8, "max": 13.1}
    once = {"n": 1, "mean": 3.0, "stdev": None, "ci95_low": None, "ci95_high": None, "min": 3.0, "max": 3.0}
    same = {"n": 5, "mean": 8.0, "stdev": 0.0, "ci95_low": 8.0, "ci95_high": 8.0, "min": 8.0, "max": 8.0}
    unknown = {"n": 0, "mean": None, "stdev": None, "ci95_low": None, "ci95_high": None, "min": None, "max": None}
    repeats = {"count": 5, "metrics": {"by.random.wait_s": summary, "tasks": once, "power_w": unknown, "end_s": same}}
    metrics = {"by": {"random": {"wait_s": 12.0}}, "tasks": 3, "power_w": None, "name": "x", "end_s": 8.0}
    assert numbers.tiles(metrics, repeats) == [
        ("By · random · wait", "12.35 ±\u00a00.45\u00a0s", "mean of 5 runs, 11.8 to 13.1 s"),
        ("Tasks", "3", "mean of 1 run, 3 to 3"),
        ("Power", "N/A", ""),
        ("Name", "x", ""),
        ("End", "8 s", "the same in 5 runs"),
    ]


def test_a_page_tells_what_its_figures_found_and_which_parts_it_has() -> None:
    figure = {"data": [], "layout": {"title": {"text": "8 tasks &amp; more<br>in 2 s"}}}
    output = {"output_type": "display_data", "data": {cells.FIGURE_MIME: figure}}
    story = cells.read_story(
        {
            "cells": [
                {"cell_type": "markdown", "source": "# Title\n\nLead."},
                {"cell_type": "markdown", "source": "## One `part`\n\ntext\n\n## Another & more"},
                {"cell_type": "code", "source": "", "outputs": [output, output]},
            ]
        },
        "name",
    )
    assert [(part.anchor, part.text) for part in story.parts] == [("part-1", "One part"), ("part-2", "Another & more")]
    assert [link.anchor for link in story.findings] == ["figure-1", "figure-2"]
    assert '<h3 id="part-2">' in story.blocks[0].html  # below the heading over all the evidence
    assert [block.anchor for block in story.blocks[1:]] == ["figure-1", "figure-2"]


def test_the_index_tells_of_trouble_first_and_nothing_twice() -> None:
    texts = [
        "Ten at once: 10 tasks on one GPU in 30 s, all finished",
        "Memory for three: 10 tasks on one GPU in 40 s, all finished",
        "Memory in use per GPU went from 0 to 3.09 GiB",
        "16 tasks on 8 of 8 GPUs in 7.5 s; attempts: 2 lost with their GPU, 16 finished",
    ]
    findings = [cells.Link(f"figure-{place}", text) for place, text in enumerate(texts)]
    assert [finding.text for finding in pages.most_telling(findings)] == [texts[3], texts[0]]
    twice = pages.most_telling([findings[0], findings[1], findings[2]])
    assert [finding.text for finding in twice] == [texts[0], texts[2]]
    assert [finding.text for finding in pages.trouble_first(findings)] == [texts[3], *texts[:3]]


def test_a_scenario_has_one_name_wherever_it_is_named() -> None:
    shown = [ScenarioOutcome("strategy_comparison", "waiting"), ScenarioOutcome("mine", "waiting")]
    run = view(shown, titles={"mine": "My own notebook"})
    page = pages.index_page(run)
    assert re.findall(r'href="(?:mine|strategy_comparison).html">([^<]*)<', page) == [
        *("Strategies compared", "My own notebook") * 2
    ]


def test_the_drawing_library_is_the_installed_one_with_its_function_in_parentheses() -> None:
    from importlib import resources

    installed = (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    shipped = drawing_library()
    assert len(shipped) == len(installed) + 2
    head, tail = shipped.index(", (() => {") + 2, shipped.rindex("}))") + 1
    assert shipped[:head] + shipped[head + 1 : tail] + shipped[tail + 1 :] == installed
    assert compiled_at_once("var Plotly = 1;") == "var Plotly = 1;"


def test_a_page_says_over_how_many_runs_its_numbers_are_and_links_what_was_exported() -> None:
    outcome = outcomes()[0]
    outcome.exports = ["exports/passed/all at once/tasks.csv"]
    page = unescape(pages.scenario_page(view([outcome]), outcome, cells.read_story({}, "passed"), "altlas run"))
    assert "12.35 ±\u00a00.45\u00a0s" in page
    assert "Over 5 runs (seeds 42 to 46) after 1 to warm up, which do not count." in page
    assert '<a href="exports/passed/all%20at%20once/tasks.csv">exports/passed/all at once/tasks.csv</a>' in page
