"""What generating text costs on a simulated GPU: reading the prompts, then one step for each new token of the longest.

Each is bound by arithmetic or by memory, as in the roofline, plus what launching its kernels takes: steps of small
models are bound by that. A token costs 2 FLOPs per parameter, and in attention 4 x width per layer and token before it
(Kaplan et al. 2020, "Scaling Laws for Neural Language Models", arXiv:2001.08361, section 2.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from altlas_core.generation import Generation, Prompt, TextModel, detail, fit, part
from altlas_core.gpu_model.catalog import GpuModel
from altlas_core.gpu_model.power import activity
from altlas_core.gpu_model.roofline import KernelCost

# Assumptions. Launches that follow each other closely: Gray, "Getting Started with CUDA Graphs", NVIDIA Technical Blog
# 2019, measures 3.8 us from one short kernel to the next. Kernels of a layer: two norms, qkv, attention, out, up, down,
# one more for the cache; where libraries fuse less there are more.
LAUNCH_S: Final = 4e-6
KERNELS_PER_LAYER: Final = 8
# Element size -> the number formats whose rate holds, the first that the board has. No rates of fp64 are in the
# catalog: what computes in it is taken to run at that of fp32.
_FORMATS: Final = {8: ("fp32",), 4: ("fp32",), 2: ("fp16", "bf16", "fp32")}


@dataclass(slots=True, frozen=True)
class GenerationCost(KernelCost):
    """A generation alone on one GPU. `step_s`: of each decoding step. The prompts and the model as they were then."""

    prefill_s: float
    step_s: tuple[float, ...]
    model: TextModel
    prompts: tuple[Prompt, ...]


def generation_cost(generation: Generation, gpu: GpuModel) -> GenerationCost:
    """The cost of continuing the prompts together, each to its last token.

    The first new token comes from reading the prompts, so a continuation of n tokens takes n - 1 steps.
    """
    model, prompts = generation.model, tuple(generation.prompts)
    peak = next(gpu.peak_flops[name] for name in _FORMATS[model.element_bytes] if name in gpu.peak_flops)
    bandwidth = gpu.memory_bandwidth_bytes_per_s
    launches_s = model.layers * KERNELS_PER_LAYER * LAUNCH_S
    flops, moved, seconds = 0.0, 0.0, []
    for step_flops, step_bytes in _work(model, [fit(model.context, p.tokens, p.max_new_tokens) for p in prompts]):
        flops += step_flops
        moved += step_bytes
        seconds.append(max(step_flops / peak, step_bytes / bandwidth) + launches_s)
    whole = sum(seconds)
    intensity = flops / (whole * peak) if whole else 0.0
    prefill_s = seconds[0] if seconds else 0.0
    return GenerationCost(
        whole, flops, moved, intensity, activity(intensity), prefill_s, tuple(seconds[1:]), model, prompts
    )


def _work(model: TextModel, lengths: Sequence[tuple[int, int]]) -> Iterator[tuple[float, float]]:
    """(FLOPs, bytes moved) of reading the prompts, then of each step. `lengths`: tokens of prompt, new tokens.

    Weights are read once each time; keys and values are written once and read once by each step after.
    """
    if not lengths:
        return
    per_token, per_pair = 2.0 * model.parameters, 4.0 * model.layers * model.width
    kv_bytes, weights_bytes = model.kv_bytes_per_token, float(model.weights_bytes)
    read = sum(prompt for prompt, _ in lengths)
    pairs = sum(prompt * (prompt + 1) / 2 for prompt, _ in lengths)
    yield per_token * read + per_pair * pairs, weights_bytes + read * kv_bytes
    going = sorted(lengths, key=lambda length: -length[1])
    rows, held = len(going), read
    for made in range(1, going[0][1]):
        while going[rows - 1][1] <= made:
            rows -= 1
            held -= going[rows][0] + made - 1
        held += rows  # each token goes into the cache, then all before it are looked at
        yield per_token * rows + per_pair * held, weights_bytes + held * kv_bytes


def simulated_detail(cost: GenerationCost, gpu_name: str, seconds: float) -> dict[str, Any]:
    """What an attempt of this cost tells that took `seconds`, more than its cost where it shared the GPU."""
    stretch = seconds / cost.seconds if cost.seconds else 1.0
    prefill_s, decode_s = cost.prefill_s * stretch, sum(cost.step_s) * stretch
    text = f"[simulated on {gpu_name}: no text was generated]"
    parts = []
    for prompt in cost.prompts:
        kept, new = fit(cost.model.context, prompt.tokens, prompt.max_new_tokens)
        parts.append(part(text, new, kept, prefill_s, False, kept < prompt.tokens))
    return detail(cost.model.name, True, parts, prefill_s, decode_s)
