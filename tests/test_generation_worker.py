"""The embedded text model in a worker: what it computes is what was trained, alone or beside others."""

from __future__ import annotations

import importlib.util
import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from workers import Bench

from altlas_core.events import AttemptFailed, AttemptFinished, AttemptStopped
from altlas_core.generation import Generation, Prompt, reserved_bytes
from altlas_core.text_models import describe_model

torch = pytest.importorskip("torch")

from altlas_core.backends.worker import generate  # noqa: E402
from altlas_core.backends.worker.byte_model import END, ByteModel  # noqa: E402
from altlas_core.backends.worker.device import WorkDevice  # noqa: E402
from altlas_core.backends.worker.generate import Continuation, Times, continue_all, groups, run_generation  # noqa: E402
from altlas_core.backends.worker.order import Order  # noqa: E402

MODEL = describe_model(None)
ROOT = Path(__file__).resolve().parent.parent
WORDS = "the return value a Raise called if object of is self string file used when an error this for module".split()

Asked = tuple[str, int, float, int]  # text, max_new_tokens, temperature, seed


@pytest.fixture(scope="module")
def device() -> Iterator[WorkDevice]:
    threads = torch.get_num_threads()
    yield WorkDevice("cpu", 1, 42, 1 << 30)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def engine(device: WorkDevice) -> ByteModel:
    return ByteModel(torch, device.device, 64)  # small chunks: most prompts take several


def rows_of(engine: ByteModel, asked: Sequence[Asked]) -> list[Continuation]:
    rows = [Continuation(engine, *each) for each in asked]
    with torch.inference_mode():
        for _ in continue_all(engine, rows, Times()):
            pass
    return rows


def texts(engine: ByteModel, asked: Sequence[Asked]) -> list[tuple[list[int], bool]]:
    return [(row.new, row.stopped) for row in rows_of(engine, asked)]


def prompts(count: int, temperature: float = 0.0, seed: int = 1) -> list[Asked]:
    """Prompts of 0 to about 150 characters, with continuations of 1 to 39 tokens."""
    dice = random.Random(seed)
    made = []
    for number in range(count):
        text = " ".join(dice.choice(WORDS) for _ in range(dice.randrange(30)))
        made.append((text[: dice.randrange(150)], dice.randrange(1, 40), temperature, number))
    return made


def in_batches(asked: Sequence[Asked], seed: int) -> Iterator[list[int]]:
    dice = random.Random(seed)
    order = list(range(len(asked)))
    dice.shuffle(order)
    while order:
        size = dice.randrange(2, 17)
        yield order[:size]
        order = order[size:]


def ordered(*asked: Asked, memory_bytes: int = 1 << 28) -> Order:
    return Order("text_generation", None, None, 1, 1, 1, memory_bytes, generation=(None, MODEL.name, asked))


def run(device: WorkDevice, *asked: Asked, stop: threading.Event | None = None) -> tuple[float, dict[str, Any]]:
    return run_generation(device, ordered(*asked), stop or threading.Event(), time.perf_counter())


