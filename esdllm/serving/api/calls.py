"""From a body to what is to be done: the requests of a session, and who writes what comes of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from esdllm.errors import brief
from esdllm.serving.api.asked import Asked, read_chat, read_completion, read_infill
from esdllm.serving.api.errors import ApiError
from esdllm.serving.api.service import Service
from esdllm.serving.api.writing import Blanks, ChatWriter, InfillWriter, TextWriter, Writer
from esdllm.serving.requests import Completion, Request
from esdllm.use.blanks import Template, parse_template
from esdllm.use.incoming import codec_of
from esdllm.use.lengths import weigh_lengths

__all__ = ["Call", "chat_call", "completion_call", "infill_call", "tokens_used"]


@attrs.frozen(kw_only=True)
class Call:
    """What a body asks for."""

    asked: Asked
    requests: tuple[Request, ...]
    """n of each prompt, one after the other"""
    writers: tuple[Writer, ...]
    """one per request"""

    def usage(self, completions: Mapping[int, Completion]) -> dict[str, int]:
        """Return the tokens of all rows, each prompt counted once."""
        prompts = sum(completion.prompt_tokens for row, completion in completions.items() if row % self.asked.n == 0)
        new = sum(self.writers[row].generated(completion) for row, completion in completions.items())
        return tokens_used(prompts, new)


def tokens_used(prompts: int, new: int) -> dict[str, int]:
    """Return an answer's `usage`."""
    return {"prompt_tokens": prompts, "completion_tokens": new, "total_tokens": prompts + new}


def chat_call(service: Service, given: dict[str, Any]) -> Call:
    """Return what a body of /v1/chat/completions asks for."""
    asked = read_chat(given)
    request = Request(prompt=list(asked.messages), settings=asked.settings(), stop=asked.stop, logprobs=asked.logprobs)
    return _call(service, asked, [request], lambda row: ChatWriter(row, service.speller, asked.logprobs))


def completion_call(service: Service, given: dict[str, Any]) -> Call:
    """Return what a body of /v1/completions asks for."""
    asked = read_completion(given)
    logprobs = asked.logprobs is not None
    request = Request(prompt="", chat=False, settings=asked.settings(), stop=asked.stop, logprobs=logprobs)
    requests = [attrs.evolve(request, prompt=prompt) for prompt in asked.prompt]
    return _call(service, asked, requests, lambda row: TextWriter(row, service.speller, logprobs))


def infill_call(service: Service, given: dict[str, Any]) -> Call:
    """Return what a body of /v1/fim/completions asks for."""
    asked, engine = read_infill(given), service.session.engine
    model, prompt = engine.model, asked.prompt or ""
    if asked.template is None and not asked.suffix:
        request = Request(prompt=prompt, chat=False, settings=asked.settings(), stop=asked.stop)
        return _call(service, asked, [request], lambda row: ChatWriter(row, service.speller, logprobs=False))
    codec = codec_of(model)
    if asked.template is not None:
        template = parse_template(asked.template)
    else:
        template = Template((prompt, asked.suffix or ""), (asked.length or engine.config.gen_length,))
    if template.is_open:
        template = template.of_lengths(weigh_lengths(engine, template, asked.seeds(engine.config.seed)[0]).lengths)
    tokens, spans = template.canvas(codec, model.spec)
    request = Request(prompt=tokens, infill=True, settings=asked.sampling())
    blanks = Blanks(codec, template, spans, asked.stop, whole=asked.template is not None)
    return _call(service, asked, [request], lambda row: InfillWriter(row, service.speller, blanks))


def _call(service: Service, asked: Asked, requests: list[Request], writer: Callable[[int], Writer]) -> Call:
    if asked.model != service.model:
        message = f"there is no model {brief(asked.model)}; this server has {service.model}"
        raise ApiError(404, message, "model_not_found", "model")
    length = service.session.length
    if (asked.length or 0) >= length:
        message = f"{asked.length} tokens and a prompt do not fit in a slot of {length}; ask for fewer"
        raise ApiError(400, message, "context_length_exceeded", "max_tokens")
    rows = tuple(
        attrs.evolve(
            request, seed=seed, stream=asked.stream, drafts=asked.diffusing, timeout=service.limits.request_seconds
        )
        for request in requests
        for seed in asked.seeds(service.session.engine.config.seed)
    )
    return Call(asked=asked, requests=rows, writers=tuple(map(writer, range(len(rows)))))
