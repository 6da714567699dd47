"""From the bytes of a request to a JSON object, within limits of size and time."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, NoReturn

from starlette.requests import Request

from esdllm.errors import brief
from esdllm.serving.api.errors import ApiError

__all__ = ["parse_object", "read_body"]


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """Return the body of a request of JSON, of `most` bytes.

    Raises:
        ApiError: it is not JSON by its headers (415), is longer (413; no more than that is read), or takes longer than
            `seconds` to come (408).
    """
    _check_type(request)
    told = request.headers.get("content-length", "")
    if told.isdecimal() and (len(told) > 20 or int(told) > most):
        raise _too_long(most)
    try:
        return await asyncio.wait_for(_within(request, most), seconds)
    except asyncio.TimeoutError:
        raise ApiError(408, f"the body took longer than {seconds:g} s to come; send it faster", "timeout") from None


async def _within(request: Request, most: int) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise _too_long(most)
    return bytes(body)


def _too_long(most: int) -> ApiError:
    return ApiError(413, f"the body is longer than {most} bytes; send less at once", "request_too_large")


def _check_type(request: Request) -> None:
    given = request.headers.get("content-type", "")
    kind, *parameters = (part.strip().lower() for part in given.split(";"))
    charsets = {value.strip('"') for name, _, value in (one.partition("=") for one in parameters) if name == "charset"}
    if kind != "application/json" or not charsets <= {"utf-8", "utf8"}:
        raise ApiError(
            415,
            f"content-type {brief(given)}; send UTF-8 and the header content-type: application/json",
            "content_type",
        )
    if coding := request.headers.get("content-encoding", "").strip():
        raise ApiError(415, f"content-encoding {brief(coding)}; send the body as it is", "content_encoding")


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the object of a body.

    Raises:
        ApiError: it is no UTF-8, no JSON, no object; names a field twice; holds a number that is none or has no room.
    """
    try:
        found = json.loads(
            body.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        raise _malformed(f"byte {error.start} is no UTF-8") from None
    except json.JSONDecodeError as error:
        raise _malformed(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _malformed("its brackets are nested too deep") from None
    except ValueError:  # Python reads no whole number of more than 4300 digits
        raise _malformed("a number has too many digits") from None
    if not isinstance(found, dict):
        raise _malformed(f"it is {brief(found)}, no object")
    return found


def _malformed(reason: str) -> ApiError:
    return ApiError(400, f"the body cannot be read as JSON: {reason}", "invalid_json")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _malformed(f"{brief(twice)} is given twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise _malformed(f"{text} is no JSON")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise _malformed(f"{text:.40} has no room in a float")
    return value
