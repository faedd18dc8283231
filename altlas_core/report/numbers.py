"""Names and figures as people read them. The unit is the end of a metric's name: makespan_s, memory_bytes, power_w."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from altlas_core.model import GIB
from altlas_core.report.environment import flat

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
_WORDS: Final = {"gpu": "GPU", "gpus": "GPUs", "cpu": "CPU", "id": "ID", "ids": "IDs", "nvml": "NVML", "sm": "SM"}
MISSING: Final = "N/A"


def humanize(name: str) -> str:
    """ "p99_wait_s" -> "P99 wait", "by_strategy.round_robin" -> "By strategy · round robin"."""
    parts = [_words(part) for part in name.split(".")]
    text = " · ".join(parts)
    return text[:1].upper() + text[1:]


def _words(part: str) -> str:
    return " ".join(_WORDS.get(word, word) for word in part.split("_") if word)


def metric_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and value of every metric, nested ones by their path."""
    return [_row(name, value) for name, value in flat(metrics).items()]


def _row(name: str, value: Any) -> tuple[str, str]:
    if name.endswith("_bytes") and _is_number(value):
        return humanize(name.removesuffix("_bytes")), f"{number(value / GIB)} GiB"
    for ending, unit in _UNITS.items():
        if name.endswith(ending) and _is_number(value):
            return humanize(name.removesuffix(ending)), f"{number(value)} {unit}".replace(" /s", "/s")
    return humanize(name), value_text(value)


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
    digits = max(0, 3 - math.floor(math.log10(size)))
    text = f"{value:,.{digits}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return text.replace(",", "\u202f")


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
