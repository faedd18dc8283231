"""Results -> figures for plotly.js, as plain dicts {"data", "layout"}. Titles state the finding; small JSON."""

from altlas_core.figures.clocks import clocks
from altlas_core.figures.comparisons import (
    balance,
    iteration_times,
    links,
    makespans,
    scaling,
    throughput,
)
from altlas_core.figures.distributions import latencies
from altlas_core.figures.machine import machine
from altlas_core.figures.memory import memory_bars, memory_use
from altlas_core.figures.telemetry import readings
from altlas_core.figures.timeline import timeline
from altlas_core.figures.waiting import latency_over_time, queue_depth, waits

__all__ = [
    "balance",
    "clocks",
    "iteration_times",
    "latencies",
    "latency_over_time",
    "links",
    "machine",
    "makespans",
    "memory_bars",
    "memory_use",
    "queue_depth",
    "readings",
    "scaling",
    "throughput",
    "timeline",
    "waits",
]
