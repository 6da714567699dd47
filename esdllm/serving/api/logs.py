"""One line of JSON for each request, whatever became of it."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from queue import Full, Queue
from threading import Thread
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from esdllm.serving.api.errors import as_json
from esdllm.serving.api.service import Service

__all__ = ["OPEN_PATHS", "LineLog", "Logged", "local_path", "now"]

_HEALTH = ("/health", "/health/live", "/health/ready")
OPEN_PATHS = ("/", *_HEALTH)
"""that need no key"""
_WAITING = 10_000
"""entries that may wait to be written"""
_GONE = 499
"""logged where the client left before it was answered"""


def local_path(scope: Scope) -> str:
    """Return a request's path within the application, wherever that is mounted."""
    return str(scope["path"].removeprefix(scope.get("root_path", "")))


def now() -> str:
    """Return the time, as the log has it."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


class LineLog:
    """Writes entries as lines of JSON, from a thread of its own: a pipe that nobody reads holds up nobody."""

    def __init__(self, target: int) -> None:
        """Take a file descriptor: where its reader is gone, nothing is left in a buffer for the process's end."""
        self._target, self._entries = target, Queue[Mapping[str, Any] | None](_WAITING)
        self._thread = Thread(target=self._write, name="esdllm log", daemon=True)
        self._thread.start()

    def __call__(self, entry: Mapping[str, Any]) -> None:
        """Write an entry, soon; if too many wait already, it is lost."""
        with suppress(Full):
            self._entries.put_nowait(entry)

    def close(self, seconds: float = 1.0) -> None:
        """Return once all is written, or after so long."""
        with suppress(Full):
            self._entries.put(None, timeout=seconds)
        self._thread.join(seconds)

    def _write(self) -> None:
        while (entry := self._entries.get()) is not None:
            with suppress(OSError, ValueError):  # nobody reads it
                os.write(self._target, as_json(entry) + b"\n")


class Logged:
    """Gives each request an id, and logs it in a line once it is answered; counts those that are not."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        following = _Following(scope, receive, send)
        scope.setdefault("state", {})["entry"] = following.entry
        self._service.under_way.add(following)
        try:
            await self._app(scope, following.receive, following.send)
        finally:
            self._service.under_way.discard(following)
            self._log(scope, following.ended())

    def _log(self, scope: Scope, entry: Mapping[str, Any]) -> None:
        path = local_path(scope)
        if path in _HEALTH:  # whoever looks, looks every few seconds
            return
        if refused := entry["status"] >= 400:
            self._service.metrics.refused(entry["status"])
        if refused or path != "/metrics":
            self._service.log(entry)


class _Following:
    """One request: its entry of the log, how much of its body came, and what it is answered."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send, self._started = receive, send, time.monotonic()
        headers = Headers(scope=scope)
        self._whole = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        self.entry: dict[str, Any] = {
            "time": now(),
            "id": uuid.uuid4().hex,
            "method": scope["method"],
            "path": scope["path"],
            "client": (scope.get("client") or ("",))[0],
            "status": None,
        }

    async def receive(self) -> Message:
        """Return the next part of the body."""
        message = await self._receive()
        self._whole = self._whole or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer. Where some of the body was not read, the connection closes: nobody waits for the rest."""
        if message["type"] == "http.response.start":
            self.entry["status"] = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.entry["id"]
            if not self._whole:
                headers["connection"] = "close"
        await self._send(message)

    def ended(self) -> dict[str, Any]:
        """Return the entry, whole."""
        self.entry["status"] = self.entry["status"] or _GONE
        self.entry["seconds"] = round(time.monotonic() - self._started, 6)
        return self.entry
