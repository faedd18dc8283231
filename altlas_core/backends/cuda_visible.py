"""What CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER mean, by the rules of the CUDA programming guide (and of torch)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from altlas_core.model import DeviceSpec

# NVML counts GPUs in PCI bus order; CUDA does so only when told, and else puts the fastest first.
DEVICE_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def worker_environment(spec: DeviceSpec) -> dict[str, str]:
    """Environment that makes a worker process see the GPU of `spec` and no other, as cuda:0.

    A UUID, where it was readable, cannot be mistaken whatever the order of devices or a lost one among them.
    Set it before CUDA is first used in the worker.
    """
    return {**DEVICE_ORDER, "CUDA_VISIBLE_DEVICES": spec.uuid if spec.uuid is not None else str(spec.index)}


def select_visible(uuids: Sequence[str | None], value: str | None) -> tuple[list[int], str | None]:
    """Which of the machine's GPUs CUDA_VISIBLE_DEVICES=`value` leaves visible, in its order.

    `uuids` are those of GPU 0, 1, 2, ... in PCI bus order (None where unreadable); `value` None means unset: all are
    visible. Returns (positions in `uuids`, a sentence on an entry that ended or emptied the list, or None).
    The first entry that fits no GPU ends the list; an entry given twice empties it.
    """
    if value is None:
        return list(range(len(uuids))), None
    entries = value.strip().split(",")
    first = entries[0].strip()
    if first.startswith("MIG-"):
        return [], _remark(value, "names a MIG instance; MIG instances are not handled yet, give GPU numbers or UUIDs")
    by_uuid = first.startswith("GPU-")
    chosen: list[int] = []
    for entry in (text.strip() for text in entries):
        position = _by_uuid(entry, uuids) if by_uuid else _by_number(entry, len(uuids))
        if position is None:
            return chosen, None if entry in ("", "-1") else _remark(value, f"'{entry}' {_misfit(entry, len(uuids))}")
        if position in chosen:
            return [], _remark(value, f"names GPU {position} twice ('{entry}'), which hides all GPUs from CUDA")
        chosen.append(position)
    return chosen, None


def _by_number(entry: str, count: int) -> int | None:
    # CUDA reads the leading digits only: "1gpu" means 1.
    match = re.match(r"\+?(\d+)", entry, re.ASCII)
    return int(match[1]) if match and int(match[1]) < count else None


def _by_uuid(entry: str, uuids: Sequence[str | None]) -> int | None:
    """The one GPU whose UUID begins so; None where none or several do."""
    fits = [i for i, uuid in enumerate(uuids) if uuid is not None and uuid.startswith(entry)]
    return fits[0] if entry.startswith("GPU-") and len(fits) == 1 else None


def _misfit(entry: str, count: int) -> str:
    there = f"GPUs 0 to {count - 1}" if count > 1 else "GPU 0" if count else "no GPU"
    if entry.startswith("MIG-"):
        return "is a MIG instance (not handled yet) and ends the list"
    return f"fits no GPU, or more than one, of this machine ({there}) and ends the list"


def _remark(value: str, what: str) -> str:
    return f"CUDA_VISIBLE_DEVICES={value!r}: {what}."
