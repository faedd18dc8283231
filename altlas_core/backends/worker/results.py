"""One attempt of a kind that runs kernels: from its start to what is told of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from altlas_core.backends.worker.device import WorkDevice
from altlas_core.backends.worker.loop import Job, Progress, run_loop
from altlas_core.backends.worker.order import Order
from altlas_core.kinds import KINDS


def run_kernel(
    device: WorkDevice, order: Order, stop: threading.Event, begun_s: float, prepare: Callable[[], Job]
) -> tuple[float, dict[str, Any]]:
    """Prepare the job on the task's stream and run it until duration or iterations are reached, or `stop` is set.

    `duration_s` counts from `begun_s` (time.perf_counter of the start order), so it includes what comes before: making
    weights and inputs. Returns (iterations, detail); a part of an iteration counts as that fraction.
    """
    until_s = None if order.duration_s is None else begun_s + order.duration_s
    with device.own_stream() as stream:
        progress = Progress(prepare(), order.iterations, until_s)
        run_loop(device, progress, stop)
        detail = _detail(order, progress)
        if stream is not None:
            detail["stream"] = stream
        if progress.done:
            with nullcontext() if device.kind == "cuda" else device.turns:
                detail.update(progress.job.check(progress.written, device.seed + progress.done))
        return progress.iterations, detail


def _detail(order: Order, progress: Progress) -> dict[str, Any]:
    kind, iterations = KINDS[order.kind], progress.iterations
    return {
        "measured": True,
        "dtype": order.dtype,
        **rates(kind.flops(order) * iterations, kind.bytes_moved(order) * iterations, progress.kernel_s),
        "kernel_s": progress.kernel_s,
        "iteration_p50_s": progress.timings.percentile(50),
        "iteration_p95_s": progress.timings.percentile(95),
        "iteration_p99_s": progress.timings.percentile(99),
    }


def rates(flops: float, bytes_moved: float, seconds: float) -> dict[str, float | None]:
    """What was done, and how fast; None where it took no time."""
    return {
        "flops": flops,
        "bytes_moved": bytes_moved,
        "achieved_tflops": flops / seconds / 1e12 if seconds else None,
        "achieved_gb_per_s": bytes_moved / seconds / 1e9 if seconds else None,
    }
