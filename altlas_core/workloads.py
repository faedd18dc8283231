"""What is submitted when: records, files and seeded generators -> a Workload of TaskSpecs.

The fields of a record are those of TaskSpec (but batch_id) and `items`: a batch of so many items, cut into pieces when
it runs. Times are seconds on the run's clock, memory bytes, sizes elements.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from altlas_core import calls, rules, workload_files
from altlas_core.errors import WorkloadError, nearest
from altlas_core.kinds import DTYPES, KINDS
from altlas_core.model import PRIORITIES, Call, TaskSpec
from altlas_core.rules import Number, RefusedError, Rule, shown

_seconds = rules.seconds(above=False)
_known_kind = rules.one_of([kind.name for kind in KINDS.values() if kind.recorded])
_dtype = rules.one_of(DTYPES)
_TORCH_NAMES: Final = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def _kind(value: Any) -> str:
    """A kind that a record may name."""
    if isinstance(value, str) and value in KINDS and not KINDS[value].recorded:
        recorded = ", ".join(kind.name for kind in KINDS.values() if kind.recorded)
        raise RefusedError(f"'{value}' is submitted through the API of `altlas serve` only; allowed: {recorded}")
    return _known_kind(value)


def _kind_or_call(value: Any) -> str:
    """A kind by its name; an import path is that of a function, and means the kind "call"."""
    return calls.target(value) if isinstance(value, str) and ":" in value else _kind(value)


def _number_format(value: Any) -> str:
    """By our names or by torch's."""
    return _dtype(_TORCH_NAMES.get(value, value) if isinstance(value, str) else value)


FIELDS: Final[dict[str, Rule]] = {
    "submit_s": _seconds,
    "kind": _kind_or_call,
    "duration_s": _seconds,
    "iterations": Number(1, 1e15, whole=True),
    "input_size": rules.whole(1, rules.MAX_SIZE, "elements"),
    "output_size": rules.whole(1, rules.MAX_SIZE, "elements"),
    "batch": rules.whole(1, rules.MAX_SIZE, "rows"),
    "memory_bytes": rules.whole(0, rules.MAX_BYTES, "bytes"),
    "priority": rules.one_of(PRIORITIES),
    "timeout_s": rules.seconds(),
    "retry_count": rules.whole(0, 1000, "retries"),
    "gpu_id": rules.whole(0, 65535),
    "strategy": rules.text,
    "cancel_s": _seconds,
    "items": rules.whole(1, rules.MAX_SIZE, "items"),
    "dtype": _number_format,
    "call": calls.target,
    "args": calls.arguments,
}
MAX_COUNT: Final = 10_000_000  # tasks a generator makes at most
MAX_RATE: Final = 1e9
_PRESENT: Final = frozenset({int, str})  # types that have no missing value: the quick way
_PANDAS_MISSING: Final = frozenset({"NAType", "NaTType"})


