"""Requests, checked and made ready to be decoded."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from threading import Lock
from typing import cast

import attrs
from torch import Tensor

from esdllm.errors import ConfigError, ContextError, EsdllmError, InputError, brief
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.beside import differences
from esdllm.runtime.components import Components
from esdllm.runtime.engine import Engine
from esdllm.runtime.prompts import Prompts, prepare
from esdllm.serving.requests import Completion, FinishReason, Request, Update
from esdllm.serving.sizing import outgrown
from esdllm.serving.telling import Telling

__all__ = ["Intake", "TakenRequest"]

_SETTINGS = 64  # sets of settings whose components are kept


@attrs.define(eq=False)
class TakenRequest:
    """A request on its way."""

    number: int
    request: Request
    listener: Callable[[Update], None]
    canvas: Tensor
    """(1, L) int64 on the host, the prompt and its masks"""
    prompt_tokens: int
    components: Components
    telling: Telling
    submitted: float
    """seconds of `time.monotonic`"""
    slot: int | None = None
    """where it is decoded; None while it waits"""
    admitted: float | None = None
    """seconds of `time.monotonic` at which it first had a slot"""
    alone: bool = False
    """whether it shares no steps, since one that it shared has failed"""

    @property
    def columns(self) -> int:
        """L, the columns of its canvas."""
        return self.canvas.shape[1]

    @property
    def generated(self) -> int:
        """Tokens that were made for it and told: of a text that was filled in, those of its blanks."""
        told = len(self.telling.tokens)
        return min(told, self.columns - self.prompt_tokens) if self.request.infill else told

    @property
    def deadline(self) -> float | None:
        """Seconds of `time.monotonic` when its time is over; None if never."""
        return None if self.request.timeout is None else self.submitted + self.request.timeout

    def completed(self, finish: FinishReason, steps: int, now: float, error: EsdllmError | None) -> Completion:
        """Return how it ended."""
        telling, admitted = self.telling, now if self.admitted is None else self.admitted
        return Completion(
            finish_reason=finish,
            text=telling.text,
            tokens=telling.tokens,
            logprobs=telling.logprobs(),
            prompt_tokens=self.prompt_tokens,
            steps=steps,
            queued=admitted - self.submitted,
            decoding=now - admitted,
            error=error,
        )

    @property
    def watched(self) -> bool:
        """Whether each step's result is looked at: to be told, to be stopped at, or for how sure it was."""
        return self.told_as_it_comes or self.request.logprobs or bool(self.request.stop)

    @property
    def told_as_it_comes(self) -> bool:
        """Whether updates come before the last."""
        return self.request.stream or self.request.drafts


class Intake:
    """Makes requests of requests, in any thread."""

    def __init__(self, engine: Engine, length: int, catalogue: Catalogue) -> None:
        self._engine, self._length, self._catalogue = engine, length, catalogue
        self._numbers, self._lock = count(), Lock()
        self._known: dict[str, Components] = {}

    def take(self, request: Request, listener: Callable[[Update], None]) -> TakenRequest:
        """Return a request as it is taken; see `Session.submit` for what is refused."""
        model, components = self._engine.model, self._components(request)
        self._check(request)
        prepared = prepare(model, _prompts(request), None, components.config.gen_length, request.infill, request.chat)
        if len(prepared.starts) != 1:
            raise InputError(f"{len(prepared.starts)} prompts in one request; make a request of each")
        columns = prepared.tokens.shape[1]
        if columns > self._length:
            raise ContextError(
                f"prompt and answer take {columns} columns, and a slot has {self._length}; shorten the prompt or gen_length"
            )
        return TakenRequest(
            number=next(self._numbers),
            request=request,
            listener=listener,
            canvas=prepared.tokens,
            prompt_tokens=columns - int((prepared.tokens == model.spec.mask_id).sum()),
            components=components,
            telling=Telling(model, request, prepared.tokens),
            submitted=time.monotonic(),
        )

    def _check(self, request: Request) -> None:
        """Refuse what cannot be told of an answer.

        Raises:
            InputError: says what.
        """
        if request.stop and self._engine.model.codec is None:
            raise InputError("stop strings are found in text, and this model has no tokenizer; leave them out")
        if request.infill and (request.logprobs or request.stop):
            raise InputError("a text that is filled in has neither logprobs nor stop strings; leave them out")
        if request.seed is not None and (type(request.seed) is not int or not 0 <= request.seed < 2**63):
            raise InputError(f"seed = {brief(request.seed)}; give a whole number from 0 to 2**63 - 1")
        timeout = request.timeout
        if timeout is not None and not (isinstance(timeout, (int, float)) and timeout > 0):
            raise InputError(f"timeout = {brief(timeout)}; give seconds above 0, or None for no limit")

    def _components(self, request: Request) -> Components:
        """Return the components of a request's settings, which are checked once.

        Raises:
            ConfigError: they are wrong, or cannot differ between rows beside each other.
        """
        held = self._engine.components
        if not request.settings:
            return held
        key = repr(sorted(request.settings.items()))
        with self._lock:
            if key not in self._known:
                found = held.varied(request.settings, self._catalogue)
                if told := differences(held, found, self._engine.model.spec.n_layers):
                    raise ConfigError(f"requests cannot differ in {'; '.join(told)}")
                found.check_plan(self._engine.model.spec)
                if grown := outgrown(self._engine, found, self._length):
                    raise ConfigError(grown)
                while len(self._known) >= _SETTINGS:
                    del self._known[next(iter(self._known))]
                self._known[key] = found
            return self._known[key]


def _prompts(request: Request) -> Prompts:
    """Return a request's prompt as a batch of one."""
    return request.prompt if isinstance(request.prompt, str) else cast(Prompts, [request.prompt])
