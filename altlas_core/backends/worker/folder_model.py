"""A text model of Hugging Face's transformers, from a folder: padded on the left, with its own KV cache."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from altlas_core.backends.worker.device import WorkDevice
from altlas_core.backends.worker.loop import CUDA_KERNEL_FLOP
from altlas_core.generation import CHUNK_TOKENS
from altlas_core.text_models import describe_model

if TYPE_CHECKING:
    from torch import Tensor

CPU_CHUNK_FLOP: Final = 2e9  # of reading prompts between two looks at a stop: about 50 ms on one core of today
LEAST_CHUNK_TOKENS: Final = 16  # of a prompt: fewer would read the weights for next to nothing


class FolderModel:
    """Implements generate.TextEngine. Computes in the format the model is stored in."""

    def __init__(self, device: WorkDevice, path: str) -> None:
        """Raises OSError, ValueError or what else transformers does for a folder it cannot load."""
        transformers: Any = importlib.import_module("transformers")  # optional, so nothing may know its types
        facts = describe_model(path)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        formats = {8: "float64", 4: "float32"}
        self.torch, self.device = device.torch, device.device
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, dtype=formats.get(facts.element_bytes, "auto")
        )
        self.model = self.model.to(self.device).eval()
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
        self.context = facts.context
        self.stops = frozenset(self._ends())
        self.accepts = frozenset(inspect.signature(self.model.forward).parameters)
        self.size_bytes = sum(p.numel() * p.element_size() for p in self.model.parameters())
        flop = CUDA_KERNEL_FLOP if device.kind == "cuda" else CPU_CHUNK_FLOP
        self.chunk_tokens = min(CHUNK_TOKENS, int(flop / (2 * facts.parameters)))

    def _ends(self) -> list[int]:
        """The tokens that end a text, as the model and its tokenizer say."""
        told = [self.model.generation_config.eos_token_id, self.model.config.eos_token_id, self.tokenizer.eos_token_id]
        return [
            int(token) for ends in told if ends is not None for token in (ends if isinstance(ends, list) else [ends])
        ]

    def encode(self, text: str) -> list[int]:
        """The tokens of a text as the tokenizer begins one; at least one token."""
        tokens: list[int] = list(self.tokenizer(text.encode("utf-8", "replace").decode())["input_ids"])
        if tokens:
            return tokens
        begin = self.tokenizer.bos_token_id
        return [int(begin) if begin is not None else min(self.stops, default=0)]

    def decode(self, prompt: Sequence[int], new: Sequence[int]) -> str:
        """The text of the new tokens alone: what they add to the prompt's, since a leading space may be dropped."""
        before: str = self.tokenizer.decode(list(prompt), skip_special_tokens=True)
        whole: str = self.tokenizer.decode([*prompt, *new], skip_special_tokens=True)
        if whole.startswith(before):
            return whole[len(before) :]
        alone: str = self.tokenizer.decode(list(new), skip_special_tokens=True)
        return alone

    def begin(self, prompts: Sequence[Sequence[int]], _most_new: Sequence[int]) -> FolderBatch:
        """A batch of prompts, the longest first."""
        return FolderBatch(self, prompts)


class FolderBatch:
    """Prompts on their way, padded on the left. Implements generate.TextBatch."""

    def __init__(self, engine: FolderModel, prompts: Sequence[Sequence[int]]) -> None:
        torch = engine.torch
        self._engine = engine
        longest = len(prompts[0])
        padded = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        self._ids = torch.tensor(padded, device=engine.device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=engine.device).unsqueeze(1)
        self._mask = (torch.arange(longest, device=engine.device) >= longest - lengths).long()
        self._cache: Any = None

    def read(self) -> Iterator[Tensor | None]:
        """Read the prompts, chunk by chunk; None after each but the last, whose logits [rows, vocabulary] it gives."""
        rows, longest = self._ids.shape
        chunk = max(LEAST_CHUNK_TOKENS, self._engine.chunk_tokens // rows)
        for end in range(chunk, longest, chunk):
            self._forward(self._ids[:, end - chunk : end], self._mask[:, :end])
            yield None
        done = (longest - 1) // chunk * chunk
        yield self._forward(self._ids[:, done:], self._mask)

    def step(self, ids: Tensor) -> Tensor:
        """Put a token [rows] behind each row; the logits [rows, vocabulary] of what comes next."""
        self._mask = self._engine.torch.cat([self._mask, self._mask.new_ones((len(ids), 1))], 1)
        return self._forward(ids.unsqueeze(1), self._mask)

    def keep(self, rows: Sequence[int]) -> None:
        """From now on these rows alone, in this order."""
        chosen = self._engine.torch.tensor(rows, device=self._engine.device)
        self._mask = self._mask[chosen]
        self._cache.batch_select_indices(chosen)

    def _forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits [rows, vocabulary] of the last of these tokens; they go into the cache."""
        accepts = self._engine.accepts
        places = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        cache_name = "cache" if "cache" in accepts else "past_key_values"  # transformers 5.24 renamed it
        given = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": places,
            cache_name: self._cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        told = self._engine.model(**{name: value for name, value in given.items() if name in accepts})
        self._cache = told[cache_name]
        logits: Tensor = told.logits[:, -1]
        return logits
