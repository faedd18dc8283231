"""The embedded text model: its weights, and a batch of texts that it continues token by token with a KV cache.

The model, as training/train_bytes.py trained it: x = norm(embedding); in each layer x += out(attention(norm(x))) and
x += down(relu(up(norm(x)))²); logits = norm(x) @ embedding. norm is RMSNorm without gains, attention has ALiBi: the
score of a key d tokens back is lowered by slope x d (Press et al. 2022, arXiv:2108.12409). All of it in float64: see
text_models.EMBEDDED_BYTES for why.

Texts stand in the cache from its first place on, each row at its own. What lies behind a row's end is zero, or left
from reading longer prompts: finite, and masked away by its distance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from altlas_core.text_models import EMBEDDED, read_header

if TYPE_CHECKING:
    from torch import Tensor

END: Final = 256  # stands before a text and after it
_EPSILON: Final = 1e-6  # of the norm, as in training


@dataclass(slots=True, frozen=True)
class Layer:
    """[outputs, inputs] each, as torch's linear takes them; out and down turned around, as its addmm does."""

    qkv: Tensor
    out: Tensor
    up: Tensor
    down: Tensor


class ByteModel:
    """The weights on a device. Implements generate.TextEngine."""

    def __init__(self, torch: Any, device: Any, chunk_tokens: int) -> None:
        """`chunk_tokens`: of all rows together, read at once; a stop is seen between chunks."""
        header = read_header(EMBEDDED)
        facts = header["__metadata__"]
        self.torch = torch
        self.device = device
        self.chunk_tokens = chunk_tokens
        self.stops = frozenset((END,))
        self.context = int(facts["context"])
        self.width, self.heads = int(facts["width"]), int(facts["heads"])
        self.head_width = self.width // self.heads
        tensors = _tensors(torch, device, header)
        self.embedding = tensors["embedding"]
        self.first = _norm(torch, self.embedding)  # what enters the first layer, by token
        self.layers = [self._layer(tensors, f"layers.{index}.") for index in range(int(facts["layers"]))]
        steps = range(1, self.heads + 1)
        self.slopes = torch.tensor(
            [2.0 ** (-8.0 * step / self.heads) for step in steps], dtype=torch.float64, device=device
        )
        self.size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    def _layer(self, tensors: dict[str, Tensor], prefix: str) -> Layer:
        qkv = tensors[f"{prefix}qkv"]
        qkv[: self.width] /= math.sqrt(self.head_width)  # the scale of the scores
        out, down = (tensors[prefix + name].t() for name in ("out", "down"))
        return Layer(qkv, out, tensors[f"{prefix}up"], down)

    def encode(self, text: str) -> list[int]:
        """END and the bytes of the text; what is no UTF-8 becomes a question mark."""
        return [END, *text.encode("utf-8", "replace")]

    def decode(self, _prompt: Sequence[int], new: Sequence[int]) -> str:
        """The text of the new tokens; bytes that are no UTF-8 become replacement characters."""
        return bytes(new).decode("utf-8", "replace")

    def begin(self, prompts: Sequence[Sequence[int]], most_new: Sequence[int]) -> ByteBatch:
        """A batch of prompts, the longest first, each with the most tokens that are to follow it."""
        places = max(len(prompt) + new for prompt, new in zip(prompts, most_new, strict=True))
        return ByteBatch(self, prompts, places)


