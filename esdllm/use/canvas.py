"""What only a canvas can do: fill in blanks, weigh options, keep to a pattern, edit. A pipeline inherits it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, overload

from esdllm.errors import InputError
from esdllm.interfaces import StepObserver
from esdllm.keywords import hinting
from esdllm.runtime.engine import Engine
from esdllm.use.answers import Answers, Infilled
from esdllm.use.filling import infill_all
from esdllm.use.incoming import codec_of, template_list

__all__ = ["CanvasTasks"]


class CanvasTasks:
    """What goes beyond an answer from left to right, over an engine."""

    __slots__ = ()

    @property
    def engine(self) -> Engine:
        """What decodes."""
        raise NotImplementedError

    @overload
    def infill(  # type: ignore[overload-overlap]
        self, templates: str, *, seed: int | None = None, observers: Sequence[StepObserver] = ()
    ) -> Infilled: ...

    @overload
    def infill(
        self,
        templates: Sequence[str],
        *,
        seed: int | Sequence[int] | None = None,
        observers: Sequence[StepObserver] = (),
    ) -> Answers: ...

    @hinting
    def infill(
        self,
        templates: str | Sequence[str],
        *,
        seed: int | Sequence[int] | None = None,
        observers: Sequence[StepObserver] = (),
    ) -> Infilled | Answers:
        """Return a text with its blanks filled in, or each of a list.

        [MASK:n] is a blank of n tokens, [MASK] of one, [MASK:n-m] of as many from n to m as the model holds for likeliest (see
        `esdllm.use.lengths.weigh_lengths`). The text around the blanks comes out as it is; `\\[MASK]` writes one that is none. A
        list is decoded together, but for the texts whose blanks' lengths are to be found.

        Raises:
            InputError: there is no blank, or one is written wrongly; the text holds the mask token; no tokenizer; too long.
        """
        codec, (listed, alone) = codec_of(self.engine.model), template_list(templates)
        if not listed:
            raise InputError("there is no template; give at least one")
        answers = infill_all(self.engine, codec, listed, seed, observers)
        return cast(Infilled, answers.answers[0]) if alone else answers
