"""Xid errors, the NVIDIA driver's numbers for what went wrong on a GPU, and what follows from them here.

Descriptions and actions are those of NVIDIA's Xid catalog for Ampere and newer,
https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html (column "Immediate Action"). Where the catalog
names a workflow instead of an action, the description of the error decides. Codes that are not here (application
errors, video engines, corrected errors, notices that come beside another Xid) are shown and have no consequence; nor
has 155, which NVLinks report that are put to sleep on purpose.
"""

from __future__ import annotations

from typing import Final

FALLEN_OFF_THE_BUS: Final = 79  # RESTART_BM: the driver cannot reach the GPU any more

NEEDS_RESET: Final = {  # RESET_GPU, or "a GPU reset or node reboot is needed to clear this error"
    46: "GPU stopped processing",
    48: "double bit ECC error",
    62: "internal micro-controller halt",
    64: "memory remapping failure",
    74: "NVLink error",
    95: "uncontained memory error",
    109: "context switch timeout",
    110: "security fault",
    119: "GSP RPC timeout",
    120: "GSP error",
    136: "link training failed",
    140: "unrecovered ECC error",
    143: "GPU initialization error",
    156: "resource retirement event",
    158: "GPU fatal timeout",
}

OTHERS: Final = {  # the application is restarted, or nothing need be done
    13: "graphics engine exception",
    31: "MMU fault",
    43: "GPU stopped processing for one application",
    45: "channels torn down",
    63: "memory remapping event",
    92: "high rate of single-bit ECC errors",
    94: "contained memory error",
}


def problem_of(xid: int) -> str | None:
    """Why a GPU that reported this Xid takes no more work, in a line; None where it does."""
    meaning = NEEDS_RESET.get(xid)
    return None if meaning is None else f"Xid {xid}, {meaning}: the GPU needs a reset"


def words(xid: int) -> str:
    """An Xid as people read it: "Xid 45 (channels torn down)"."""
    meaning = {**NEEDS_RESET, **OTHERS, FALLEN_OFF_THE_BUS: "GPU has fallen off the bus"}.get(xid)
    return f"Xid {xid}" if meaning is None else f"Xid {xid} ({meaning})"
