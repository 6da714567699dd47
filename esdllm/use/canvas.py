"""What only a canvas can do: fill in blanks, weigh options, keep to a pattern, edit. A pipeline inherits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast, overload

from esdllm.errors import InputError
from esdllm.interfaces import StepObserver
from esdllm.keywords import hinting
from esdllm.runtime.engine import Engine
from esdllm.use.answers import Answer, Answers, Infilled
from esdllm.use.choosing import Chosen, Score, choose, score
from esdllm.use.editing import Edited, EditWish, edit
from esdllm.use.filling import infill_all
from esdllm.use.incoming import codec_of, template_list
from esdllm.use.matching import match

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
        patterns: str | Sequence[str | None] | None = None,
    ) -> Answers: ...

    @hinting
    def infill(
        self,
        templates: str | Sequence[str],
        *,
        seed: int | Sequence[int] | None = None,
        observers: Sequence[StepObserver] = (),
        patterns: str | Sequence[str | None] | None = None,
    ) -> Infilled | Answers:
        """Return a text with its blanks filled in, or each of a list.

        [MASK:n] is a blank of n tokens, [MASK] of one, [MASK:n-m] of as many from n to m as the model holds for likeliest (see
        `esdllm.use.lengths.weigh_lengths`). The text around the blanks comes out as it is; `\\[MASK]` writes one that is none. A
        list is decoded together, but for the texts whose blanks' lengths are to be found. `patterns` are regular expressions that
        the blanks are to match, one for all, or of each text one per blank, None for any text; see `match`.

        Raises:
            InputError: there is no blank, or one is written wrongly; the text holds the mask token; no tokenizer; too long.
        """
        codec, (listed, alone) = codec_of(self.engine.model), template_list(templates)
        if not listed:
            raise InputError("there is no template; give at least one")
        answers = infill_all(self.engine, codec, listed, seed, observers, patterns)
        return cast(Infilled, answers.answers[0]) if alone else answers

    @hinting
    def match(
        self,
        prompt: Any,
        *,
        pattern: str | None = None,
        schema: str | Mapping[str, Any] | None = None,
        chat: bool | None = None,
        seed: int | None = None,
    ) -> Answer:
        """Return the answer to a prompt that matches a regular expression, or is JSON of a schema; of gen_length tokens or fewer.

        Tokens are committed in whatever order the configuration says; at every step the candidates are the most probable text
        that matches, given what is decided (`esdllm.use.keeping`). Look-around, back-references and anchors cannot be had;
        a schema goes as far as `esdllm.use.schemas.pattern_of_schema` says. Needs the extra `pattern`.

        Raises:
            InputError: no such pattern or schema; no text of gen_length tokens matches; the sampler draws; no tokenizer.
            UnavailableError: outlines-core is not installed.
        """
        return match(self.engine, prompt, pattern, schema, chat, seed)

    @hinting
    def choose(
        self, prompt: Any, options: Sequence[str], *, chat: bool | None = None, samples: int | None = None
    ) -> Chosen:
        """Return how probable the model holds each of 2 to 64 options, as the answer to a prompt or in a text's blank, [MASK].

        From one forward, unless `samples` are asked for: an option's tokens, and what follows it, are masked together, and the
        logarithms of their probabilities added up. That takes the tokens for independent, so it is an estimate. Options of one
        length share a row. With `samples`, a lower bound (LLaDA, arXiv 2502.09992, equation 6) over so many mask sets per option,
        64 rows per forward. What follows is the end of the answer, or the token behind the blank. A text with a blank is taken as
        it is; `chat` says whether another goes through the chat template.

        Raises:
            InputError: there are not 2 to 64 options, or two are the same; a block-causal model; no tokenizer.
            ContextError: prompt and option are longer than the model's context.
        """
        return choose(self.engine, prompt, options, chat, samples)

    @hinting
    def yes_no(self, question: Any, *, yes: str = "Yes", no: str = "No", chat: bool | None = None) -> float:
        """Return the probability of `yes` against `no`, from one forward; see `choose`."""
        return self.choose(question, [yes, no], chat=chat).probabilities[0]

    @hinting
    def score(self, prompt: Any, text: str, *, chat: bool | None = None, samples: int | None = 128) -> Score:
        """Return a lower bound of the log-probability of a text as the answer to a prompt, or in a text's blank, [MASK].

        Over `samples` mask sets, or over all of them where there are no more; None is one forward, an estimate. See `choose`.

        Raises:
            InputError: what is scored is empty, or no text; a block-causal model; no tokenizer.
            ContextError: prompt and text are longer than the model's context.
        """
        return score(self.engine, prompt, text, chat, samples)

    @hinting
    def edit(
        self,
        text: str,
        instruction: str | None = None,
        *,
        span: str | tuple[int, int] | None = None,
        count: int | None = None,
        below: float = 0.5,
        seed: int | None = None,
    ) -> Edited:
        """Return a text in which what the model holds for least likely is decoded again; all else stays, character for character.

        Every token is masked by itself, 64 of them per forward; those whose probability is less than `below`, or the `count`
        least probable ones, become masks together and are decoded by the pipeline's settings. `span` says what may change: a
        part of the text that stands there once, or its characters from and to. With an `instruction`, the text is taken as the
        answer to it. The text keeps its number of tokens.

        Raises:
            InputError: an empty text, no such span, a block-causal model, no tokenizer, no chat template for an instruction.
        """
        wish = EditWish(instruction=instruction, span=span, count=count, below=below)
        return edit(self.engine, text, wish, seed)