# --- what it computes -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training() -> ModuleType:
    """The script that trained it."""
    spec = importlib.util.spec_from_file_location("train_bytes", ROOT / "training" / "train_bytes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trained_logits(training: ModuleType, tokens: list[int]) -> Any:
    """[tokens, vocabulary], as the training script computes them, in fp32, from the shipped weights."""
    from altlas_core.backends.worker.byte_model import _tensors
    from altlas_core.text_models import EMBEDDED, read_header

    tensors = _tensors(torch, torch.device("cpu"), read_header(EMBEDDED))
    weights = {name: tensor.float() for name, tensor in tensors.items()}
    with torch.no_grad():
        return training.logits(weights, torch.tensor([tokens]), training.causal_bias(len(tokens)))[0]


def test_reading_in_chunks_and_stepping_give_the_logits_of_the_model_that_was_trained(
    engine: ByteModel, training: ModuleType
) -> None:
    tokens = engine.encode("Return the value of the object, or None if there is none. " * 4)
    expected = trained_logits(training, tokens)
    short, long = tokens[:40], tokens[:150]
    with torch.inference_mode():
        batch = engine.begin([long, short], [60, 60])
        *_, logits = batch.read()
        for step in range(50):
            for row, prompt in enumerate((long, short)):
                torch.testing.assert_close(logits[row].float(), expected[len(prompt) + step - 1], rtol=1e-3, atol=1e-3)
            if step == 20:
                batch.keep([1, 0])
                long, short = short, long
            ids = torch.tensor([tokens[len(long) + step], tokens[len(short) + step]])
            logits = batch.step(ids)


def test_greedy_continuations_are_the_same_alone_and_in_any_batch(engine: ByteModel) -> None:
    asked = prompts(200)
    alone = [texts(engine, [each])[0] for each in asked]
    assert len({tuple(new) for new, _ in alone}) > 60
    for seed in range(2):
        for batch in in_batches(asked, seed):
            assert texts(engine, [asked[at] for at in batch]) == [alone[at] for at in batch]


def test_drawn_continuations_follow_from_their_seed_alone(engine: ByteModel) -> None:
    asked = prompts(60, temperature=0.8)
    mixed = [each if number % 3 else (*each[:2], 0.0, each[3]) for number, each in enumerate(asked)]
    alone = [texts(engine, [each])[0] for each in mixed]
    for batch in in_batches(mixed, 3):
        assert texts(engine, [mixed[at] for at in batch]) == [alone[at] for at in batch]
    once, again, other = (texts(engine, [("The ", 50, 1.0, seed)]) for seed in (7, 7, 8))
    assert once == again != other


def test_a_low_temperature_is_nearly_greedy_and_a_high_one_nearly_uniform(engine: ByteModel) -> None:
    greedy, cold, hot = (texts(engine, [("Return the ", 100, made, 5)])[0][0] for made in (0.0, 1e-6, 1e6))
    assert cold == greedy
    assert len(set(hot)) > 40


def test_draws_have_the_shares_that_softmax_gives(device: WorkDevice) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -50.0]], dtype=torch.float64).expand(2000, 4)
    chooser = generate.Chooser(torch, device.device, [2.0] * 2000, range(2000))
    counts = torch.bincount(chooser.choose(logits), minlength=4) / 2000
    torch.testing.assert_close(counts.double(), torch.softmax(logits[0] / 2.0, -1), rtol=0, atol=0.05)


# --- lengths and ends -------------------------------------------------------------------------------------------------


def test_an_empty_prompt_is_continued(engine: ByteModel) -> None:
    (row,) = rows_of(engine, [("", 40, 0.0, 0)])
    assert row.prompt == [END]
    assert row.new


def test_a_prompt_too_long_keeps_its_end(engine: ByteModel) -> None:
    text = "".join(chr(97 + at % 26) for at in range(1500))
    long, short = rows_of(engine, [(text, 24, 0.0, 0), ("short", 3, 0.0, 0)])
    assert (long.truncated, short.truncated) == (True, False)
    assert bytes(long.prompt).decode() == text[-1000:]
    assert 1 <= len(long.new) <= 24


