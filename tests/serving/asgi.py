"""An application called without a socket, message by message."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from starlette.types import ASGIApp

JSON = {"content-type": "application/json"}


class Answered(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, which has OpenAI's form and nothing else."""
        assert self.headers["content-type"] == "application/json"
        assert list(self.json) == ["error"]
        found: dict[str, Any] = self.json["error"]
        assert list(found) == ["message", "type", "param", "code"]
        assert found["message"]
        assert "Traceback" not in found["message"]
        return found

    @property
    def events(self) -> list[Any]:
        """The data of a stream's events; comments are none."""
        assert self.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = [line for block in self.body.split(b"\n\n") for line in block.split(b"\n")]
        data = [line[6:] for line in lines if line.startswith(b"data: ")]
        assert data[-1] == b"[DONE]"
        return [json.loads(one) for one in data[:-1]]


def asked(method: str, path: str, headers: Mapping[str, str], root: str = "") -> dict[str, Any]:
    """Return the scope of a request to an application mounted at `root`."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": root,
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }


def call(
    app: ASGIApp,
    method: str,
    path: str,
    body: bytes | Sequence[bytes] = b"",
    headers: Mapping[str, str] | None = None,
    root: str = "",
) -> Answered:
    """Return the answer to a request whose body comes in parts, of an application mounted at `root`."""
    parts = [body] if isinstance(body, bytes) else list(body)
    return asyncio.run(_call(app, method, path, parts, dict(headers or {}), root))


async def _call(
    app: ASGIApp, method: str, path: str, parts: list[bytes], headers: dict[str, str], root: str
) -> Answered:
    scope = asked(method, path, headers, root)
    coming = [{"type": "http.request", "body": part, "more_body": i < len(parts) - 1} for i, part in enumerate(parts)]
    sent: list[Any] = []

    async def receive() -> Any:
        if not coming:
            await asyncio.Event().wait()
        return coming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    with suppress(ZeroDivisionError):  # a fault that is answered, and raised again for the server's own log
        await app(scope, receive, send)
    start, *rest = sent
    found = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
    assert not rest[-1].get("more_body", False)
    return Answered(start["status"], found, b"".join(part.get("body", b"") for part in rest))


def post(app: ASGIApp, path: str, body: Any, **headers: str) -> Answered:
    """Return the answer to JSON."""
    return call(app, "POST", path, json.dumps(body).encode(), {**JSON, **headers})
