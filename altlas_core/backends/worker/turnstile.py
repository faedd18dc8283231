"""Taking turns on a device."""

from __future__ import annotations

import threading
from collections import deque


class Turnstile:
    """A lock that is passed on in the order of arrival; threading.Lock lets the same thread win again and again."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        self._line: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._line.append(gate)
        gate.acquire()

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._line:
                self._line.popleft().release()
            else:
                self._taken = False
