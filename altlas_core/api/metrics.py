"""What Prometheus reads: counters and histograms kept in plain lists, and the state of the machine when it asks.

prometheus_client's own Histogram takes over a microsecond for an observation and its labelled Counter over two, several
times a task; a list and `bisect` take a third of that. So only the exposition is its own, fed by a collector.

The GPU metrics have the names, labels, units and help texts of dcgm-exporter's default counters
(https://github.com/NVIDIA/dcgm-exporter, etc/default-counters.csv), so dashboards made for it work.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.utils import floatToGoString

from altlas_core.model import AVAILABLE, BUSY, FINAL_STATES

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
MIB: Final = 1024**2
# Upper bounds in seconds: from a wait that is none to a task that ran as long as the default timeout allows.
TASK_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
HTTP_BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30)
RETRY_REASONS: Final = ("task_error", "out_of_memory", "worker_crashed", "device_lost")

_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"})


@dataclass(slots=True)
class GpuStats:
    """One GPU as it is now; a reading of None was not made, and is left out."""

    id: int
    name: str
    status: str  # a DeviceState
    task_count: int
    simulated: bool
    uuid: str = ""
    utilization_pct: float | None = None
    memory_used_bytes: float | None = None
    memory_free_bytes: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    xid: int | None = None

    @property
    def healthy(self) -> bool:
        return self.status in (AVAILABLE, BUSY)


@dataclass(slots=True)
class Stats:
    """The machine as it is now. What ends in `_total` has counted up since the start."""

    gpus: Sequence[GpuStats]
    queue_depth: Mapping[str, int]  # by priority
    tasks: Mapping[str, int]  # by state: those queued and running now, those finished so far
    tokens_generated_total: int
    prompt_tokens_total: int
    journal_problem: bool
    uptime_s: float
    version: str
    log_lines_dropped_total: int = 0


@dataclass(slots=True)
class _Histogram:
    """Counts of observations up to each bound, and their sum in seconds."""

    bounds_s: tuple[float, ...]
    sum_s: float = 0.0
    counts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds_s) + 1)

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds_s, seconds)] += 1
        self.sum_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them."""
        names = [*map(floatToGoString, self.bounds_s), "+Inf"]
        total = 0
        return [(name, total := total + count) for name, count in zip(names, self.counts, strict=True)]


