"""What is too much, too late or no JSON at all: bodies, heads, queues, a server that stops."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

import pytest
from asgi import JSON, call, post
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples
from stand_in import StandIn, chat, until

from esdllm import ConfigError, EsdllmError, InputError, PluginError, UnavailableError
from esdllm.errors import ClosedError, ContextError
from esdllm.serving.api import RequestLimits, Service, create_app
from esdllm.serving.api.protocol import GuardedProtocol

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SOUND = json.dumps(chat()).encode()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "Expecting value at line 1, column 1"),
        (b"{", "line 1, column 2"),
        (SOUND[:-1], "line 1"),
        (SOUND + b"}", "Extra data"),
        (SOUND + SOUND, "Extra data"),
        (b"[]", "it is [], no object"),
        (b"null", "it is None, no object"),
        (b'"text"', "no object"),
        (b"'{}'", "Expecting value"),
        (b"{'model': 'small'}", "Expecting property name"),
        (b'{"model": "small",}', "line 1"),
        (b'{"temperature": NaN}', "NaN is no JSON"),
        (b'{"temperature": Infinity}', "Infinity is no JSON"),
        (b'{"metadata": {"a": [-Infinity]}}', "-Infinity is no JSON"),
        (b'{"temperature": 1e999}', "1e999 has no room in a float"),
        (b'{"temperature": -' + b"9" * 400 + b".5}", "has no room in a float"),
        (b'{"seed": ' + b"1" * 5000 + b"}", "a number has too many digits"),
        (b'{"seed": 01}', "line 1"),
        (b'{"model": "small", "model": "small"}', "'model' is given twice"),
        (b'{"metadata": {"a": "b", "\\u0061": "c"}}', "'a' is given twice"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "its brackets are nested too deep"),
        (b"[" * 1_000_000, "its brackets are nested too deep"),
        (b'{"user": "\xff"}', "byte 10 is no UTF-8"),
        (b'{"user": "\xed\xa0\x80"}', "byte 10 is no UTF-8"),
        (b'{"user": "\xc0\x80"}', "byte 10 is no UTF-8"),
        (b'\xef\xbb\xbf{"model": "small"}', "line 1, column 1"),
        ('{"model": "small"}'.encode("utf-16"), "byte 0 is no UTF-8"),
        ('{"model": "small"}'.encode("utf-32-le"), "line 1"),
        (b'{"user": "a\nb"}', "Invalid control character"),
        (b'{"user": "\\x41"}', "Invalid \\\\escape"),
        (b"model=small", "Expecting value"),
        (b"\x00" * 10, "Expecting value"),
    ],
)
def test_what_is_no_json_is_told_where(app: Any, body: bytes, reason: str) -> None:
    found = call(app(), "POST", CHAT, body, JSON)
    assert (found.status, found.error["code"]) == (400, "invalid_json")
    assert reason.replace("\\\\", "\\") in found.error["message"]
    assert len(found.error["message"]) < 300


@examples(60)
@given(cuts=st.lists(st.integers(0, len(SOUND)), max_size=12), empty=st.booleans())
def test_a_body_may_come_in_any_parts(engine: Any, cuts: list[int], empty: bool) -> None:
    app = create_app(Service(session=StandIn(engine), model="small"))
    edges = [0, *sorted(cuts), len(SOUND)]
    parts = [SOUND[start:end] for start, end in zip(edges, edges[1:], strict=False)] + [b""] * empty
    assert call(app, "POST", CHAT, parts, JSON).status == 200


@examples(60)
@given(at=st.integers(0, len(SOUND) - 1), byte=st.integers(0, 255))
def test_a_body_with_any_byte_changed_is_answered(engine: Any, at: int, byte: int) -> None:
    app = create_app(Service(session=StandIn(engine), model="small"))
    body = SOUND[:at] + bytes([byte]) + SOUND[at + 1 :]
    found = call(app, "POST", CHAT, body, JSON)
    assert found.status in (200, 400, 404, 422)
    assert found.status == 200 or found.error


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonl", "json",
     "application/json; charset=utf-16", "application/json; charset=latin-1", "application/json, text/plain"],
)  # fmt: skip
def test_another_type_than_json_is_refused(app: Any, kind: str) -> None:
    found = call(app(), "POST", CHAT, SOUND, {"content-type": kind} if kind else {})
    assert (found.status, found.error["code"]) == (415, "content_type")
    assert "application/json" in found.error["message"]


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "Application/JSON",
        "application/json;charset=UTF-8",
        'application/json; charset="utf-8"',
        "application/json; v=1",
    ],
)
def test_json_goes_by_all_its_names(app: Any, kind: str) -> None:
    assert call(app(), "POST", CHAT, SOUND, {"content-type": kind}).status == 200


@pytest.mark.parametrize("coding", ["gzip", "br", "identity"])
def test_a_packed_body_is_refused(app: Any, coding: str) -> None:
    found = call(app(), "POST", CHAT, SOUND, {**JSON, "content-encoding": coding})
    assert (found.status, found.error["code"]) == (415, "content_encoding")


class TestLongBodies:
    def test_one_that_says_so_is_not_read(self, app: Any) -> None:
        for told in ("101", "9" * 4000):
            found = call(
                app(limits=RequestLimits(body=100)), "POST", CHAT, [b"x", b"y"], {**JSON, "content-length": told}
            )
            assert (found.status, found.error["code"]) == (413, "request_too_large")
            assert found.headers["connection"] == "close"

    def test_one_that_does_not_is_not_read_to_its_end(self, app: Any) -> None:
        read = []

        def parts() -> Any:
            for number in range(1000):
                read.append(number)
                yield b"x" * 10

        found = _call_lazily(app(limits=RequestLimits(body=100)), parts())
        assert (found, len(read)) == (413, 11)

    def test_one_of_just_the_limit_is_read(self, app: Any) -> None:
        assert (
            call(app(limits=RequestLimits(body=len(SOUND))), "POST", CHAT, [SOUND[:5], SOUND[5:]], JSON).status == 200
        )
        assert (
            call(app(limits=RequestLimits(body=len(SOUND) - 1)), "POST", CHAT, [SOUND[:5], SOUND[5:]], JSON).status
            == 413
        )


def _call_lazily(app: Any, parts: Any) -> int:
    """Return the status of a request whose parts are made as they are asked for."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": next(parts), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"transfer-encoding", b"chunked")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "query_string": b"", "state": {}}
    asyncio.run(app(scope, receive, send))
    return int(sent[0]["status"])


