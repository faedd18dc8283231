# ruff: noqa: RUF009 - key() and section() are dataclasses.field()
"""The settings, their defaults and what each may be: frozen dataclasses that mirror config.yaml key by key.

Durations are seconds, sizes elements, memory bytes, temperatures degrees Celsius, thresholds shares of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, TypeVar, cast

from altlas_core import rules
from altlas_core.device_names import parse_devices
from altlas_core.errors import DeviceError, nearest
from altlas_core.rules import Number, RefusedError, Rule, shown

T = TypeVar("T")

BACKENDS: Final = ("auto", "cuda", "cpu", "simulated")
BUILTIN_STRATEGIES: Final = ("single_gpu", "round_robin", "least_loaded", "memory_optimized", "random")
ERROR_SCENARIOS: Final = ("gpu_overload", "task_timeout")
MAX_SLOTS: Final = 1024
MIN_INTERVAL_S: Final = 0.001  # a shorter period would only fill memory with samples
MAX_SEED: Final = 2**63 - 1
MAX_SPARES: Final = 64
MIN_HEARTBEAT_S: Final = 0.1  # a busy computer may keep a healthy worker from answering for so long
MAX_ENTRIES: Final = 1024
MAX_NEW_TOKENS: Final = 1024  # of a prediction
MIN_BODY_BYTES: Final = 1024

_share = Number(0.0, 1.0, above=True)
_interval = rules.seconds(MIN_INTERVAL_S, above=False)
_size = rules.whole(1, rules.MAX_SIZE, "elements")


def key(default: T, rule: Rule) -> T:
    """A setting: its default and the rule it must pass."""
    return field(default=default, metadata={"rule": rule})


def section(kind: type[T]) -> T:
    """A group of settings."""
    return field(default_factory=kind, metadata={"section": kind})


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(name, str) for name in value):
        raise RefusedError(f"{shown(value)} is not a list of names; allowed: a list with at least one strategy")
    twice = [name for name in dict.fromkeys(value) if value.count(name) > 1]
    if twice:
        raise RefusedError(f"{shown(twice[0])} stands there twice; allowed: each strategy once")
    return tuple(value)


EXPORT_FORMATS: Final = ("csv", "parquet", "trace")  # trace: Chrome's trace events, as Perfetto reads them


def _export_formats(value: Any) -> tuple[str, ...]:
    """A list, or a text with commas between; each once, in the order of EXPORT_FORMATS."""
    given = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)) or not all(name in EXPORT_FORMATS for name in given):
        raise RefusedError(f"{shown(value)} is not a list of formats; allowed: {', '.join(EXPORT_FORMATS)}")
    return tuple(name for name in EXPORT_FORMATS if name in given)


def _device_entries(value: Any) -> tuple[str, ...]:
    given = [value] if isinstance(value, str) else value
    usable = isinstance(given, (list, tuple)) and all(isinstance(entry, str) for entry in given)
    entries = [part for entry in given for part in entry.split(",")] if usable else []
    if not usable or not all(entry.strip() for entry in entries):
        raise RefusedError(
            f"{shown(value)} is not a list of device specs; allowed: texts like '8x A100-SXM4-80GB', 'cpu:2' or "
            "'cuda:0', or an empty list for the default"
        )
    if len(entries) > MAX_ENTRIES:
        raise RefusedError(f"{len(entries)} entries are too many; allowed: at most {MAX_ENTRIES}")
    try:
        parse_devices(entries)
    except DeviceError as problem:
        raise RefusedError(str(problem)) from None
    return tuple(entry.strip() for entry in entries)


def _optional_text(value: Any) -> str | None:
    return None if value is None else rules.text(value)


def _host_names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) and name.strip() for name in value):
        raise RefusedError(f"{shown(value)} is not a list of host names; allowed: a list of texts, or an empty list")
    return tuple(name.strip() for name in value)


def _records(kind: type[T]) -> Rule:
    """A list of records of one kind with different names."""

    def check(value: Any) -> tuple[T, ...]:
        if not isinstance(value, (list, tuple)) or not value:
            raise RefusedError(f"{shown(value)} is not a list of scenarios; allowed: a list with at least one record")
        records = tuple(_record(kind, item, position) for position, item in enumerate(value))
        names = [cast("Any", record).name for record in records]
        for position, name in enumerate(names):
            if name in names[:position]:
                raise RefusedError(f"{shown(name)} stands there twice; allowed: each name once", f"[{position}].name")
        return records

    return check


def _record(kind: type[T], item: Any, position: int) -> T:
    if isinstance(item, kind):
        return item
    known = rules_of(kind)
    if not isinstance(item, Mapping):
        raise RefusedError(
            f"{shown(item)} is not a record; allowed: a mapping with {', '.join(known)}", f"[{position}]"
        )
    values: dict[str, Any] = {}
    for name, value in item.items():
        if name not in known:
            hint = nearest(str(name), known)
            raise RefusedError(f"unknown key; allowed: {', '.join(known)}.{hint}", f"[{position}].{name}")
        try:
            values[name] = known[name](value)
        except RefusedError as problem:
            raise RefusedError(str(problem), f"[{position}].{name}") from None
    if "name" not in values:
        raise RefusedError("is missing; allowed: text that is not blank", f"[{position}].name")
    return kind(**values)


def rules_of(kind: type[Any]) -> dict[str, Rule]:
    """The rule of each key of a section or record that is itself no section."""
    return {f.name: f.metadata["rule"] for f in fields(kind) if "rule" in f.metadata}


def sections_of(kind: type[Any]) -> dict[str, type[Any]]:
    """The sections inside a section, by name."""
    return {f.name: f.metadata["section"] for f in fields(kind) if "section" in f.metadata}


@dataclass(frozen=True, slots=True)
class GpuDetectionSettings:
    """Which GPUs count as usable, and when one is unhealthy. Thresholds speak of load that is not ours."""

    enabled: bool = key(True, rules.boolean)
    min_compute_capability: float = key(7.0, Number(0.0, 99.9))
    memory_threshold: float = key(0.9, _share)
    utilization_threshold: float = key(0.95, _share)
    max_temperature: float = key(85.0, Number(0.0, 200.0, above=True, unit="degrees C"))
    health_check_interval: float = key(60.0, _interval)


@dataclass(frozen=True, slots=True)
class SelectionSettings:
    """How a GPU is chosen. Only the listed strategies may be used."""

    default_strategy: str = key("single_gpu", rules.text)
    strategies: tuple[str, ...] = key(BUILTIN_STRATEGIES, _names)


@dataclass(frozen=True, slots=True)
class WorkloadSettings:
    """Queue, slots, deadlines, retries and workers. `max_queue` 0 means unbounded, `spare_workers` 0 none."""

    queue_processing_interval: float = key(0.1, _interval)
    max_concurrent_tasks_per_gpu: int = key(4, rules.whole(1, MAX_SLOTS, "tasks"))
    batch_size: int = key(8, rules.whole(1, rules.MAX_SIZE, "items"))
    timeout: float = key(300.0, rules.seconds())
    retry_count: int = key(3, rules.whole(0, 1000, "retries"))
    max_queue: int = key(0, rules.whole(0, 10**9, "tasks"))
    priority_aging: float = key(60.0, rules.seconds())
    kill_grace: float = key(2.0, rules.seconds(above=False))
    spare_workers: int = key(1, rules.whole(0, MAX_SPARES, "workers"))
    heartbeat_timeout: float = key(10.0, rules.seconds(MIN_HEARTBEAT_S, above=False))


@dataclass(frozen=True, slots=True)
class GpuSettings:
    """The machine. `memory_limit_bytes` caps what we may reserve on each device; empty `devices` = the default."""

    backend: str = key("auto", rules.one_of(BACKENDS))
    devices: tuple[str, ...] = key((), _device_entries)
    memory_limit_bytes: int | None = key(None, rules.whole(1, rules.MAX_BYTES, "bytes", optional=True))
    detection: GpuDetectionSettings = section(GpuDetectionSettings)
    selection: SelectionSettings = section(SelectionSettings)
    workload: WorkloadSettings = section(WorkloadSettings)


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    interval: float = key(1.0, _interval)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """`pace`: simulated seconds per real second, 0 = virtual time. `time_scale`: factor on real durations.

    `workload`: the file that own_workload and strategy_comparison run. `deadline`, `notebook_deadline`: real seconds, 0
    = none.
    """

    pace: float = key(0.0, Number(0.0, 1e6))
    time_scale: float = key(1.0, Number(0.0, 100.0, above=True))
    workload: str | None = key(None, _optional_text)
    repeat: int = key(1, rules.whole(1, 1000, "runs"))
    export: tuple[str, ...] = key((), _export_formats)
    deadline: float = key(0.0, rules.seconds(above=False))
    notebook_deadline: float = key(0.0, rules.seconds(above=False))


@dataclass(frozen=True, slots=True)
class PredictSettings:
    """Text prediction through the API. `model` None is the one that comes with the package, else a folder that holds a
    Hugging Face causal language model."""

    model: str | None = key(None, _optional_text)
    max_batch_delay: float = key(0.005, rules.seconds(above=False, high=10.0))
    max_length: int = key(512, rules.whole(1, MAX_NEW_TOKENS, "tokens"))
    max_text_chars: int = key(8192, rules.whole(1, 10**6, "characters"))
    max_texts: int = key(1000, rules.whole(1, 100_000, "texts"))


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """`altlas serve`. `journal` None: altlas.sqlite3 in the working directory, or the next free one of its kind where
    another server has that open."""

    journal: str | None = key(None, _optional_text)
    full_sync: bool = key(True, rules.boolean)
    retention_age: float = key(604_800.0, rules.seconds())
    retention_count: int = key(1_000_000, rules.whole(1, 10**9, "tasks"))
    shutdown_grace: float = key(10.0, rules.seconds(above=False, high=86_400.0))
    max_body_bytes: int = key(2**20, rules.whole(MIN_BODY_BYTES, 2**30, "bytes"))
    allowed_hosts: tuple[str, ...] = key((), _host_names)
    key_file: str | None = key(None, _optional_text)


@dataclass(frozen=True, slots=True)
class DetectionScenario:
    enabled: bool = key(True, rules.boolean)


@dataclass(frozen=True, slots=True)
class BasicScenario:
    enabled: bool = key(True, rules.boolean)
    input_size: int = key(1024, _size)
    output_size: int = key(1024, _size)
    duration: float = key(5.0, rules.seconds())


@dataclass(frozen=True, slots=True)
class ConcurrentScenario:
    enabled: bool = key(True, rules.boolean)
    concurrent_tasks: int = key(4, rules.whole(1, 10**6, "tasks"))
    task_count: int = key(20, rules.whole(1, 10**6, "tasks"))
    input_size: int = key(1024, _size)
    output_size: int = key(1024, _size)
    duration: float = key(2.0, rules.seconds())


@dataclass(frozen=True, slots=True)
class ModelCase:
    """One model size of test.performance.scenarios."""

    name: str = key("", rules.text)
    input_size: int = key(1024, _size)
    output_size: int = key(1024, _size)
    duration: float = key(5.0, rules.seconds())


@dataclass(frozen=True, slots=True)
class ErrorCase:
    """One case of test.error_handling.scenarios."""

    name: str = key("", rules.one_of(ERROR_SCENARIOS))
    concurrent_tasks: int = key(1, rules.whole(1, 10**6, "tasks"))
    input_size: int = key(1024, _size)
    output_size: int = key(1024, _size)
    duration: float = key(5.0, rules.seconds())


MODEL_CASES: Final = (
    ModelCase("small_model", 1024, 1024, 5.0),
    ModelCase("medium_model", 4096, 4096, 5.0),
    ModelCase("large_model", 8192, 8192, 5.0),
)
ERROR_CASES: Final = (
    ErrorCase("gpu_overload", 10, 16384, 16384, 10.0),
    ErrorCase("task_timeout", 1, 8192, 8192, 310.0),
)


@dataclass(frozen=True, slots=True)
class PerformanceScenario:
    enabled: bool = key(True, rules.boolean)
    scenarios: tuple[ModelCase, ...] = key(MODEL_CASES, _records(ModelCase))


@dataclass(frozen=True, slots=True)
class ErrorScenario:
    enabled: bool = key(True, rules.boolean)
    scenarios: tuple[ErrorCase, ...] = key(ERROR_CASES, _records(ErrorCase))


@dataclass(frozen=True, slots=True)
class OwnWorkloadScenario:
    enabled: bool = key(True, rules.boolean)


@dataclass(frozen=True, slots=True)
class StrategyComparisonScenario:
    enabled: bool = key(True, rules.boolean)


@dataclass(frozen=True, slots=True)
class ScenarioSettings:
    """The test scenarios; `enabled: false` leaves one out."""

    detection: DetectionScenario = section(DetectionScenario)
    basic_functionality: BasicScenario = section(BasicScenario)
    concurrent_processing: ConcurrentScenario = section(ConcurrentScenario)
    performance: PerformanceScenario = section(PerformanceScenario)
    error_handling: ErrorScenario = section(ErrorScenario)
    own_workload: OwnWorkloadScenario = section(OwnWorkloadScenario)
    strategy_comparison: StrategyComparisonScenario = section(StrategyComparisonScenario)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set. `test` has a key `detection` of its own, beside `gpu.detection`."""

    seed: int = key(42, rules.whole(0, MAX_SEED))
    gpu: GpuSettings = section(GpuSettings)
    telemetry: TelemetrySettings = section(TelemetrySettings)
    run: RunSettings = section(RunSettings)
    predict: PredictSettings = section(PredictSettings)
    api: ApiSettings = section(ApiSettings)
    test: ScenarioSettings = section(ScenarioSettings)
