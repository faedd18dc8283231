"""The kind `text_generation`: several prompts continued together, in a thread of the worker.

An engine (the embedded model, or one of Hugging Face's) reads prompts and makes steps; what is here chooses the tokens,
sees texts end, and takes turns with the tasks beside it. Between two pieces, a chunk of prompts or a step, a stop is
seen and, on a CPU device, the turn passed on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final, Protocol

from altlas_core.backends.worker.byte_model import ByteModel
from altlas_core.backends.worker.device import WorkDevice
from altlas_core.backends.worker.folder_model import FolderModel
from altlas_core.backends.worker.loop import TURN_S
from altlas_core.backends.worker.next_token import Chooser
from altlas_core.backends.worker.order import Order
from altlas_core.generation import CHUNK_TOKENS, detail, fit, part

if TYPE_CHECKING:
    from torch import Tensor

CPU_CHUNK_TOKENS: Final = 384  # read by the embedded model at once: about 40 ms on one core of today


class TextBatch(Protocol):
    """Prompts that an engine is continuing."""

    def read(self) -> Iterator[Tensor | None]: ...
    def step(self, ids: Tensor) -> Tensor: ...
    def keep(self, rows: Sequence[int]) -> None: ...


class TextEngine(Protocol):
    """A text model on a device. `stops`: the tokens that end a text."""

    torch: Any
    device: Any
    context: int
    stops: frozenset[int]
    size_bytes: int

    def encode(self, text: str) -> list[int]: ...
    def decode(self, prompt: Sequence[int], new: Sequence[int]) -> str: ...
    def begin(self, prompts: Sequence[Sequence[int]], most_new: Sequence[int]) -> TextBatch: ...


class Continuation:
    """One prompt of an attempt and what has become of it."""

    __slots__ = ("first_s", "most_new", "new", "prompt", "prompt_tokens", "seed", "stopped", "temperature", "truncated")

    def __init__(self, engine: TextEngine, text: str, max_new_tokens: int, temperature: float, seed: int) -> None:
        prompt = engine.encode(text)
        kept, self.most_new = fit(engine.context, len(prompt), max_new_tokens)
        self.truncated = kept < len(prompt)
        self.prompt = prompt[-kept:]
        self.temperature, self.seed = temperature, seed
        self.new: list[int] = []
        self.stopped = False  # by the model
        self.first_s = 0.0  # when its first token was there, by the clock

    def told(self, engine: TextEngine, begun_s: float) -> dict[str, Any]:
        """Its part of the detail."""
        text = engine.decode(self.prompt, self.new)
        return part(text, len(self.new), len(self.prompt), self.first_s - begun_s, self.stopped, self.truncated)


class Times:
    """Seconds that reading prompts and continuing them took, waiting for turns included; and tokens chosen so far."""

    __slots__ = ("chosen", "decode_s", "prefill_s")

    def __init__(self) -> None:
        self.prefill_s = self.decode_s = 0.0
        self.chosen = 0


def run_generation(
    device: WorkDevice, order: Order, stop: threading.Event, begun_s: float
) -> tuple[float, dict[str, Any]]:
    """Continue the order's prompts. Returns (1, detail), or where it was stopped the share of the tokens made."""
    assert order.generation is not None
    path, name, prompts = order.generation

    def load() -> tuple[TextEngine, int]:
        engine = load_engine(device, path)
        return engine, engine.size_bytes

    with device.model(order, path or name, load) as engine, device.own_stream(), device.torch.inference_mode():
        rows = [Continuation(engine, *prompt) for prompt in prompts]
        times = Times()
        run_pieces(device, continue_all(engine, rows, times), stop)
        if stop.is_set():
            return times.chosen / sum(row.most_new for row in rows), {}
        return 1.0, detail(name, False, [row.told(engine, begun_s) for row in rows], times.prefill_s, times.decode_s)