class TestRefusals:
    def test_a_full_queue_says_when_to_come_again(self, app: Any, stand_in: StandIn) -> None:
        stand_in.opened.clear()
        stand_in.most = 2
        found = post(app(), CHAT, chat(n=3))
        assert (found.status, found.error["type"], found.error["code"]) == (
            429,
            "rate_limit_error",
            "rate_limit_exceeded",
        )
        assert found.headers["retry-after"] == "2"  # 1.2 s, in whole seconds
        assert [ticket.cancelled.is_set() for ticket in stand_in.tickets] == [
            True,
            True,
        ]  # all rows of a request, or none

    def test_a_server_that_stops_says_so(self, app: Any, stand_in: StandIn) -> None:
        stand_in.drain()
        found = post(app(), CHAT, chat())
        assert (found.status, found.error["type"], found.error["code"]) == (503, "server_error", "unavailable")
        assert int(found.headers["retry-after"]) > 0
        assert found.headers["connection"] == "close"

    @pytest.mark.parametrize(
        ("error", "status", "code"),
        [
            (ContextError("200 prompt tokens and 16 to generate exceed a slot"), 400, "context_length_exceeded"),
            (InputError("the template refuses two user turns"), 422, "invalid_prompt"),
            (ConfigError("the sampler has no option top_k"), 400, "invalid_value"),
            (PluginError("the sampler misbehaves"), 500, "decoding_failed"),
            (UnavailableError("no such backend"), 500, "decoding_failed"),
            (EsdllmError("something else"), 500, "decoding_failed"),
            (ClosedError("closed"), 503, "unavailable"),
            (ZeroDivisionError("inside"), 500, "internal_error"),
        ],
    )
    @pytest.mark.parametrize("stream", [False, True])
    def test_what_the_session_refuses_has_its_status(
        self, app: Any, stand_in: StandIn, error: Exception, status: int, code: str, stream: bool
    ) -> None:
        stand_in.refuses = error
        found = post(app(), CHAT, chat(stream=stream))
        assert (found.status, found.error["code"]) == (status, code)
        assert (found.error["message"] == str(error)) is (code != "internal_error")

    def test_a_prompt_beyond_the_context_is_told_so(self, app: Any) -> None:
        found = post(app(), TEXT, {"model": "small", "prompt": "word " * 2000, "max_tokens": 16})
        assert (found.status, found.error["code"]) == (400, "context_length_exceeded")
        assert "exceed the model's context of 1024" in found.error["message"]

    @pytest.mark.parametrize("prompt", ["", [5000]])
    def test_a_prompt_that_cannot_be_decoded_is_told_why(self, app: Any, prompt: Any) -> None:
        found = post(app(), TEXT, {"model": "small", "prompt": prompt})
        assert found.status in (400, 422)
        assert found.error["message"]


