"""What a request's body may hold, endpoint by endpoint, and the requests of a session that it comes to."""

from __future__ import annotations

from typing import Any

import attrs

from esdllm.errors import brief
from esdllm.serving.api.errors import invalid
from esdllm.serving.api.fields import Inert, Reader, field, flag, items, mapping, number, structured, text, whole
from esdllm.views import Message

__all__ = [
    "REFUSED",
    "Asked",
    "AskedChat",
    "AskedCompletion",
    "AskedInfill",
    "conversation",
    "read_chat",
    "read_completion",
    "read_infill",
]

_MOST = 2**31 - 1
_SEEDS = 2**63 - 1
_CHOICES = 128
_PROMPTS = 1024
_STOPS = 64

_INERT: dict[str, Inert] = {
    "best_of": Inert([1], "give n"),
    "early_stopping": Inert([False]),
    "frequency_penalty": Inert([0]),
    "ignore_eos": Inert([False]),
    "include_stop_str_in_output": Inert([False]),
    "length_penalty": Inert([1]),
    "logit_bias": Inert([{}]),
    "min_p": Inert([0]),
    "min_tokens": Inert([0]),
    "presence_penalty": Inert([0]),
    "repeat_penalty": Inert([1]),
    "repetition_penalty": Inert([1]),
    "service_tier": Inert(["auto", "default"]),
    "skip_special_tokens": Inert([True]),
    "spaces_between_special_tokens": Inert([True]),
    "stop_token_ids": Inert([[]], "give stop"),
    "store": Inert([False]),
    "top_logprobs": Inert([0], "only the tokens that were chosen have a logprob"),
    "use_beam_search": Inert([False]),
}
_INERT_CHAT = {
    **_INERT,
    "add_generation_prompt": Inert([True]),
    "audio": Inert(),
    "chat_template_kwargs": Inert([{}]),
    "continue_final_message": Inert([False]),
    "echo": Inert([False]),
    "function_call": Inert(["none", "auto"]),
    "functions": Inert([[]]),
    "modalities": Inert([["text"]]),
    "parallel_tool_calls": Inert([True, False]),
    "prediction": Inert(),
    "reasoning_effort": Inert(["none"]),
    "tool_choice": Inert(["none", "auto"]),
    "tools": Inert([[]]),
    "verbosity": Inert(["medium"]),
    "web_search_options": Inert(),
}
_INERT_COMPLETION = {
    **_INERT,
    "echo": Inert([False]),
    "suffix": Inert([""], "/v1/fim/completions takes it"),
}
_INERT_INFILL = {**_INERT, "logprobs": Inert([False])}
REFUSED = tuple(sorted({*_INERT_CHAT, *_INERT_COMPLETION, *_INERT_INFILL} - {"logprobs"}))
"""fields of bodies that cannot be served"""
_INERT_MESSAGE = {
    "annotations": Inert([[]]),
    "audio": Inert(),
    "function_call": Inert(),
    "name": Inert(["user", "assistant", "system", "developer"], "say in the content who speaks"),
    "refusal": Inert(),
    "tool_call_id": Inert(),
    "tool_calls": Inert([[]]),
}


def _one_of(*choices: str) -> Reader:
    def read(value: Any, path: str) -> str:
        if value not in choices or not isinstance(value, str):
            raise invalid(path, f"{brief(value)} cannot be served; give {' or '.join(choices)}", "unsupported_value")
        return value

    return read


def _no_alternatives(value: Any, path: str) -> int | None:
    if type(value) not in (int, bool) or value:
        only = "give 0: only the tokens that were chosen have a logprob"
        raise invalid(path, f"{brief(value)} cannot be served; {only}", "unsupported_value")
    return None if value is False else 0


def _top_k(value: Any, path: str) -> int:
    """Return how many tokens are drawn from; 0 is all, as is the -1 of other servers."""
    count: int = whole(-1, _MOST)(value, path)
    return max(0, count)


def _stops(value: Any, path: str) -> tuple[str, ...]:
    texts: tuple[str, ...] = (text(value, path),) if isinstance(value, str) else items(text, 0, _STOPS)(value, path)
    if "" in texts:
        raise invalid(path, "an empty text stands everywhere; leave it out")
    return texts


def _part(value: Any, path: str) -> str:
    return structured(_TextPart, value, path).text


def _content(value: Any, path: str) -> str:
    return text(value, path) if isinstance(value, str) else "".join(items(_part, 1)(value, path))


def _turn(value: Any, path: str) -> Message:
    turn = structured(_Turn, value, path, _INERT_MESSAGE)
    return {"role": "system" if turn.role == "developer" else turn.role, "content": turn.content}


def _prompts(value: Any, path: str) -> tuple[Any, ...]:
    """Return the prompts of a text, a list of texts, a list of token ids, or a list of those."""
    if isinstance(value, str):
        return (text(value, path),)
    if isinstance(value, list) and value and all(type(one) is int for one in value):
        return (list(_ids(value, path)),)
    return tuple(items(_prompt, 1, _PROMPTS)(value, path))


def _prompt(value: Any, path: str) -> Any:
    return text(value, path) if isinstance(value, str) else list(_ids(value, path))


