"""What a workload asks of devices that they do not have, found before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from altlas_core import calls
from altlas_core.errors import WorkloadError
from altlas_core.gpu_model.catalog import CATALOG
from altlas_core.kinds import DTYPES, KINDS
from altlas_core.model import Call, DeviceSpec, TaskSpec
from altlas_core.rules import RefusedError

# Number format -> the first compute capability with instructions for it (CUDA C++ Programming Guide, "Features and
# Technical Specifications"). FP16 from 7.0 on: before, products of it are slower than those of FP32, or not there.
_SINCE = {"fp32": (0, 0), "fp16": (7, 0), "bf16": (8, 0), "tf32": (8, 0)}
_ON_CPU = ("fp32", "fp16", "bf16")


def check_work(requests: Sequence[TaskSpec], devices: Sequence[DeviceSpec]) -> None:
    """That every device a task may run on (its pin, else all) has its number format; and where one of them is real,
    that its function can be imported here and takes its arguments, which imports the function's module.

    Requests are numbered as their tasks will be. Raises WorkloadError naming task, field, value and what is allowed.
    """
    pairs: dict[tuple[str, str, int | None], None] = {}
    seen: dict[tuple[Call, int | None], None] = {}
    for index, spec in enumerate(requests):
        if spec.dtype != "fp32" and (spec.kind, spec.dtype, spec.gpu_id) not in pairs:
            pairs[spec.kind, spec.dtype, spec.gpu_id] = None
            _check_dtype(index, spec, _places(spec, devices))
        if spec.call is not None and (spec.call, spec.gpu_id) not in seen:
            seen[spec.call, spec.gpu_id] = None
            if any(not device.simulated for device in _places(spec, devices)):
                _check_call(index, spec.call)


def _places(spec: TaskSpec, devices: Sequence[DeviceSpec]) -> Sequence[DeviceSpec]:
    """Where it may run. A pin to a device that is not there is for the intake to refuse."""
    return devices if spec.gpu_id is None else [device for device in devices if device.gpu_id == spec.gpu_id]


def _check_dtype(index: int, spec: TaskSpec, places: Sequence[DeviceSpec]) -> None:
    if not KINDS[spec.kind].kernel:
        return
    for device in places:
        has = tuple(dtypes_of(device))
        if spec.dtype not in has:
            known = KINDS[spec.kind].dtypes
            elsewhere = "" if spec.gpu_id is not None or len(places) == 1 else ", or a gpu_id whose device has it"
            raise WorkloadError(
                f"task-{index:06d}: dtype: {spec.dtype} is not among the number formats of GPU {device.gpu_id} "
                f"({device.name}); allowed: {', '.join(name for name in has if name in known)}{elsewhere}"
            )


def dtypes_of(device: DeviceSpec) -> Iterator[str]:
    """The number formats a device multiplies in. A GPU that does not tell its compute capability is taken at its word
    when it fails."""
    if device.simulated:
        yield from (name for name in DTYPES if name in CATALOG[device.model].peak_flops)
    elif device.kind == "cpu":
        yield from _ON_CPU
    else:
        capability = device.compute_capability
        yield from (name for name in DTYPES if capability is None or capability >= _SINCE[name])


def _check_call(index: int, call: Call) -> None:
    try:
        calls.check(call.target, call.arguments)
    except RefusedError as problem:
        text = str(problem)
        field = "" if text.startswith("args: ") else "call: "
        raise WorkloadError(f"task-{index:06d}: {field}{text}") from None