class ByteBatch:
    """Prompts on their way: `read` them, then `step` by step. Implements generate.TextBatch."""

    def __init__(self, model: ByteModel, prompts: Sequence[Sequence[int]], places: int) -> None:
        torch, device, rows, heads = model.torch, model.device, len(prompts), model.heads
        self._model = model
        self._torch = torch
        self._prompts = prompts
        self._all_rows, self._rows, self._places = rows, rows, places
        shape = (2, rows, heads, places, model.head_width)
        self._cache = [torch.zeros(shape, dtype=torch.float64, device=device) for _ in model.layers]
        self._flat = [cache.view(-1, model.head_width) for cache in self._cache]
        self._keys = [cache[0].view(rows * heads, places, model.head_width) for cache in self._cache]
        self._values = [cache[1].view(rows * heads, places, model.head_width) for cache in self._cache]
        self._order = torch.arange(places, dtype=torch.float64, device=device)  # the places, for distances
        self._lengths = [len(prompt) for prompt in prompts]  # tokens in the cache, by row, when it was last asked
        self._stepped = 0  # steps since then

    # --- reading prompts ------------------------------------------------------------------------------------------

    def read(self) -> Iterator[Tensor | None]:
        """Read the prompts, chunk by chunk; None after each but the last, whose logits [rows, vocabulary] it gives."""
        torch, model = self._torch, self._model
        longest, chunk = self._lengths[0], max(1, model.chunk_tokens // self._rows)
        ids = torch.zeros((self._rows, longest), dtype=torch.int64)
        for row, prompt in enumerate(self._prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        ids = ids.to(model.device)
        last = torch.empty((self._rows, model.width), dtype=torch.float64, device=model.device)
        for start in range(0, longest, chunk):
            end = min(start + chunk, longest)
            rows = sum(length > start for length in self._lengths)  # the longest come first
            x = self._read_chunk(ids[:rows, start:end], start, end)
            for row in range(rows):
                if self._lengths[row] <= end:
                    last[row] = x[row, self._lengths[row] - 1 - start]
            if end < longest:
                yield None
        self._aim()
        yield torch.nn.functional.linear(_norm(torch, last), model.embedding)

    def _read_chunk(self, ids: Tensor, start: int, end: int) -> Tensor:
        """[rows, end - start, width] of the last layer, for tokens at these places."""
        torch, model = self._torch, self._model
        linear = torch.nn.functional.linear
        rows, tokens = ids.shape
        heads, width = model.heads, model.width
        back = self._order[:end] - self._order[start:end, None]
        bias = (back.masked_fill(back > 0, -math.inf) * model.slopes[:, None, None]).unsqueeze(0)
        x = model.first[ids]
        for layer, cache in zip(model.layers, self._cache, strict=True):
            qkv = linear(_norm(torch, x), layer.qkv).view(rows, tokens, 3, heads, model.head_width)
            query, key, value = qkv.permute(2, 0, 3, 1, 4)
            cache[0, :rows, :, start:end] = key
            cache[1, :rows, :, start:end] = value
            mixed = torch.nn.functional.scaled_dot_product_attention(
                query, cache[0, :rows, :, :end], cache[1, :rows, :, :end], attn_mask=bias, scale=1.0
            )
            x = x + mixed.transpose(1, 2).reshape(rows, tokens, width) @ layer.out
            x = x + linear(_norm(torch, x), layer.up).relu_().square_() @ layer.down
        return x

    # --- continuing them ------------------------------------------------------------------------------------------

    def step(self, ids: Tensor) -> Tensor:
        """Put a token [rows] behind each row; the logits [rows, vocabulary] of what comes next."""
        torch, model, rows = self._torch, self._model, self._rows
        linear, addmm = torch.nn.functional.linear, torch.addmm
        heads, width, head_width = model.heads, model.width, model.head_width
        all_heads, reach = rows * heads, self._longest + self._stepped + 1
        back = self._order[:reach] - self._at
        bias = (back.masked_fill_(back > 0, -math.inf).unsqueeze(1) * model.slopes[:, None]).view(all_heads, 1, reach)
        x = model.first.index_select(0, ids)
        for layer, flat, keys, values in zip(model.layers, self._flat, self._keys, self._values, strict=True):
            qkv = linear(_norm(torch, x), layer.qkv)
            new = qkv[:, width:].view(rows, 2, heads, head_width).transpose(0, 1).reshape(-1, head_width)
            flat.index_copy_(0, self._slots, new)
            query = qkv[:, :width].reshape(all_heads, 1, head_width)
            shares = torch.baddbmm(bias, query, keys[:all_heads, :reach].transpose(1, 2)).softmax(-1)
            mixed = torch.bmm(shares, values[:all_heads, :reach]).view(rows, width)
            x = addmm(x, mixed, layer.out)
            x = addmm(x, linear(_norm(torch, x), layer.up).relu_().square_(), layer.down)
        self._stepped += 1
        self._at += 1.0
        self._slots += 1
        logits: Tensor = linear(_norm(torch, x), model.embedding)
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """From now on these rows alone, in this order. Rows that stay where they are cost nothing."""
        lengths = [length + self._stepped for length in self._lengths]
        for place, row in enumerate(rows):
            if place != row:
                for cache in self._cache:
                    cache[:, place, :, : lengths[row]] = cache[:, row, :, : lengths[row]]
        self._lengths = [lengths[row] for row in rows]
        self._rows = len(rows)
        self._aim()

    def _aim(self) -> None:
        """Where each row's next token goes: its place, and its slots among all of a layer's keys and values."""
        torch, model = self._torch, self._model
        self._stepped = 0
        self._longest = max(self._lengths)
        lengths = torch.tensor(self._lengths)
        part, row = torch.arange(2)[:, None, None], torch.arange(self._rows)[:, None]
        heads = (part * self._all_rows + row) * model.heads + torch.arange(model.heads)
        self._slots = (heads * self._places + lengths[:, None]).reshape(-1).to(model.device)
        self._at = lengths.to(model.device, torch.float64).unsqueeze(1)


def _norm(torch: Any, x: Tensor) -> Tensor:
    """Root mean square 1 along the last dimension."""
    scale: Tensor = (torch.linalg.vecdot(x, x).unsqueeze(-1) / x.shape[-1] + _EPSILON).rsqrt_()
    return x * scale


def _tensors(torch: Any, device: Any, header: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of the shipped file, as float64 on the device."""
    data = EMBEDDED.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    made = {}
    for name, facts in header.items():
        if name != "__metadata__":
            begin, end = facts["data_offsets"]
            stored = torch.frombuffer(bytearray(data[start + begin : start + end]), dtype=torch.float16)
            made[name] = stored.view(facts["shape"]).to(device, torch.float64)
    return made
