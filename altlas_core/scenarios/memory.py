"""Memory reserved against memory used: what real devices measured of every attempt. Simulated ones measure nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from altlas_core.model import GIB, Attempt, Check
from altlas_core.result import Result

if TYPE_CHECKING:
    import pandas as pd

# What libraries keep (MKL's and oneDNN's buffers, kernels compiled at first use), and what allocators round up.
ALLOWANCE_BYTES: Final = 64 << 20


def measured(runs: Iterable[Result]) -> list[Attempt]:
    """The attempts that finished and say how much memory was used."""
    attempts = [attempt for result in runs for attempt in result.log.attempts() if attempt.outcome == "finished"]
    return [a for a in attempts if a.detail is not None and a.detail.get("peak_memory_bytes") is not None]


def check_use(attempts: Sequence[Attempt]) -> Check:
    """That no peak was higher than what the tasks that ran at that time had reserved."""
    over = {attempt: _used(attempt) - _reserved(attempt) for attempt in attempts}
    worst = max(attempts, key=lambda attempt: over[attempt])
    within = sum(excess <= ALLOWANCE_BYTES for excess in over.values())
    enforced = all(_figure(attempt, "memory_enforced") for attempt in attempts)
    return Check(
        "memory used stays within what was reserved",
        within == len(attempts),
        f"at the peak at most what the tasks in a worker had reserved, and {ALLOWANCE_BYTES >> 20} MiB for libraries",
        f"{within} of {len(attempts)}; nearest to it or most over it: {_used(worst) / GIB:.3f} GiB used, "
        f"{_reserved(worst) / GIB:.3f} GiB reserved"
        + ("" if enforced else "; a budget is not enforced on this system"),
    )


def use_metrics(attempts: Sequence[Attempt]) -> dict[str, int]:
    """The most that was reserved, and used, at one time in one worker."""
    return {
        "memory_reserved_max_bytes": max(_reserved(attempt) for attempt in attempts),
        "memory_used_max_bytes": max(_used(attempt) for attempt in attempts),
    }


def use_table(attempts: Sequence[Attempt], names: Mapping[tuple[int, int], str]) -> pd.DataFrame:
    """One row for each kind and size of work. `names`: what (input_size, output_size) is called, if anything.

    Beside others a task's own part cannot be told, so what is used "alone" is that of attempts without neighbours.
    """
    import pandas as pd

    groups: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        groups.setdefault(_work(attempt, names), []).append(attempt)
    rows = [
        {
            "work": name,
            "attempts": len(own),
            "reserved (GiB)": max(attempt.reserved_bytes for attempt in own) / GIB,
            "used alone, peak (GiB)": _most_gib(_used(attempt) for attempt in own if not _neighbours(attempt)),
            "tasks at a time": 1 + max(_neighbours(attempt) for attempt in own),
            "reserved together (GiB)": _most_gib(_reserved(attempt) for attempt in own),
            "used together, peak (GiB)": _most_gib(_used(attempt) for attempt in own),
        }
        for name, own in groups.items()
    ]
    return pd.DataFrame(rows)


def _work(attempt: Attempt, names: Mapping[tuple[int, int], str]) -> str:
    spec = attempt.task.spec
    size = f"{spec.kind} {spec.input_size} x {spec.output_size}" + ("" if spec.dtype == "fp32" else f" {spec.dtype}")
    name = names.get((spec.input_size, spec.output_size))
    return f"{name}: {size}" if name else size


def _used(attempt: Attempt) -> int:
    return _figure(attempt, "peak_memory_bytes")


def _reserved(attempt: Attempt) -> int:
    """By it and those that ran beside it, at the most."""
    return _figure(attempt, "reserved_peak_bytes")


def _neighbours(attempt: Attempt) -> int:
    return _figure(attempt, "memory_neighbours")


def _figure(attempt: Attempt, name: str) -> int:
    assert attempt.detail is not None  # see `measured`
    value: int = attempt.detail[name]
    return value


def _most_gib(sizes: Iterable[int]) -> float | None:
    return max((size / GIB for size in sizes), default=None)
