"""The figure of clocks: what they ran at, what held them down, Xids; nothing at all where no device tells its clock."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

import altlas_core as altlas
from altlas_core import figures
from altlas_core.backends.sampling.history import History
from altlas_core.figures import style
from altlas_core.model import DeviceSample
from altlas_core.notebook import session as notebook
from altlas_core.result import Result


def measured(rounds: list[dict[int, DeviceSample | None]], gpus: int = 2, step_s: float = 0.1) -> Result:
    """A run of 10 s whose sampler read this."""
    settings = altlas.load_config(None, {"gpu.devices": f"{gpus}x T4"}, {})
    result = altlas.run(settings, altlas.Workload.from_records([{"duration_s": 10.0}]))
    history = History(range(gpus))
    for at, samples in enumerate(rounds):
        history.add(at * step_s, samples)
    history.align(0.0, 0.0)
    result.sampled.history = history
    return result


def drawn(result: Result) -> dict[str, Any]:
    figure = figures.clocks(result)
    assert figure is not None
    json.dumps(figure, allow_nan=False)
    pytest.importorskip("plotly.graph_objects").Figure(figure)  # raises on anything plotly.js does not know
    return figure


def at(mhz: float | None, *reasons: str, xid: int | None = None) -> DeviceSample:
    return DeviceSample(sm_clock_mhz=mhz, throttle_reasons=reasons, xid=xid)


def test_where_no_device_tells_its_clock_there_is_no_figure() -> None:
    assert figures.clocks(measured([])) is None
    assert figures.clocks(measured([{0: DeviceSample(utilization_pct=5.0), 1: None}] * 5)) is None


def test_the_title_tells_the_range_and_that_nothing_held_the_clocks_down() -> None:
    figure = drawn(measured([{0: at(1200.0), 1: at(1980.0)}] * 9))
    assert figure["layout"]["title"]["text"] == "SM clocks went from 1,200 to 1,980 MHz, never held down"
    assert [trace["name"] for trace in figure["data"]] == ["GPU 0", "GPU 1"]
    assert "measured" in figure["layout"]["title"]["subtitle"]["text"]
    steady = drawn(measured([{0: at(1200.0)}] * 9, gpus=1))["layout"]["title"]["text"]
    assert steady == "SM clocks stayed at 1,200 MHz, never held down"


def test_what_held_the_clocks_down_is_told_with_its_share_and_marked_where_it_did() -> None:
    cool, hot = at(1980.0), at(900.0, "sw_power_cap", "hw_thermal_slowdown")
    capped = at(1500.0, "sw_power_cap")
    figure = drawn(measured([{0: cool, 1: cool}, {0: hot, 1: cool}, {0: capped, 1: cool}, {0: cool, 1: cool}]))
    title = figure["layout"]["title"]["text"].replace("<br>", " ")
    assert "held down by sw_power_cap 25 % of the time, hw_thermal_slowdown 12.5 % of the time" in title
    (broad,) = [trace for trace in figure["data"] if trace["name"] == "GPU 0 held down"]
    assert broad["y"] == [None, 900, 1500, None]
    assert len(figure["data"]) == 3


def test_a_gap_stays_a_gap() -> None:
    figure = drawn(measured([{0: at(1000.0), 1: at(1000.0)}, {0: None, 1: at(1000.0)}, {0: at(1000.0), 1: at(1000.0)}]))
    assert figure["data"][0]["y"] == [1000, None, 1000]
    assert figure["data"][0]["connectgaps"] is False


def test_xids_are_named_where_they_came() -> None:
    rounds: list[dict[int, DeviceSample | None]] = [{0: at(1.0), 1: at(1.0)} for _ in range(10)]
    rounds[4:] = [{0: at(1.0), 1: at(1.0, xid=45)} for _ in range(4)]
    rounds += [{0: at(1.0, xid=31), 1: at(1.0, xid=48)} for _ in range(4)]
    figure = drawn(measured(rounds))
    story = figure["layout"]["title"]["subtitle"]["text"]
    assert "Xid 45 (channels torn down) on GPU 1 at 0.4 s; Xid 31 (MMU fault) on GPU 0 at 0.8 s; Xid 48" in story
    assert [note["text"] for note in figure["layout"]["annotations"]] == ["Xid<br>45", "Xid<br>31", "Xid<br>48"]


def test_long_runs_and_many_gpus_stay_small() -> None:
    long = measured([{0: at(1000.0 + i, "sw_power_cap")} for i in range(5000)], gpus=1, step_s=0.001)
    assert len(drawn(long)["data"][0]["x"]) <= style.MOST_POINTS + 1
    many = measured([{gpu: at(1000.0 + gpu) for gpu in range(20)}] * 50, gpus=20)
    assert len(drawn(many)["data"]) == 3


def test_a_notebook_shows_them_with_all_readings_and_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(notebook, "show", lambda figure: shown.append(figure["layout"]["title"]["text"]))
    told, silent = measured([{0: at(1980.0)}] * 5), measured([])
    session = notebook.Session(SimpleNamespace(runs={"told": told, "silent": silent}, phases={}), None)  # type: ignore[arg-type]
    session.readings("silent")
    assert len(shown) == 4
    session.readings("told", ["power_w"])
    assert len(shown) == 5
    session.readings("told")
    assert len(shown) == 10
    assert shown[-1].startswith("SM clocks")
