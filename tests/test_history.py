"""Earlier runs on the index: what is read, what is passed over, and what the trends say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_pages import earlier, outcomes, view

from altlas_core.report import history, pages
from altlas_core.report.files import RAN_TO_ITS_END


def results(run_id: str, **changes: Any) -> dict[str, Any]:
    check = {"name": "ids are unique", "passed": True, "expected": "8", "observed": "8"}
    scenario = {"wall_s": 2.0, "checks": [check], "metrics": {"makespan_s": 8.0, "by": {"random": {"p99_s": 1.5}}}}
    whole = {
        "run_id": run_id,
        "seed": 42,
        "backend": "simulated",
        "devices": ["2x T4"],
        "started_at": "2026-11-01T12:00:00+00:00",
        "wall_s": 12.0,
        "passed": True,
        "scenarios": {"alpha": scenario},
    }
    return {**whole, **changes}


def write_run(reports: Path, run_id: str, content: Any = None) -> Path:
    made = reports / run_id
    made.mkdir(parents=True)
    (made / "index.html").write_text("")
    text = content if isinstance(content, str) else json.dumps(results(run_id) if content is None else content)
    (made / "results.json").write_text(text)
    return made


def test_runs_come_newest_first_and_only_those_before_this_one(tmp_path: Path) -> None:
    ids = [f"202611{day:02d}-120000-abcd" for day in (3, 1, 2, 9)]
    for run_id in ids:
        write_run(tmp_path, run_id)
    found = history.read_history(tmp_path, before="20261109-120000-abcd")
    assert [run.run_id for run in found] == [ids[0], ids[2], ids[1]]
    (run,) = found[:1]
    assert (run.status, run.checks, run.checks_passed, run.devices, run.wall_s) == ("passed", 1, 1, ("2x T4",), 12.0)
    assert run.metrics == {"alpha.makespan_s": 8.0, "alpha.by.random.p99_s": 1.5}


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "{}", '"text"', json.dumps({"scenarios": []}), "[" * 100_000],
)
def test_what_is_no_run_is_passed_over(tmp_path: Path, content: str) -> None:
    write_run(tmp_path, "20261101-120000-0001", content)
    write_run(tmp_path, "20261102-120000-0002", results("20261101-000000-aaaa"))  # a copy under another name
    (tmp_path / "20261103-120000-0003").mkdir()
    (tmp_path / "20261104-120000-0004").write_text("a file")
    write_run(tmp_path, "not-a-run")
    write_run(tmp_path, "20261101-110000-0005")
    assert [run.run_id for run in history.read_history(tmp_path, "3")] == ["20261101-110000-0005"]


def test_a_folder_that_is_not_there_has_no_history(tmp_path: Path) -> None:
    assert history.read_history(tmp_path / "none", "3") == []


def test_of_a_thousand_runs_only_the_latest_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1000):
        (tmp_path / f"20261101-{number:06d}-abcd").mkdir()
    for number in range(900, 960):
        made = tmp_path / f"20261101-{number:06d}-abcd"
        (made / "index.html").write_text("")
        (made / "results.json").write_text(json.dumps(results(made.name)))
    looked: list[Path] = []
    read = history._read

    def reading(folder: Path) -> Any:
        looked.append(folder)
        return read(folder)

    monkeypatch.setattr(history, "_read", reading)
    found = history.read_history(tmp_path, "3")
    assert len(looked) <= history.MOST_READ
    assert [run.run_id for run in found][:1] == ["20261101-000959-abcd"]
    assert len(found) == history.MOST_READ - 40


@pytest.mark.parametrize(
    ("passed", "checks", "status"),
    [
        (True, [("a", True)], "passed"),
        (False, [("a", True), ("b", False)], "failed"),
        (False, [("a", False), (RAN_TO_ITS_END, False)], "broke"),
        (False, [("a", True)], "waiting"),
        (False, [], "waiting"),
    ],
)
def test_the_verdict_of_an_earlier_run(passed: bool, checks: list[tuple[str, bool]], status: str) -> None:
    scenario = {"wall_s": None, "metrics": {}, "checks": [{"name": name, "passed": held} for name, held in checks]}
    assert history.earlier_run(results("x", passed=passed, scenarios={"alpha": scenario})).status == status


def test_trends_compare_like_with_like() -> None:
    runs = [earlier(number) for number in range(5, 0, -1)]
    others = [
        earlier(6, devices=("8x T4",), wall_s=500.0, metrics={"passed.makespan_s": 500.0}),
        earlier(7, status="waiting", wall_s=600.0, metrics={"passed.makespan_s": 600.0}),
        earlier(8, scenarios=frozenset({"passed"}), wall_s=700.0, metrics={}),
    ]
    found, unchanged = history.trends([*runs[:1], *others, *runs[1:]], ["passed.makespan_s", "passed.tasks"])
    assert [trend.label for trend in found] == ["Wall time of the run", "Passed: makespan"]
    assert [trend.value for trend in found] == ["15 s", "8.5 s"]
    assert found[0].summary == "11 s 4 runs before; 11 s to 15 s"
    assert unchanged == 1


def test_a_trend_goes_up_where_the_number_does() -> None:
    (trend,), _ = history.trends([earlier(number) for number in (3, 2, 1)], [])
    heights = [float(point.split(",")[1]) for point in trend.points.split()]
    assert heights == sorted(heights, reverse=True)  # an SVG's y goes down
    assert trend.last[1] == heights[-1]
    assert all(0 <= float(x) <= trend.width for x in trend.points.replace(",", " ").split()[::2])


def test_two_runs_are_no_trend() -> None:
    assert history.trends([earlier(2), earlier(1)], ["passed.makespan_s", "passed.tasks"]) == ([], 0)


def test_the_index_links_the_earlier_runs_and_draws_their_trend() -> None:
    past = [earlier(number) for number in range(12, 0, -1)]
    page = pages.index_page(view(outcomes(), history=[earlier(13, status="failed", checks_passed=3), *past]))
    assert page.count('href="../202611') == 13
    assert 'href="../20261113-120000-abcd/index.html"' in page
    assert "3 / 4" in page
    assert 'aria-label="Wall time of the run over time: 12 s now, 11 s 13 runs before; 11 s to 23 s"' in page
    assert "altlas compare 20261113-120000-abcd 20261128-120000-abcd" in page


def test_the_first_run_of_a_folder_has_no_history() -> None:
    assert "Earlier runs" not in pages.index_page(view(outcomes()))
