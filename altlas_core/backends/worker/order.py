"""What a worker is asked to do: one attempt as it goes over the wire, and as the worker reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from altlas_core.calls import search_paths
from altlas_core.generation import Wired, wired
from altlas_core.model import Attempt


@dataclass(slots=True, frozen=True)
class Order:
    """What one attempt asks for: TaskSpec's fields of the same names, defaults filled in."""

    kind: str
    duration_s: float | None
    iterations: float | None
    input_size: int
    output_size: int
    batch: int
    memory_bytes: int
    dtype: str = "fp32"
    call: tuple[str, str, tuple[str, ...]] | None = None  # import path, arguments as JSON, where to look for modules
    generation: Wired | None = None  # the text model's path and name, and the prompts when the attempt was started


def pack(attempt: Attempt) -> tuple[Any, ...]:
    """The fields of the attempt's Order, in their order: plain data that can be marshalled."""
    task = attempt.task
    spec = task.spec
    sizes = (spec.input_size, spec.output_size, spec.batch, task.memory_bytes)
    call = None if spec.call is None else (spec.call.target, spec.call.arguments, search_paths())
    generation = None if spec.generation is None else wired(spec.generation)
    return (spec.kind, spec.duration_s, spec.iterations, *sizes, spec.dtype, call, generation)
