"""Streams: events of which nothing is taken back, clients that leave, clients that read slowly."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
from asgi import JSON, asked, post
from stand_in import TEXT as SAID
from stand_in import StandIn, begun, chat, until

from esdllm.errors import NumericsError
from esdllm.serving.api import RequestLimits
from esdllm.serving.api.protocol import GuardedProtocol
from esdllm.serving.api.rows import Rows
from esdllm.serving.requests import Completion, FinishReason, Request, Update
from esdllm.use.frames import Frame

CHAT, TEXT, FIM = "/v1/chat/completions", "/v1/completions", "/v1/fim/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: chat(stream=True),
    TEXT: {"model": "small", "prompt": "a", "stream": True},
    FIM: {"model": "small", "prompt": "a", "stream": True},
}


def said(events: list[Any], row: int = 0) -> str:
    """Return the text that a row's events add up to."""
    choices = [choice for event in events for choice in event["choices"] if choice["index"] == row]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices)


@pytest.mark.parametrize("path", BODIES)
def test_the_deltas_joined_are_the_answer(app: Any, stand_in: StandIn, path: str) -> None:
    stand_in.pause = 0.02
    events = post(app(), path, BODIES[path]).events
    whole = post(app(), path, {**BODIES[path], "stream": False}).json
    (choice,) = whole["choices"]
    assert said(events) == SAID == (choice["text"] if path == TEXT else choice["message"]["content"])
    assert sum(bool(said([event])) for event in events) > 2
    assert {event["id"] for event in events} == {events[0]["id"]}
    assert {event["object"] for event in events} == {"text_completion" if path == TEXT else "chat.completion.chunk"}
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + ["stop"]
    assert not [event for event in events if "usage" in event or "esdllm" in event]


def test_a_chat_begins_with_who_speaks(app: Any) -> None:
    assert post(app(), CHAT, BODIES[CHAT]).events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}


def test_rows_of_a_stream_come_interleaved_each_with_its_index(app: Any, stand_in: StandIn) -> None:
    stand_in.pause = 0.02
    events = post(app(), CHAT, chat(stream=True, n=3)).events
    order = [event["choices"][0]["index"] for event in events if said([event], event["choices"][0]["index"])]
    assert [said(events, row) for row in range(3)] == [SAID] * 3
    assert order != sorted(order)


def test_usage_is_told_once_where_it_is_asked_for(app: Any) -> None:
    *events, last = post(app(), CHAT, chat(stream=True, n=2, stream_options={"include_usage": True})).events
    assert all(event["usage"] is None for event in events)
    assert last["choices"] == []
    assert last["usage"] == post(app(), CHAT, chat(n=2)).json["usage"]


@pytest.mark.parametrize("path", BODIES)
def test_usage_is_told_with_every_chunk_where_that_is_asked_for(app: Any, stand_in: StandIn, path: str) -> None:
    stand_in.pause = 0.003
    options = {"include_usage": True, "continuous_usage_stats": True}
    found = post(app(), path, {**BODIES[path], "n": 2, "stream_options": options}).events
    usages = [event["usage"] for event in found]
    whole = post(app(), path, {**BODIES[path], "n": 2, "stream": False}).json["usage"]
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    assert counts[-2:] == [whole["completion_tokens"]] * 2
    assert usages[-1] == whole
    assert {usage["prompt_tokens"] for usage in usages} == {whole["prompt_tokens"]}
    assert all(usage["total_tokens"] == whole["prompt_tokens"] + usage["completion_tokens"] for usage in usages)
    options["include_usage"] = False  # then there is none
    assert not [
        event for event in post(app(), path, {**BODIES[path], "stream_options": options}).events if "usage" in event
    ]


def test_usage_of_blanks_is_told_when_they_are_filled_in(app: Any) -> None:
    body = {"model": "small", "prompt": "a", "suffix": "b", "max_tokens": 4, "stream": True}
    options = {"include_usage": True, "continuous_usage_stats": True}
    *_, closing, last = post(app(), FIM, {**body, "stream_options": options}).events
    assert closing["usage"] == last["usage"]
    assert last["usage"]["completion_tokens"] == 4


def test_logprobs_come_with_their_tokens(app: Any, stand_in: StandIn) -> None:
    stand_in.pause = 0.003
    whole = post(app(), CHAT, chat(logprobs=True)).json["choices"][0]["logprobs"]["content"]
    assert {token["logprob"] for token in whole} == {-0.5}
    assert all(bytes(token["bytes"]).decode() == token["token"] and token["top_logprobs"] == [] for token in whole)
    events = post(app(), CHAT, chat(logprobs=True, stream=True)).events
    choices = [event["choices"][0] for event in events]
    assert [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["content"]] == whole
    body = {"model": "small", "prompt": "a", "logprobs": 0}
    told = post(app(), TEXT, body).json["choices"][0]["logprobs"]
    parts = [event["choices"][0]["logprobs"] for event in post(app(), TEXT, {**body, "stream": True}).events]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [one for part in parts for one in part[name]] == told[name]
    assert told["text_offset"] == [len("".join(told["tokens"][:at])) for at in range(len(told["tokens"]))]