def load_engine(device: WorkDevice, path: str | None) -> TextEngine:
    """The model of a folder, or the embedded one. Raises what transformers raises where it cannot be loaded."""
    if path is None:
        chunk_tokens = CHUNK_TOKENS if device.kind == "cuda" else CPU_CHUNK_TOKENS
        return ByteModel(device.torch, device.device, chunk_tokens)
    return FolderModel(device, path)


def run_pieces(device: WorkDevice, pieces: Iterator[None], stop: threading.Event) -> None:
    """Do the pieces one after the other until all are done or `stop` is set; on a CPU device in turns."""
    clock, stopped = time.perf_counter, stop.is_set
    turns = nullcontext() if device.kind == "cuda" else device.turns
    while True:
        with turns:
            turn_ends_s = clock() + TURN_S
            while clock() < turn_ends_s:
                if stopped():
                    return
                try:
                    next(pieces)
                except StopIteration:
                    return


def continue_all(engine: TextEngine, rows: Sequence[Continuation], times: Times) -> Iterator[None]:
    """Continue every row, together as far as their memory goes; pauses after each piece of work."""
    for group in groups(rows):
        yield from continue_group(engine, group, times)


def groups(rows: Sequence[Continuation]) -> Iterator[list[Continuation]]:
    """The rows in groups, the longest prompts first. In a group, the longest prompt and the longest continuation
    together take no more places than the one row that needs most: an engine that pads prompts to one length then
    needs no more memory than was reserved. Mostly that is one group."""
    ordered = sorted(rows, key=lambda row: -len(row.prompt))
    places = max((len(row.prompt) + row.most_new for row in rows), default=0)
    while ordered:
        longest = len(ordered[0].prompt)
        fits = [longest + row.most_new <= places for row in ordered]
        yield [row for row, fit_in in zip(ordered, fits, strict=True) if fit_in]
        ordered = [row for row, fit_in in zip(ordered, fits, strict=True) if not fit_in]


def continue_group(engine: TextEngine, rows: list[Continuation], times: Times) -> Iterator[None]:
    """Read the prompts of these rows, the longest first, and continue them until all have ended."""
    clock = time.perf_counter
    begin_s = clock()
    batch = engine.begin([row.prompt for row in rows], [row.most_new for row in rows])
    chooser = Chooser(engine.torch, engine.device, [row.temperature for row in rows], [row.seed for row in rows])
    logits: Tensor | None = None
    for logits in batch.read():
        if logits is None:
            yield
    assert logits is not None
    ids = chooser.choose(logits)
    chosen = ids.tolist()
    first_s = clock()
    times.prefill_s += first_s - begin_s
    for row in rows:
        row.first_s = first_s
    stops = engine.stops
    steps: list[list[int]] = []  # the tokens chosen since rows last left, one list for each step
    left = min(row.most_new for row in rows)  # steps until a row is full
    while True:
        steps.append(chosen)
        times.chosen += len(chosen)
        if len(steps) == left or not stops.isdisjoint(chosen):
            going = _note(rows, steps, stops)
            steps = []
            if len(going) < len(rows):
                if not going:
                    break
                rows = [rows[at] for at in going]
                chooser.keep(going)
                batch.keep(going)
                ids = ids[engine.torch.tensor(going, device=engine.device)]
            left = min(row.most_new - len(row.new) for row in rows)
        yield
        ids = chooser.choose(batch.step(ids))
        chosen = ids.tolist()
    times.decode_s += clock() - first_s


def _note(rows: Sequence[Continuation], steps: Sequence[Sequence[int]], stops: frozenset[int]) -> list[int]:
    """Give the rows their tokens. The rows that go on, in an order in which as few as can be change their place: the
    last ones take the places of those that have ended."""
    for row, new in zip(rows, zip(*steps, strict=True), strict=True):
        row.stopped = new[-1] in stops  # only the last step's can be one
        row.new += new[:-1] if row.stopped else new
    going = [at for at, row in enumerate(rows) if not row.stopped and len(row.new) < row.most_new]
    kept = set(going)
    movers = [at for at in going if at >= len(going)]
    return [at if at in kept else movers.pop() for at in range(len(going))]
