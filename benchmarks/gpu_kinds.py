"""Checks of gpu_check.py on the kinds of work and the number formats: right, and as fast as the format should be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gpu_stand import Finding, Stand, attempts_of, story

from altlas_core.kinds import KINDS
from altlas_core.model import COMPLETED, Call

LEAST_SPEEDUP: Final = 2.0  # of 16-bit formats against fp32: tensor cores against none
_USERS_FUNCTION: Final = "gpu_kinds:matmul_trace"


def matmul_trace(task: Any, size: int) -> dict[str, Any]:
    """What a user's own function may look like: runs in the worker, on the task's device and stream."""
    import torch

    eye = torch.eye(size, device=task.device)
    return {"iterations": 1, "flops": 2.0 * size**3, "result": float((eye @ eye).trace())}


def kinds_and_formats(stand: Stand) -> list[tuple[str, str]]:
    """(kind, dtype) of all kernels that this device can run."""
    lacking = set() if stand.cuda else {"tf32"}
    if stand.cuda and (stand.spec.compute_capability or (0, 0)) < (8, 0):
        lacking = {"tf32", "bf16"}
    named = [(kind.name, dtype) for kind in KINDS.values() if kind.kernel for dtype in kind.dtypes]
    return [(kind, dtype) for kind, dtype in named if dtype not in lacking]


def record(stand: Stand, kind: str, dtype: str, **more: Any) -> dict[str, Any]:
    """A task of this kind, as large as the stand's models."""
    size = stand.models["medium_model"]
    sizes: Mapping[str, tuple[int, int, int]] = {  # batch, input, output
        "linear": (stand.batch, size, size),
        "mlp": (stand.batch, size, 2 * size),
        "attention": (4, max(64, size // 2), max(64, size // 4)),
        "transfer": (4 * stand.batch, 4 * size, 1),
    }
    batch, inputs, outputs = sizes[kind]
    asked = {"kind": kind, "dtype": dtype, "batch": batch, "input_size": inputs, "output_size": outputs}
    return {**asked, "timeout_s": 120.0, "retry_count": 0, **more}


def all_kinds_are_right(stand: Stand) -> Finding:
    """One short task of each; the reference is reckoned another way, see docs/real-devices.md."""
    pairs = kinds_and_formats(stand)
    result = stand.play([record(stand, kind, dtype, iterations=3) for kind, dtype in pairs], slots=1)
    details = {task.index: attempt.detail or {} for attempt in attempts_of(result) for task in [attempt.task]}
    wrong = [
        f"{kind} {dtype}" for place, (kind, dtype) in enumerate(pairs) if not details.get(place, {}).get("reference_ok")
    ]
    figures = {
        f"{kind} {dtype}": {
            name: details.get(place, {}).get(name)
            for name in ("achieved_tflops", "achieved_gb_per_s", "max_rel_error", "tolerance", "peak_memory_bytes")
        }
        for place, (kind, dtype) in enumerate(pairs)
    }
    observed = f"{len(pairs) - len(wrong)} of {len(pairs)} right"
    return Finding(not wrong, "; ".join([observed, *wrong] + ([story(result)] if wrong else [])), figures)


def formats_have_their_rate(stand: Stand) -> Finding:
    """Rates of the large product by number format. Where there are no tensor cores they are stated."""
    size = stand.models["large_model"]
    formats = [dtype for kind, dtype in kinds_and_formats(stand) if kind == "linear"]
    if not stand.cuda:
        formats = [dtype for dtype in formats if dtype != "fp16"]  # which no CPU of today multiplies at a useful rate
    rates: dict[str, float] = {}
    for dtype in formats:
        # Rows enough that the arithmetic, not reading the weight, is what takes the time.
        asked = stand.linear(size, dtype=dtype, duration_s=stand.seconds)
        asked["batch"] = 8 * stand.batch if stand.cuda else stand.batch
        result = stand.play([{**asked, "duration_s": None, "iterations": 1}, asked], slots=1)
        last = attempts_of(result)[-1]
        if last.outcome != "finished" or not last.detail or not last.detail.get("reference_ok"):
            return Finding(False, f"{dtype}: {story(result)}")
        rates[dtype] = last.detail["achieved_tflops"]
    observed = ", ".join(f"{dtype} {rate:.3g}" for dtype, rate in rates.items()) + " TFLOP/s"
    slow = [d for d in ("tf32", "fp16", "bf16") if d in rates and rates[d] < LEAST_SPEEDUP * rates["fp32"]]
    return Finding(not (stand.cuda and slow), observed, {"achieved_tflops": rates})


def link(stand: Stand) -> Finding:
    """Copies between host and device."""
    result = stand.play([record(stand, "transfer", "fp32", duration_s=stand.seconds)], slots=1)
    (attempt,) = attempts_of(result)
    detail = attempt.detail or {}
    right = attempt.outcome == "finished" and detail.get("reference_ok") is True
    rates = {name: value for name, value in detail.items() if name.endswith("gb_per_s") and value is not None}
    observed = ", ".join(f"{name.removesuffix('_gb_per_s')} {value:.3g}" for name, value in rates.items()) + " GB/s"
    return Finding(right, observed if right else story(result), rates)


def users_function(stand: Stand) -> Finding:
    result = stand.play([{"kind": "call", "call": _USERS_FUNCTION, "args": {"size": 256}, "retry_count": 0}])
    (task,), (attempt,) = result.task_list, attempts_of(result)
    assert isinstance(task.spec.call, Call)
    answer = (attempt.detail or {}).get("result")
    return Finding(task.state == COMPLETED and answer == 256.0, f"{task.state}, answered {answer}; {story(result)}")
