"""What is sent of the rows of one request: an answer, or a stream of events."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Send

from esdllm.errors import ClosedError
from esdllm.serving.api.calls import Call, tokens_used
from esdllm.serving.api.errors import ApiError, as_json, json_response, of_error, unforeseen
from esdllm.serving.api.rows import Rows
from esdllm.serving.api.service import Service
from esdllm.serving.api.writing import provisional
from esdllm.serving.requests import Completion, FinishReason, Update

__all__ = ["Reply"]

_log = logging.getLogger("esdllm.serving")
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # a proxy hands each event on at once
]


class Reply:
    """The answer to one request, whose rows were submitted."""

    def __init__(self, service: Service, call: Call, rows: Rows, entry: dict[str, Any]) -> None:
        self._service, self._call, self._rows, self._entry = service, call, rows, entry
        self._created, self._generated = int(time.time()), 0

    async def whole(self) -> Response:
        """Return the answer, once all rows have ended.

        Raises:
            ApiError: one of them cannot be decoded; the others are not waited for.
        """
        while self._rows.unfinished:
            for _, update in await self._rows.news():
                _check(update.completion)
        ends = [self._rows.completions[row] for row in range(len(self._call.requests))]
        choices = [writer.whole(completion) for writer, completion in zip(self._call.writers, ends, strict=True)]
        answer = self._head(self._call.writers[0].whole_object, choices)
        return json_response({**answer, "usage": self._call.usage(self._rows.completions)})

    async def stream(self, send: Send) -> None:
        """Send the answer while it is decoded. What goes wrong is an event too, the last but [DONE]."""
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        try:
            async for part in self._parts():
                await send(_body(part))
        except Exception as error:
            await send(_body(b"event: error\ndata: " + as_json(self._told(error).body()) + b"\n\n"))
        await send(_body(b"data: [DONE]\n\n", more=False))

    def _told(self, error: Exception) -> ApiError:
        """Return what the client is told of an error, once the log knows of it."""
        if not isinstance(error, ApiError):
            _log.exception("a stream failed")
            error = unforeseen()
        self._entry["error"] = error.code
        return error

    async def _parts(self) -> AsyncIterator[bytes]:
        """Yield events, and comments while there is nothing to say."""
        openings = [opening for writer in self._call.writers if (opening := writer.opening()) is not None]
        for opening in openings:
            yield self._chunk([opening])
        while self._rows.unfinished:
            news = await self._rows.news(self._service.limits.silent_seconds)
            for row, update in news:
                for part in self._told_of(row, update):
                    yield part
            if not news:
                yield b":\n\n"
        if self._tells_usage:
            yield self._chunk([], usage=self._call.usage(self._rows.completions))

    def _told_of(self, row: int, update: Update) -> Iterator[bytes]:
        """Yield a row's news, then its end."""
        writer, speller = self._call.writers[row], self._service.speller
        self._generated += writer.added(update)
        if self._call.asked.diffusing:
            yield self._chunk([writer.chunk(update)], esdllm=provisional(update, speller))
        elif update.new or update.logprobs:
            yield self._chunk([writer.chunk(update)])
        if update.completion is not None:
            _check(update.completion)
            yield self._chunk([writer.closing(update.completion)])

    @property
    def _tells_usage(self) -> bool:
        options = self._call.asked.stream_options
        return options is not None and options.include_usage

    def _usage_so_far(self) -> dict[str, int] | None:
        """Return the tokens until now, if every chunk is to tell them."""
        options = self._call.asked.stream_options
        if options is None or not options.continuous_usage_stats:
            return None
        return tokens_used(self._rows.prompt_tokens(self._call.asked.n), self._generated)

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        usage = {"usage": self._usage_so_far()} if self._tells_usage else {}
        chunk = {**self._head(self._call.writers[0].chunk_object, choices), **usage, **more}
        return b"data: " + as_json(chunk) + b"\n\n"

    def _head(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        ident = f"{self._call.writers[0].prefix}-{self._entry['id']}"
        return {
            "id": ident,
            "object": kind,
            "created": self._created,
            "model": self._service.model,
            "choices": choices,
        }


def _body(part: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": part, "more_body": more}


def _check(completion: Completion | None) -> None:
    """Raise what a client is told of a row that has no end of its own."""
    if completion is None or completion.finish_reason in (
        FinishReason.STOP,
        FinishReason.LENGTH,
        FinishReason.DEADLINE,
    ):
        return
    raise of_error(completion.error or ClosedError("the server stops, and this answer with it; ask again later"))
