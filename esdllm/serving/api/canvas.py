"""What only a canvas can do, over the engine that serves: `/v1/choose`, `/v1/score`, `/v1/match`, `/v1/edit`.

Not in slots: each takes the engine's turn between two steps of the requests that are being decoded, a forward at a time for
options and scores, a whole run for an answer that matches and for an edit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import attrs
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from esdllm.errors import ClosedError, brief
from esdllm.serving.api.asked import conversation
from esdllm.serving.api.bodies import parse_object, read_body
from esdllm.serving.api.errors import ApiError, invalid, json_response
from esdllm.serving.api.fields import field, items, number, structured, text, whole
from esdllm.serving.api.service import Service
from esdllm.use.choosing import MOST_OPTIONS
from esdllm.use.pipeline import Pipeline
from esdllm.views import Message

__all__ = ["CANVAS_CALLS", "CanvasEndpoint"]

_SAMPLES = 1024


@attrs.frozen(kw_only=True)
class AskedOfCanvas:
    """What each of them takes."""

    model: str = field(text, attrs.NOTHING)


@attrs.frozen(kw_only=True)
class AskedAfter(AskedOfCanvas):
    """What comes after a prompt, or after a conversation."""

    prompt: str | None = field(text)
    messages: tuple[Message, ...] | None = field(conversation)

    def __attrs_post_init__(self) -> None:
        if (self.prompt is None) is (self.messages is None):
            raise invalid("prompt", "give either a prompt or messages")

    @property
    def given(self) -> Any:
        """The prompt, or the conversation."""
        return self.prompt if self.messages is None else list(self.messages)


@attrs.frozen(kw_only=True)
class AskedChoice(AskedAfter):
    """The body of /v1/choose."""

    options: tuple[str, ...] = field(items(text, 2, MOST_OPTIONS), attrs.NOTHING)
    samples: int | None = field(whole(1, _SAMPLES))

    def answer(self, pipe: Pipeline) -> dict[str, Any]:
        """Return what the model holds of the options."""
        found = pipe.choose(self.given, self.options, samples=self.samples)
        return {"object": "choice", "best": found.best, "text": found.text, **_without(found, "prompt")}


@attrs.frozen(kw_only=True)
class AskedScore(AskedAfter):
    """The body of /v1/score."""

    text: str = field(text, attrs.NOTHING)
    samples: int | None = field(whole(1, _SAMPLES), 128)

    def answer(self, pipe: Pipeline) -> dict[str, Any]:
        """Return how probable the model holds the text."""
        return {"object": "score", **attrs.asdict(pipe.score(self.given, self.text, samples=self.samples))}


def _schema(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise invalid(path, f"{brief(value)} is no object")
    return value


@attrs.frozen(kw_only=True)
class AskedMatch(AskedAfter):
    """The body of /v1/match."""

    pattern: str | None = field(text)
    schema: Mapping[str, Any] | None = field(_schema)

    def answer(self, pipe: Pipeline) -> dict[str, Any]:
        """Return an answer that matches."""
        found = pipe.match(self.given, pattern=self.pattern, schema=self.schema)
        return {"object": "match", **_without(found, "prompt", "complete")}


def _span(value: Any, path: str) -> Any:
    return text(value, path) if isinstance(value, str) else items(whole(0, 2**31 - 1), 2, 2)(value, path)


@attrs.frozen(kw_only=True)
class AskedEdit(AskedOfCanvas):
    """The body of /v1/edit."""

    instruction: str | None = field(text)
    span: Any = field(_span)
    count: int | None = field(whole(1, 2**31 - 1))
    below: float = field(number(0, 1, above=True), 0.5)
    text: str = field(text, attrs.NOTHING)

    def answer(self, pipe: Pipeline) -> dict[str, Any]:
        """Return the text edited."""
        found = pipe.edit(self.text, self.instruction, span=self.span, count=self.count, below=self.below)
        return {"object": "edit", **_without(found, "prompt", "complete")}


def _without(found: Any, *names: str) -> dict[str, Any]:
    return attrs.asdict(found, filter=lambda one, _: one.name not in names)


CANVAS_CALLS: Mapping[str, Callable[[dict[str, Any]], AskedChoice | AskedScore | AskedMatch | AskedEdit]] = {
    "/v1/choose": lambda given: structured(AskedChoice, given),
    "/v1/score": lambda given: structured(AskedScore, given),
    "/v1/match": lambda given: structured(AskedMatch, given),
    "/v1/edit": lambda given: structured(AskedEdit, given),
}
"""What reads the body of each path."""


@attrs.frozen(eq=False)
class CanvasEndpoint:
    """An ASGI application that answers the requests of one of these paths."""

    service: Service
    read: Callable[[dict[str, Any]], AskedChoice | AskedScore | AskedMatch | AskedEdit]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            ApiError: it is answered with that, as nothing was sent yet.
        """
        limits = self.service.limits
        with suppress(ClientDisconnect):
            body = await read_body(Request(scope, receive), limits.body, limits.body_seconds)
            found = await run_in_threadpool(self._answer, body)
            await json_response(found)(scope, receive, send)

    def _answer(self, body: bytes) -> dict[str, Any]:
        service, asked = self.service, self.read(parse_object(body))
        if asked.model != service.model:
            message = f"there is no model {brief(asked.model)}; this server has {service.model}"
            raise ApiError(404, message, "model_not_found", "model")
        if service.condition() == "draining":
            raise ClosedError("this server takes no more requests: it is draining")
        return {"model": service.model, **asked.answer(Pipeline(service.session.engine))}
