"""How large a request's body may be and how long it may take to arrive."""

from __future__ import annotations

from asyncio import AbstractEventLoop, CancelledError, Task, current_task, get_running_loop, timeout
from contextlib import suppress
from typing import Any

from starlette.types import Message, Receive

from altlas_core.api.errors import ApiError


class Deadlines:
    """Ends bodies that take longer than `limit_s`. One timer for all: the limit is one, so the oldest is due first."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._due: dict[Body, float] = {}
        self._loop: AbstractEventLoop | None = None  # that has our timer

    def watch(self, body: Body) -> None:
        loop = get_running_loop()
        due = loop.time() + self.limit_s
        if self._loop is not loop:  # none yet, or one that ended with its timer
            self._loop = loop
            loop.call_at(due, self._sweep, loop)
        self._due[body] = due

    def forget(self, body: Body) -> None:
        self._due.pop(body, None)

    def _sweep(self, loop: AbstractEventLoop) -> None:
        now = loop.time()
        while self._due:
            body, due = next(iter(self._due.items()))
            if due > now:
                loop.call_at(due, self._sweep, loop)
                return
            del self._due[body]
            body.expire()
        self._loop = None


class Body:
    """A `receive` for the app that counts what arrives. `refusal` says why it stopped; `left`: the client is gone.

    Raises ApiError into the app's `await receive()`: too_large as soon as the body passes the limit, also when it came
    in chunks of no stated length, and body_timeout.
    """

    __slots__ = (
        "_deadlines", "_limit_bytes", "_reader", "_receive", "_room_bytes", "_watched", "complete", "left", "refusal",
    )  # fmt: skip

    def __init__(self, receive: Receive, limit_bytes: int, deadlines: Deadlines) -> None:
        self._receive = receive
        self._limit_bytes = limit_bytes
        self._room_bytes = limit_bytes
        self._deadlines = deadlines
        self._watched = False
        self._reader: Task[Any] | None = None
        self.complete = False  # nothing more of it will come
        self.left = False
        self.refusal: ApiError | None = None

    async def __call__(self) -> Message:
        if self.refusal is not None:
            raise self.refusal
        if self.complete:  # what may still come is that the client leaves
            return self._noted(await self._receive())
        if not self._watched:
            self._watched = True
            self._deadlines.watch(self)
        self._reader = reader = current_task()
        try:
            message = self._noted(await self._receive())
        except CancelledError:
            refusal = self._expired()
            if refusal is None or (reader is not None and reader.uncancel() > 0):
                raise  # it was not we who cancelled, or not we alone
            raise refusal from None
        finally:
            self._reader = None
        if self._room_bytes < 0:
            self.finish()
            self.refusal = too_large(self._limit_bytes)
            raise self.refusal
        return message

    def _noted(self, message: Message) -> Message:
        if message["type"] == "http.disconnect":
            self.left = True
            self.finish()
        elif not self.complete:
            self._room_bytes -= len(message.get("body", b""))
            if not message.get("more_body", False):
                self.finish()
                self.complete = True
        return message

    def _expired(self) -> ApiError | None:
        """What `expire` has set while we waited."""
        return self.refusal

    def expire(self) -> None:
        """Called by the deadlines: the time is over."""
        text = f"the body did not arrive within {self._deadlines.limit_s:g} s; send it faster, or a smaller one"
        self.refusal = ApiError("body_timeout", text, {"connection": "close"})
        if self._reader is not None:
            self._reader.cancel()

    def finish(self) -> None:
        """Nobody will read on, or there is nothing more: the time no longer counts."""
        if self._watched:
            self._deadlines.forget(self)

    async def drain(self, patience_s: float) -> None:
        """Throw away what still arrives, so that a client that sends first gets to read its answer, not a reset."""
        with suppress(TimeoutError):
            async with timeout(patience_s):
                while not (self.complete or self.left):
                    self._noted(await self._receive())


def too_large(limit_bytes: int) -> ApiError:
    text = f"the body is larger than {limit_bytes} bytes, the most this server takes; send less at a time"
    return ApiError("too_large", text, {"connection": "close"})
