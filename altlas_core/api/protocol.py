"""HTTP/1.1 on a connection, before there is a request: uvicorn's, made to bear with what broken clients send."""

from __future__ import annotations

from asyncio import TimerHandle, Transport
from typing import TYPE_CHECKING, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from altlas_core.api.errors import error_response

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

HEAD_S: Final = 30.0  # in which a request line and its headers must have come
MAX_HEAD_BYTES: Final = 1 << 19  # twice what arrives at once, so that the end of a body before it never counts


class Protocol(HttpToolsProtocol):
    """Refuses in the API's own words what is no HTTP, and a request line and headers that do not end.

    Who connects and says nothing is cut off too: each such connection is one less that the system has for others.
    uvicorn with httptools keeps headers for as long as they come; no key is asked for before they have. And of several
    requests on their way (pipelined) it knows the last one only: those before it would not hear that the client left.
    """

    head_s = HEAD_S

    _running: RequestResponseCycle | None = None  # what the app works on; `cycle` is what arrived last
    _head_timer: TimerHandle | None = None
    _head_bytes = 0
    _in_head = True

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.head_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)
        self._leave()

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._stop_head_timer()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_s, self._head_is_late)
        if self._head_bytes > MAX_HEAD_BYTES:
            self.send_400_response(f"the headers are longer than {MAX_HEAD_BYTES} bytes; send fewer")

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._head_bytes:
            self.send_400_response(f"the headers did not arrive within {self.head_s:g} s; send them faster")
        else:
            self.transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def send_400_response(self, msg: str) -> None:
        """To what is not even a request. The connection ends with it."""
        running = self._running if self._running is not None and not self._running.response_complete else None
        if running is not None and not running.more_body:
            # A good request came before: its client would take what is sent now for the answer to that.
            running.keep_alive = False
            self.pipeline.clear()
            self.transport.pause_reading()
            return
        if running is None or not running.response_started:
            response = error_response(400, "invalid_http", msg, {"connection": "close"})
            head = [b"HTTP/1.1 400 Bad Request", *(b": ".join(each) for each in self.server_state.default_headers)]
            head += [b": ".join(each) for each in response.raw_headers]
            self.transport.write(b"\r\n".join([*head, b"", bytes(response.body)]))
        self._leave()
        self.transport.close()

    def _leave(self) -> None:
        """Tell the request under way that nobody waits for its answer."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def _unsupported_upgrade_warning(self) -> None:
        """Whoever asks for a WebSocket is answered as if it had not; the log need not say so each time."""
