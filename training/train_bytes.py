# ruff: noqa: INP001
"""Trains altlas-bytes, the text model that ships with the package, and writes it.

    python training/train_bytes.py [OUTPUT]      # default: altlas_core/models/altlas-bytes.safetensors

A decoder-only transformer over bytes, learnt from the docstrings of the standard library of the interpreter that runs
this (Python is under the PSF licence, https://docs.python.org/3/license.html). The same interpreter, torch, computer
and number of threads give the same file: everything random comes from SEED.

Formulas: ALiBi (Press et al. 2022, arXiv:2108.12409), RMSNorm without gains (Zhang & Sennrich 2019, arXiv:1910.07467),
squared ReLU (So et al. 2021, arXiv:2109.08668), tied embeddings (Press & Wolf 2017, arXiv:1608.05859), Muon for the
matrices of the layers (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import math
import platform
import sys
import sysconfig
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

SEED = 20
END = 256  # beside the 256 bytes: stands before a text and after it
VOCABULARY = 257
LAYERS, WIDTH, HEADS = 4, 128, 4
CONTEXT = 1024  # ALiBi reaches past the window it was trained in
WINDOW, BATCH, STEPS = 256, 32, 2200
EMBEDDING_RATE, MATRIX_RATE, WARM_UP = 0.004, 0.02, 100
HELD_OUT = 50  # one docstring in so many is kept for validation
OUTPUT = Path(__file__).resolve().parent.parent / "altlas_core" / "models" / "altlas-bytes.safetensors"

Weights = dict[str, Tensor]


def docstrings() -> list[str]:
    """All docstrings of the standard library that runs this, each once, in the order of their files."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, None] = {}
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "dist-packages"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue  # files of its test suite that are wrong on purpose
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    found[text] = None
    return list(found)


def as_tokens(texts: list[str]) -> Tensor:
    """[tokens]: the texts in a row, END between them."""
    stream = [END]
    for text in texts:
        stream.extend(text.encode("utf-8", "replace"))
        stream.append(END)
    return torch.tensor(stream, dtype=torch.int64)


def new_weights(generator: torch.Generator) -> Weights:
    """The weights before training: [outputs, inputs] each. What ends a branch begins at zero."""
    shapes = {"qkv": (3 * WIDTH, WIDTH), "out": (WIDTH, WIDTH), "up": (4 * WIDTH, WIDTH), "down": (WIDTH, 4 * WIDTH)}
    weights = {"embedding": 0.02 * torch.randn(VOCABULARY, WIDTH, generator=generator)}
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            scale = 0.0 if name in ("out", "down") else 1.0 / math.sqrt(shape[1])
            weights[f"layers.{layer}.{name}"] = scale * torch.randn(*shape, generator=generator)
    return weights


def causal_bias(length: int) -> Tensor:
    """[1, heads, length, length]: ALiBi, and minus infinity for what comes later."""
    slopes = torch.tensor([2.0 ** (-8.0 * (head + 1) / HEADS) for head in range(HEADS)])
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    bias = -slopes[:, None, None] * distance.clamp_min(0)
    return bias.masked_fill(distance < 0, -math.inf)[None]


def norm(x: Tensor) -> Tensor:
    """Root mean square 1."""
    return functional.rms_norm(x, (WIDTH,), eps=1e-6)


