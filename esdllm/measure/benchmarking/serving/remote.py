"""A server at an address, as a target: OpenAI's API, one thread a request under way."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from threading import Event, Thread
from typing import Any

import attrs

from esdllm.config.project import KEY_VARIABLE
from esdllm.errors import InputError, UnavailableError, brief
from esdllm.measure.benchmarking.serving.driving import Pending
from esdllm.measure.benchmarking.serving.traffic import Wanted
from esdllm.parsing import parse_json

__all__ = ["Looked", "ServerTarget", "Watching"]

_PATIENCE = 600.0  # seconds without a byte
_POLL = 0.1  # seconds between two looks at the metrics


@attrs.frozen
class ServerTarget:
    """A server that speaks OpenAI's API."""

    url: str
    """of its root, such as http://127.0.0.1:8000"""
    model: str
    key: str = attrs.field(default="", repr=False)

    @classmethod
    def at(cls, url: str, model: str | None = None, key: str = "") -> ServerTarget:
        """Return the target at an address; its first model if none is named.

        Raises:
            InputError: the address is none.
            UnavailableError: nothing answers there, or not as OpenAI's API does.
        """
        if not re.match(r"https?://[^/]", url):
            raise InputError(f"--url {brief(url)}; give the server's root, such as http://127.0.0.1:8000")
        found = cls(url.rstrip("/").removesuffix("/v1"), model or "", key)
        try:
            with found.open("/v1/models", patience=10.0) as response:
                names = [one["id"] for one in parse_json(response.read())["data"]]
        except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
            raise UnavailableError(f"no server answers at {found.url}/v1/models: {_said(error)}") from error
        if not names or (model and model not in names):
            raise InputError(f"the server at {found.url} has the models {', '.join(names) or 'none'}; name one of them")
        return attrs.evolve(found, model=model or names[0])

    def open(self, path: str, body: dict[str, Any] | None = None, patience: float = _PATIENCE) -> Any:
        """Return the response to a GET, or a POST of a body."""
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        data = None if body is None else json.dumps(body).encode()
        return urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=patience)

    def send(self, wanted: Wanted, pending: Pending) -> None:
        """Send a request in a thread of its own."""
        Thread(target=self._ask, args=(wanted, pending), daemon=True).start()

    def _ask(self, wanted: Wanted, pending: Pending) -> None:
        chat = isinstance(wanted.prompt, list) and isinstance(wanted.prompt[0], dict)
        path = "/v1/chat/completions" if chat else "/v1/completions"
        options = {"stream": True, "stream_options": {"include_usage": True}}
        body = {"model": self.model, "max_tokens": wanted.max_tokens, "seed": wanted.seed, **options}
        told: dict[str, Any] = {}
        try:
            with self.open(path, {**body, "messages" if chat else "prompt": wanted.prompt}) as response:
                ended = _heard(response, pending, told)
        except urllib.error.HTTPError as error:
            pending.end(error=str(error.code))
        except TimeoutError:
            pending.end(error="timeout")
        except (OSError, HTTPException):
            pending.end(error="connection")
        except (ValueError, KeyError, TypeError, AttributeError):
            pending.end(error="not understood")
        else:
            tokens = (told.get("usage") or {}).get("completion_tokens", 0)
            pending.end(tokens=tokens, error=None if ended else "broken off")


def _heard(response: Any, pending: Pending, told: dict[str, Any]) -> bool:
    """Note what a stream says, and return whether it came to its end; what is `told` of its use goes there."""
    finished = False
    for event in _events(response):
        if "error" in event:
            return False
        told["usage"] = event.get("usage") or told.get("usage")
        for choice in event["choices"]:
            if choice.get("text") or (choice.get("delta") or {}).get("content"):
                pending.text()
            finished = finished or bool(choice.get("finish_reason"))
    return finished


def _events(response: Any) -> Iterator[Any]:
    for line in response:
        if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
            yield parse_json(data)


@attrs.frozen
class Looked:
    """What a server's metrics said at one moment."""

    at: float
    """seconds since the first look"""
    running: float
    waiting: float


class Watching:
    """Looks at a server's metrics while requests are sent; a context. A server without metrics is seen to have none."""

    def __init__(self, target: ServerTarget) -> None:
        self._target, self._over = target, Event()
        self.looks: list[Looked] = []
        self.slots: int | None = None
        self._thread = Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watching:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        started = time.perf_counter()
        while not self._over.wait(_POLL):
            try:
                with self._target.open("/metrics", patience=5.0) as response:
                    text = response.read().decode()
            except (OSError, HTTPException, ValueError):
                return
            found = {
                name: float(value) for name, value in re.findall(r"^\w+:(\w+)(?:\{[^}]*\})? ([\d.e+-]+)$", text, re.M)
            }
            if "num_requests_running" not in found:
                return
            self.slots = int(found["slots"]) if "slots" in found else None
            running, waiting = found["num_requests_running"], found.get("num_requests_waiting", 0.0)
            self.looks.append(Looked(time.perf_counter() - started, running, waiting))


def _said(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        hint = f"; its key is taken from {KEY_VARIABLE}" if error.code in (401, 403) else ""
        return f"{error.code} {error.reason}{hint}"
    return str(getattr(error, "reason", "") or error) or type(error).__name__
