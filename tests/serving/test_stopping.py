"""A server that stops, and one whose step is stuck; each asked over a socket."""

from __future__ import annotations

import socket
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest
from conftest import Served
from stand_in import StandIn, chat, until

from esdllm import InputError
from esdllm.serving.api import RequestLimits
from esdllm.serving.api.server import bound

CHAT = "/v1/chat/completions"


def ask(address: str, **over: Any) -> httpx.Response:
    return httpx.post(address + CHAT, json=chat(**over), timeout=10)


def under_way(address: Served, stand_in: StandIn, **over: Any) -> Future[httpx.Response]:
    """Return an answer that is under way, and waits for `stand_in.opened`."""
    stand_in.opened.clear()
    found = ThreadPoolExecutor(1).submit(ask, address, **over)
    until(lambda: len(stand_in.tickets) == over.get("n", 1))
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_under_way_is_answered_and_nothing_new_is_taken(serve: Any, stand_in: StandIn, stream: bool) -> None:
    address = serve()
    running = under_way(address, stand_in, stream=stream, n=2)
    address.server.stop()
    until(lambda: stand_in.draining)
    refused = ask(address)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
    assert httpx.get(address + "/health/live").status_code == 200
    assert (httpx.get(address + "/health").status_code, httpx.get(address + "/health").json()) == (
        503,
        {"status": "draining"},
    )
    stand_in.opened.set()
    answered = running.result(5)
    assert answered.status_code == 200
    assert "nine ten" in answered.text.replace('"}', "") or stream
    until(lambda: not _listens(address))
    assert address.server.stopped_by is None


def test_the_second_signal_stops_at_once(serve: Any, stand_in: StandIn, log: list[Any]) -> None:
    address = serve()
    running = under_way(address, stand_in, stream=True)
    address.server.stop()
    until(lambda: stand_in.draining)
    address.server.stop(2)
    events = running.result(5).text
    assert "event: error" in events
    assert "the session was closed before this answer was complete" in events
    until(lambda: not _listens(address))
    assert address.server.stopped_by == 2
    assert (log[-1]["finish_reasons"], log[-1]["error"]) == (["error"], "unavailable")


def test_the_second_signal_waits_for_nobody_who_reads_nothing(serve: Any, stand_in: StandIn) -> None:
    stand_in.text = f" {'x' * 30_000}" * 100
    address = serve()
    body = {"model": "small", "prompt": "a", "n": 4, "max_tokens": 500, "stream": True}
    with httpx.Client() as client, client.stream("POST", address + "/v1/completions", json=body):
        until(lambda: stand_in.tickets and all(ticket.ended.is_set() for ticket in stand_in.tickets))
        address.server.stop()
        until(lambda: stand_in.draining)
        address.server.stop()
        until(lambda: not _listens(address))


def test_a_server_without_work_stops_at_the_first_signal_whoever_is_connected(serve: Any) -> None:
    address = serve()
    with httpx.Client() as client:
        assert client.get(address + "/health").status_code == 200  # and stays connected
        address.server.stop()
        until(lambda: not _listens(address))


def test_a_server_whose_session_ended_by_itself_ends_too(serve: Any, stand_in: StandIn) -> None:
    address = serve()
    running = under_way(address, stand_in)
    stand_in.close()
    stand_in.dead = True
    assert running.result(5).status_code == 503
    until(lambda: not _listens(address))
    assert address.server.failed


def _listens(address: str) -> bool:
    host, port = address.removeprefix("http://").split(":")
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
        return True
    return False


def test_a_stuck_step_is_logged_once_and_so_is_that_it_goes_on(serve: Any, stand_in: StandIn, log: list[Any]) -> None:
    address = serve(limits=RequestLimits(stuck_seconds=0.02))
    assert httpx.get(address + "/health").status_code == 200
    stand_in.told.stuck_for = 7.0
    until(lambda: log)
    assert httpx.get(address + "/health").json() == {"status": "stuck"}
    stand_in.told.stuck_for = 0.0
    until(lambda: log[-1].get("event") == "going on")
    events = [entry for entry in log if "event" in entry]
    assert {**events[0], "time": ""} == {"time": "", "event": "stuck", "seconds": 7.0}
    assert len(events) == 2


class TestSockets:
    def test_a_port_that_is_taken_is_named(self) -> None:
        with bound("127.0.0.1", 0) as at:
            at.listen()
            port = at.getsockname()[1]
            with pytest.raises(
                InputError, match=f"cannot serve at 127.0.0.1, port {port}: address already in use; give another --port"
            ):
                bound("127.0.0.1", port)

    @pytest.mark.parametrize(
        ("host", "port", "message"),
        [
            ("no.such.host.invalid", 0, "there is no host 'no.such.host.invalid' here"),
            ("1.2.3.4", 0, "cannot serve at 1.2.3.4, port 0: cannot assign requested address"),
            ("a" * 100, 0, "there is no host"),
            ("", -1, "port -1; give one from 1 to 65535"),
            ("127.0.0.1", 65536, "port 65536"),
        ],
    )
    def test_an_address_that_is_not_here_is_named(self, host: str, port: int, message: str) -> None:
        with pytest.raises(InputError, match=message):
            bound(host, port)

    def test_who_comes_before_the_model_is_there_is_refused(self) -> None:
        with bound("localhost", 0) as at, pytest.raises(ConnectionRefusedError):
            socket.create_connection(at.getsockname()[:2], timeout=1)
