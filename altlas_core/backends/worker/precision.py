"""How fp32 products are rounded on a GPU: a switch of the whole process, which tasks of fp32 and of TF32 share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_SWITCH: Final = {"fp32": "highest", "tf32": "high"}


class Precision:
    """Any number of tasks that want the switch where it stands launch kernels at a time; one that wants it elsewhere
    waits for those, and whoever comes after it waits behind it. What has been launched keeps its rounding."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._stands = "fp32"
        self._users = 0
        self._door = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def of(self, dtype: str) -> Iterator[None]:
        """While kernels of this number format are launched; the formats of 16 bits do not care."""
        if dtype not in _SWITCH:
            yield
            return
        self._enter(dtype)
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def _enter(self, dtype: str) -> None:
        with self._door, self._changed:
            while self._users and self._stands != dtype:
                self._changed.wait()
            if self._stands != dtype:
                self._torch.set_float32_matmul_precision(_SWITCH[dtype])
                self._stands = dtype
            self._users += 1
