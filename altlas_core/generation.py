"""What a task of the kind `text_generation` is to do: prompts, and the text model that continues them.

Imports nothing of the project and no torch: the scheduler, the GPU model and the API all speak of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

KIND: Final = "text_generation"
# What a piece needs beside weights, KV cache and its own arrays: libraries' workspaces, tables of positions.
WORKSPACE_BYTES: Final = 64 << 20
CHUNK_TOKENS: Final = 2048  # of all rows together: the most that a prompt's reading computes at once
_WIDE: Final = 24  # arrays as wide as the model that reading a token holds at once: qkv, the hidden layer, copies


@dataclass(slots=True, frozen=True)
class TextModel:
    """The facts of a decoder-only transformer. `kv_width` is its KV heads times their width.

    name: "altlas-bytes" for the embedded one, else the folder's name. path: None for the embedded one, else the
    absolute path of a Hugging Face causal LM on disk. context: most tokens of prompt and continuation together.
    element_bytes: of a weight and of an entry of the KV cache, as computed with.
    """

    name: str
    path: str | None
    layers: int
    width: int
    kv_width: int
    vocabulary: int
    context: int
    parameters: int
    element_bytes: int

    @property
    def weights_bytes(self) -> int:
        """Memory of the weights."""
        return self.parameters * self.element_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Memory of a token's keys and values in all layers."""
        return 2 * self.layers * self.kv_width * self.element_bytes


@dataclass(slots=True, frozen=True)
class Prompt:
    """A text to be continued by up to `max_new_tokens` (at least 1) tokens.

    temperature 0: always the likeliest token; above, drawn from softmax(logits / temperature) by a generator of the
    prompt's own, seeded with `seed`. tokens: an upper bound of the tokens of `text`: its UTF-8 bytes and one.
    """

    text: str
    max_new_tokens: int
    temperature: float
    seed: int
    tokens: int


@dataclass(slots=True, eq=False)
class Generation:
    """The prompts that one attempt continues together. Prompts may be added as long as the task waits."""

    model: TextModel
    prompts: list[Prompt]


# As it goes over the wire: model path, model name, and of each prompt text, max_new_tokens, temperature, seed.
Wired = tuple[str | None, str, tuple[tuple[str, int, float, int], ...]]


def wired(generation: Generation) -> Wired:
    """The generation as it is now, as plain data that can be marshalled."""
    prompts = tuple((p.text, p.max_new_tokens, p.temperature, p.seed) for p in generation.prompts)
    return generation.model.path, generation.model.name, prompts


def detail(
    model_name: str, simulated: bool, parts: list[dict[str, Any]], prefill_s: float, decode_s: float
) -> dict[str, Any]:
    """What an attempt tells of itself. `parts`: for each prompt, in order, what became of it (see `part`)."""
    seconds = prefill_s + decode_s
    return {
        "simulated": simulated,
        "measured": not simulated,
        "model": model_name,
        "generation": parts,
        "prefill_s": prefill_s,
        "decode_s": decode_s,
        "tokens_per_s": sum(part["tokens"] for part in parts) / seconds if seconds else None,
    }


def part(
    text: str,
    tokens: int,
    prompt_tokens: int,
    time_to_first_token_s: float,
    stopped: bool,
    prompt_truncated: bool,
) -> dict[str, Any]:
    """What became of one prompt: `tokens` new ones (that which ends a text is not counted), `text` is theirs alone.

    time_to_first_token_s counts from the start of the attempt. stopped: the model ended the text.
    """
    return {
        "text": text,
        "tokens": tokens,
        "prompt_tokens": prompt_tokens,
        "time_to_first_token_s": time_to_first_token_s,
        "finish_reason": "stop" if stopped else "length",
        "prompt_truncated": prompt_truncated,
    }


def fit(model_context: int, prompt_tokens: int, max_new_tokens: int) -> tuple[int, int]:
    """(tokens of the prompt that are kept, most new tokens): together no more than the context holds.

    At least one token of the prompt stays; else the new tokens have the right of way.
    """
    new = max(1, min(max_new_tokens, model_context - 1))
    return min(prompt_tokens, model_context - new), new


def reserved_bytes(model: TextModel, rows: int, tokens: int) -> int:
    """Device memory of a piece of up to `rows` prompts of up to `tokens` tokens each, prompt and continuation.

    Weights + KV cache + what reading a chunk of the prompts holds + logits in float64 with their softmax, cumulative
    sum and a copy. Of one layer's KV cache another two copies: what grows it, or takes rows out, makes a new one first.
    """
    tokens = min(tokens, model.context)
    kv = rows * tokens * model.kv_bytes_per_token
    copies = 2 * kv // model.layers
    reading = min(rows * tokens, max(CHUNK_TOKENS, rows)) * model.width * _WIDE * model.element_bytes
    logits = 4 * 8 * rows * model.vocabulary
    return model.weights_bytes + kv + copies + reading + logits + WORKSPACE_BYTES
