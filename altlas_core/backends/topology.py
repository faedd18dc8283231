"""How the GPUs of a simulated machine are assumed to be linked. Compact: groups, never a matrix of all pairs.

Form (JSON-able): {"assumed": True, "statement": str, "groups": [{"model", "gpu_ids": "0-3,6", "count", "link",
"bytes_per_s", "node_size"}], "between_groups": "PCIe"}. Inside a group, the 1st to `node_size`-th GPU share a node and
are joined pairwise by `link`; GPUs of different nodes or groups are joined by `between_groups` only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from altlas_core.model import DeviceSpec

NODE_SIZE = 8  # GPUs that share one NVLink domain in the usual server (DGX, HGX)
NVLINK = "NVLink"
PCIE = "PCIe"


def assumed_topology(devices: Sequence[DeviceSpec], nvlink_bytes_per_s: dict[str, float | None]) -> dict[str, Any]:
    """The links of `devices`; `nvlink_bytes_per_s` gives each model's NVLink bandwidth, None where it has none."""
    by_model: dict[str, list[int]] = {}
    for spec in devices:
        by_model.setdefault(spec.model, []).append(spec.gpu_id)
    return {
        "assumed": True,
        "statement": f"Assumed, not measured: GPUs of one model that have NVLink are fully linked in nodes of "
        f"{NODE_SIZE}; all others meet over PCIe.",
        "groups": [_group(model, ids, nvlink_bytes_per_s.get(model)) for model, ids in by_model.items()],
        "between_groups": PCIE,
    }


def _group(model: str, gpu_ids: Sequence[int], nvlink: float | None) -> dict[str, Any]:
    return {
        "model": model,
        "gpu_ids": ranges_text(gpu_ids),
        "count": len(gpu_ids),
        "link": NVLINK if nvlink else PCIE,
        "bytes_per_s": nvlink or None,
        "node_size": NODE_SIZE,
    }


def link_between(topology: dict[str, Any], first: int, second: int) -> str:
    """How two GPUs meet: "NVLink", "PCIe", or "same" for a GPU and itself."""
    if first == second:
        return "same"
    for group in topology["groups"]:
        ids = _ranges(group["gpu_ids"])
        places = [_place(ids, gpu_id) for gpu_id in (first, second)]
        if None not in places:
            nodes = {place // group["node_size"] for place in places if place is not None}
            return str(group["link"]) if len(nodes) == 1 else PCIE
    return str(topology["between_groups"])


def ranges_text(numbers: Iterable[int]) -> str:
    """[0, 1, 2, 6] -> "0-2,6"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def _ranges(text: str) -> list[tuple[int, int]]:
    pairs = (part.partition("-") for part in text.split(","))
    return [(int(low), int(high or low)) for low, _, high in pairs]


def _place(ranges: Sequence[tuple[int, int]], gpu_id: int) -> int | None:
    """Which in the group a GPU is: 0 for the first; None where it is not in it."""
    before = 0
    for low, high in ranges:
        if low <= gpu_id <= high:
            return before + gpu_id - low
        before += high - low + 1
    return None
