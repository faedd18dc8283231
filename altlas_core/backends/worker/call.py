"""The kind `call`: a user's own function, run as f(task, **arguments) in a thread of the worker."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from altlas_core.backends.worker.device import WorkDevice
from altlas_core.backends.worker.order import Order
from altlas_core.backends.worker.results import rates
from altlas_core.calls import find, plain
from altlas_core.kinds import DTYPE_BYTES
from altlas_core.rules import RefusedError, shown

if TYPE_CHECKING:
    from torch import Tensor

MAX_RESULT_CHARACTERS: Final = 64 * 1024  # of JSON: a result is kept in the event log
_NUMBERS: Final = ("iterations", "flops", "bytes_moved", "checksum", "checksum_reference", "checksum_tolerance")


class CallContext:
    """What a user's function is given as its first argument. Sizes are those of the workload record.

    `device` is the torch.device to compute on; on CUDA the current stream is the task's own. `dtype` is the torch.dtype
    of the record's number format, `element_bytes` its size. `memory_bytes` is what the task has reserved.
    """

    def __init__(self, device: WorkDevice, order: Order, stop: threading.Event, begun_s: float) -> None:
        self.device = device.device
        self.dtype = device.element(order.dtype)
        self.element_bytes = DTYPE_BYTES[order.dtype]
        self.input_size, self.output_size, self.batch = order.input_size, order.output_size, order.batch
        self.memory_bytes = order.memory_bytes
        self.duration_s = order.duration_s
        self._work_device = device
        self._dtype_name = order.dtype
        self._stop = stop
        self._until_s = None if order.duration_s is None else begun_s + order.duration_s

    def remaining_s(self) -> float | None:
        """Seconds until duration_s is over, 0 when it is; None where the record gives none."""
        return None if self._until_s is None else max(0.0, self._until_s - time.perf_counter())

    def should_stop(self) -> bool:
        """Whether to return now: duration_s is over, or the task was cancelled or timed out. To be asked often: a
        function that goes on after the latter is killed with its worker."""
        return self._stop.is_set() or self.remaining_s() == 0.0

    def uniform(self, rows: int, columns: int) -> Tensor:
        """rows x columns numbers in [-1, 1) on the device, the same for the same seed, shape and number format."""
        return self._work_device.uniform(rows, columns, self._dtype_name)

    def turn(self) -> AbstractContextManager[object]:
        """On a CPU device: its cores to itself while it lasts, in turns with its neighbours. On CUDA nothing."""
        return nullcontext() if self._work_device.kind == "cuda" else self._work_device.turns


def run_call(device: WorkDevice, order: Order, stop: threading.Event, begun_s: float) -> tuple[float, dict[str, Any]]:
    """Call the order's function. Returns (iterations, detail) from what it returned; its exceptions are its own."""
    assert order.call is not None
    path, arguments, search_paths = order.call
    sys.path += [each for each in search_paths if each not in sys.path]
    try:
        function = find(path)
    except RefusedError as problem:
        raise ImportError(str(problem)) from None
    with device.weights(order), device.own_stream():
        begin_s = time.perf_counter()
        returned = function(CallContext(device, order, stop, begun_s), **json.loads(arguments))
        if device.kind == "cuda":
            device.torch.cuda.current_stream().synchronize()
        call_s = time.perf_counter() - begin_s
        return _told(path, returned, call_s)


def _told(path: str, returned: Any, call_s: float) -> tuple[float, dict[str, Any]]:
    """Raises TypeError or ValueError for what no function may return."""
    told = {} if returned is None else returned
    allowed = f"allowed: None, or a dict with {', '.join(_NUMBERS)} (numbers) and result"
    if not isinstance(told, Mapping):
        raise TypeError(f"{path} returned {shown(returned)}; {allowed}")
    for name in told:
        if name not in _NUMBERS and name != "result":
            raise TypeError(f"{path} returned a dict with {shown(name)}; {allowed}")
    numbers = {name: _number(path, name, told[name]) for name in _NUMBERS if told.get(name) is not None}
    detail = {"measured": True, "call_s": call_s} | rates(
        numbers.pop("flops", 0.0), numbers.pop("bytes_moved", 0.0), call_s
    )
    iterations = numbers.pop("iterations", 0.0)
    if "checksum" in numbers and "checksum_reference" in numbers:
        apart = abs(numbers["checksum"] - numbers["checksum_reference"])
        detail["reference_ok"] = apart <= numbers.get("checksum_tolerance", 0.0)
    if told.get("result") is not None:
        detail["result"] = _result(path, told["result"])
    return iterations, detail | numbers


def _number(path: str, name: str, value: Any) -> float:
    """A finite number; also one of numpy or of a tensor with one element. Only sums may be negative."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{path} returned {name} {shown(value)}; allowed: a number") from None
    if not math.isfinite(number) or (number < 0 and name not in ("checksum", "checksum_reference")):
        raise ValueError(f"{path} returned {name} {number:g}; allowed: a finite number, not below 0")
    return number


def _result(path: str, value: Any) -> Any:
    try:
        result = plain(value, "result")
    except RefusedError as problem:
        raise TypeError(f"{path} returned {problem}") from None
    length = len(json.dumps(result))
    if length > MAX_RESULT_CHARACTERS:
        raise ValueError(
            f"{path} returned a result of {length} characters of JSON; allowed: up to {MAX_RESULT_CHARACTERS}. Write "
            "more to a file and return its path."
        )
    return result