class Metrics:
    """Observations of one server. Not locked: observe and render in one thread, the event loop's."""

    def __init__(self) -> None:
        self._queue = _Histogram(TASK_BOUNDS_S)
        self._run = _Histogram(TASK_BOUNDS_S)
        self._ttft = _Histogram(TASK_BOUNDS_S)
        self._retries = dict.fromkeys(RETRY_REASONS, 0)
        self._requests: dict[tuple[str, str, int], int] = {}
        self._routes: dict[str, _Histogram] = {}
        self._stats: Stats | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        self.observe_queue_s = self._queue.observe  # from created to started
        self.observe_run_s = self._run.observe  # from started to completed
        self.observe_ttft_s = self._ttft.observe  # from created to the first token

    def count_retry(self, reason: str) -> None:
        """A task was queued again; `reason` is an error code."""
        self._retries[reason] = self._retries.get(reason, 0) + 1

    def count_request(self, method: str, route: str | None, status: int, duration_s: float) -> None:
        """`route`: the pattern that matched, e.g. "/tasks/{id}", so that labels stay few; None: nothing matched."""
        route = route or "unmatched"
        key = (method if method in _METHODS else "other", route, status)
        self._requests[key] = self._requests.get(key, 0) + 1
        histogram = self._routes.get(route)
        if histogram is None:
            histogram = self._routes[route] = _Histogram(HTTP_BOUNDS_S)
        histogram.observe(duration_s)

    def render(self, stats: Stats) -> bytes:
        """The text that Prometheus reads, of type CONTENT_TYPE."""
        self._stats = stats
        try:
            return _gpu_text(stats.gpus).encode() + generate_latest(self._registry)
        finally:
            self._stats = None

    def describe(self) -> Iterable[Metric]:
        """For the registry, which asks for it when a collector is registered: the names need no checking."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        assert self._stats is not None
        yield from _tasks(self._stats)
        yield from _server(self._stats)
        text = "Tasks queued again, by what ended the attempt."
        yield _counter("altlas_retries", text, "reason", self._retries)
        yield _histogram("altlas_task_queue_seconds", "Time from creation to start of a task (in s).", self._queue)
        yield _histogram("altlas_task_run_seconds", "Time from start to end of a task (in s).", self._run)
        text = "Time from creation of a task to its first token (in s)."
        yield _histogram("altlas_time_to_first_token_seconds", text, self._ttft)
        yield from self._http()

    def _http(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("altlas_http_requests", "HTTP requests.", labels=("method", "route", "status"))
        for (method, route, status), count in self._requests.items():
            requests.add_metric((method, route, str(status)), count)
        yield requests
        text = "Time from a request's headers to the end of its answer (in s)."
        seconds = HistogramMetricFamily("altlas_http_request_seconds", text, labels=("route",))
        for route, histogram in self._routes.items():
            seconds.add_metric((route,), histogram.buckets(), histogram.sum_s)
        yield seconds


def _histogram(name: str, text: str, histogram: _Histogram) -> Metric:
    return HistogramMetricFamily(name, text, histogram.buckets(), histogram.sum_s)


def _counter(name: str, text: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=(label,))
    for value, count in counts.items():
        family.add_metric((value,), count)
    return family


def _gpu_text(gpus: Sequence[GpuStats]) -> str:
    """The GPU metrics, written here: prometheus_client takes over 50 ms for 1,024 GPUs, and requests wait for it."""
    few = [f'gpu="{gpu.id}"' for gpu in gpus]
    full = [
        f'{label},UUID="{_escaped(gpu.uuid)}",device="nvidia{gpu.id}",modelName="{_escaped(gpu.name)}"'
        for label, gpu in zip(few, gpus, strict=True)
    ]
    families: list[tuple[str, str, list[str], list[float | None]]] = [
        ("DCGM_FI_DEV_GPU_UTIL", "GPU utilization (in %).", full, [gpu.utilization_pct for gpu in gpus]),
        (
            "DCGM_FI_DEV_FB_USED",
            "Framebuffer memory used (in MiB).",
            full,
            [_mib(gpu.memory_used_bytes) for gpu in gpus],
        ),
        (
            "DCGM_FI_DEV_FB_FREE",
            "Framebuffer memory free (in MiB).",
            full,
            [_mib(gpu.memory_free_bytes) for gpu in gpus],
        ),
        ("DCGM_FI_DEV_GPU_TEMP", "GPU temperature (in C).", full, [gpu.temperature_c for gpu in gpus]),
        ("DCGM_FI_DEV_POWER_USAGE", "Power draw (in W).", full, [gpu.power_w for gpu in gpus]),
        ("DCGM_FI_DEV_XID_ERRORS", "Value of the last XID error encountered.", full, [gpu.xid for gpu in gpus]),
        ("altlas_gpu_healthy", "1 where the GPU may take tasks, else 0.", few, [int(gpu.healthy) for gpu in gpus]),
        ("altlas_gpu_tasks", "Tasks that run on the GPU now.", few, [gpu.task_count for gpu in gpus]),
        ("altlas_simulated", "1 where the GPU is simulated, else 0.", few, [int(gpu.simulated) for gpu in gpus]),
    ]
    lines = []
    for name, text, labels, values in families:
        lines.append(f"# HELP {name} {text}\n# TYPE {name} gauge\n")
        lines += [
            f"{name}{{{label}}} {value}\n" for label, value in zip(labels, values, strict=True) if value is not None
        ]
    return "".join(lines)


def _escaped(label: str) -> str:
    """A label's value as the text format wants it (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
    return label.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _mib(size_bytes: float | None) -> float | None:
    return None if size_bytes is None else size_bytes / MIB


def _tasks(stats: Stats) -> Iterator[Metric]:
    depth = GaugeMetricFamily("altlas_queue_depth", "Tasks that wait, by priority.", labels=("priority",))
    for priority, count in stats.queue_depth.items():
        depth.add_metric((priority,), count)
    now = GaugeMetricFamily("altlas_tasks", "Tasks that are not finished, by state.", labels=("state",))
    finished = CounterMetricFamily("altlas_tasks_finished", "Tasks that have ended, by final state.", labels=("state",))
    for state, count in stats.tasks.items():
        (finished if state in FINAL_STATES else now).add_metric((state,), count)
    tokens = {"prompt": stats.prompt_tokens_total, "generated": stats.tokens_generated_total}
    yield from (depth, now, finished)
    yield _counter("altlas_tokens", "Tokens read (prompt) and written (generated).", "kind", tokens)


def _server(stats: Stats) -> Iterator[Metric]:
    text = "1 while the journal cannot be written, else 0."
    yield GaugeMetricFamily("altlas_journal_problem", text, int(stats.journal_problem))
    yield GaugeMetricFamily("altlas_uptime_seconds", "Time since the server started (in s).", stats.uptime_s)
    lost = stats.log_lines_dropped_total
    yield CounterMetricFamily("altlas_log_lines_dropped", "Log lines that could not be written.", lost)
    build = GaugeMetricFamily("altlas_build_info", "Always 1; the version is a label.", labels=("version",))
    build.add_metric((stats.version,), 1)
    yield build