def test_a_stream_that_fails_ends_with_an_error_event(app: Any, stand_in: StandIn, log: list[Any]) -> None:
    stand_in.fails = NumericsError("the logits are NaN")
    found = post(app(), CHAT, chat(stream=True))
    assert b"event: error\ndata: " in found.body
    assert found.events[-1]["error"]["message"] == "the logits are NaN"
    assert said(found.events[:-1]) == " one two"
    assert (log[0]["status"], log[0]["error"]) == (200, "decoding_failed")


def test_an_answer_whose_time_is_over_says_so(app: Any, stand_in: StandIn) -> None:
    end = Completion(FinishReason.DEADLINE, " one", (1,), (-0.1,), 5, 1, 0.0, 1.0)
    stand_in.ends = end
    served = app(limits=RequestLimits(request_seconds=2.5))
    choice = post(served, CHAT, chat()).json["choices"][0]
    assert (choice["finish_reason"], choice["esdllm"]) == ("length", {"finish_reason": "deadline"})
    assert stand_in.tickets[0].request.timeout == 2.5
    assert post(served, CHAT, chat(stream=True)).events[-1]["choices"][0]["esdllm"] == {"finish_reason": "deadline"}


def test_a_session_that_is_closed_ends_answers_with_an_error(app: Any, stand_in: StandIn) -> None:
    stand_in.ends = Completion(FinishReason.CANCELLED, " one", (1,), (-0.1,), 5, 1, 0.0, 1.0)
    found = post(app(), CHAT, chat())
    assert (found.status, found.error["code"]) == (503, "unavailable")
    assert post(app(), CHAT, chat(stream=True)).events[-1]["error"]["code"] == "unavailable"


FRAME = Frame(
    forwards=3,
    tokens=(1, 2, 254, 254, 254),
    guesses=(1, 2, 3, 4, -1),
    committed=(False, True, False, False, False),
    computed=(True, True, True, False, True),
    block=range(4),
    number=0,
    plan=None,
    revises=False,
    mask=254,
    length=9,
)


def test_what_is_not_settled_comes_in_a_field_that_says_so(app: Any, stand_in: StandIn, engine: Any) -> None:
    stand_in.shown = FRAME
    assert "esdllm" not in post(app(), CHAT, chat(stream=True)).events[1]
    assert not stand_in.tickets[-1].request.drafts
    events = post(app(), CHAT, chat(stream=True, diffusing=True, n=2)).events
    assert stand_in.tickets[-1].request.drafts
    shown = [event for event in events if "esdllm" in event]
    assert {event["choices"][0]["index"] for event in shown} == {0, 1}
    spell = [engine.model.codec.decode([token], keep_special=True) for token in range(5)]
    states = ["committed", "new", "provisional", "provisional", "masked"]
    cells = [{"text": text, "state": state} for text, state in zip([*spell[1:], ""], states, strict=True)]
    assert {**shown[0]["esdllm"], "draft": ""} == {"draft": "", "forwards": 3, "block": [0, 4], "cells": cells}
    assert said(events) == SAID


class Uncounted:
    """Metrics that nobody reads."""

    def first_token(self, _: float) -> None: ...

    def ended(self, *_: Any) -> None: ...


class TestRows:
    @staticmethod
    def rows(session: StandIn) -> Rows:
        return Rows(session, [Request(prompt="a", chat=False, stream=True)], Uncounted())  # type: ignore[arg-type]

    def test_what_was_not_read_is_one_update(self, stand_in: StandIn) -> None:
        async def run() -> list[Any]:
            rows = self.rows(stand_in)
            rows.submit()
            while not rows.completions:
                await asyncio.sleep(0.01)
            news = await rows.news()
            assert rows.unfinished == 0
            return news

        ((row, update),) = asyncio.run(run())
        assert (row, update.new, len(update.tokens)) == (0, SAID, 10)
        assert update.completion.finish_reason is FinishReason.STOP
        assert isinstance(update, Update)

    def test_without_news_it_tells_of_none_in_time(self, stand_in: StandIn) -> None:
        async def run() -> list[Any]:
            return await self.rows(stand_in).news(0.01)

        assert asyncio.run(run()) == []

    @pytest.mark.parametrize("turns", range(6))
    def test_a_client_that_leaves_as_news_come_is_not_overheard(self, stand_in: StandIn, turns: int) -> None:
        async def follow(rows: Rows) -> None:
            while True:
                await rows.news(5)

        async def run() -> bool:
            rows = self.rows(stand_in)
            following = asyncio.ensure_future(follow(rows))
            await asyncio.sleep(0.01)
            rows._take(0, Update("a"))
            for _ in range(turns):
                await asyncio.sleep(0)
            following.cancel()
            await asyncio.wait({following}, timeout=0.2)
            return following.cancelled()

        assert asyncio.run(run())


