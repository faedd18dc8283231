"""What a worker process runs for each kind of work."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from altlas_core.backends.worker.attention import run_attention
from altlas_core.backends.worker.call import run_call
from altlas_core.backends.worker.device import WorkDevice
from altlas_core.backends.worker.generate import run_generation
from altlas_core.backends.worker.linear import run_linear, run_mlp
from altlas_core.backends.worker.order import Order
from altlas_core.backends.worker.transfer import run_transfer

Done = tuple[float, dict[str, Any] | None]  # iterations, detail


def run_sleep(_device: WorkDevice, order: Order, stop: threading.Event, begun_s: float) -> Done:
    _wait(order, stop, begun_s)
    return 0.0, None


def run_hang(_device: WorkDevice, order: Order, _stop: threading.Event, _begun_s: float) -> Done:
    """Does not look at the stop flag: what it stands for is work that cannot be asked to end."""
    time.sleep(order.duration_s if order.duration_s is not None else threading.TIMEOUT_MAX / 2)
    return 0.0, None


def run_raise_error(_device: WorkDevice, order: Order, stop: threading.Event, begun_s: float) -> Done:
    _wait(order, stop, begun_s)
    if not stop.is_set():
        raise RuntimeError("raise_error: this kind of task always fails")
    return 0.0, None


def run_crash_worker(_device: WorkDevice, order: Order, stop: threading.Event, begun_s: float) -> Done:
    _wait(order, stop, begun_s)
    if not stop.is_set():
        os.kill(os.getpid(), signal.SIGKILL)
    return 0.0, None


def _wait(order: Order, stop: threading.Event, begun_s: float) -> None:
    stop.wait(max(0.0, begun_s + (order.duration_s or 0.0) - time.perf_counter()))


RUNNERS: Final[dict[str, Callable[[WorkDevice, Order, threading.Event, float], Done]]] = {
    "linear": run_linear,
    "mlp": run_mlp,
    "attention": run_attention,
    "transfer": run_transfer,
    "call": run_call,
    "text_generation": run_generation,
    "sleep": run_sleep,
    "hang": run_hang,
    "raise_error": run_raise_error,
    "crash_worker": run_crash_worker,
}
