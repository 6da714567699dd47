"""An endpoint that decodes: from a body to an answer or a stream, for as long as the client is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import attrs
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from esdllm.serving.api.bodies import parse_object, read_body
from esdllm.serving.api.calls import Call
from esdllm.serving.api.replies import Reply
from esdllm.serving.api.rows import Rows
from esdllm.serving.api.service import Service

__all__ = ["Endpoint"]


@attrs.frozen(eq=False)
class Endpoint:
    """An ASGI application that answers the requests of one path."""

    service: Service
    read: Callable[[Service, dict[str, Any]], Call]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or nothing where nobody is there any more; what was decoded for it is then cancelled.

        Raises:
            ApiError: it is answered with that, as nothing was sent yet.
        """
        limits = self.service.limits
        with suppress(ClientDisconnect):  # whoever serves has seen it too; an error would be its log's
            body = await read_body(Request(scope, receive), limits.body, limits.body_seconds)
            await _unless_gone(receive, self._answer(body, scope, send))

    async def _answer(self, body: bytes, scope: Scope, send: Send) -> None:
        service, entry = self.service, scope["state"]["entry"]
        call = await run_in_threadpool(lambda: self.read(service, self._heeded(parse_object(body), entry)))
        rows = Rows(service.session, call.requests, service.metrics)
        try:
            await run_in_threadpool(rows.submit)
            reply = Reply(service, call, rows, entry)
            if call.asked.stream:
                await reply.stream(send)
            else:
                await (await reply.whole())(scope, _no_more, send)
        finally:
            rows.cancel()
            entry.update(_noted(call, rows, service.log_text))

    def _heeded(self, given: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
        """Return a body without what the server leaves aside; the log says what that was."""
        if ignored := [name for name in self.service.ignored if given.get(name) is not None]:
            entry["ignored"] = ignored
        return {name: value for name, value in given.items() if name not in ignored}


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do work, or stop it as soon as the client leaves."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _no_more() -> Message:
    """Return what a response that does not stream never asks for."""
    return {"type": "http.disconnect"}


def _noted(call: Call, rows: Rows, with_text: bool) -> dict[str, Any]:
    """Return what the log says of what was decoded."""
    ends = [rows.completions.get(row) for row in range(len(rows.requests))]
    done, usage = [end for end in ends if end is not None], call.usage(rows.completions)
    noted: dict[str, Any] = {
        "stream": call.asked.stream,
        "rows": len(rows.requests),
        "prompt_tokens": rows.prompt_tokens(call.asked.n),
        "completion_tokens": usage["completion_tokens"] if len(done) == len(ends) else rows.tokens,
        "finish_reasons": [end.finish_reason.value if end else "cancelled" for end in ends],
        "first_token_seconds": rows.first,
        "queued_seconds": max((end.queued for end in done), default=None),
        "decoding_seconds": max((end.decoding for end in done), default=None),
        "steps": sum(end.steps for end in done),
    }
    if with_text:
        noted["prompts"] = [request.prompt for request in rows.requests[:: call.asked.n]]
        noted["answers"] = [end.text if end else None for end in ends]
    return noted
