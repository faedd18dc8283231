"""JSON lines on a stream: one for each request, and those of the program's own loggers. Nothing here waits or raises.

Lines are collected and written together a little later, as a write for each would cost more than the rest of a request.
All text goes through json's encoder, so no request can forge a line. A reader that stands still (a stopped terminal, a
full pipe) never stops the server: what does not fit in the backlog is dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import stat
import threading
import time
from asyncio import _get_running_loop
from json.encoder import encode_basestring_ascii as quoted
from typing import Final, TextIO

BACKLOG_LINES: Final = 20_000
FLUSH_BYTES: Final = 1 << 18  # after so much what is left is cut off once, instead of after each piece
PIPE_BYTES: Final = 4096  # a pipe or terminal that polls as writable takes this much without waiting (PIPE_BUF)
PATH_CHARS: Final = 1024  # of a path that are logged
LOGGERS: Final = ("altlas.api", "uvicorn.error")


class LineLog:
    """Collects lines and writes them to `stream` (None: nowhere) every `flush_interval_s` while an event loop runs.

    Off a loop each line is written at once. Safe to use from any thread.
    """

    def __init__(self, stream: TextIO | None, flush_interval_s: float = 0.2) -> None:
        self.dropped = 0
        self._stream = stream
        self._descriptor = _descriptor(stream)
        self._chunk_bytes = FLUSH_BYTES if _is_file(self._descriptor) else PIPE_BYTES
        self._interval_s = flush_interval_s
        self._lines: list[str] = []
        self._rest = b""  # of lines that were taken but not yet written in full
        self._untold = 0
        self._lock = threading.Lock()
        self._timer_loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._second = -1
        self._second_text = ""

    def access(
        self,
        request_id: str,
        method: str,
        path: str,
        status: int,
        duration_s: float,
        size_bytes: int,
        client: str | None,
        now: float,
    ) -> None:
        """One line for a request that was answered, or whose client left (`now`: Unix seconds)."""
        self.line(
            f'{{"time": "{self.time_text(now)}", "level": "{"error" if status >= 500 else "info"}", '
            f'"request_id": {quoted(request_id)}, "method": {quoted(method[:32])}, '
            f'"path": {quoted(path[:PATH_CHARS])}, "status": {status}, "duration_ms": {duration_s * 1e3:.3f}, '
            f'"bytes": {size_bytes}, "client": {"null" if client is None else quoted(client)}}}\n'
        )

    def time_text(self, now: float) -> str:
        """UTC in ISO 8601 with milliseconds; the text of a second is made once."""
        second = int(now)
        if second != self._second:
            self._second_text, self._second = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second)), second
        return f"{self._second_text}{int((now - second) * 1000):03d}Z"

    def line(self, text: str) -> None:
        """Take a line (with its line end)."""
        if len(self._lines) >= BACKLOG_LINES:
            self.dropped += 1
            self._untold += 1
        else:
            self._lines.append(text)
        loop = _get_running_loop()
        if loop is None or self._closed:
            self.flush()
        elif loop is not self._timer_loop:  # a timer of a loop that is gone never fires
            self._timer_loop = loop
            loop.call_later(self._interval_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer_loop = None
        self.flush()
        if self._rest or self._lines:
            loop = self._timer_loop = asyncio.get_running_loop()
            loop.call_later(self._interval_s, self._on_timer)

    def flush(self, patience_s: float = 0.0) -> None:
        """Write what the stream takes within `patience_s`; the rest stays for the next time."""
        with self._lock:
            while self._rest or self._lines:
                if self._descriptor is not None and not _takes_more(self._descriptor, patience_s):
                    return
                self._rest = self._rest or self._taken()
                try:
                    self._write()
                except BlockingIOError:
                    return
                except (OSError, ValueError):  # closed, or its disk is full
                    lost = self._rest.count(b"\n")
                    self.dropped += lost
                    self._untold += lost
                    self._rest = b""
                    return
                if self._untold and not (self._rest or self._lines):
                    self._rest = self._told()

    def _taken(self) -> bytes:
        """All lines so far, no longer in the list; meanwhile others may go on appending."""
        count = len(self._lines)
        text = "".join(self._lines[:count])
        del self._lines[:count]
        return text.encode("utf-8", "backslashreplace")

    def _write(self) -> None:
        """Write some of the rest. Raises OSError or ValueError when the stream is closed or full."""
        if self._descriptor is not None:
            whole, written = memoryview(self._rest), 0
            try:
                while written < min(len(whole), FLUSH_BYTES):
                    written += os.write(self._descriptor, whole[written : written + self._chunk_bytes])
                    if written < len(whole) and not _takes_more(self._descriptor, 0.0):
                        break
            finally:
                self._rest = bytes(whole[written:])
            return
        if self._stream is None:
            raise ValueError("no stream")
        self._stream.write(self._rest.decode())
        self._stream.flush()
        self._rest = b""

    def _told(self) -> bytes:
        count, self._untold = self._untold, 0
        now = self.time_text(time.time())
        return f'{{"time": "{now}", "level": "warning", "message": "{count} log lines were dropped"}}\n'.encode()

    def close(self) -> None:
        """Write what is left, for half a second at most; later lines are written at once."""
        self._closed = True
        self.flush(patience_s=0.5)


def _is_file(descriptor: int | None) -> bool:
    """Whether it takes any amount at once; every call less is one in which another thread may take the interpreter."""
    return descriptor is not None and stat.S_ISREG(os.fstat(descriptor).st_mode)


def _descriptor(stream: TextIO | None) -> int | None:
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError):  # not a file, or closed
        return None


def _takes_more(descriptor: int, patience_s: float) -> bool:
    """Whether a write will not wait; also true of a descriptor that is closed, where it raises."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(patience_s * 1e3))


class _Handler(logging.Handler):
    """Hands log records to a LineLog, in its format; `extra={"request_id": ...}` is kept."""

    def __init__(self, log: LineLog) -> None:
        super().__init__()
        self._log = log
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._log.line(self.format(record))
        except Exception:  # a message that does not fit its arguments: tell, as logging does, but never raise
            self.handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        fields = {"level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        request_id = getattr(record, "request_id", None)
        if request_id is not None:
            fields["request_id"] = str(request_id)
        if record.exc_info:
            fields["traceback"] = self._formatter.formatException(record.exc_info)
        body = ", ".join(f'"{name}": {quoted(text)}' for name, text in fields.items())
        return f'{{"time": "{self._log.time_text(record.created)}", {body}}}\n'


def setup_logging(stream: TextIO | None, level: int = logging.INFO) -> LineLog:
    """Send the program's own loggers to `stream` as JSON lines and silence uvicorn's access log; return the log.

    For uvicorn to keep it: `uvicorn.Config(..., log_config=None, access_log=False)`. Calling it again replaces the log.
    """
    log = LineLog(stream)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [_Handler(log)]
        logger.setLevel(level)
        logger.propagate = False
    access = logging.getLogger("uvicorn.access")
    access.handlers = []
    access.propagate = False
    return log
