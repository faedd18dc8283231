"""HTTP/1.1 on a connection, before there is a request: uvicorn's, made to bear with what broken clients send."""

from __future__ import annotations

from asyncio import Transport
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from altlas_core.api.errors import error_response

MAX_HEAD_BYTES: Final = 1 << 19  # twice what arrives at once, so that the end of a body before it never counts


class Protocol(HttpToolsProtocol):
    """Refuses in the API's own words what is no HTTP, and a request line and headers that do not end.

    uvicorn with httptools keeps headers for as long as they come; no key is asked for before they have. And of several
    requests on their way (pipelined) it knows the last one only: those before it would not hear that the client left.
    """

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_bytes = 0
        self._in_head = True
        self._earlier: list[RequestResponseCycle] = []  # those before `cycle`, perhaps not answered yet

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._leave()

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        before = self.cycle
        super().on_headers_complete()
        self._earlier = [] if before is None or before.response_complete else [*self._earlier, before]

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(f"the headers are longer than {MAX_HEAD_BYTES} bytes; send fewer")

    def send_400_response(self, msg: str) -> None:
        """To what is not even a request. The connection ends with it."""
        open_ones = self._unanswered()
        if open_ones and not open_ones[0].more_body:
            # A good request came before: its client would take what is sent now for the answer to that.
            open_ones[0].keep_alive = False
            self.pipeline.clear()
            self.transport.pause_reading()
            return
        if not (open_ones and open_ones[0].response_started):
            response = error_response(400, "invalid_http", msg, {"connection": "close"})
            head = [b"HTTP/1.1 400 Bad Request", *(b": ".join(each) for each in self.server_state.default_headers)]
            head += [b": ".join(each) for each in response.raw_headers]
            self.transport.write(b"\r\n".join([*head, b"", bytes(response.body)]))
        self._leave()
        self.transport.close()

    def _unanswered(self) -> list[RequestResponseCycle]:
        """The requests on this connection that wait for their answers, oldest first."""
        known = self._earlier if self.cycle is None else [*self._earlier, self.cycle]
        return [cycle for cycle in known if not cycle.response_complete]

    def _leave(self) -> None:
        """Tell every request under way that nobody waits for its answer."""
        for cycle in self._unanswered():
            cycle.disconnected = True
            cycle.message_event.set()

    def _unsupported_upgrade_warning(self) -> None:
        """Whoever asks for a WebSocket is answered as if it had not; the log need not say so each time."""