def logits(weights: Weights, tokens: Tensor, bias: Tensor) -> Tensor:
    """[rows, length, vocabulary] for tokens [rows, length]."""
    rows, length = tokens.shape
    x = norm(functional.embedding(tokens, weights["embedding"]))
    for layer in range(LAYERS):
        qkv = functional.linear(norm(x), weights[f"layers.{layer}.qkv"])
        query, key, value = qkv.view(rows, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        # Attention runs in fp32: on CPUs its backward pass is faster there than in bf16.
        heads = (each.float() for each in (query, key, value))
        with torch.autocast("cpu", enabled=False):
            mixed = functional.scaled_dot_product_attention(*heads, attn_mask=bias)
        x = x + functional.linear(mixed.transpose(1, 2).reshape(rows, length, WIDTH), weights[f"layers.{layer}.out"])
        hidden = functional.relu(functional.linear(norm(x), weights[f"layers.{layer}.up"])).square()
        x = x + functional.linear(hidden, weights[f"layers.{layer}.down"])
    return functional.linear(norm(x), weights["embedding"])


def loss_of(weights: Weights, windows: Tensor, bias: Tensor) -> Tensor:
    """Mean nats per byte over windows [rows, length + 1]."""
    with torch.autocast("cpu", torch.bfloat16):
        scores = logits(weights, windows[:, :-1], bias)
    return functional.cross_entropy(scores.float().flatten(0, 1), windows[:, 1:].flatten())


def validation_loss(weights: Weights, stream: Tensor, bias: Tensor) -> float:
    """Mean nats per byte over the held-out stream, cut into windows."""
    count = (len(stream) - 1) // WINDOW
    windows = torch.stack([stream[at * WINDOW : at * WINDOW + WINDOW + 1] for at in range(count)])
    with torch.no_grad():
        losses = [loss_of(weights, part, bias) * len(part) for part in windows.split(64)]
    return float(sum(losses) / count)


def rate(step: int, steps: int) -> float:
    """The share of the full learning rate: up, level, and down over the last half."""
    return min(1.0, (step + 1) / WARM_UP, 2.0 * (steps - step) / steps)


def train(training: Tensor, held_out: Tensor, steps: int) -> tuple[Weights, float, float]:
    """(weights, training loss over the last tenth, validation loss), both in nats per byte."""
    generator = torch.Generator().manual_seed(SEED)
    weights = new_weights(generator)
    for weight in weights.values():
        weight.requires_grad_()
    matrices = [weight for name, weight in weights.items() if name != "embedding"]
    optimizers = [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.02, momentum=0.95),
        torch.optim.AdamW([weights["embedding"]], lr=EMBEDDING_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    full = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    bias = causal_bias(WINDOW)
    span = torch.arange(WINDOW + 1)
    last: list[float] = []
    for step in range(steps):
        starts = torch.randint(len(training) - WINDOW, (BATCH, 1), generator=generator)
        loss = loss_of(weights, training[starts + span], bias)
        loss.backward()
        for optimizer, full_rate in zip(optimizers, full, strict=True):
            optimizer.param_groups[0]["lr"] = full_rate * rate(step, steps)
            optimizer.step()
            optimizer.zero_grad()
        if step >= steps - max(1, steps // 10):
            last.append(loss.item())
        if step % 50 == 0:
            sys.stdout.write(f"step {step:5d}  loss {loss.item():.3f}\n")
            sys.stdout.flush()
    return weights, sum(last) / len(last), validation_loss(weights, held_out, bias)


def write(path: Path, weights: Weights, facts: dict[str, str]) -> None:
    """A safetensors file of fp16: length of the header, header, the weights in a row."""
    header: dict[str, object] = {"__metadata__": facts}
    parts, offset = [], 0
    for name, weight in weights.items():
        data = weight.detach().half().contiguous().numpy().tobytes()
        header[name] = {"dtype": "F16", "shape": list(weight.shape), "data_offsets": [offset, offset + len(data)]}
        parts.append(data)
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description="Trains altlas-bytes and writes it.")
    parser.add_argument("output", nargs="?", type=Path, default=OUTPUT)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    texts = docstrings()
    training = as_tokens([text for at, text in enumerate(texts) if at % HELD_OUT])
    held_out = as_tokens([text for at, text in enumerate(texts) if not at % HELD_OUT])
    weights, loss, validation = train(training, held_out, arguments.steps)
    source = f"the standard library of Python {platform.python_version()}, PSF licence"
    facts = {
        "name": "altlas-bytes",
        "layers": str(LAYERS),
        "width": str(WIDTH),
        "heads": str(HEADS),
        "vocabulary": str(VOCABULARY),
        "context": str(CONTEXT),
        "parameters": str(sum(weight.numel() for weight in weights.values())),
        "trained": datetime.datetime.now(datetime.UTC).date().isoformat(),  # noqa: TID251
        "corpus": f"{len(texts)} docstrings of {source}",
        "corpus_bytes": str(len(training) + len(held_out)),
        "training_bytes": str(arguments.steps * BATCH * WINDOW),
        "training_loss_nats_per_byte": f"{loss:.3f}",
        "validation_loss_nats_per_byte": f"{validation:.3f}",
        "torch": torch.__version__,
    }
    write(arguments.output, weights, facts)
    sys.stdout.write(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
