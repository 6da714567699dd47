"""What a server says over a real session is what the engine says alone, whoever asks beside."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from asgi import call, post
from stand_in import begun, chat, until

from esdllm import Engine, Pipeline
from esdllm.serving.api import RequestLimits, Service, create_app
from esdllm.serving.session import Session

CHAT, TEXT, FIM = "/v1/chat/completions", "/v1/completions", "/v1/fim/completions"
PROMPTS = (
    "What is 2 + 3?",
    "Sort these numbers: 31, 4, 15.",
    "Who are you?",
    "\N{SNOWMAN} \N{GRINNING FACE} na\u00efve",
)


@pytest.fixture(scope="module")
def session(engine: Engine) -> Iterator[Session]:
    """A session of three slots."""
    with Session.open(engine, slots=3, length=128, max_queue=8) as found:
        yield found


@pytest.fixture(scope="module")
def served(session: Session) -> Any:
    """An application over it."""
    return create_app(Service(session=session, model="small"))


def alone(engine: Engine, prompt: Any, seed: int = 0, chat: bool = True, **settings: Any) -> Any:
    """Return what an engine says of one prompt, of other settings than its own."""
    over = Pipeline(engine).configured(**{"gen_length": 16, **settings}).engine
    return over.generate([prompt], chat=chat, seed=seed)


def joined(events: list[Any], row: int = 0) -> str:
    choices = [choice for event in events for choice in event["choices"] if choice["index"] == row]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_chat_is_answered_as_the_engine_answers_alone(served: Any, engine: Engine, prompt: str) -> None:
    right = alone(engine, prompt)
    body = chat(messages=[{"role": "user", "content": prompt}])
    found = post(served, CHAT, body).json
    assert found["choices"][0]["message"]["content"] == right.text[0]
    assert found["usage"]["completion_tokens"] == len(right.answers[0])
    assert found["usage"]["prompt_tokens"] == len(engine.model.codec.encode_chat(body["messages"]))
    assert found["choices"][0]["finish_reason"] == ("length" if len(right.answers[0]) == 16 else "stop")
    assert joined(post(served, CHAT, {**body, "stream": True}).events) == right.text[0]
    assert joined(post(served, CHAT, {**body, "stream": True, "diffusing": True}).events) == right.text[0]


def test_a_text_goes_on_as_the_engine_lets_it_alone(served: Any, engine: Engine) -> None:
    body = {"model": "small", "prompt": list(PROMPTS), "max_tokens": 12}
    right = [alone(engine, prompt, chat=False, gen_length=12).text[0] for prompt in PROMPTS]
    assert [choice["text"] for choice in post(served, TEXT, body).json["choices"]] == right
    events = post(served, TEXT, {**body, "stream": True}).events
    assert [joined(events, row) for row in range(4)] == right


def test_tokens_are_a_prompt_too(served: Any, engine: Engine) -> None:
    ids = engine.model.codec.encode(PROMPTS[0])
    texts = [
        post(served, TEXT, {"model": "small", "prompt": prompt}).json["choices"][0]["text"]
        for prompt in (ids, PROMPTS[0])
    ]
    assert texts[0] == texts[1]


def test_settings_and_seeds_are_the_request_s_own(served: Any, engine: Engine) -> None:
    body = chat(temperature=0.9, top_k=50, seed=5, n=3, max_tokens=8)
    sampler = {"temperature": 0.9, "top_k": 50}
    right = [alone(engine, PROMPTS[0], seed, gen_length=8, sampler=sampler).text[0] for seed in (5, 6, 7)]
    found = [choice["message"]["content"] for choice in post(served, CHAT, body).json["choices"]]
    assert found == right
    assert len(set(found)) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_is_not_told(served: Any, engine: Engine, stream: bool) -> None:
    whole = alone(engine, PROMPTS[0]).text[0]
    at = len(whole) // 2
    stop = whole[at : at + 3]
    found = post(served, CHAT, chat(stop=["\x00never", stop], stream=stream))
    said = joined(found.events) if stream else found.json["choices"][0]["message"]["content"]
    assert said == whole[: whole.find(stop)]
    choice = found.events[-1]["choices"][0] if stream else found.json["choices"][0]
    assert choice["finish_reason"] == "stop"


def test_logprobs_are_of_each_token(served: Any, engine: Engine) -> None:
    right = alone(engine, PROMPTS[0]).answers[0]
    content = post(served, CHAT, chat(logprobs=True)).json["choices"][0]["logprobs"]["content"]
    assert [one["token"] for one in content] == [
        engine.model.codec.decode([token], keep_special=True) for token in right
    ]
    assert all(-50 < one["logprob"] <= 0 and math.isfinite(one["logprob"]) for one in content)
    events = post(served, CHAT, chat(logprobs=True, stream=True)).events
    parts = [event["choices"][0]["logprobs"] for event in events]
    assert [one for part in parts if part for one in part["content"]] == content


def test_the_canvas_is_told_cell_by_cell_until_all_is_decided(served: Any) -> None:
    events = post(served, CHAT, chat(stream=True, diffusing=True, temperature=0.7)).events
    shown = [event["esdllm"] for event in events if "cells" in event.get("esdllm", {})]
    assert {len(one["cells"]) for one in shown} == {16}
    states = [[cell["state"] for cell in one["cells"]] for one in shown]
    decided = [[at for at, state in enumerate(row) if state in ("committed", "new")] for row in states]
    assert all(set(one) <= set(after) for one, after in zip(decided, decided[1:], strict=False))
    assert {state for row in states for state in row} <= {"committed", "new", "provisional", "masked"}
    assert all(0 <= one["block"][0] < one["block"][1] <= 16 for one in shown)
    assert [one["forwards"] for one in shown] == sorted({one["forwards"] for one in shown})


def test_an_answer_whose_time_is_over_has_what_is_settled(engine: Engine, session: Session) -> None:
    app = create_app(Service(session=session, model="small", limits=RequestLimits(request_seconds=0.02)))
    whole = alone(engine, PROMPTS[0], gen_length=96, early_stop=False).text[0]
    choice = post(app, CHAT, chat(max_tokens=96)).json["choices"][0]
    assert (choice["finish_reason"], choice.get("esdllm")) == ("length", {"finish_reason": "deadline"})
    assert whole.startswith(choice["message"]["content"])
    assert len(choice["message"]["content"]) < len(whole)


class TestBlanks:
    def test_what_stands_between_is_what_the_engine_fills_in(
        self, served: Any, engine: Engine, session: Session
    ) -> None:
        before, right = session.state().generation_tokens, Pipeline(engine).infill("The number [MASK:3] is small.")
        body = {"model": "small", "prompt": "The number ", "suffix": " is small.", "max_tokens": 3}
        found = post(served, FIM, body).json
        assert found["choices"][0]["message"]["content"] == right.fills[0]
        assert found["usage"]["completion_tokens"] == session.state().generation_tokens - before == 3
        assert joined(post(served, FIM, {**body, "stream": True}).events) == right.fills[0]
        assert joined(post(served, FIM, {**body, "stream": True, "diffusing": True}).events) == right.fills[0]

    def test_a_blank_of_unknown_length_is_as_long_as_the_pipeline_weighs_it(self, served: Any, engine: Engine) -> None:
        template = "The [MASK:2] number is [MASK:1-3]!"
        right = Pipeline(engine).infill(template)
        found = post(served, FIM, {"model": "small", "template": template}).json
        again = Pipeline(engine).infill(f"The [MASK:2] number is [MASK:{right.lengths[1]}]!")
        assert found["choices"][0]["esdllm"]["fills"] == list(again.fills)

    def test_a_template_is_filled_in_as_the_pipeline_does(self, served: Any, engine: Engine) -> None:
        template = "The [MASK:2] number of \\[MASK] is [MASK:3]!"
        right = Pipeline(engine).infill(template)
        for stream in (False, True):
            found = post(served, FIM, {"model": "small", "template": template, "stream": stream})
            choice = found.events[-1]["choices"][0] if stream else found.json["choices"][0]
            assert choice["delta" if stream else "message"]["content"] == right.text
            assert choice["esdllm"]["fills"] == list(right.fills)

    def test_a_fill_ends_before_a_stop_text(self, served: Any, engine: Engine) -> None:
        fill = Pipeline(engine).infill("The number [MASK:6] is small.").fills[0]
        body = {"model": "small", "prompt": "The number ", "suffix": " is small.", "max_tokens": 6, "stop": [fill[3:5]]}
        assert post(served, FIM, body).json["choices"][0]["message"]["content"] == fill[: fill.find(fill[3:5])]

    def test_a_prompt_without_a_suffix_goes_on(self, served: Any, engine: Engine) -> None:
        right = alone(engine, "The number", chat=False, gen_length=8).text[0]
        for suffix in (None, ""):
            found = post(served, FIM, {"model": "small", "prompt": "The number", "suffix": suffix, "max_tokens": 8})
            assert found.json["choices"][0]["message"]["content"] == right

    @pytest.mark.parametrize(
        ("template", "status", "message"),
        [
            ("no blank", 422, "there is nothing to fill in"),
            ("a [MASK:0]", 422, "is no blank"),
            ("a [MASK:2000]", 400, "exceed the model's context"),
            ("a [MASK:200]", 400, "and a slot has 128"),
        ],
    )
    def test_a_template_that_cannot_be_filled_in_is_told_why(
        self, served: Any, template: str, status: int, message: str
    ) -> None:
        found = post(served, FIM, {"model": "small", "template": template})
        assert (found.status, message in found.error["message"]) == (status, True)


class TestLimits:
    @pytest.mark.parametrize(
        "over", [{"max_tokens": 128}, {"max_tokens": 2000}, {"messages": [{"role": "user", "content": "a " * 150}]}]
    )
    def test_what_is_longer_than_a_slot_is_refused_by_its_code(self, served: Any, over: dict[str, Any]) -> None:
        found = post(served, CHAT, chat(**over))
        assert (found.status, found.error["code"]) == (400, "context_length_exceeded")

    def test_the_length_of_a_slot_is_told(self, served: Any) -> None:
        assert call(served, "GET", "/v1/models/small").json["max_model_len"] == 128

    def test_more_rows_than_may_wait_are_refused_and_none_is_left(self, served: Any, session: Session) -> None:
        found = post(served, CHAT, chat(n=64, max_tokens=64))
        assert (found.status, found.error["code"]) == (429, "rate_limit_exceeded")
        until(lambda: session.state().running == session.state().waiting == 0)

    def test_metrics_tell_of_the_session(self, served: Any, session: Session) -> None:
        post(served, CHAT, chat())
        text = call(served, "GET", "/metrics").body.decode()
        state = session.state()
        for name, value in (("forwards_total", state.forwards), ("generation_tokens_total", state.generation_tokens)):
            assert f'esdllm:{name}{{model_name="small"}} {float(value)}' in text


def asked(number: int) -> tuple[str, dict[str, Any]]:
    """Return a request of some traffic."""
    prompt, stream, length = PROMPTS[number % 4], number % 3 == 0, 4 + number % 7
    if number % 5 == 0:
        return FIM, {"model": "small", "prompt": prompt, "suffix": " so.", "max_tokens": length, "stream": stream}
    if number % 2:
        drawn = {"temperature": 0.8, "seed": number}
        return TEXT, {"model": "small", "prompt": prompt, "max_tokens": length, "stream": stream, **drawn}
    return CHAT, chat(messages=[{"role": "user", "content": prompt}], max_tokens=length, stream=stream)


def said(found: Any, stream: bool) -> str:
    if stream:
        return joined(found.events)
    choice = found.json["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


def test_answers_do_not_depend_on_the_traffic(served: Any, session: Session) -> None:
    requests = [asked(number) for number in range(24)]
    right = [said(post(served, path, body), body["stream"]) for path, body in requests]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda one: said(post(served, *one), one[1]["stream"]), requests[::-1]))
    assert found[::-1] == right


class TestSockets:
    @pytest.fixture
    def fresh(self, engine: Engine) -> Iterator[Session]:
        """A session for one server, which drains it."""
        with Session.open(engine, slots=3, length=128, max_queue=8) as found:
            yield found

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_client_that_leaves_frees_its_slots(self, serve: Any, fresh: Session, stream: bool) -> None:
        with begun(serve(fresh), CHAT, chat(stream=stream, max_tokens=96, n=5)):
            until(lambda: fresh.state().running == 3)
        until(lambda: fresh.state().running == fresh.state().waiting == 0, 3)

    @pytest.mark.slow
    def test_clients_that_come_and_go_leave_nothing(self, serve: Any, fresh: Session) -> None:
        address = serve(fresh)
        asyncio.run(_coming_and_going(address, 120))
        until(lambda: fresh.state().running == fresh.state().waiting == 0)
        assert httpx.post(address + CHAT, json=chat(), timeout=10).status_code == 200


async def _coming_and_going(address: str, count: int) -> None:
    """Ask, and leave after any time."""
    limits = asyncio.Semaphore(12)

    async def one(number: int) -> None:
        path, body = asked(number)
        async with limits, httpx.AsyncClient(base_url=address, verify=False) as client:
            try:
                found = await asyncio.wait_for(client.post(path, json=body), 0.002 * (number * 7 % 40))
            except (asyncio.TimeoutError, httpx.HTTPError):
                return
            assert found.status_code in (200, 429)

    await asyncio.gather(*(one(number) for number in range(count)))
