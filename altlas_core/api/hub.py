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
MOST_WAITING: Final = 1024  # events for one listener
MOST_CHARACTERS: Final = 2**22  # of them: with many GPUs a single event is half a megabyte
MOST_LISTENERS: Final = 1000
HEARTBEAT_S: Final = 15.0


def event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"


class Listener:
    """One connection's share of the events."""

    __slots__ = ("_characters", "lagged", "waiting", "wake")

    def __init__(self) -> None:
        self.waiting: deque[str] = deque()
        self.wake = asyncio.Event()
        self.lagged = False
        self._characters = 0

    def put(self, text: str) -> None:
        if len(self.waiting) >= MOST_WAITING or self._characters + len(text) > MOST_CHARACTERS:
            self.waiting.clear()
            self._characters = 0
            self.lagged = True
        self.waiting.append(text)
        self._characters += len(text)
        self.wake.set()

    def take(self) -> str:
        texts = [event("lagged", "{}")] if self.lagged else []
        self.lagged = False
        texts += self.waiting
        self.waiting.clear()
        self._characters = 0
        self.wake.clear()
        return "".join(texts)


class Hub:
    """`status` and `gpus` make the data of the events of these names, which are sent once a second."""

    def __init__(self, status: Callable[[], dict[str, Any]], gpus: Callable[[], dict[str, Any]]) -> None:
        self._status = status
        self._gpus = gpus
        self._listeners: set[Listener] = set()
        self._changed: dict[int, Prediction] = {}
        self._flush_planned = False
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
        """Once a second, and whenever the readings are new."""
        if self._listeners:
            self._tell(event("status", json.dumps(self._status())))
            self._tell(event("gpus", json.dumps(self._gpus())))

    def _tell(self, text: str) -> None:
        for listener in self._listeners:
            listener.put(text)

    async def stream(self) -> AsyncIterator[str]:
        """The events for one listener, until it leaves or the server ends."""
        listener = Listener()
        listener.put(event("status", json.dumps(self._status())))
        listener.put(event("gpus", json.dumps(self._gpus())))
        self._listeners.add(listener)
        try:
            while not self._closed:
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        await listener.wake.wait()
                except TimeoutError:
                    yield f": {int(time.time())}\n\n"
                    continue
                text = listener.take()
                if text:
                    yield text
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
