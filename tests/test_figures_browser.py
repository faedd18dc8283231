"""Figures in a real browser: plotly.js draws each, and what hovering tells has no hole in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

import altlas_core as altlas
from altlas_core import figures

pytestmark = pytest.mark.browser

# Draws a figure in a new place and hovers a point of each trace that tells something: what it then says.
DRAW = """
async (figure) => {
  const place = document.body.appendChild(document.createElement("div"));
  place.style.width = "900px";
  await Plotly.newPlot(place, figure.data, figure.layout);
  const told = [];
  const telling = figure.data.filter((trace) => trace.hovertemplate);
  for (const trace of telling.sort((one, other) => (one.type === "heatmap") - (other.type === "heatmap"))) {
    if (trace.type === "heatmap") {
      const row = trace.z.findIndex((own) => own.some((value) => value !== null));
      const column = trace.z[row].findIndex((value) => value !== null);
      const at = { xval: (trace.x0 || 0) + column * (trace.dx || 1), yval: (trace.y0 || 0) + row * (trace.dy || 1) };
      await Plotly.react(place, [trace], figure.layout);
      Plotly.Fx.hover(place, at, "xy");
    } else {
      const curveNumber = figure.data.indexOf(trace);
      const pointNumber = trace.y.findIndex((y) => y !== null);
      Plotly.Fx.hover(place, [{ curveNumber, pointNumber }], trace.yaxis === "y2" ? "xy2" : "xy");
    }
    const label = () => [...place.querySelectorAll(".hoverlayer text")].map((one) => one.textContent).join(" ");
    for (let tries = 0; !label() && tries < 100; tries++) await new Promise((resume) => setTimeout(resume, 10));
    told.push([trace.name || trace.type, label()]);
    Plotly.Fx.unhover(place);
  }
  const drawn = place.querySelectorAll(".main-svg").length > 0;
  place.remove();
  return { drawn, told };
}
"""


@pytest.fixture(scope="module")
def page(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An empty page with plotly.js, whose errors and requests are collected in `page.problems`."""
    library = resources.files("plotly") / "package_data" / "plotly.min.js"
    home: Path = tmp_path_factory.mktemp("figures") / "index.html"
    home.write_text(f'<!doctype html><meta charset="utf-8"><script src="{Path(str(library)).as_uri()}"></script>')
    tab = chromium.new_context(offline=True).new_page()
    tab.problems = []
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("console", lambda message: tab.problems.append(message.text) if message.type == "error" else None)
    tab.goto(home.as_uri())
    yield tab
    tab.context.close()


def small() -> altlas.Result:
    records: list[dict[str, Any]] = [{"duration_s": 4.0, "submit_s": 0.5 * i, "priority": "high"} for i in range(6)]
    records += [{"duration_s": 9.0, "cancel_s": 2.0}, {"duration_s": 9.0, "timeout_s": 3.0}]
    records += [{"kind": "raise_error", "duration_s": 0.5, "retry_count": 1}]
    settings = altlas.load_config(None, {"gpu.devices": "3x T4", "gpu.selection.default_strategy": "round_robin"}, {})
    return altlas.run(settings, altlas.Workload.from_records(records), faults=[altlas.Fault(3.0, 1, "lose_gpu")])


def large() -> altlas.Result:
    settings = altlas.load_config(None, {"gpu.devices": "300x T4", "gpu.selection.default_strategy": "random"}, {})
    records = [{"duration_s": 1.0 + i % 5, "submit_s": i / 500, "timeout_s": 4.5} for i in range(4000)]
    return altlas.run(settings, altlas.Workload.from_records(records), faults=[altlas.Fault(3.0, 1, "lose_gpu")])


@pytest.mark.parametrize("result", [small, large], ids=["small", "large"])
def test_every_figure_of_a_run_is_drawn_and_tells_what_it_shows(page: Any, result: Any) -> None:
    run = result()
    done = {"high": [t.finished_s - t.submitted_s for t in run.task_list if t.state == "COMPLETED" and t.finished_s]}
    drawn = [figures.timeline(run), figures.machine(run), figures.queue_depth(run)]
    drawn += [figures.waits(run), figures.latency_over_time(run), figures.latencies(done, "simulated")]
    drawn += [figures.memory_bars(run), figures.readings(run, "power_w")]
    for figure in drawn:
        found = page.evaluate(DRAW, json.loads(json.dumps(figure)))
        key = figure["layout"]["meta"]["figure"]
        assert found["drawn"], key
        assert found["told"], key
        for trace, label in found["told"]:
            assert label, f"{key}, {trace}: nothing is told"
            assert "%{" not in label, f"{key}, {trace}: {label}"
            assert "undefined" not in label, f"{key}, {trace}: {label}"
            assert "NaN" not in label, f"{key}, {trace}: {label}"
    assert page.problems == []


def test_hovering_a_bar_names_task_gpu_times_and_outcome(page: Any) -> None:
    found = page.evaluate(DRAW, json.loads(json.dumps(figures.timeline(small()))))
    told = dict(found["told"])
    (cancelled,) = [attempt for attempt in small().log.attempts() if attempt.task.spec.cancel_s is not None]
    assert told["cancelled"].startswith(cancelled.task.task_id)
    assert f"on GPU {cancelled.gpu_id}" in told["cancelled"]
    assert told["cancelled"].endswith("0 to 2 s, cancelled")
    assert told["timed out"].count("timed out") == 1
    assert "GPU lost: GPU 1 at 3 s" in told["GPU lost"]
