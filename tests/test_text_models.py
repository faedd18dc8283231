"""The facts of a text model, read from its files without loading it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from folder_models import save_gpt2, save_llama

from altlas_core import text_models
from altlas_core.errors import ConfigError
from altlas_core.text_models import EMBEDDED, describe_model, embedded_facts, read_header


def test_the_embedded_model_is_small_and_says_where_it_comes_from() -> None:
    model, facts = describe_model(None), embedded_facts()
    assert (model.name, model.path, model.context, model.vocabulary) == ("altlas-bytes", None, 1024, 257)
    assert EMBEDDED.stat().st_size <= 2 * 10**6
    shapes = {name: tensor["shape"] for name, tensor in read_header(EMBEDDED).items() if name != "__metadata__"}
    assert model.parameters == sum(rows * columns for rows, columns in shapes.values())
    assert shapes["embedding"] == [model.vocabulary, model.width]
    assert f"layers.{model.layers - 1}.qkv" in shapes
    assert "PSF licence" in facts["corpus"]
    assert float(facts["validation_loss_nats_per_byte"]) < 1.6


def test_facts_need_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from altlas_core.text_models import describe_model; describe_model(None); "
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_folder_of_a_causal_lm_is_described_from_its_files(tmp_path: Path) -> None:
    model = describe_model(str(save_llama(tmp_path / "tiny-llama")))
    assert (model.name, model.path) == ("tiny-llama", str(tmp_path / "tiny-llama"))
    assert (model.layers, model.width, model.kv_width, model.context, model.element_bytes) == (2, 32, 2 * 8, 64, 4)
    attention = 32 * 32 * 2 + 32 * 16 * 2
    assert model.parameters == 2 * (attention + 3 * 32 * 48 + 2 * 32) + 32 + 2 * model.vocabulary * 32


def test_a_folder_of_gpt2_calls_its_sizes_otherwise(tmp_path: Path) -> None:
    model = describe_model(str(save_gpt2(tmp_path / "tiny-gpt2")))
    assert (model.layers, model.width, model.kv_width, model.context) == (2, 32, 32, 48)


def test_parameters_are_estimated_where_no_header_tells_them(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "m")
    exact = describe_model(str(folder)).parameters
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert describe_model(str(folder)).parameters == pytest.approx(exact, rel=0.15)


def folder_with(path: Path, **more: object) -> Path:
    """A folder that has all it needs, but for what is changed."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "vocab_size": 300,
        "max_position_embeddings": 64,
        **more,
    }
    path.mkdir()
    (path / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return path


@pytest.mark.parametrize(
    ("more", "removed", "part"),
    [
        ({"architectures": ["BertForMaskedLM"]}, None, "names no causal LM (architectures: BertForMaskedLM)"),
        ({"architectures": None}, None, "names no causal LM (architectures: none)"),
        ({"hidden_size": "wide"}, None, "config.json has no hidden_size or n_embd; a whole number from 1 on is needed"),
        ({"max_position_embeddings": None}, None, "config.json has no max_position_embeddings or n_positions"),
        ({"dtype": "int4"}, None, "dtype int4; allowed: float64, float32, float16, bfloat16"),
        ({}, "config.json", "it has no config.json; give the folder of a Hugging Face causal LM"),
        ({}, "tokenizer.json", "it has no tokenizer; save one beside it (tokenizer.json"),
        ({}, "model.safetensors", "it has no weights; save them beside it (model.safetensors)"),
    ],
)
def test_what_a_folder_lacks_is_told(
    tmp_path: Path, more: dict[str, object], removed: str | None, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_models.importlib.util, "find_spec", lambda _: object())
    folder = folder_with(tmp_path / "m", **more)
    if removed:
        (folder / removed).unlink()
    with pytest.raises(ConfigError) as caught:
        describe_model(str(folder))
    assert str(caught.value).startswith(f"predict.model: {folder}: ")
    assert part in str(caught.value)


def test_a_folder_that_is_not_there_and_a_config_that_is_not_json_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"predict\.model: .*/none: there is no such folder; give the folder"):
        describe_model(str(tmp_path / "none"))
    folder = folder_with(tmp_path / "m")
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json is not JSON"):
        describe_model(str(folder))


def test_without_transformers_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_models.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError) as caught:
        describe_model(str(folder_with(tmp_path / "m")))
    assert "pip install 'altlas-core[transformers]'" in str(caught.value)
    assert describe_model(None).path is None  # the embedded one needs nothing
