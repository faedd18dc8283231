"""Server-sent events: what has changed, to everybody who listens, at most ten times a second.

Costs next to nothing while nobody listens. A listener that is too slow is told so (`lagged`) and misses what was in
between; it never holds up anybody else. Everything here belongs to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from altlas_core.api.records import SHOWN_CHARACTERS, Prediction, live_json

EVERY_S: Final = 0.1  # between two deliveries of task events
MOST_WAITING: Final = 1024  # task events for one listener
MOST_LISTENERS: Final = 1000
HEARTBEAT_S: Final = 15.0


def event(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode()


LAGGED: Final = event("lagged", "{}")


class Listener:
    """One connection's share of the events. What waits is shared with all others: a listener holds no copy of its own.

    Of an event with a name only the latest waits: an older state is of no use.
    """

    __slots__ = ("lagged", "latest", "waiting", "wake")

    def __init__(self) -> None:
        self.latest: dict[str, bytes] = {}
        self.waiting: deque[bytes] = deque()
        self.wake = asyncio.Event()
        self.lagged = False

    def put(self, told: bytes, name: str | None = None) -> None:
        if name is not None:
            self.latest[name] = told
        else:
            if len(self.waiting) >= MOST_WAITING:
                self.waiting.clear()
                self.lagged = True
            self.waiting.append(told)
        self.wake.set()

    def take(self) -> bytes | None:
        """The next event; None when there is none just now."""
        if self.lagged:
            self.lagged = False
            return LAGGED
        if self.latest:
            return self.latest.pop(next(iter(self.latest)))
        if self.waiting:
            return self.waiting.popleft()
        self.wake.clear()
        return None


class Hub:
    """`status` and `gpus` make the data of the events of these names, which are sent once a second."""

    def __init__(self, status: Callable[[], dict[str, Any]], gpus: Callable[[], dict[str, Any]]) -> None:
        self._status = status
        self._gpus = gpus
        self._listeners: set[Listener] = set()
        self._changed: dict[int, Prediction] = {}
        self._flush_planned = False
        self._tick_planned = False
        self._closed = False

    @property
    def full(self) -> bool:
        return len(self._listeners) >= MOST_LISTENERS

    def changed(self, prediction: Prediction) -> None:
        """A prediction is not as it was: of several changes in a row the last is told."""
        if not self._listeners:
            return
        self._changed[prediction.number] = prediction
        if not self._flush_planned:
            self._flush_planned = True
            asyncio.get_running_loop().call_later(EVERY_S, self._flush)

    def _flush(self) -> None:
        self._flush_planned = False
        changed, self._changed = self._changed, {}
        # Of a flood the latest are enough: nobody reads thousands a second.
        for prediction in list(changed.values())[-MOST_WAITING // 4 :]:
            self._tell(event("task", shortened(prediction)))

    def tick(self) -> None:
        """Whenever the readings are new, about once a second. Several in a row are one."""
        if self._listeners and not self._tick_planned:
            self._tick_planned = True
            asyncio.get_running_loop().call_soon(self._tell_states)

    def _tell_states(self) -> None:
        self._tick_planned = False
        self._tell(event("status", json.dumps(self._status())), "status")
        self._tell(event("gpus", json.dumps(self._gpus())), "gpus")

    def _tell(self, told: bytes, name: str | None = None) -> None:
        for listener in self._listeners:
            listener.put(told, name)

    async def stream(self) -> AsyncIterator[bytes]:
        """The events for one listener, until it leaves or the server ends."""
        listener = Listener()
        listener.put(event("status", json.dumps(self._status())), "status")
        listener.put(event("gpus", json.dumps(self._gpus())), "gpus")
        self._listeners.add(listener)
        try:
            while not self._closed:
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        await listener.wake.wait()
                except TimeoutError:
                    yield f": {int(time.time())}\n\n".encode()
                    continue
                while (told := listener.take()) is not None and not self._closed:
                    yield told
        finally:
            self._listeners.discard(listener)

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        for listener in self._listeners:
            listener.wake.set()


def shortened(prediction: Prediction) -> str:
    """A task as in GET /tasks/{id}, its texts cut: the page shows no more."""
    task = json.loads(live_json(prediction))
    for place in (task["params"], task["result"] or {}):
        text = place.get("text", "")
        if len(text) > SHOWN_CHARACTERS:
            place["text"] = text[:SHOWN_CHARACTERS] + "…"
    return json.dumps(task)
