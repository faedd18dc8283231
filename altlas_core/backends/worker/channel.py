"""What driver process and worker process say to each other, and the wire it goes over.

A message is a list of tuples, each beginning with one of the codes below. They are marshalled (both ends are the same
Python) behind a four-byte length, and read as many at a time as have arrived: under load one system call carries many.
"""

from __future__ import annotations

import marshal
import socket
import struct
from collections import deque
from typing import Any, Final

# Orders, to a worker: (ASSIGN, -1, -1, {what worker.program.Assignment names}): this is your device, once;
# (START, task_index, attempt, *fields of order.Order), (STOP, task_index, attempt);
# (RENEW, -1, -1, slots, seed, memory_bytes): another run begins, with nothing running;
# (PING, -1, -1): do you still answer?
# Times are seconds, None where not asked for.
START: Final = 0
STOP: Final = 1
ASSIGN: Final = 2
RENEW: Final = 3
PING: Final = 4
# Answers: (FINISHED, task_index, attempt, iterations, detail), (STOPPED, task_index, attempt, iterations),
# (FAILED, task_index, attempt, error_code, error, iterations[, needed_bytes, free_bytes]);
# (IMPORTED,): torch is imported, give me a device; (READY, {facts}): tasks may come; (PONG,).
FINISHED: Final = 5
FAILED: Final = 6
STOPPED: Final = 7
IMPORTED: Final = 8
READY: Final = 9
PONG: Final = 10

Message = list[tuple[Any, ...]]

_LENGTH: Final = struct.Struct("<I")
_READ_BYTES: Final = 1 << 16
_MOST_BYTES: Final = 1 << 28  # of a message


class GarbledError(OSError):
    """What has arrived was not written by the other end of a channel. No further message can be found."""


class Channel:
    """One end of the wire. One thread may send while another receives."""

    __slots__ = ("_parts", "_socket", "_unsent")

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._parts = b""
        self._unsent: deque[bytes] = deque()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        """Send, and wait while the wire is full. Raises OSError when the other end is gone, ValueError for odd data."""
        data = marshal.dumps(message)
        self._socket.sendall(_LENGTH.pack(len(data)) + data)

    def send_soon(self, message: Message) -> bool:
        """Send without ever waiting; False if the wire is full: the rest is kept and goes first at the next call.

        An empty message is none. Raises OSError when the other end is gone.
        """
        if message:
            data = marshal.dumps(message)
            self._unsent.append(_LENGTH.pack(len(data)) + data)
        while self._unsent:
            data = self._unsent[0]
            try:
                sent = self._socket.send(data, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            if sent == len(data):
                self._unsent.popleft()
            else:
                self._unsent[0] = data[sent:]
        return True

    def receive(self) -> list[Message]:
        """Wait for data; the messages it completes (none, if it was a part of one). Raises EOFError or OSError."""
        data = self._socket.recv(_READ_BYTES)
        if not data:
            raise EOFError("the other end is closed")
        if self._parts:
            data = self._parts + data
        messages: list[Message] = []
        at, end = 0, len(data)
        while end - at >= _LENGTH.size:
            start = at + _LENGTH.size
            stop = start + _LENGTH.unpack_from(data, at)[0]
            if stop - start > _MOST_BYTES:
                raise GarbledError(f"a message of {stop - start} bytes is none of ours")
            if stop > end:
                break
            try:
                messages.append(marshal.loads(data[start:stop]))  # noqa: S302  # written by our own worker
            except (ValueError, TypeError, EOFError) as error:
                raise GarbledError(f"what came is no message of ours: {error}") from None
            at = stop
        self._parts = data[at:]
        return messages

    def close(self) -> None:
        self._socket.close()


def pair() -> tuple[Channel, socket.socket]:
    """Our end, and the bare socket that becomes the worker's. Neither is inherited unless it is passed on purpose."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Channel(ours), theirs