@dataclass(frozen=True, slots=True)
class Workload:
    """Task requests in order of (submit_s, position). `items`: how many items a batch has, by index; others have one.

    Made by from_records, from_file (from_csv, from_parquet, from_jsonl), poisson or uniform, which check every field.
    """

    specs: tuple[TaskSpec, ...] = ()
    items: Mapping[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.specs)

    def tasks(self, batch_size: int) -> list[TaskSpec]:
        """The tasks to submit, in order of their ids. A batch becomes pieces of at most `batch_size` items.

        A piece of k items takes k times the duration_s (or iterations) of one. The pieces of a batch share a batch_id.
        """
        if not self.items:
            return list(self.specs)
        tasks: list[TaskSpec] = []
        batches = 0
        for index, spec in enumerate(self.specs):
            count = self.items.get(index, 1)
            if count == 1:
                tasks.append(spec)
            else:
                tasks.extend(_pieces(spec, count, batch_size, f"batch-{batches:04d}"))
                batches += 1
        return tasks

    @classmethod
    def from_records(cls, records: Iterable[Any]) -> Workload:
        """Check records (dicts, or a pandas DataFrame; None and NaN mean: left out) and put them in order.

        Raises WorkloadError naming the record's position (from 0), the field, its value and what is allowed.
        """
        specs: list[TaskSpec] = []
        items: list[int] = []
        for position, record in enumerate(_iterable(records)):
            try:
                spec, count = _spec(record)
            except RefusedError as problem:
                raise WorkloadError(f"record {position}: {problem}") from None
            specs.append(spec)
            items.append(count)
        return cls._ordered(specs, items)

    @classmethod
    def from_csv(cls, path: str | Path) -> Workload:
        """Read a CSV file with a header row; an empty cell means the default.

        Raises WorkloadError naming file, row (the line in the file, the header's is 1), column, value and what is
        allowed.
        """
        return cls._from_file(Path(path), workload_files.CSV)

    @classmethod
    def from_parquet(cls, path: str | Path) -> Workload:
        """Read a Parquet file; a null (or NaN) means the default. Raises WorkloadError as from_csv, rows from 1."""
        return cls._from_file(Path(path), workload_files.PARQUET)

    @classmethod
    def from_jsonl(cls, path: str | Path) -> Workload:
        """Read a file with one JSON object a line; null means the default. Raises WorkloadError as from_csv."""
        return cls._from_file(Path(path), workload_files.JSON_LINES)

    @classmethod
    def from_file(cls, path: str | Path) -> Workload:
        """Read a CSV, Parquet or JSON lines file, by its ending. Raises WorkloadError, also where it holds no task."""
        path = Path(path)
        workload = cls._from_file(path, workload_files.format_of(path))
        if not workload:
            raise WorkloadError(f"{path}: holds no task; allowed: at least one record")
        return workload

    @classmethod
    def _from_file(cls, path: Path, file_format: workload_files.Format) -> Workload:
        specs: list[TaskSpec] = []
        items: list[int] = []
        place, before = file_format.place
        for number, record in workload_files.read(path, file_format, FIELDS):
            try:
                spec, count = _spec(record)
            except RefusedError as problem:
                raise WorkloadError(f"{path}, {place} {number}: {before}{problem}") from None
            specs.append(spec)
            items.append(count)
        return cls._ordered(specs, items)

    @classmethod
    def poisson(
        cls,
        rate_per_s: float,
        count: int | None = None,
        *,
        span_s: float | None = None,
        seed: int = 42,
        duration_mean_s: float | None = None,
        **record: Any,
    ) -> Workload:
        """Arrivals at random, `rate_per_s` a second on average: `count` of them, or all within `span_s` seconds.

        The rest of the record is the same for all; a field given as a list is drawn from it each time.
        `duration_mean_s` draws durations from an exponential distribution of that mean. Same seed, same workload.
        """
        rate = _argument("rate_per_s", rate_per_s, Number(0, MAX_RATE, above=True))
        if (count is None) == (span_s is None):
            raise WorkloadError("poisson: give either count or span_s")
        if duration_mean_s is not None and ("duration_s" in record or "iterations" in record):
            raise WorkloadError("poisson: duration_mean_s: give it alone, without duration_s or iterations")
        most = MAX_COUNT if count is None else _argument("count", count, rules.whole(0, MAX_COUNT))
        end = rules.MAX_SECONDS if span_s is None else _argument("span_s", span_s, _seconds)
        mean = None if duration_mean_s is None else _argument("duration_mean_s", duration_mean_s, rules.seconds())
        arrivals, lengths, choices = _streams(seed)
        lists = {name: value for name, value in record.items() if isinstance(value, (list, tuple)) and value}

        def records() -> Iterable[dict[str, Any]]:
            now = arrivals.expovariate(rate)
            made = 0
            while made < most and now <= end:
                drawn = {**record, "submit_s": now}
                for name, values in lists.items():
                    drawn[name] = choices.choice(values)
                if mean is not None:
                    drawn["duration_s"] = lengths.expovariate(1.0 / mean)
                yield drawn
                made += 1
                now += arrivals.expovariate(rate)

        if span_s is not None and rate * end > MAX_COUNT:
            raise WorkloadError(f"poisson: {rate:g} a second for {end:g} s; allowed: at most {MAX_COUNT} tasks")
        return cls.from_records(records())

    @classmethod
    def uniform(cls, count: int, *, interval_s: float = 0.0, start_s: float = 0.0, **record: Any) -> Workload:
        """`count` equal records, one every `interval_s` seconds from `start_s` on; 0 = all at once."""
        number = _argument("count", count, rules.whole(0, MAX_COUNT))
        start, step = _argument("start_s", start_s, _seconds), _argument("interval_s", interval_s, _seconds)
        return cls.from_records({**record, "submit_s": start + index * step} for index in range(number))

    @classmethod
    def _ordered(cls, specs: list[TaskSpec], items: list[int]) -> Workload:
        order = sorted(range(len(specs)), key=lambda position: specs[position].submit_s)
        batches = {index: items[position] for index, position in enumerate(order) if items[position] > 1}
        return cls(tuple(specs[position] for position in order), batches)


def _iterable(records: Any) -> Iterable[Mapping[str, Any]]:
    """The records of a list, a generator or a pandas DataFrame."""
    if hasattr(records, "columns") and hasattr(records, "to_dict"):
        return records.to_dict("records")  # type: ignore[no-any-return]
    if isinstance(records, (Mapping, str)) or not isinstance(records, Iterable):
        raise WorkloadError(f"records: {shown(records)} is not a list of records; allowed: a list of mappings")
    return records