_ids = items(whole(0, _MOST), 1)
conversation = items(_turn, 1)
"""reads the messages of a conversation"""


@attrs.frozen(kw_only=True)
class _TextPart:
    type: str = field(_one_of("text"), attrs.NOTHING)
    cache_control: dict[str, str] | None = field(mapping(text))
    text: str = field(text, attrs.NOTHING)


@attrs.frozen
class _Turn:
    role: str = field(_one_of("system", "developer", "user", "assistant"), attrs.NOTHING)
    content: str = field(_content, attrs.NOTHING)


@attrs.frozen
class _ResponseFormat:
    type: str = field(_one_of("text"), attrs.NOTHING)


@attrs.frozen
class _StreamOptions:
    include_usage: bool = field(flag, False)
    continuous_usage_stats: bool = field(flag, False)


@attrs.frozen(kw_only=True)
class Asked:
    """What every endpoint takes."""

    model: str = field(text, attrs.NOTHING)
    temperature: float | None = field(number(0, 2))
    top_p: float | None = field(number(0, 1, above=True))
    top_k: int | None = field(_top_k)
    max_tokens: int | None = field(whole(1, _MOST))
    seed: int | None = field(whole(0, _SEEDS))
    n: int = field(whole(1, _CHOICES), 1)
    stop: tuple[str, ...] = field(_stops, ())
    stream: bool = field(flag, False)
    stream_options: _StreamOptions | None = field(
        lambda value, path: structured(_StreamOptions, value, path, {"include_obfuscation": Inert([False])})
    )
    diffusing: bool = field(flag, False)
    user: str | None = field(text)
    metadata: dict[str, str] | None = field(mapping(text))
    safety_identifier: str | None = field(text)
    prompt_cache_key: str | None = field(text)
    prompt_cache_retention: str | None = field(text)

    def __attrs_post_init__(self) -> None:
        for name in ("stream_options", "diffusing"):
            if getattr(self, name) and not self.stream:
                raise invalid(name, "it goes with stream: true")

    @property
    def length(self) -> int | None:
        """Tokens to generate, if that is asked for."""
        return self.max_tokens

    def sampling(self) -> dict[str, Any]:
        """Return what differs from the server's sampler."""
        options = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k")}
        given = {name: value for name, value in options.items() if value is not None}
        return {"sampler": given} if given else {}

    def settings(self) -> dict[str, Any]:
        """Return what differs from the server's configuration."""
        return {**({} if self.length is None else {"gen_length": self.length}), **self.sampling()}

    def seeds(self, first: int) -> range:
        """Return n seeds that follow each other, from the one that was given, else from `first`."""
        first = first if self.seed is None else self.seed
        if first + self.n - 1 > _SEEDS:
            raise invalid("seed", f"{first} and the {self.n - 1} after it are more than {_SEEDS}")
        return range(first, first + self.n)


@attrs.frozen(kw_only=True)
class AskedChat(Asked):
    """The body of /v1/chat/completions."""

    messages: tuple[Message, ...] = field(conversation, attrs.NOTHING)
    max_completion_tokens: int | None = field(whole(1, _MOST))
    logprobs: bool = field(flag, False)
    response_format: _ResponseFormat | None = field(lambda value, path: structured(_ResponseFormat, value, path))

    @property
    def length(self) -> int | None:
        """Tokens to generate, if that is asked for."""
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise invalid("max_tokens", "it is another than max_completion_tokens; give one of them")
        return self.max_tokens or self.max_completion_tokens


@attrs.frozen(kw_only=True)
class AskedCompletion(Asked):
    """The body of /v1/completions."""

    prompt: tuple[Any, ...] = field(_prompts, attrs.NOTHING)
    logprobs: int | None = field(_no_alternatives)


@attrs.frozen(kw_only=True)
class AskedInfill(Asked):
    """The body of /v1/fim/completions: a prompt and a suffix, or a template, a text with blanks."""

    prompt: str | None = field(text)
    suffix: str | None = field(text)
    template: str | None = field(text)
    random_seed: int | None = field(whole(0, _SEEDS))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if (self.prompt is None) is (self.template is None):
            raise invalid("prompt", "give either a prompt, with a suffix or without, or a template with blanks")
        for name in ("suffix", "max_tokens", "stop"):
            if self.template is not None and getattr(self, name):
                raise invalid(name, "it goes with a prompt; the blanks of a template are as long as they say")
        if self.seed is not None and self.random_seed is not None:
            raise invalid("random_seed", "it is another name of seed; give one of them")

    def seeds(self, first: int) -> range:
        """Return n seeds that follow each other, from the one that was given, else from `first`."""
        return super().seeds(first if self.random_seed is None else self.random_seed)


def read_chat(given: dict[str, Any]) -> AskedChat:
    """Return what a body of /v1/chat/completions asks."""
    return structured(AskedChat, given, "", _INERT_CHAT)


def read_completion(given: dict[str, Any]) -> AskedCompletion:
    """Return what a body of /v1/completions asks."""
    return structured(AskedCompletion, given, "", _INERT_COMPLETION)


def read_infill(given: dict[str, Any]) -> AskedInfill:
    """Return what a body of /v1/fim/completions asks."""
    return structured(AskedInfill, given, "", _INERT_INFILL)
