"""Python libraries that ask servers of OpenAI's API."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import Any

from on_server.ground import ASKED, BEGUN, KEY, MODEL, TURNS, Served

__all__ = ["langchain_client", "litellm_client", "openai_client"]


def openai_client(served: Served) -> Iterator[str]:
    """Try OpenAI's own client."""
    import openai

    client = openai.OpenAI(base_url=served.base, api_key=KEY, max_retries=0)
    ask: Any = client.chat.completions.create
    asked: dict[str, Any] = {"model": MODEL, "messages": TURNS}
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    yield "models"
    said = served.chat()
    assert ask(**asked).choices[0].message.content == said
    yield "chat"
    chunks = list(ask(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == said
    assert chunks[-1].usage.completion_tokens == ask(**asked).usage.completion_tokens
    yield "stream, usage"
    client_async = openai.AsyncOpenAI(base_url=served.base, api_key=KEY, max_retries=0)
    assert asyncio.run(_openai_async(client_async)) == [said] * 5
    yield "async, async stream"
    assert client.completions.create(model=MODEL, prompt=BEGUN).choices[0].text == served.continued()
    yield "completions"
    rows = ask(**asked, n=3, seed=5, temperature=1.0).choices
    alone = [served.chat(seed=seed, temperature=1.0) for seed in (5, 6, 7)]
    assert [row.message.content for row in rows] == alone
    yield "n"
    cut = ask(**asked, stop=[said[5:8], "never"])
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == (said[:5], "stop")
    yield "stop"
    tokens = ask(**asked, logprobs=True).choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == said
    assert all(token.logprob <= 0 for token in tokens)
    yield "logprobs"
    yield from _openai_errors(openai, client)


async def _openai_async(client: Any) -> list[str]:
    """Return what is said to four at once, and to a stream."""

    async def once() -> Any:
        return (await client.chat.completions.create(model=MODEL, messages=TURNS)).choices[0].message.content

    said = list(await asyncio.gather(*(once() for _ in range(4))))
    stream = await client.chat.completions.create(model=MODEL, messages=TURNS, stream=True)
    return [*said, "".join([chunk.choices[0].delta.content or "" async for chunk in stream])]


def _openai_errors(openai: Any, client: Any) -> Iterator[str]:
    def asking(client: Any = client, **over: Any) -> Any:
        return client.chat.completions.create(**{"model": MODEL, "messages": TURNS, **over})

    yield _raised(openai.BadRequestError, lambda: asking(temperature=3.0))
    yield _raised(openai.AuthenticationError, lambda: asking(client.with_options(api_key="another")))
    yield _raised(openai.NotFoundError, lambda: asking(model="another"))
    yield _raised(openai.RateLimitError, lambda: asking(n=64))


def _raised(kind: type[Exception], act: Callable[[], Any]) -> str:
    """Return the name of the error that something is answered with."""
    try:
        act()
    except kind:
        return kind.__name__
    raise AssertionError(f"there is no {kind.__name__}")


def litellm_client(served: Served) -> Iterator[str]:
    """Try LiteLLM, which aider and many agents ask through."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it is fetched
    import litellm

    asked: dict[str, Any] = {"model": f"openai/{MODEL}", "messages": TURNS, "api_base": served.base, "api_key": KEY}
    said = served.chat()
    assert litellm.completion(**asked).choices[0].message.content == said
    yield "completion"
    parts = litellm.completion(**asked, stream=True, stream_options={"include_usage": True})
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == said
    yield "stream"

    async def asking() -> str:
        answer = await litellm.acompletion(**asked)
        stream = await litellm.acompletion(**asked, stream=True)
        assert answer.choices[0].message.content == said
        return "".join([part.choices[0].delta.content or "" async for part in stream])

    assert asyncio.run(asking()) == said
    yield "async, async stream"
    text = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}", prompt=BEGUN, api_base=served.base, api_key=KEY
    )
    assert text.choices[0].text == served.continued()
    yield "text_completion"
    yield _raised(litellm.BadRequestError, lambda: litellm.completion(**asked, seed=-5, num_retries=0))
    yield _raised(litellm.AuthenticationError, lambda: litellm.completion(**{**asked, "api_key": "another"}))


def langchain_client(served: Served) -> Iterator[str]:
    """Try LangChain's two models of OpenAI."""
    from langchain_openai import ChatOpenAI, OpenAI

    chat = ChatOpenAI(model=MODEL, base_url=served.base, api_key=KEY, max_retries=0)
    said = served.chat()
    assert chat.invoke(ASKED).content == said
    yield "invoke"
    assert "".join(part.content for part in chat.stream(ASKED)) == said
    yield "stream"
    assert [answer.content for answer in chat.batch([ASKED] * 3)] == [said] * 3
    yield "batch"
    assert asyncio.run(chat.ainvoke(ASKED)).content == said
    yield "ainvoke"
    text = OpenAI(model=MODEL, base_url=served.base, api_key=KEY, max_retries=0, temperature=0)
    told = served.continued(max_tokens=256)
    assert text.invoke(BEGUN) == told
    yield "OpenAI.invoke"
