"""What the desk handles: predictions as they are handed in, pieces of them, and the news that it tells."""

from __future__ import annotations

from dataclasses import dataclass, field

from altlas_core.api.journal import FinalTask
from altlas_core.generation import Generation, Prompt
from altlas_core.model import QUEUED, Attempt, Task

Like = tuple[str, str, int | None]  # priority, strategy, pin: what joins one piece must agree on these


@dataclass(slots=True, frozen=True)
class Entry:
    """A prediction as it is handed in. `batch` None: it came alone. `options` are its priority, strategy and pin."""

    number: int
    batch: int | None
    like: Like
    prompt: Prompt
    created_at: float


@dataclass(slots=True, eq=False)
class Piece:
    """A task of the scheduler and the predictions it computes, prompt by prompt; None: cancelled while it runs.

    `asked_s` is when each was asked for, on the run's clock. `tokens` of memory are reserved for each of `rows`.
    """

    task: Task
    generation: Generation
    tokens: int
    rows: int
    submitted: bool = False
    entries: list[Entry | None] = field(default_factory=list)
    asked_s: list[float] = field(default_factory=list)
    attempt: Attempt | None = None  # the latest, unless it was told that it failed

    @property
    def open(self) -> bool:
        """Whether one more may join."""
        return self.task.state == QUEUED and not self.task.attempts and 0 < len(self.entries) < self.rows

    @property
    def empty(self) -> bool:
        return not any(self.entries)

    def add(self, entry: Entry, asked_s: float) -> None:
        self.entries.append(entry)
        self.asked_s.append(asked_s)
        self.generation.prompts.append(entry.prompt)

    def prune(self) -> None:
        """Forget the cancelled ones. Only while it waits: a device counts on the places of the others."""
        kept = [place for place, entry in enumerate(self.entries) if entry is not None]
        self.asked_s = [self.asked_s[place] for place in kept]
        self.generation.prompts[:] = [self.generation.prompts[place] for place in kept]
        self.entries = [self.entries[place] for place in kept]


@dataclass(slots=True, frozen=True)
class Started:
    numbers: list[int]
    gpu_id: int
    started_at: float
    retry_count: int


@dataclass(slots=True, frozen=True)
class Requeued:
    """An attempt ended without a result and there will be another. `code` is what it ended with."""

    numbers: list[int]
    retry_count: int
    code: str


@dataclass(slots=True, frozen=True)
class Measured:
    """Of one completed prediction, in seconds of the run's clock."""

    queue_s: float
    run_s: float
    time_to_first_token_s: float
    tokens: int
    prompt_tokens: int


@dataclass(slots=True)
class News:
    """What a look of the driver has brought, in an order in which it can be told.

    `retries`: what attempts ended with whose next one began in the same look.
    """

    retries: list[str] = field(default_factory=list)
    started: list[Started] = field(default_factory=list)
    requeued: list[Requeued] = field(default_factory=list)
    finals: list[FinalTask] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.started or self.requeued or self.finals)
