"""Errors in OpenAI's form, `{"error": {message, type, param, code}}`, and which of ours is which."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import ceil
from typing import Any

from starlette.responses import Response
from starlette.types import Scope

from esdllm.errors import ClosedError, ConfigError, ContextError, EsdllmError, InputError, QueueFullError

__all__ = ["ApiError", "as_json", "invalid", "json_response", "of_error", "unforeseen"]


_LONGEST = 3600  # seconds that a client is told to wait


class ApiError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the error as OpenAI writes it."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, "invalid_request_error")
        if self.status >= 500:
            kind = "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def logged(self, scope: Scope) -> ApiError:
        """Return this, noted in the log's entry of its request."""
        scope["state"]["entry"]["error"] = self.code
        return self

    def response(self) -> Response:
        """Return the answer to the request."""
        return json_response(self.body(), self.status, self.headers)


def as_json(content: Any) -> bytes:
    """Return UTF-8; half a surrogate pair, which UTF-8 does not have, stays the escape that it came as."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response of JSON."""
    return Response(as_json(content), status, headers, media_type="application/json")


def invalid(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """Return the refusal of a field, by its name."""
    return ApiError(400, f"{param}: {message}", code, param)


def unforeseen() -> ApiError:
    """Return what is said of a fault of ours: nothing of what is inside."""
    return ApiError(500, "the server failed at this request; its log says why", "internal_error")


def of_error(error: BaseException) -> ApiError:
    """Return what a request is told of an error."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        retry = {"retry-after": str(max(1, ceil(min(error.retry_after, _LONGEST))))}
        return ApiError(429, str(error), "rate_limit_exceeded", headers=retry)
    if isinstance(error, ClosedError):
        return ApiError(503, str(error), "unavailable", headers={"retry-after": "5", "connection": "close"})
    if isinstance(error, ContextError):
        return ApiError(400, str(error), "context_length_exceeded")
    if isinstance(error, InputError):
        return ApiError(422, str(error), "invalid_prompt")
    if isinstance(error, ConfigError):
        return ApiError(400, str(error), "invalid_value")
    if isinstance(error, EsdllmError):
        return ApiError(500, str(error), "decoding_failed")
    return unforeseen()