def connect(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def answer(at: socket.socket) -> tuple[int, dict[str, Any]]:
    """Return status and body of what comes until the server closes the connection."""
    came = b""
    while part := at.recv(65536):
        came += part
    head, _, body = came.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    return int(head.split()[1]), json.loads(body)


HEAD = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"


class TestSlowClients:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(GuardedProtocol, "head_seconds", 0.15)

    @pytest.mark.parametrize("begun", ["", "P", "POST / HTTP/1.1\r\n", HEAD])
    def test_a_head_that_does_not_come_is_not_waited_for(self, serve: Any, begun: str) -> None:
        with connect(serve()) as at:
            at.sendall(begun.encode())
            assert answer(at)[0] == 408

    def test_a_head_that_trickles_is_not_waited_for(self, serve: Any) -> None:
        with connect(serve()) as at:
            started = time.monotonic()
            with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012
                for byte in (HEAD + "x: " + "y" * 10_000).encode():
                    at.sendall(bytes([byte]))
                    time.sleep(0.01)
            assert time.monotonic() - started < 5

    def test_a_head_after_another_request_is_not_waited_for_either(self, serve: Any) -> None:
        with connect(serve()) as at:
            at.sendall(b"GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n")
            assert at.recv(65536).startswith(b"HTTP/1.1 200")
            at.sendall(b"GET /hea")
            assert answer(at)[0] == 408

    @pytest.mark.parametrize("length", ["content-length: 100", "transfer-encoding: chunked"])
    def test_a_body_that_does_not_come_is_not_waited_for(self, serve: Any, length: str) -> None:
        with connect(serve(limits=RequestLimits(body_seconds=0.15))) as at:
            at.sendall(f"{HEAD}{length}\r\n\r\n".encode())
            status, body = answer(at)
            assert (status, body["error"]["code"]) == (408, "timeout")

    def test_a_long_decoding_is_no_slow_client(self, serve: Any, stand_in: StandIn) -> None:
        stand_in.pause = 0.05
        with connect(serve()) as at:
            at.sendall(f"{HEAD}connection: close\r\ncontent-length: {len(SOUND)}\r\n\r\n".encode() + SOUND)
            assert answer(at)[0] == 200


class TestSockets:
    @pytest.mark.parametrize(
        "sent",
        [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n", b"x" * 100_000,
         b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"],
    )  # fmt: skip
    def test_what_is_no_http_gets_an_error_of_the_same_form(self, serve: Any, sent: bytes) -> None:
        with connect(serve()) as at:
            at.sendall(sent)
            status, body = answer(at)
            assert (status, body["error"]["code"]) == (400, "invalid_http")

    def test_a_chunk_that_is_none_ends_the_request_alone(self, serve: Any) -> None:
        address = serve()
        with connect(address) as at:
            at.sendall(f"{HEAD}transfer-encoding: chunked\r\n\r\nnonsense\r\n".encode())
            assert answer(at)[0] == 400
        with connect(address) as at:
            at.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            assert answer(at)[0] == 200

    @pytest.mark.parametrize("length", ["content-length: 1000000", "transfer-encoding: chunked"])
    def test_a_body_that_is_too_long_is_refused_before_its_end(self, serve: Any, length: str) -> None:
        with connect(serve(limits=RequestLimits(body=1000))) as at:
            at.sendall(f"{HEAD}{length}\r\n\r\n".encode())
            if "chunked" in length:
                at.sendall(b"3e9\r\n" + b"x" * 1001 + b"\r\n")
            assert answer(at)[0] == 413

    def test_a_client_that_leaves_before_its_body_is_whole_is_no_fault(
        self, serve: Any, log: list[Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        with connect(serve()) as at:
            at.sendall(f"{HEAD}content-length: 100\r\n\r\n{{".encode())
        until(lambda: log)
        assert log[0]["status"] == 499
        assert not caplog.records

    def test_a_refused_request_whose_body_still_comes_holds_no_connection(self, serve: Any) -> None:
        with connect(serve(keys=("key",))) as at:
            at.sendall(f"{HEAD}content-length: 1000000\r\n\r\n".encode())
            assert answer(at)[0] == 401

    def test_a_request_may_come_in_any_pieces(self, serve: Any) -> None:
        address, sent = serve(), f"{HEAD}connection: close\r\ncontent-length: {len(SOUND)}\r\n\r\n".encode() + SOUND
        for step in (1, 7, 64):
            with connect(address) as at:
                at.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for start in range(0, len(sent), step):
                    at.sendall(sent[start : start + step])
                assert answer(at)[0] == 200

    def test_requests_may_follow_each_other_on_a_connection(self, serve: Any) -> None:
        with connect(serve()) as at:
            one = f"{HEAD}content-length: {len(SOUND)}\r\n\r\n".encode() + SOUND
            last = one.replace(b"host: a", b"host: a\r\nconnection: close")
            at.sendall(one + one + last)
            came = b""
            while part := at.recv(65536):
                came += part
            assert came.count(b"HTTP/1.1 200") == 3
