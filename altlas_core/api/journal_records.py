"""What goes into the journal and what comes out. All times are Unix seconds, ids are positive integers."""

from __future__ import annotations

from dataclasses import dataclass

from altlas_core.errors import AltlasError

QUEUED, COMPLETED, FAILED, CANCELLED = "QUEUED", "COMPLETED", "FAILED", "CANCELLED"
STATUSES = (QUEUED, COMPLETED, FAILED, CANCELLED)


class JournalError(AltlasError):
    """A journal that cannot be opened, read or written."""


class JournalInUseError(JournalError):
    """Another journal, of this process or another one that lives, has the file open."""


@dataclass(slots=True)
class NewTask:
    id: int
    priority: str
    batch_id: int | None
    created_at: float
    params: str  # JSON text
    options: str  # JSON text: strategy, gpu_id


@dataclass(slots=True)
class NewBatch:
    id: int
    created_at: float
    count: int
    priority: str


@dataclass(slots=True)
class FinalTask:
    id: int
    status: str  # COMPLETED, FAILED or CANCELLED
    gpu_id: int | None
    started_at: float | None
    completed_at: float
    retry_count: int
    result: str | None  # JSON text
    error: str | None  # plain text, whatever characters it holds
    error_code: str | None


@dataclass(slots=True)
class Idempotent:
    """The answer that a request with this key was given, and what tells whether a second one asks for the same."""

    key: str
    fingerprint: str
    answer: str
    created_at: float


@dataclass(slots=True, frozen=True)
class StoredTask:
    id: int
    status: str  # QUEUED while it is unfinished
    priority: str
    batch_id: int | None
    gpu_id: int | None
    created_at: float
    started_at: float | None
    completed_at: float | None
    retry_count: int
    error_code: str | None
    params: str
    options: str
    result: str | None
    error: str | None


@dataclass(slots=True, frozen=True)
class StoredBatch:
    id: int
    created_at: float
    size: int  # tasks, as it was submitted; retention may have deleted some since
    priority: str
    counts: dict[str, int]  # how many of its stored tasks are in each of STATUSES, zeros too
