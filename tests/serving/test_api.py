"""The routes that decode nothing, what stands before all routes, and errors."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import pytest
from asgi import JSON, call, post
from stand_in import StandIn, chat

from esdllm.errors import InputError, NumericsError
from esdllm.serving import page
from esdllm.serving.api import RequestLimits
from esdllm.serving.api.keys import read_keys
from esdllm.serving.api.logs import LineLog

POSTS = ("/v1/chat/completions", "/v1/completions", "/v1/fim/completions")
GETS = ("/v1/models", "/v1/models/small", "/health", "/health/live", "/health/ready", "/metrics")


def test_the_model_is_listed_and_told_of(app: Any) -> None:
    listed = call(app(), "GET", "/v1/models").json
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert {**model, "created": 0} == {
        "id": "small",
        "object": "model",
        "created": 0,
        "owned_by": "esdllm",
        "max_model_len": 1024,
    }
    assert call(app(), "GET", "/v1/models/small").json["id"] == "small"


def test_the_page_is_sent_with_its_headers_and_needs_no_key(app: Any) -> None:
    found = call(app(keys=("key",)), "GET", "/")
    assert (found.status, found.body) == (200, page.html())
    assert (
        page.headers().items()
        <= {**found.headers, **{name.title(): found.headers[name] for name in found.headers}}.items()
    )


def test_another_model_is_not_found(app: Any) -> None:
    for found in (
        call(app(), "GET", "/v1/models/gpt-4o"),
        post(app(), "/v1/chat/completions", chat(model="gpt-4o")),
        post(app(), "/v1/completions", {"model": "gpt-4o", "prompt": "a"}),
        post(app(), "/v1/fim/completions", {"model": "gpt-4o", "prompt": "a", "suffix": "b"}),
    ):
        assert (found.status, found.error["code"], found.error["param"]) == (404, "model_not_found", "model")
        assert "this server has small" in found.error["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/",
        "/v1/chat/completions/",
        "//v1/completions",
        "/v1/completions//",
        "/V1/completions",
        "/v1/../v1/completions",
        "/v1/engines",
        "/health/",
        "/health/x",
        "/docs",
        "/openapi.json",
        "/v1/\N{EARTH GLOBE EUROPE-AFRICA}",
        "/<script>",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_wrong_path_is_no_page_and_no_redirection(app: Any, method: str, path: str) -> None:
    found = call(app(), method, path, b"{}", JSON)
    assert (found.status, found.error["type"]) == (404, "invalid_request_error")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"])
@pytest.mark.parametrize("path", POSTS)
def test_another_method_than_post_is_not_allowed(app: Any, path: str, method: str) -> None:
    found = call(app(), method, path)
    assert (found.status, found.error["code"], found.headers["allow"]) == (405, "method_not_allowed", "POST")


@pytest.mark.parametrize("path", GETS)
def test_what_is_read_is_not_written(app: Any, path: str) -> None:
    found = call(app(), "POST", path, b"{}", JSON)
    assert (found.status, found.error["code"]) == (405, "method_not_allowed")
    assert set(found.headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert call(app(), "HEAD", path).status == 200


@pytest.mark.parametrize("name", ["", "small/", "/small", "Small", "sm%61ll", "../models/small"])
def test_a_model_has_one_name(app: Any, name: str) -> None:
    found = call(app(), "GET", f"/v1/models/{name}")
    assert (found.status, found.error["code"]) == (404, "model_not_found")


def test_every_answer_has_an_id_of_its_own(app: Any) -> None:
    found = [call(app(), "GET", "/v1/models"), call(app(), "GET", "/none"), post(app(), POSTS[0], chat())]
    ids = [one.headers["x-request-id"] for one in found]
    assert len(set(ids)) == 3
    assert found[2].json["id"] == f"chatcmpl-{ids[2]}"


def test_health_tells_live_and_ready_apart(app: Any, stand_in: StandIn) -> None:
    served = app(limits=RequestLimits(stuck_seconds=5))
    assert call(served, "GET", "/health").json == call(served, "GET", "/health/ready").json == {"status": "ready"}
    stand_in.told.stuck_for = 6.0
    for path, status, told in (
        ("/health", 503, "stuck"),
        ("/health/ready", 503, "stuck"),
        ("/health/live", 200, "live"),
    ):
        found = call(served, "GET", path)
        assert (found.status, found.json) == (status, {"status": told})


def test_a_fault_of_ours_is_an_error_without_a_word_of_what_is_inside(app: Any, stand_in: StandIn) -> None:
    stand_in.refuses = ZeroDivisionError("secret")
    found = post(app(), POSTS[0], chat())
    assert (found.status, found.error["type"], found.error["code"]) == (500, "server_error", "internal_error")
    assert b"secret" not in found.body
    assert b"ZeroDivision" not in found.body


@pytest.mark.parametrize("stream", [False, True])
def test_a_poisoned_row_is_an_error_of_that_request(app: Any, stand_in: StandIn, stream: bool) -> None:
    stand_in.fails = NumericsError("the logits of row 0 are NaN at step 3")
    found = post(app(), POSTS[0], chat(stream=stream, n=2))
    told = {"message": "the logits of row 0 are NaN at step 3", "type": "server_error", "param": None}
    assert (found.status, (found.events[-1] if stream else found.json)["error"]) == (
        200 if stream else 500,
        {**told, "code": "decoding_failed"},
    )
    assert all(ticket.ended.wait(1) for ticket in stand_in.tickets)
    stand_in.fails = None
    assert post(app(), POSTS[0], chat()).status == 200


class TestKeys:
    @pytest.mark.parametrize("path", [*POSTS, "/v1/models", "/metrics", "/none", "/health/../v1/models", "//health"])
    @pytest.mark.parametrize(
        "given",
        [
            None,
            "",
            "Bearer",
            "Bearer ",
            "Bearer wrong",
            "Bearer first second",
            "Basic first",
            "first",
            "Bearer firs\xe9",
        ],
    )
    def test_without_a_key_nothing_is_served(self, app: Any, path: str, given: str | None) -> None:
        method = "POST" if path in POSTS else "GET"
        headers = {**JSON, **({} if given is None else {"authorization": given})}
        found = call(app(keys=("first", "second")), method, path, b"not even JSON", headers)
        assert (found.status, found.error["type"], found.error["code"]) == (
            401,
            "authentication_error",
            "invalid_api_key",
        )
        assert found.headers["www-authenticate"] == "Bearer"
        assert "first" not in found.error["message"]

    @pytest.mark.parametrize("given", ["Bearer first", "bearer second", "Bearer  second "])
    def test_each_key_opens(self, app: Any, given: str) -> None:
        assert call(app(keys=("first", "second")), "GET", "/v1/models", headers={"authorization": given}).status == 200

    def test_health_needs_no_key(self, app: Any) -> None:
        assert call(app(keys=("first",)), "GET", "/health").status == 200

    def test_it_needs_none_and_what_tells_needs_one_wherever_the_application_is_mounted(self, app: Any) -> None:
        served = app(keys=("first",))
        found = [call(served, "GET", f"/at{path}", root="/at").status for path in ("/health", "/v1/models", "/")]
        assert found == [200, 401, 200]

    def test_keys_come_from_a_file_and_the_environment(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "keys"
        file.write_text("# ours\n\n  one \r\ntwo\n")
        assert read_keys(None) == ()
        assert read_keys(file) == ("one", "two")
        monkeypatch.setenv("ESDLLM_API_KEY", "three\n")
        assert read_keys(file) == ("one", "two", "three")
        assert read_keys(None) == ("three",)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "there is no key in .*keys; write one per line"),
            (b"# nothing\n \n", "there is no key in"),
            (b"good\nto o\n", "keys, line 2, is no key"),
            ("schl\u00fcssel\n".encode(), "keys, line 1, is no key"),
            (b"\xff\xfe\n", "cannot read the keys in .*keys: it is no text"),
            (None, "cannot read the keys in .*keys: No such file"),
        ],
    )
    def test_a_file_without_keys_is_refused(self, tmp_path: Any, content: bytes | None, message: str) -> None:
        if content is not None:
            (tmp_path / "keys").write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            read_keys(tmp_path / "keys")
        assert "to o" not in str(caught.value)

    @pytest.mark.parametrize("value", ["", "  ", "a b", "\u00e9"])
    def test_a_variable_that_is_no_key_is_refused(self, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        monkeypatch.setenv("ESDLLM_API_KEY", value)
        with pytest.raises(InputError, match="ESDLLM_API_KEY is no key"):
            read_keys(None)


class TestNames:
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost", "LocalHost:1", "[::1]:8000"])
    def test_this_machine_s_names_are_known(self, app: Any, host: str) -> None:
        served = app(hosts=("127.0.0.1", "localhost", "[::1]"))
        assert call(served, "GET", "/v1/models", headers={"host": host}).status == 200

    @pytest.mark.parametrize(
        "host", ["", "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io"]
    )
    def test_a_name_that_somebody_gave_this_machine_is_not(self, app: Any, host: str) -> None:
        served = app(hosts=("127.0.0.1", "localhost", "[::1]"))
        found = call(served, "GET", "/v1/models", headers={"host": host} if host else {})
        assert (found.status, found.error["code"]) == (403, "host_not_allowed")
        assert "--allow-host" in found.error["message"]


ASKS = {"origin": "https://example.org", "access-control-request-method": "POST"}


class TestOrigins:
    def test_no_web_page_may_ask(self, app: Any) -> None:
        assert call(app(), "OPTIONS", POSTS[0], headers=ASKS).status == 405
        found = post(app(), POSTS[0], chat(), origin="https://example.org")
        assert not [name for name in found.headers if name.startswith("access-control")]

    def test_one_that_is_named_may_with_a_key(self, app: Any) -> None:
        served = app(origins=("https://example.org",), keys=("key",))
        allowed = call(served, "OPTIONS", POSTS[0], headers={**ASKS, "access-control-request-headers": "authorization"})
        assert (allowed.status, allowed.headers["access-control-allow-origin"]) == (200, "https://example.org")
        found = post(served, POSTS[0], chat(), origin="https://example.org", authorization="Bearer key")
        assert found.headers["access-control-allow-origin"] == "https://example.org"
        other = call(served, "OPTIONS", POSTS[0], headers={**ASKS, "origin": "https://example.com"})
        assert other.status == 400
        assert "access-control-allow-origin" not in other.headers


class TestLog:
    def test_a_request_is_a_line_without_its_text(self, app: Any, log: list[Any]) -> None:
        found = post(app(), POSTS[0], chat(n=2, max_tokens=4))
        (entry,) = log
        assert entry["id"] == found.headers["x-request-id"]
        assert {name: entry[name] for name in ("method", "path", "status", "rows", "stream", "client", "steps")} == {
            "method": "POST",
            "path": POSTS[0],
            "status": 200,
            "rows": 2,
            "stream": False,
            "client": "127.0.0.1",
            "steps": 8,
        }
        assert (entry["prompt_tokens"], entry["completion_tokens"]) == (found.json["usage"]["prompt_tokens"], 8)
        assert entry["finish_reasons"] == ["length", "length"]
        assert entry["first_token_seconds"] is None
        written = json.dumps(entry)
        assert "What is" not in written
        assert "one two" not in written

    def test_of_a_stream_it_tells_when_its_first_token_came(self, app: Any, log: list[Any]) -> None:
        post(app(), POSTS[0], chat(stream=True))
        assert 0 <= log[0]["first_token_seconds"] <= log[0]["seconds"]

    def test_text_is_logged_if_that_is_asked_for(self, app: Any, log: list[Any]) -> None:
        post(app(log_text=True), POSTS[1], {"model": "small", "prompt": ["a", "b"], "n": 2, "max_tokens": 2})
        assert log[0]["prompts"] == ["a", "b"]
        assert log[0]["answers"] == [" one two"] * 4

    def test_what_is_refused_is_a_line_too_and_looking_is_none(self, app: Any, log: list[Any]) -> None:
        for path in GETS[2:]:
            call(app(), "GET", path)
        assert log == []
        post(app(), POSTS[0], {})
        call(app(keys=("key",)), "GET", "/metrics")
        call(app(), "GET", "/none\n{}")
        assert [entry["error"] for entry in log] == ["missing_required_parameter", "invalid_api_key", "not_found"]
        assert [(entry["path"], entry["status"]) for entry in log] == [
            (POSTS[0], 400),
            ("/metrics", 401),
            ("/none\n{}", 404),
        ]

    def test_lines_are_written_by_a_thread_that_a_closed_pipe_does_not_hold_up(self) -> None:
        read, write = os.pipe()
        lines = LineLog(write)
        lines({"a": "\N{SNOWMAN}\n", "b": "\ud800"})
        assert os.read(read, 100) == '{"a":"\N{SNOWMAN}\\n","b":"\\ud800"}\n'.encode()
        os.close(read)
        for number in range(3):
            lines({"number": number})
        lines.close()
        os.close(write)
        assert not [thread for thread in threading.enumerate() if thread.name == "esdllm log"]


class TestMetrics:
    @staticmethod
    def read(app: Any) -> dict[str, float]:
        parser = pytest.importorskip("prometheus_client.parser")
        families = parser.text_string_to_metric_families(call(app, "GET", "/metrics").body.decode())
        samples = [sample for family in families for sample in family.samples if not sample.name.endswith("_created")]
        assert all(sample.labels["model_name"] == "small" for sample in samples)
        return {
            sample.name
            + "".join(
                f" {k}={v}" for k, v in sorted(sample.labels.items()) if k not in ("model_name", "le")
            ): sample.value
            for sample in samples
            if sample.labels.get("le", "+Inf") == "+Inf"
        }

    def test_they_have_the_names_of_vllm_and_count_what_came(self, app: Any, stand_in: StandIn) -> None:
        served = app()
        stand_in.told.forwards, stand_in.told.refreshes, stand_in.told.generation_tokens = 10, 2, 25
        stand_in.told.prompt_tokens, stand_in.told.waiting = 7, 3
        post(served, POSTS[0], chat(n=3, max_tokens=2))
        post(served, POSTS[0], chat(max_tokens=None, stream=True))
        post(served, POSTS[0], chat(temperature=9))
        found = self.read(served)
        wanted = {
            "num_requests_running": 0,
            "num_requests_waiting": 3,
            "prompt_tokens_total": 7,
            "generation_tokens_total": 25,
            "time_to_first_token_seconds_count": 1,
            "e2e_request_latency_seconds_count": 4,
            "request_queue_time_seconds_count": 4,
            "request_success_total finished_reason=length": 3,
            "request_success_total finished_reason=stop": 1,
            "request_success_total finished_reason=cancelled": 0,
            "slots": 4,
            "slots_busy": 0,
            "tokens_per_forward": 2.5,
            "refresh_share": 0.2,
            "http_errors_total status=400": 1,
        }
        assert {name: found[f"esdllm:{name}"] for name in wanted} == wanted

    def test_two_servers_in_a_process_count_apart(self, app: Any) -> None:
        first, second = app(), app()
        post(first, POSTS[0], chat())
        assert self.read(first)["esdllm:e2e_request_latency_seconds_count"] == 1
        assert self.read(second)["esdllm:e2e_request_latency_seconds_count"] == 0
