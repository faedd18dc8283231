"""Results -> figures for plotly.js, as plain dicts {"data", "layout"}. Titles state the finding; small JSON."""

from altlas_core.figures.clocks import clocks
from altlas_core.figures.comparisons import (
    balance,
    iteration_times,
    latencies,
    links,
    makespans,
    scaling,
    throughput,
)
from altlas_core.figures.memory import memory_use
from altlas_core.figures.telemetry import memory_bars, queue_depth, readings
from altlas_core.figures.timeline import timeline

__all__ = [
    "balance",
    "clocks",
    "iteration_times",
    "latencies",
    "links",
    "makespans",
    "memory_bars",
    "memory_use",
    "queue_depth",
    "readings",
    "scaling",
    "throughput",
    "timeline",
]
