"""Fault plans as data: when, which device, what. The backends act on them; the state machine never sees a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from altlas_core import rules
from altlas_core.errors import WorkloadError, nearest
from altlas_core.rules import Number, RefusedError, Rule, shown

_time = rules.seconds(above=False)
_duration = rules.seconds()
_gpu_id = rules.whole(0, 65535)


@dataclass(frozen=True, slots=True)
class FaultKind:
    """`value`: the rule for the fault's value, None where it takes none. `lasts`: whether it may take a duration_s."""

    summary: str
    value: Rule | None = None
    lasts: bool = False


FAULT_KINDS: Final[dict[str, FaultKind]] = {
    "lose_gpu": FaultKind("the device is gone (until duration_s is over, or return_gpu)", lasts=True),
    "return_gpu": FaultKind("a lost device answers again"),
    "overheat": FaultKind(
        "the device is at least `value` degrees C hot", Number(0, 200, above=True, unit="degrees C"), lasts=True
    ),
    "foreign_memory": FaultKind(
        "another process holds `value` bytes", rules.whole(1, rules.MAX_BYTES, "bytes"), lasts=True
    ),
    "foreign_load": FaultKind(
        "another process keeps the device busy for `value` percent of the time",
        Number(0, 100, above=True, unit="percent"),
        lasts=True,
    ),
    "crash_worker": FaultKind("a worker process of the device dies"),
    "hang_task": FaultKind(
        "what started last on the device makes no more progress (nothing happens where nothing runs): a simulated "
        "attempt until it is stopped, a real worker process until its silence is noticed"
    ),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. It starts at `time_s` and lasts `duration_s` seconds, or to the end of the run where that is None.

    `value` is degrees C for overheat, bytes for foreign_memory, percent for foreign_load. Raises WorkloadError.
    """

    time_s: float
    gpu_id: int
    kind: str
    duration_s: float | None = None
    value: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in FAULT_KINDS:
            hint = nearest(self.kind, FAULT_KINDS) if isinstance(self.kind, str) else ""
            allowed = ", ".join(FAULT_KINDS)
            raise WorkloadError(f"fault: kind: {shown(self.kind)} is not known; allowed: {allowed}.{hint}")
        kind = FAULT_KINDS[self.kind]
        self._check("time_s", _time)
        self._check("gpu_id", _gpu_id)
        self._check_optional("duration_s", _duration if kind.lasts else None, needed=False)
        self._check_optional("value", kind.value, needed=True)

    @property
    def end_s(self) -> float | None:
        """When it is over; None = never."""
        return None if self.duration_s is None else self.time_s + self.duration_s

    def _check(self, name: str, rule: Rule) -> None:
        try:
            object.__setattr__(self, name, rule(getattr(self, name)))
        except RefusedError as problem:
            raise WorkloadError(f"fault {self.kind}: {name}: {problem}") from None

    def _check_optional(self, name: str, rule: Rule | None, needed: bool) -> None:
        given = getattr(self, name) is not None
        if rule is None and given:
            raise WorkloadError(f"fault {self.kind}: {name}: {shown(getattr(self, name))}; allowed: none, leave it out")
        if rule is not None and (given or needed):
            self._check(name, rule)


def from_records(records: Iterable[Mapping[str, Any]]) -> tuple[Fault, ...]:
    """Faults in order of (time_s, position). Raises WorkloadError naming the record (from 0) and the field."""
    faults = [_fault(position, record) for position, record in enumerate(records)]
    return tuple(sorted(faults, key=lambda fault: fault.time_s))


def check_gpu_ids(faults: Sequence[Fault], gpu_count: int) -> None:
    """Raise WorkloadError where a fault names a device that the machine does not have."""
    for fault in faults:
        if fault.gpu_id >= gpu_count:
            raise WorkloadError(
                f"fault {fault.kind} at {fault.time_s:g} s: gpu_id: {fault.gpu_id} is not there; "
                f"allowed: from 0 to {gpu_count - 1}"
            )


def _fault(position: int, record: Mapping[str, Any]) -> Fault:
    known = [item.name for item in fields(Fault)]
    where = f"fault record {position}"
    if not isinstance(record, Mapping):
        raise WorkloadError(f"{where}: {shown(record)} is not a record; allowed: a mapping with {', '.join(known)}")
    for name in record:
        if name not in known:
            raise WorkloadError(
                f"{where}: unknown field {shown(name)}; allowed: {', '.join(known)}.{nearest(str(name), known)}"
            )
    for name in ("time_s", "gpu_id", "kind"):
        if record.get(name) is None:
            raise WorkloadError(f"{where}: {name} is missing")
    try:
        return Fault(**record)
    except WorkloadError as problem:
        raise WorkloadError(f"{where}: {problem}") from None
