"""What a text model is: its facts, read from its files without loading it. Needs neither torch nor transformers."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from altlas_core.errors import ConfigError
from altlas_core.generation import TextModel

EMBEDDED: Final = Path(__file__).parent / "models" / "altlas-bytes.safetensors"
# The embedded model computes in float64. It is small, so a decoding step takes about half as long again as in float32
# (docs/benchmarks.md), and sums that are rounded differently in another batch then differ by 1e-15: too little to make
# another token the likeliest. So a prompt's continuation does not depend on its neighbours, nor on the device.
EMBEDDED_BYTES: Final = 8
_SIZES: Final = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}  # what a model of a folder may compute in
_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tokenizer_config.json")
_MOST_HEADER_BYTES: Final = 1 << 27


def describe_model(path: str | None) -> TextModel:
    """The facts of the embedded model (None) or of a Hugging Face causal LM in a folder.

    Raises ConfigError, naming predict.model, the path and what is needed, for a folder that holds none.
    """
    return _embedded() if path is None else _of_folder(Path(path).expanduser().absolute())


def embedded_facts() -> dict[str, str]:
    """What the shipped file says of itself: sizes, corpus, date and losses of its training."""
    facts: dict[str, str] = read_header(EMBEDDED)["__metadata__"]
    return facts


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: tensor name -> dtype, shape, data_offsets; and "__metadata__".

    Raises OSError or ValueError where it is none (https://huggingface.co/docs/safetensors: length, then JSON).
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MOST_HEADER_BYTES:
            raise ValueError("no safetensors header")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("no safetensors header")
    return header


def _embedded() -> TextModel:
    facts = embedded_facts()
    width = int(facts["width"])
    return TextModel(
        name=facts["name"],
        path=None,
        layers=int(facts["layers"]),
        width=width,
        kv_width=width,
        vocabulary=int(facts["vocabulary"]),
        context=int(facts["context"]),
        parameters=int(facts["parameters"]),
        element_bytes=EMBEDDED_BYTES,
    )


def _of_folder(folder: Path) -> TextModel:
    config = _config_of(folder)
    if importlib.util.find_spec("transformers") is None:
        raise _refused(
            folder, "the package transformers is not installed", "run: pip install 'altlas-core[transformers]'"
        )
    layers, width = (
        _whole(folder, config, "num_hidden_layers", "n_layer"),
        _whole(folder, config, "hidden_size", "n_embd"),
    )
    heads = _whole(folder, config, "num_attention_heads", "n_head")
    kv_heads = _first(config, "num_key_value_heads") or heads
    head_width = _first(config, "head_dim") or width // heads
    vocabulary = _whole(folder, config, "vocab_size")
    format_name = str(_first(config, "dtype", "torch_dtype") or "float32").removeprefix("torch.")
    if format_name not in _SIZES:
        raise _refused(folder, f"config.json: dtype {format_name}", f"allowed: {', '.join(_SIZES)}")
    return TextModel(
        name=folder.name,
        path=str(folder),
        layers=layers,
        width=width,
        kv_width=int(kv_heads) * int(head_width),
        vocabulary=vocabulary,
        context=_whole(folder, config, "max_position_embeddings", "n_positions", "n_ctx"),
        parameters=_counted(folder) or _estimated(config, layers, width, vocabulary),
        element_bytes=_SIZES[format_name],
    )


def _config_of(folder: Path) -> dict[str, Any]:
    """config.json, once it is clear that the folder has all the files that a causal LM needs."""
    if not folder.is_dir():
        raise _refused(folder, "there is no such folder", "give the folder of a Hugging Face causal LM, or null")
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise _refused(folder, "it has no config.json", "give the folder of a Hugging Face causal LM") from None
    except ValueError as problem:
        raise _refused(folder, f"config.json is not JSON ({problem})", "save the model again") from None
    architectures = config.get("architectures") if isinstance(config, dict) else None
    names = [str(name) for name in architectures] if isinstance(architectures, list) else []
    if not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        said = ", ".join(names) or "none"
        raise _refused(
            folder,
            f"config.json names no causal LM (architectures: {said})",
            "give one that ends in ForCausalLM or LMHeadModel",
        )
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise _refused(folder, "it has no tokenizer", f"save one beside it ({', '.join(_TOKENIZERS)})")
    if not any(_weights_of(folder)) and not any(folder.glob("pytorch_model*.bin")):
        raise _refused(folder, "it has no weights", "save them beside it (model.safetensors)")
    return dict(config)


def _weights_of(folder: Path) -> Iterable[Path]:
    return sorted(folder.glob("model*.safetensors"))


def _counted(folder: Path) -> int:
    """Parameters, from the headers of the safetensors files; 0 where there are none that can be read."""
    try:
        return sum(
            math.prod(facts["shape"])
            for file in _weights_of(folder)
            for name, facts in read_header(file).items()
            if name != "__metadata__"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _estimated(config: Mapping[str, Any], layers: int, width: int, vocabulary: int) -> int:
    """4 width² for attention and 3 width x hidden for a gated MLP, in each layer, and the embeddings twice."""
    hidden = _first(config, "intermediate_size", "n_inner") or 4 * width
    return int(layers * (4 * width * width + 3 * width * int(hidden)) + 2 * vocabulary * width)


def _first(config: Mapping[str, Any], *names: str) -> Any:
    """The value of the first of these names that has one: families of models call the same thing differently."""
    return next((config[name] for name in names if config.get(name) is not None), None)


def _whole(folder: Path, config: Mapping[str, Any], *names: str) -> int:
    value = _first(config, *names)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _refused(folder, f"config.json has no {' or '.join(names)}", "a whole number from 1 on is needed")
    return value


def _refused(folder: Path, problem: str, needed: str) -> ConfigError:
    return ConfigError(f"predict.model: {folder}: {problem}; {needed}")
