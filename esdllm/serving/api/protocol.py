"""HTTP/1.1 as uvicorn reads it, with a limit of time for the head of a request, and errors in OpenAI's form."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from esdllm.serving.api.errors import ApiError, as_json

__all__ = ["GuardedProtocol"]


class GuardedProtocol(H11Protocol):
    """A connection that ends where the head of a request is begun and does not come to its end, or where nobody reads."""

    head_seconds = 15.0
    """from a connection's first moment, or from the first byte after another request"""
    read_seconds = 60.0
    """in which a client must take some of what waits to be sent"""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._late: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._forget()
        self._unstall()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait for the client to take some."""
        super().pause_writing()
        self._stall(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Write on."""
        self._unstall()
        super().resume_writing()

    def _stall(self, waiting: int) -> None:
        self._stalled = self.loop.call_later(self.read_seconds, self._end_stalled, waiting)

    def _unstall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()

    def _end_stalled(self, waiting: int) -> None:
        now = self.transport.get_write_buffer_size()
        if now < waiting:
            self._stall(now)
        else:
            self.transport.abort()

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(self.head_seconds, self._end_late)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end_late(self) -> None:
        self._late = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._refuse(ApiError(408, f"no request came within {self.head_seconds:g} s", "timeout"))

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(ApiError(400, msg, "invalid_http"))

    def _refuse(self, error: ApiError) -> None:
        """Send an error unless an answer was begun, and close; who answers learns that nobody listens any more."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = as_json(error.body())
            headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            for event in (
                h11.Response(status_code=error.status, headers=list(headers.items())),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
