"""What became of each metric from one run to another: how far it went, whether by more than chance, whether better."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from altlas_core.report import numbers
from altlas_core.report.environment import flat
from altlas_core.statistics import Difference, Summary, difference

Certainty = Literal["same", "exact", "beyond", "within", "unknown"]
Judgement = Literal["better", "worse", ""]

# The last part of a metric's name says which way is better; what is not here is a fact, neither good nor bad.
LOWER_IS_BETTER: Final = re.compile(
    r"(best_)?makespan(_limited)?_s|\w*regret|(wait|latency|task|iteration)(_\w+)?_m?s|p\d+_s|failed|left_out|"
    r"energy_j|queue_depth_max|max_over_mean|largest_overrun_s"
)
HIGHER_IS_BETTER: Final = re.compile(
    r"\w+_per_s|achieved_tflops|fastest_load_tflops|jain_index|completed|healthy|utilization_mean_pct|"
    r"speedup_on_\d+|scaling_efficiency_pct"
)
_COUNTED: Final = {"completed": "tasks", "failed": "tasks", "healthy": "devices"}  # which say something of as many
_FAILURES: Final = re.compile(r"failures\.\w+")


@dataclass(slots=True, frozen=True)
class MetricChange:
    """One metric of both runs; None where a run lacks it. `before` and `after` are means where a run was repeated.

    `certainty`: "same"; "exact" (deterministic, so chance had no part in it); "beyond" or "within" the spread of the
    repeats; "unknown". `difference` is None where one of the two is no number.
    """

    name: str
    before: Any
    after: Any
    before_text: str
    after_text: str
    difference: Difference | None
    certainty: Certainty
    judgement: Judgement

    @property
    def label(self) -> str:
        return numbers.row(self.name, None)[0] if self.difference else numbers.humanize(self.name)

    @property
    def matters(self) -> bool:
        """Whether it is better or worse by more than chance."""
        return bool(self.judgement) and self.certainty in ("exact", "beyond")

    @property
    def size(self) -> float:
        """To sort by: what cannot be told in percent is largest, what only one run has is smallest."""
        if self.before is None or self.after is None:
            return -1.0
        percent = self.difference.percent if self.difference else None
        return math.inf if percent is None else abs(percent)

    @property
    def change_text(self) -> str:
        if self.difference is None or self.difference.absolute is None:
            return ""
        return _signed(self.difference.absolute, numbers.row(self.name, abs(self.difference.absolute))[1])

    @property
    def percent_text(self) -> str:
        percent = self.difference.percent if self.difference else None
        return "" if percent is None else _signed(percent, f"{_percent(abs(percent))} %")

    @property
    def certainty_text(self) -> str:
        own = self.difference
        if own is not None and own.ci95_low is not None and own.ci95_high is not None:
            said = "yes" if self.certainty == "beyond" else "no"
            if own.ci95_low == own.ci95_high:
                return f"{said}: all runs alike"
            ends = [_signed(end, numbers.row(self.name, abs(end))[1]) for end in (own.ci95_low, own.ci95_high)]
            return f"{said}: {ends[0]} to {ends[1]}"
        return {"exact": "exact", "unknown": "spread unknown", "same": ""}.get(self.certainty, "")


def metric_changes(before: Mapping[str, Any], after: Mapping[str, Any], deterministic: bool) -> list[MetricChange]:
    """Of two entries of results.json; the largest change first. `deterministic`: both runs would repeat to the bit."""
    metrics = flat(before["metrics"]), flat(after["metrics"])
    repeats = before.get("repeats"), after.get("repeats")
    names = dict.fromkeys([*metrics[0], *metrics[1]])
    found = [_change(name, metrics, repeats, deterministic, _comparable(name, metrics)) for name in names]
    return sorted(found, key=lambda change: (change.certainty == "same", -change.size))


def _comparable(name: str, metrics: tuple[Mapping[str, Any], Mapping[str, Any]]) -> bool:
    """Whether a number that counts some of a whole does so of the same whole in both runs."""
    part, _, last = name.rpartition(".")
    whole = _COUNTED.get(last)
    return whole is None or all(
        metrics[0].get(own) == metrics[1].get(own) for own in (whole, f"{part}.{whole}".lstrip("."))
    )


def _change(
    name: str,
    metrics: tuple[Mapping[str, Any], Mapping[str, Any]],
    repeats: tuple[Mapping[str, Any] | None, Mapping[str, Any] | None],
    deterministic: bool,
    judged: bool,
) -> MetricChange:
    values = [own.get(name) for own in metrics]
    summaries = [
        _summary(value, (own or {}).get("metrics", {}).get(name)) for value, own in zip(values, repeats, strict=True)
    ]
    texts = [
        numbers.tiles({name: value}, own)[0].value if name in of else "–"
        for value, own, of in zip(values, repeats, metrics, strict=True)
    ]
    told: Difference | None = None
    if summaries[0] is not None and summaries[1] is not None:
        told = difference(summaries[0], summaries[1])
        values = [summaries[0].mean, summaries[1].mean]
    certainty = _certainty(values, told, deterministic)
    change = told.absolute if told is not None else None
    judgement = judge(name, change) if judged and change is not None else ""
    return MetricChange(name, values[0], values[1], texts[0], texts[1], told, certainty, judgement)


def _summary(value: Any, repeated: Mapping[str, Any] | None) -> Summary | None:
    if repeated and repeated.get("mean") is not None:
        told: dict[str, Any] = {field.name: repeated.get(field.name) for field in fields(Summary)}
        return Summary(**told)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return Summary(1, float(value), None, None, None, float(value), float(value))


def _certainty(values: list[Any], told: Difference | None, deterministic: bool) -> Certainty:
    if values[0] == values[1] and (told is None or not told.absolute):
        return "same"
    if told is not None and told.beyond_spread is not None:
        return "beyond" if told.beyond_spread else "within"
    return "exact" if deterministic else "unknown"


def judge(name: str, change: float) -> Judgement:
    """Whether a metric that went up or down by `change` is better for it."""
    last = name.rpartition(".")[2]
    if not change:
        return ""
    if LOWER_IS_BETTER.fullmatch(last) or _FAILURES.search(name):
        return "better" if change < 0 else "worse"
    if HIGHER_IS_BETTER.fullmatch(last):
        return "better" if change > 0 else "worse"
    return ""


def _percent(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else numbers.number(round(value))


def _signed(value: float, text: str) -> str:
    return f"{'−' if value < 0 else '+'}{text}" if value else text
