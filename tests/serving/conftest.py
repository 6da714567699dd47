"""Fixtures of the tests of serving: a small engine, a session whose answers are known, servers with a socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from stand_in import StandIn
from starlette.types import ASGIApp

from esdllm import Catalogue, Engine, load_model
from esdllm.serving.api import Service, create_app
from esdllm.serving.api.server import Server, bound

MakeApp = Callable[..., ASGIApp]
Serve = Callable[..., "Served"]


@pytest.fixture(scope="session")
def engine(small: dict[str, Path], catalogue: Catalogue) -> Engine:
    """Two random layers with a tokenizer and a chat template."""
    config = catalogue.configure("es-dllm-parallel", settings={"gen_length": 16, "block_length": 8})
    return Engine.build(load_model(small["tiny-llada"], "cpu", "float32", catalogue), config, catalogue)


@pytest.fixture
def stand_in(engine: Engine) -> StandIn:
    """A session whose answers are known."""
    return StandIn(engine)


@pytest.fixture
def log() -> list[Any]:
    """What the applications of `app` and the servers of `serve` log."""
    return []


@pytest.fixture
def app(stand_in: StandIn, log: list[Any]) -> MakeApp:
    """Make applications over the stand-in, unless over another session."""
    return lambda session=stand_in, **options: create_app(
        Service(session=session, model="small", **{"log": log.append, **options})
    )


class Served(str):
    """A server's address, and the server."""

    server: Server
    service: Service


@contextmanager
def _serving(service: Service) -> Iterator[Served]:
    """Serve in a thread, and give the address; drain at the end."""
    at, ready = bound("127.0.0.1", 0), Event()
    server = Server(service, at, ready.set)
    thread = Thread(target=server.serve_here)
    thread.start()
    try:
        assert ready.wait(10)
        address = Served(f"http://127.0.0.1:{at.getsockname()[1]}")
        address.server, address.service = server, service
        yield address
    finally:
        with suppress(RuntimeError):  # it has stopped
            server.stop()
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def serve(stand_in: StandIn, log: list[Any]) -> Iterator[Serve]:
    """Serve the stand-in, unless another session, until the test is over; give the address."""
    with ExitStack() as stack:

        def start(session: Any = stand_in, **options: Any) -> Served:
            given = {"log": log.append, **options}
            return stack.enter_context(_serving(Service(session=session, model="small", **given)))

        yield start
