"""Who may ask: the keys that a request must bring one of, and the names that it may ask the server by."""

from __future__ import annotations

import hmac
import os
import re
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from esdllm.config.project import KEY_VARIABLE
from esdllm.errors import InputError, brief
from esdllm.serving.api.errors import ApiError
from esdllm.serving.api.logs import OPEN_PATHS, local_path
from esdllm.serving.api.service import Service

__all__ = ["Guarded", "read_keys"]

_KEY = re.compile(r"[!-~]+")


def read_keys(file: Path | None) -> tuple[str, ...]:
    """Return the keys of a file, one per line, and that of the environment. Lines that are empty or begin with # are none.

    Raises:
        InputError: the file cannot be read or holds no key; the variable is set to nothing; a key has a character that a
            header cannot have. No key is told.
    """
    keys = [] if file is None else _keys_of(file)
    if (named := os.environ.get(KEY_VARIABLE)) is not None:
        keys.append((KEY_VARIABLE, named.strip()))
    for place, key in keys:
        if not _KEY.fullmatch(key):
            raise InputError(
                f"{place} is no key; give letters, digits and signs of ASCII without spaces, or leave it out"
            )
    return tuple(key for _, key in keys)


def _keys_of(file: Path) -> list[tuple[str, str]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the keys in {file}: {getattr(error, 'strerror', None) or 'it is no text'}"
        ) from None
    keys = [
        (f"{file}, line {number},", line.strip())
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.strip().startswith("#")
    ]
    if not keys:
        raise InputError(f"there is no key in {file}; write one per line, or leave --api-key-file out")
    return keys


class Guarded:
    """Lets a request through that brings a key and asks by a known name; pages that tell nothing need no key."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._hosts = app, frozenset(host.lower() for host in service.hosts)
        self._keys = [key.encode() for key in service.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        error = self._refusal(scope) if scope["type"] == "http" else None
        await (self._app if error is None else error.logged(scope).response())(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._hosts and _name(host) not in self._hosts:
            message = f"this server does not go by the name {brief(host)}; start it with --allow-host for that"
            return ApiError(403, message, "host_not_allowed")
        given = headers.get("authorization", "")
        if not self._keys or local_path(scope) in OPEN_PATHS or self._knows(given):
            return None
        message = (
            f"{'this key is not known' if given else 'no key was given'}; send the header authorization: Bearer KEY"
        )
        return ApiError(401, message, "invalid_api_key", headers={"www-authenticate": "Bearer"})

    def _knows(self, given: str) -> bool:
        """Return whether a header has one of the keys; each is compared to its end, whichever it is."""
        scheme, _, key = given.partition(" ")
        same = [hmac.compare_digest(key.strip().encode("latin-1"), one) for one in self._keys]
        return scheme.lower() == "bearer" and any(same)


def _name(host: str) -> str:
    """Return the name in a Host header, without its port."""
    return re.sub(r":\d*$", "", host.lower())