def test_a_text_that_the_model_ends_stops_there_and_without_the_end(
    engine: ByteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [(text, 30, 0.0, 0) for text in ("one", "and two", "three or more")]
    free = texts(engine, asked)
    ending = free[1][0][10]
    monkeypatch.setattr(engine, "stops", frozenset((ending,)))
    for (new, stopped), (whole, _) in zip(texts(engine, asked), free, strict=True):
        cut = whole.index(ending) if ending in whole else None
        assert new == whole[:cut]
        assert stopped is (cut is not None)


def test_texts_become_bytes_and_bytes_texts_whatever_they_hold(engine: ByteModel) -> None:
    assert engine.encode("é\ud800") == [END, 0xC3, 0xA9, ord("?")]
    assert engine.decode([], [0xC3, 0xA9, 0xFF, 65]) == "é\ufffdA"


def test_prompts_whose_padding_would_need_more_than_was_reserved_are_continued_in_groups(engine: ByteModel) -> None:
    def sizes(*asked: tuple[int, int]) -> list[list[tuple[int, int]]]:
        rows = [Continuation(engine, "x" * (tokens - 1), new, 0.0, 0) for tokens, new in asked]
        return [[(len(row.prompt), row.most_new) for row in group] for group in groups(rows)]

    assert sizes((10, 20), (30, 20), (5, 40)) == [[(30, 20), (10, 20)], [(5, 40)]]
    assert sizes((10, 20), (30, 20), (5, 20)) == [[(30, 20), (10, 20), (5, 20)]]
    assert sizes((900, 10), (10, 900)) == [[(900, 10)], [(10, 900)]]


# --- an attempt -------------------------------------------------------------------------------------------------------


def test_an_attempt_tells_of_each_prompt_in_order(device: WorkDevice) -> None:
    done, detail = run(device, ("Return ", 5, 0.0, 0), ("", 30, 0.0, 0), ("The object ", 17, 0.7, 9))
    assert done == 1.0
    assert (detail["simulated"], detail["measured"], detail["model"]) == (False, True, "altlas-bytes")
    parts = detail["generation"]
    assert [part["prompt_tokens"] for part in parts] == [8, 1, 12]
    for part, most in zip(parts, (5, 30, 17), strict=True):
        assert part["tokens"] == most if part["finish_reason"] == "length" else part["tokens"] < most
        assert len(part["text"].encode()) >= part["tokens"] > 0
        assert part["time_to_first_token_s"] > 0.0
        assert part["prompt_truncated"] is False
    made = sum(part["tokens"] for part in parts)
    assert detail["tokens_per_s"] == pytest.approx(made / (detail["prefill_s"] + detail["decode_s"]))


class StopAfter(threading.Event):
    """Set once it has been looked at so often."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks < 0


@pytest.mark.parametrize("looks", [0, 1, 2, 5])
def test_a_stop_is_looked_for_before_each_chunk_and_each_step(device: WorkDevice, looks: int) -> None:
    share, detail = run(device, ("the number of all " * 50, 100, 0.0, 0), stop=StopAfter(looks))
    chunks = -(-901 // generate.CPU_CHUNK_TOKENS)
    assert share == max(0, looks - (chunks - 1)) / 100  # the last chunk gives the first token
    assert detail == {}
    assert not device.turns._taken


def test_the_model_is_loaded_once_kept_and_given_up_for_what_others_reserve(device: WorkDevice) -> None:
    def loaded() -> list[Any]:
        return [held.tensor for key, held in device._weights.items() if key[0] == "model"]

    run(device, ("a", 2, 0.0, 0))
    first = loaded()
    run(device, ("b", 2, 0.0, 0))
    assert loaded() == first != []
    with device.model(ordered(memory_bytes=0), "another", lambda: ("weights", 10)) as another:
        assert loaded() == [another] == ["weights"]
    with device.weights(Order("linear", None, None, 1, 1, 1, 0), (8, 8)):
        pass
    with device.model(ordered(memory_bytes=1 << 30), "another", lambda: ("weights", 10)):
        assert [key[0] for key in device._weights] == ["model"]
    with device.weights(Order("linear", None, None, 1, 1, 1, 1 << 30)):
        assert loaded() == []


def test_a_model_that_cannot_be_loaded_leaves_nothing_reserved(device: WorkDevice) -> None:
    def fail() -> tuple[Any, int]:
        raise OSError("no such file")

    before = device._reserved_bytes
    with pytest.raises(OSError, match="no such file"), device.model(ordered(), "broken", fail):
        pass
    assert device._reserved_bytes == before


# --- in worker processes ----------------------------------------------------------------------------------------------


def generation(*asked: Asked) -> Generation:
    return Generation(MODEL, [Prompt(*each, tokens=len(each[0].encode()) + 1) for each in asked])


def test_a_worker_process_gives_the_same_texts_as_this_one(bench: Bench, engine: ByteModel) -> None:
    asked = [*prompts(8), *prompts(4, temperature=0.9, seed=2)]
    memory_bytes = reserved_bytes(MODEL, len(asked), 250)
    for gpu_id in (0, 1):
        bench.start(gpu_id, kind="text_generation", generation=generation(*asked), memory_bytes=memory_bytes)
    here = [engine.decode([], new) for new, _ in texts(engine, asked)]
    for _ in range(2):
        fact = bench.mail.next()
        assert isinstance(fact, AttemptFinished)
        assert fact.detail is not None
        assert [part["text"] for part in fact.detail["generation"]] == here
        assert fact.detail["peak_memory_bytes"] is None or fact.detail["peak_memory_bytes"] <= memory_bytes


def test_a_worker_process_stops_generating_when_asked(bench: Bench) -> None:
    asked = [("word " * 100, 500, 0.7, seed) for seed in range(16)]
    attempt = bench.start(kind="text_generation", generation=generation(*asked), memory_bytes=1 << 28)
    pid = bench.pid()
    bench.stop(attempt)
    fact = bench.mail.next()
    assert isinstance(fact, AttemptStopped)
    assert fact.iterations < 1.0
    assert bench.pid() == pid  # it saw the stop by itself


def test_prompts_that_need_more_memory_than_there_is_run_out_of_memory(bench: Bench) -> None:
    asked = [("x" * 900, 100, 0.0, 0)] * 300  # 2.4 GB of keys and values on a device of 2 GiB
    bench.start(kind="text_generation", generation=generation(*asked), memory_bytes=1 << 20)
    fact = bench.mail.next()
    assert isinstance(fact, AttemptFailed)
    assert fact.error_code == "out_of_memory"
    bench.start(kind="text_generation", generation=generation(("Return ", 3, 0.0, 0)), memory_bytes=1 << 28)
    assert isinstance(bench.mail.next(), AttemptFinished)
