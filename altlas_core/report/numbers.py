"""Names and figures as people read them. The unit is the end of a metric's name: makespan_s, memory_bytes, power_w."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from altlas_core.report.environment import flat
from altlas_core.words import memory_unit

_UNITS: Final = {  # longest endings first: the first that fits is taken
    "_tasks_per_s": "tasks/s",
    "_iterations_per_s": "iterations/s",
    "_bytes_per_s": "B/s",
    "_per_s": "/s",
    "_tflop_per_s": "TFLOP/s",
    "_tflops": "TFLOP/s",
    "_gib": "GiB",
    "_pct": "%",
    "_percent": "%",
    "_ms": "ms",
    "_us": "µs",
    "_mhz": "MHz",
    "_wh": "Wh",
    "_kwh": "kWh",
    "_s": "s",
    "_c": "°C",
    "_w": "W",
    "_j": "J",
}
_ENERGIES: Final = ((1e6, "MJ"), (1e3, "kJ"))
_MANY: Final = 10  # of a larger unit: it is taken
_WORDS: Final = {"gpu": "GPU", "gpus": "GPUs", "cpu": "CPU", "id": "ID", "ids": "IDs", "nvml": "NVML", "sm": "SM"}
_OF_WHAT: Final = {f"p{percent}": f"latency p{percent}" for percent in (50, 95, 99)}  # metrics so named are latencies
MISSING: Final = "N/A"
_NO_SPREAD: Final = 1e-9  # of the value: less is rounding


def humanize(name: str) -> str:
    """ "p99_wait_s" -> "P99 wait", "p99" -> "Latency p99", "by_strategy.round_robin" -> "By strategy · round robin"."""
    parts = [_words(part) for part in name.split(".")]
    text = " · ".join(parts)
    return text[:1].upper() + text[1:]


def _words(part: str) -> str:
    return _OF_WHAT.get(part) or " ".join(_WORDS.get(word, word) for word in part.split("_") if word)


class Tile(NamedTuple):
    """A metric as the pages show it. `of` says of how many runs it is the mean, and their range; "" where of one."""

    label: str
    value: str
    of: str = ""


def metric_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and value of every metric, nested ones by their path."""
    return [row(name, value) for name, value in flat(metrics).items()]


def tiles(metrics: Mapping[str, Any], repeats: Mapping[str, Any] | None = None) -> list[Tile]:
    """Every metric, nested ones by their path; those that several runs have summed up with their spread."""
    summaries = (repeats or {}).get("metrics", {})
    return [_tile(name, value, summaries.get(name)) for name, value in flat(metrics).items()]


def _tile(name: str, value: Any, summary: Mapping[str, Any] | None) -> Tile:
    if summary is None or summary["mean"] is None:
        return Tile(*row(name, value))
    if summary["n"] > 1 and summary["min"] == summary["max"]:
        return Tile(*row(name, value), f"the same in {summary['n']} runs")
    scale, unit, stem = _unit(name, summary["mean"])
    low, high = summary["ci95_low"], summary["ci95_high"]
    text = number(summary["mean"] * scale)
    suffix = _suffix(unit).replace(" ", "\u00a0")
    if low is not None and high is not None:
        text = plus_minus(summary["mean"] * scale, (high - low) / 2 * scale)
    lowest, highest = (number(summary[end] * scale) for end in ("min", "max"))
    runs = "1 run" if summary["n"] == 1 else f"{summary['n']} runs"
    return Tile(humanize(stem), text + suffix, f"mean of {runs}, {lowest} to {highest}{_suffix(unit)}")


def plus_minus(value: float, half_width: float) -> str:
    """ "12.3 ± 0.4": the half width in two significant digits, the value as far as those go.

    A line may end before the ±, nowhere else.
    """
    if not math.isfinite(value) or not math.isfinite(half_width):
        return number(value)
    if half_width <= abs(value) * _NO_SPREAD:
        return f"{number(value)} ±\u00a00"
    digits = max(0, 1 - math.floor(math.log10(half_width)))
    return f"{_grouped(value, digits)} ±\u00a0{_grouped(half_width, digits)}"


def row(name: str, value: Any) -> tuple[str, str]:
    """Label and value of one metric, with the unit that its name ends in."""
    scale, unit, stem = _unit(name, value)
    if value is None or (_is_number(value) and not math.isfinite(value)):
        return humanize(stem), MISSING
    if not _is_number(value):
        return humanize(name), value_text(value)
    return humanize(stem), number(value * scale) + _suffix(unit)


def _unit(name: str, value: Any) -> tuple[float, str, str]:
    """What to multiply a metric by, the unit it is in then, and its name without the unit. `value` chooses the unit
    where several would do.
    """
    if name.endswith("_bytes"):
        unit, size = memory_unit(abs(value) if _is_number(value) else 0.0)
        return 1 / size, unit, name.removesuffix("_bytes")
    if name.endswith("_j") and _is_number(value):
        scale, unit = next(((1 / least, unit) for least, unit in _ENERGIES if abs(value) >= _MANY * least), (1.0, "J"))
        return scale, unit, name.removesuffix("_j")
    for ending, unit in _UNITS.items():
        if name.endswith(ending):
            return 1.0, unit, name.removesuffix(ending)
    return 1.0, "", name


def _suffix(unit: str) -> str:
    return unit if unit.startswith("/") else f" {unit}" if unit else ""


def value_text(value: Any) -> str:
    """Any value of a metric, parameter or setting in one line."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if _is_number(value):
        return number(value)
    if isinstance(value, list | tuple):
        return ", ".join(value_text(item) for item in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={value_text(item)}" for name, item in value.items()) or "none"
    return str(value)


def number(value: float) -> str:
    """Four significant digits, thousands apart by a thin space; whole numbers whole."""
    if not math.isfinite(value):
        return MISSING
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\u202f")
    size = abs(value)
    if size >= 1e15 or size < 1e-4:
        return f"{value:.3e}"
    text = _grouped(value, max(0, 3 - math.floor(math.log10(size))))
    return text.rstrip("0").rstrip(".") if "." in text else text


def _grouped(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}".replace(",", "\u202f")


def duration(seconds: float | None) -> str:
    """ "0.42 s", "12.3 s", "4 min 05 s"."""
    if seconds is None:
        return MISSING
    if seconds < 120:
        return f"{number(round(seconds, 2 if seconds < 10 else 1))} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{number(hours)} h {minutes:02d} min"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