def _spec(record: Mapping[str, Any]) -> tuple[TaskSpec, int]:
    """The checked request and its number of items. Raises RefusedError beginning with the field's name."""
    if not isinstance(record, Mapping):
        raise RefusedError(f"{shown(record)} is not a record; allowed: a mapping with {', '.join(FIELDS)}")
    values: dict[str, Any] = {}
    for name, value in record.items():
        rule = FIELDS.get(name)
        if rule is None:
            raise RefusedError(
                f"unknown field {shown(name)}; allowed: {', '.join(FIELDS)}.{nearest(str(name), FIELDS)}"
            )
        if type(value) not in _PRESENT and _missing(value):
            continue
        try:
            values[name] = rule(value)
        except RefusedError as problem:
            raise RefusedError(f"{name}: {problem}") from None
    count = values.pop("items", 1)
    _check_call(values)
    _check_kernel(values)
    _check_length(values)
    if values.get("cancel_s", rules.MAX_SECONDS) < values.get("submit_s", 0.0):
        raise RefusedError(
            f"cancel_s: {values['cancel_s']:g} is before submit_s {values['submit_s']:g}; allowed: from submit_s on"
        )
    return TaskSpec(**values), count


def _missing(value: Any) -> bool:
    """None, NaN and pandas' own marks, as empty cells of a table come."""
    return value is None or (isinstance(value, float) and value != value) or type(value).__name__ in _PANDAS_MISSING


def _check_call(values: dict[str, Any]) -> None:
    """`call` makes the kind "call", which needs it; `args` are for it alone. Both become one Call."""
    target, arguments = values.pop("call", None), values.pop("args", None)
    kind = values.setdefault("kind", "linear" if target is None else "call")
    if target is None and kind not in KINDS:
        target, kind = kind, "call"
        values["kind"] = kind
    if target is None:
        if arguments is not None:
            raise RefusedError(f"args: {arguments} given without call; allowed: together with call")
        if kind == "call":
            raise RefusedError(f"call: missing, and 'call' must say what to run; allowed: {calls.ALLOWED}")
        return
    if kind != "call":
        raise RefusedError(f"call: given with kind '{kind}'; allowed: with kind 'call', or without a kind")
    values["call"] = Call(target, arguments or "{}")


def _check_kernel(values: dict[str, Any]) -> None:
    """A number format and a width that the kind knows."""
    kind, dtype, width = KINDS[values["kind"]], values.get("dtype"), values.get("output_size", 1024)
    if dtype is not None and dtype not in kind.dtypes:
        raise RefusedError(f"dtype: {dtype} with kind '{kind.name}'; allowed: {', '.join(kind.dtypes)}")
    if width % kind.output_multiple:
        raise RefusedError(
            f"output_size: {width} with kind '{kind.name}'; allowed: multiples of {kind.output_multiple}"
        )


def _check_length(values: dict[str, Any]) -> None:
    """Exactly one of duration_s and iterations, where the kind needs one; 0 seconds where it needs none. A call without
    duration_s takes as long as it takes."""
    kind = KINDS[values["kind"]]
    timed, counted = "duration_s" in values, "iterations" in values
    if timed and counted:
        raise RefusedError("duration_s: given together with iterations; allowed: one of the two")
    if counted and not kind.kernel:
        raise RefusedError(f"iterations: '{kind.name}' runs no kernel; allowed: duration_s")
    if timed or counted:
        return
    if kind.needs_length:
        allowed = "duration_s or iterations" if kind.kernel else "duration_s"
        raise RefusedError(f"duration_s: missing, and '{kind.name}' must say how long it runs; allowed: {allowed}")
    if kind.name != "call":
        values["duration_s"] = 0.0


def _pieces(spec: TaskSpec, count: int, batch_size: int, batch_id: str) -> Iterable[TaskSpec]:
    for start in range(0, count, batch_size):
        size = min(batch_size, count - start)
        yield replace(
            spec,
            duration_s=None if spec.duration_s is None else spec.duration_s * size,
            iterations=None if spec.iterations is None else spec.iterations * size,
            batch_id=batch_id,
        )


def _streams(seed: int) -> list[random.Random]:
    """Three generators, so that drawing more of one thing does not change the others."""
    number = _argument("seed", seed, rules.whole(0, 2**63 - 1))
    return [random.Random(f"{number}/{part}") for part in ("arrivals", "durations", "choices")]


def _argument(name: str, value: Any, rule: Rule) -> Any:
    try:
        return rule(value)
    except RefusedError as problem:
        raise WorkloadError(f"{name}: {problem}") from None
