"""Text models of Hugging Face's transformers in a worker: batched, padded on the left, with a KV cache."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from folder_models import TEXT, save_gpt2, save_llama
from workers import Bench

from altlas_core.events import AttemptFinished
from altlas_core.generation import Generation, Prompt, reserved_bytes
from altlas_core.text_models import describe_model

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="transformers is not installed")

from altlas_core.backends.worker.device import WorkDevice  # noqa: E402
from altlas_core.backends.worker.folder_model import FolderModel  # noqa: E402
from altlas_core.backends.worker.generate import Continuation, Times, continue_all, run_generation  # noqa: E402
from altlas_core.backends.worker.order import Order  # noqa: E402

Asked = tuple[str, int, float, int]  # text, max_new_tokens, temperature, seed
SAVERS: dict[str, Callable[[Path], Path]] = {"llama": save_llama, "gpt2": save_gpt2}


@pytest.fixture(scope="module")
def device() -> Iterator[WorkDevice]:
    threads = torch.get_num_threads()
    yield WorkDevice("cpu", 1, 42, 1 << 30)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=list(SAVERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SAVERS[request.param](tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def engine(device: WorkDevice, folder: Path) -> FolderModel:
    made = FolderModel(device, str(folder))
    made.chunk_tokens = 0  # so that prompts of more than 16 tokens are read in chunks
    return made


def texts(engine: FolderModel, asked: Sequence[Asked]) -> list[tuple[list[int], bool]]:
    rows = [Continuation(engine, *each) for each in asked]
    with torch.inference_mode():
        for _ in continue_all(engine, rows, Times()):
            pass
    return [(row.new, row.stopped) for row in rows]


def prompts(count: int, temperature: float) -> list[Asked]:
    dice = random.Random(4)
    words = " ".join(TEXT).split()
    return [
        (" ".join(dice.choice(words) for _ in range(dice.randrange(12))), dice.randrange(1, 20), temperature, at)
        for at in range(count)
    ]


def test_greedy_continuations_are_those_of_the_librarys_own_generate(engine: FolderModel) -> None:
    for text, new, _, _ in prompts(10, 0.0):
        ids = torch.tensor([engine.encode(text)[-(engine.context - new) :]])
        told = engine.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0
        )
        expected = [token for token in told[0, ids.shape[1] :].tolist() if token not in engine.stops]
        assert texts(engine, [(text, new, 0.0, 0)])[0][0] == expected


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_continuations_are_the_same_alone_and_in_a_batch(engine: FolderModel, temperature: float) -> None:
    asked = prompts(24, temperature)
    alone = [texts(engine, [each])[0] for each in asked]
    assert len({tuple(new) for new, _ in alone}) > 10
    for size in (3, 8, 24):
        for at in range(0, 24, size):
            assert texts(engine, asked[at : at + size]) == alone[at : at + size]


def test_the_result_has_the_same_form_as_the_embedded_models(device: WorkDevice, folder: Path) -> None:
    asked = (("Return the", 6, 0.0, 0), ("", 3, 0.0, 0), ("word " * 200, 8, 0.7, 3))
    order = Order("text_generation", None, None, 1, 1, 1, 1 << 28, generation=(str(folder), folder.name, asked))
    done, detail = run_generation(device, order, threading.Event(), time.perf_counter())
    assert (done, detail["model"], detail["simulated"], detail["measured"]) == (1.0, folder.name, False, True)
    parts = detail["generation"]
    assert [part["prompt_truncated"] for part in parts] == [False, False, True]
    assert parts[2]["prompt_tokens"] == describe_model(str(folder)).context - 8
    assert all(part["finish_reason"] in ("stop", "length") for part in parts)
    assert all(isinstance(part["text"], str) and "Return the" not in part["text"] for part in parts)
    assert [key for key in device._weights if key[0] == "model"] == [("model", str(folder))]


def test_the_models_own_end_stops_a_text(engine: FolderModel, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole, _) = texts(engine, [("Return the", 15, 0.0, 0)])[0]
    monkeypatch.setattr(engine, "stops", frozenset((whole[3],)))
    assert texts(engine, [("Return the", 15, 0.0, 0)]) == [(whole[: whole.index(whole[3])], True)]


def test_a_worker_process_loads_it_from_the_folder_and_the_embedded_one_after_it(
    bench: Bench, device: WorkDevice, engine: FolderModel, folder: Path
) -> None:
    asked: Any = [*prompts(4, 0.0), *prompts(4, 0.9)]
    for path in (str(folder), None):
        model = describe_model(path)
        rows = [Prompt(*each, tokens=len(each[0]) + 1) for each in asked]
        reserved = reserved_bytes(model, len(rows), 200)
        bench.start(kind="text_generation", generation=Generation(model, rows), memory_bytes=reserved)
        fact = bench.mail.next()
        assert isinstance(fact, AttemptFinished), fact
        assert fact.detail is not None
        if path is not None:
            here = [
                engine.decode(engine.encode(text), new)
                for (text, *_), (new, _) in zip(asked, texts(engine, asked), strict=True)
            ]
            assert [part["text"] for part in fact.detail["generation"]] == here


def test_a_folder_that_is_gone_when_the_task_starts_is_the_tasks_error(bench: Bench, tmp_path: Path) -> None:
    model = describe_model(str(save_llama(tmp_path / "m")))
    (tmp_path / "m" / "model.safetensors").unlink()
    bench.start(kind="text_generation", generation=Generation(model, [Prompt("a", 2, 0.0, 0, 2)]))
    fact = bench.mail.next()
    assert getattr(fact, "error_code", None) == "task_error"
    assert "has no weights" in getattr(fact, "error", "")
