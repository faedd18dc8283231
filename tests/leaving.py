"""Functions that tasks of kind "call" run in tests: they start processes, share memory, hold the interpreter."""

from __future__ import annotations

import ctypes
import enum
import multiprocessing
import os
import subprocess
import time
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any


def start_children(_task: Any, pids: str) -> None:
    """Shared memory, and two child processes that nobody ends, one a fork with all that is open here; then wait."""
    shared = shared_memory.SharedMemory(create=True, size=4096)
    program = subprocess.Popen(["sleep", "600"])
    fork = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    fork.start()
    text = Path(pids + ".part")
    text.write_text(f"{program.pid} {fork.pid}")
    text.rename(pids)
    time.sleep(600)
    shared.unlink()


def hold_the_interpreter(_task: Any, seconds: int) -> None:
    """No other thread of this process runs meanwhile."""
    ctypes.PyDLL(None).sleep(seconds)


def crash(_task: Any, how: str) -> None:
    if how == "exit":
        os._exit(3)
    ctypes.string_at(0)


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def fail(_task: Any, how: str) -> None:
    texts = {"long": "x" * 10**6, "surrogate": "\ud800"}
    raise RuntimeError(texts[how]) if how in texts else UnspeakableError


class Colour(enum.StrEnum):
    RED = "red"


def answer(_task: Any) -> dict[str, Any]:
    """What only looks like plain numbers and texts."""
    import numpy as np

    return {"result": {"loss": np.float64(0.5), "colour": Colour.RED, np.str_("name"): np.str_("n"), "flag": True}}