class TestSockets:
    def test_events_come_as_they_are_settled(self, serve: Any, stand_in: StandIn) -> None:
        stand_in.pause = 0.05
        with httpx.stream("POST", serve() + CHAT, json=chat(stream=True)) as found:
            times = [time.monotonic() for line in found.iter_lines() if line.startswith("data: {")]
        assert times[-1] - times[1] > 0.1

    def test_a_silent_stream_says_that_it_lives(self, serve: Any, stand_in: StandIn) -> None:
        stand_in.opened.clear()
        with httpx.stream(
            "POST", serve(limits=RequestLimits(silent_seconds=0.02)) + CHAT, json=chat(stream=True)
        ) as found:
            lines = found.iter_lines()
            assert ":" in [next(lines) for _ in range(8)]
            stand_in.opened.set()
            assert "data: [DONE]" in list(lines)

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("waiting", [False, True])
    def test_a_client_that_leaves_frees_its_rows_at_once(
        self,
        serve: Any,
        stand_in: StandIn,
        log: list[Any],
        caplog: pytest.LogCaptureFixture,
        stream: bool,
        waiting: bool,
    ) -> None:
        stand_in.pause = 0.01
        stand_in.text *= 1000
        if waiting:
            stand_in.opened.clear()
        address = serve()
        body = chat(stream=stream, n=2, max_tokens=900)
        with begun(address, CHAT, body) as at:
            until(lambda: len(stand_in.tickets) == 2)
            at.settimeout(5)
            assert not stream or at.recv(1)  # the answer has begun
        assert all(ticket.cancelled.wait(5) for ticket in stand_in.tickets)
        stand_in.opened.set()
        assert all(ticket.ended.wait(5) for ticket in stand_in.tickets)
        until(lambda: log)
        assert (log[0]["status"], log[0]["finish_reasons"]) == (200 if stream else 499, ["cancelled"] * 2)
        assert not caplog.records  # a client that leaves is no fault

    @staticmethod
    def long(address: str) -> Any:
        """Return a stream of megabytes of which nothing is read."""
        return httpx.stream("POST", address + TEXT, json={**BODIES[TEXT], "n": 4, "max_tokens": 500}, timeout=10)

    def test_a_client_that_reads_nothing_is_left(
        self, serve: Any, stand_in: StandIn, log: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(GuardedProtocol, "read_seconds", 0.1)
        stand_in.text = f" {'x' * 30_000}" * 100
        stand_in.pause = 0.005
        with self.long(serve()) as found:
            until(lambda: log)
            with pytest.raises(httpx.HTTPError):
                found.read()
        assert all(ticket.cancelled.is_set() for ticket in stand_in.tickets)

    def test_one_that_reads_slowly_is_not(self, serve: Any, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(GuardedProtocol, "read_seconds", 0.1)
        stand_in.text = f" {'x' * 30_000}" * 60
        with self.long(serve()) as found:
            came = 0
            for part in found.iter_raw(2**20):
                came += len(part)
                time.sleep(0.05)
        assert came > 4 * 60 * 30_000


def test_that_a_client_leaves_is_no_error_of_the_application(app: Any, stand_in: StandIn) -> None:
    """Whoever serves it has seen the client leave, and would log an error as a fault."""
    stand_in.pause = 0.005
    stand_in.text *= 1000

    async def left_in_the_middle() -> None:
        coming, begun = [{"type": "http.request", "body": json.dumps(chat(stream=True)).encode()}], asyncio.Event()

        async def receive() -> Any:
            if coming:
                return coming.pop()
            await begun.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if b"one" in message.get("body", b""):
                begun.set()

        await app()(asked("POST", CHAT, JSON), receive, send)

    asyncio.run(left_in_the_middle())
    assert [ticket.cancelled.is_set() for ticket in stand_in.tickets] == [True]


def test_the_client_of_openai_reads_all_of_it(serve: Any, stand_in: StandIn) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=serve(keys=("key",)) + "/v1", api_key="key", max_retries=0)
    assert [model.id for model in client.models.list()] == ["small"]
    turns = [{"role": "user", "content": "a"}]
    found = client.chat.completions.create(model="small", messages=turns, logprobs=True)
    assert (found.choices[0].message.content, found.usage.completion_tokens) == (SAID, 10)
    assert found.choices[0].logprobs.content[0].logprob == -0.5
    parts = client.chat.completions.create(
        model="small", messages=turns, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(parts)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == SAID
    assert chunks[-1].usage.total_tokens == found.usage.total_tokens
    assert client.completions.create(model="small", prompt="a", max_tokens=1).choices[0].text == " one"
    with pytest.raises(openai.BadRequestError, match=r"frequency_penalty: 1\.0 cannot be served"):
        client.chat.completions.create(model="small", messages=turns, frequency_penalty=1.0)
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.chat.completions.create(model="other", messages=turns)
    stand_in.fails = NumericsError("the logits are NaN")
    with pytest.raises(openai.APIError, match="the logits are NaN"):
        list(client.chat.completions.create(model="small", messages=turns, stream=True))
    stand_in.most = 0
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="small", messages=turns)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=client.base_url, api_key="other").models.list()
