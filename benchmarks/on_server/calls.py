"""The calls of editors and pages that are no Python packages: their bodies, as their source or a proxy says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx

from on_server.ground import KEY, MODEL, TURNS, Served

__all__ = ["continue_calls", "open_webui_calls", "zed_calls"]


def _spoken(lines: Iterator[str]) -> str:
    """Return the text of a stream, read as editors read it: what is no event's data is left out."""
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    choices = [chunk["choices"][0] for one in data if (chunk := json.loads(one))["choices"]]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content") or "" for choice in choices)


def _stream(served: Served, path: str, **body: Any) -> str:
    headers = {"authorization": f"Bearer {KEY}", "x-api-key": KEY, "accept": "application/json"}
    asked = {"model": MODEL, "stream": True, **body}
    with httpx.stream("POST", served.base + path, json=asked, headers=headers, timeout=120) as answer:
        assert answer.status_code == 200, answer.read()
        return _spoken(answer.iter_lines())


def continue_calls(served: Served) -> Iterator[str]:
    """Send what the editor extension Continue sends, by `packages/openai-adapters/src/apis/OpenAI.ts`."""
    options = {"include_usage": True}
    assert _stream(served, "/chat/completions", messages=TURNS, max_tokens=64, stream_options=options) == served.chat()
    yield "chat"
    blank = {"prompt": "The result is 12 +", "suffix": " = 19.", "max_tokens": 4}
    stops = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>", "/src/", "#- coding: utf-8", "```"]
    told = _stream(served, "/fim/completions", **blank, temperature=0.01, stop=stops)
    whole = served.post("/fim/completions", **blank, temperature=0.01, stop=stops).json()
    assert told == whole["choices"][0]["message"]["content"]
    yield "fim"


def zed_calls(served: Served) -> Iterator[str]:
    """Send what the editor Zed sends, by `crates/open_ai/src/open_ai.rs` and `crates/edit_prediction/src/fim.rs`."""
    options = {"include_usage": True}
    more = {"max_completion_tokens": 64, "prompt_cache_key": "thread", "parallel_tool_calls": False}
    assert _stream(served, "/chat/completions", messages=TURNS, stream_options=options, **more) == served.chat()
    yield "chat"
    named = ("endoftext", "file_separator", "fim_pad", "fim_prefix", "fim_middle", "fim_suffix")
    stops = [f"<|{name}|>" for name in named] + ["<PRE>", "<SUF>", "<MID>", "[PREFIX]", "[SUFFIX]"]
    prompt = "<|fim_prefix|>The result is 12 +<|fim_suffix|> = 19.<|fim_middle|>"
    body = {"prompt": prompt, "max_tokens": 16, "temperature": None, "stop": stops, "environment": None}
    answer = served.post("/completions", **body)
    assert answer.status_code == 200, answer.text
    assert {"id", "choices"} <= answer.json().keys()
    yield "edit predictions (a prompt for models trained on fim; answers are read)"


def open_webui_calls(served: Served) -> Iterator[str]:
    """Send what a proxy between Open WebUI 0.12.4 and this server recorded: a chat with its page's defaults, then its chores."""
    tool = {
        "name": "get_current_timestamp",
        "description": "Get the time.",
        "parameters": {"type": "object", "properties": {}},
    }
    told = _stream(
        served,
        "/chat/completions",
        messages=TURNS,
        stream_options={"include_usage": True},
        tools=[{"type": "function", "function": tool}],
    )
    assert told == served.chat()
    yield "chat (with --ignore tools)"
    settings = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.0,
        "seed": 3,
        "stop": ["\n\n"],
        "max_tokens": 32,
    }
    settings |= {"frequency_penalty": 0, "presence_penalty": 0, "repeat_penalty": 1}
    assert _stream(served, "/chat/completions", messages=TURNS, **settings) == served.chat(**settings)
    yield "settings"
    for chore in ({"max_tokens": 1000}, {}, {"max_tokens": 4}):  # a title, tags, an emoji
        assert served.post("/chat/completions", messages=TURNS, stream=False, **chore).status_code == 200, chore
    yield "title, tags, emoji"
