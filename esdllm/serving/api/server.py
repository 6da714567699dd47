"""The server: a socket, uvicorn, and what the signals mean."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.concurrency import run_in_threadpool

from esdllm.errors import InputError
from esdllm.serving.api.app import create_app
from esdllm.serving.api.protocol import GuardedProtocol
from esdllm.serving.api.service import Service

__all__ = ["Server", "bound"]

_LOOK = 0.05  # seconds between two looks at whether all is answered
_GRACE = 1.0  # seconds for what is under way to end, once nobody waits for it


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that is bound and does not listen yet: who comes early is refused, not left waiting. Port 0 is any.

    Raises:
        InputError: there is no such host, or its port is in use or not ours to take.
    """
    if not 0 <= port < 2**16:
        raise InputError(f"port {port}; give one from 1 to 65535, or 0 for any that is free")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"there is no host {host!r} here ({error}); 127.0.0.1 is this machine alone, 0.0.0.0 all"
        ) from None
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise InputError(
            f"cannot serve at {host}, port {port}: {(error.strerror or str(error)).lower()}; give another --port, 0 for any "
            "that is free"
        ) from None
    return found


class Server(uvicorn.Server):
    """Serves until a signal. At the first, requests under way are answered, new ones refused; at the second it stops."""

    def __init__(self, service: Service, at: socket.socket, ready: Callable[[], None]) -> None:
        config = uvicorn.Config(
            create_app(service),
            http=GuardedProtocol,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
        )
        super().__init__(config)
        self.stopped_by: int | None = None
        """the second signal, if there was one"""
        self.failed = False
        """whether it ended because its session did"""
        self._service, self._socket, self._ready = service, at, ready
        self._ending: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until it is over."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        if self.started:
            self._ready()

    def serve_here(self) -> None:
        """Serve, and return when all is over."""
        self.run([self._socket])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal."""
        self.stop(sig)

    def stop(self, sig: int = signal.SIGTERM) -> None:
        """Drain; if that is under way already, stop at once. May be called from any thread, and in a signal."""
        self._loop.call_soon_threadsafe(self._stop, sig)

    def _stop(self, sig: int) -> None:
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._drain())
        elif self.stopped_by is None:
            self.stopped_by = sig
            self._ending = asyncio.ensure_future(self._halt())

    async def on_tick(self, counter: int) -> bool:
        """End if the session has ended by itself, as nothing can be served any more."""
        if self._ending is None and self._service.session.join(0):
            self.failed = True
            self._ending = asyncio.ensure_future(self._drain())
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        """End once all that is under way is answered."""
        await run_in_threadpool(self._service.session.drain)
        await self._all_answered()
        self.should_exit = True

    async def _halt(self) -> None:
        """End what is under way by an error, and soon all the same."""
        await run_in_threadpool(self._service.session.close, _GRACE)
        try:
            await asyncio.wait_for(self._all_answered(), _GRACE)
        except asyncio.TimeoutError:  # somebody reads nothing
            self.config.timeout_graceful_shutdown = 0
            self.force_exit = True
            logging.getLogger("uvicorn.error").setLevel(
                logging.CRITICAL
            )  # of what is cut off now, nothing is to be told
        self.should_exit = True

    async def _all_answered(self) -> None:
        while self._service.under_way:
            await asyncio.sleep(_LOOK)
