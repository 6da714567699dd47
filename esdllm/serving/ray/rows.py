"""Rows of a Ray dataset, decoded in slots."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from esdllm.errors import ClosedError, InputError, UnavailableError, brief
from esdllm.serving.ray.opening import open_session
from esdllm.serving.requests import Completion, Request, Update
from esdllm.use.batching import PromptAnswer, Setup, alone
from esdllm.use.incoming import one

__all__ = ["Decoder"]


class Decoder:
    """Decodes the column `prompt` of batches of rows, for `ray.data.Dataset.map_batches`.

        config = esdllm.configure("es-dllm", settings={"gen_length": 128}).to_dict()
        dataset.map_batches(Decoder, fn_constructor_kwargs={"model": "tiny-llada", "config": config}, batch_size=32, compute=…)

    An actor has one engine, and one session with `slots`: a row that ends leaves its slot to the next at once, of this batch
    or, where an actor is called with several at a time, of another. Each answer is that of `Engine.generate` for its prompt
    alone, however rows were put into batches.
    """

    def __init__(
        self,
        model: str,
        config: Mapping[str, Any],
        *,
        slots: int = 8,
        length: int | None = None,
        chat: bool | None = None,
        device: str | None = None,
        dtype: str | None = None,
        quantize: str | None = None,
        threads: int | None = None,
        family: str | None = None,
        compute: str | None = None,
    ) -> None:
        """Load the model; `length` are the columns of a slot, for a prompt and its answer: the model's context if None.

        `chat` is as in `Engine.generate`, the others are as a `Setup`'s.

        Raises:
            EsdllmError: it cannot be decoded so; see `open_session`.
        """
        setup = Setup(model, dict(config), device, dtype, quantize, threads, family, compute)
        self._chat, self._session = chat, open_session(setup, slots, length, max_queue=sys.maxsize)

    def __call__(self, batch: Mapping[str, Iterable[Any]]) -> dict[str, Any]:
        """Return the batch's columns, and beside them those of `PromptAnswer` and `seconds`, for how long the row had a slot.

        A prompt is a text, token ids, or a conversation.

        Raises:
            InputError: there is no such column.
            UnavailableError: the machine is at fault and not a prompt.
        """
        if "prompt" not in batch:
            raise InputError(f"the rows have no column 'prompt'; they have {brief(list(batch), 300)}")
        pending = [self._asked(prompt) for prompt in batch["prompt"]]
        answers, seconds = zip(*map(_answered, pending), strict=True) if pending else ((), ())
        columns = {name: [getattr(answer, name) for answer in answers] for name in PromptAnswer._fields}
        return {**batch, **columns, "seconds": list(seconds)}

    def _asked(self, prompt: Any) -> Future[Completion]:
        answer: Future[Completion] = Future()

        def listen(update: Update) -> None:
            if update.completion is not None:
                answer.set_result(update.completion)

        try:
            self._session.submit(Request(prompt=one(prompt), chat=self._chat), listen)
        except (InputError, ClosedError) as error:
            answer.set_exception(error)
        return answer


def _answered(pending: Future[Completion]) -> tuple[PromptAnswer, float]:
    """Wait for an answer; return it, and for how long it had a slot."""
    try:
        completion = pending.result()
        if isinstance(completion.error, (UnavailableError, ClosedError)):
            raise completion.error
    except InputError as error:
        return PromptAnswer(error=alone(error)), 0.0
    except ClosedError as error:
        raise UnavailableError(f"a worker's session ended: {error}") from error
    if completion.error is not None:
        return PromptAnswer(error=alone(completion.error)), completion.decoding
    return PromptAnswer(completion.text, len(completion.tokens), completion.steps), completion.decoding
