"""Options weighed by a model: how probable it holds each of several texts where one is to come."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log
from typing import Any, NamedTuple

import attrs
import torch

from esdllm.errors import InputError, brief
from esdllm.runtime.engine import Engine
from esdllm.runtime.prompts import prepare
from esdllm.use.blanks import encoded, parse_template
from esdllm.use.incoming import codec_of, one, shown
from esdllm.use.likelihood import mask_sets
from esdllm.use.passes import check_sees_all, masked_log_probs

__all__ = ["MOST_OPTIONS", "Chosen", "Score", "choose", "score"]

MOST_OPTIONS = 64
"""options that one call weighs"""
_AT_ONCE = 64  # rows of a forward


@attrs.frozen
class Chosen:
    """What a model holds of several options. `print` shows them, the likeliest first."""

    prompt: str | None
    """the prompt's text, of a conversation its last turn; None where token ids were given"""
    options: tuple[str, ...]
    """as they were given"""
    probabilities: tuple[float, ...]
    """of each option, if one of them is what comes: `log_probs` made to sum to 1"""
    log_probs: tuple[float, ...]
    """of each option and what follows it, in nats; from one forward an estimate, else a lower bound"""
    forwards: int
    """forward passes of the model"""

    @property
    def best(self) -> int:
        """The number of the likeliest option; of equals the first."""
        return max(range(len(self.options)), key=self.probabilities.__getitem__)

    @property
    def text(self) -> str:
        """The likeliest option."""
        return self.options[self.best]

    def __str__(self) -> str:
        order = sorted(range(len(self.options)), key=lambda at: -self.probabilities[at])
        return "\n".join(f"{self.probabilities[at]:6.1%}  {self.options[at]}" for at in order)


@attrs.frozen
class Score:
    """How probable a model holds a text."""

    log_prob: float
    """of the text and its end, in nats; from one forward an estimate, else a lower bound"""
    tokens: int
    """of the text, its end among them"""
    forwards: int
    """forward passes of the model"""

    @property
    def per_token(self) -> float:
        """`log_prob` divided by the tokens."""
        return self.log_prob / self.tokens


class _OptionPlace(NamedTuple):
    """Where an option comes."""

    before: list[int]
    after: list[int]
    """tokens that are given behind it"""
    ends: tuple[int, ...]
    """tokens any of which may come next; the first is what stands there where it is not masked"""


def choose(
    engine: Engine, prompt: Any, options: Sequence[str], chat: bool | None = None, samples: int | None = None
) -> Chosen:
    """Return how probable the model holds each option; see `Pipeline.choose`."""
    codec, spec = codec_of(engine.model), engine.model.spec
    texts = _checked(options)
    place, told = _place(engine, prompt, chat)
    rows = [encoded(text, codec, spec.mask_id) for text in texts]
    if empty := [text for text, tokens in zip(texts, rows, strict=True) if not tokens]:
        raise InputError(f"the option {brief(empty[0])} has no tokens; give each some text")
    log_probs, forwards = _weighed(engine, place, rows, samples)
    most = max(log_probs)
    total = log(sum(exp(each - most) for each in log_probs)) + most
    return Chosen(told, texts, tuple(exp(each - total) for each in log_probs), tuple(log_probs), forwards)


def score(engine: Engine, prompt: Any, text: str, chat: bool | None = None, samples: int | None = 128) -> Score:
    """Return how probable the model holds a text; see `Pipeline.score`."""
    if not isinstance(text, str) or not text:
        raise InputError(f"what is scored is a text, not {brief(text)}")
    tokens = encoded(text, codec_of(engine.model), engine.model.spec.mask_id)
    (log_prob,), forwards = _weighed(engine, _place(engine, prompt, chat)[0], [tokens], samples)
    return Score(log_prob, len(tokens) + 1, forwards)


def _checked(options: Any) -> tuple[str, ...]:
    texts = () if isinstance(options, str) else tuple(options)
    if not 2 <= len(texts) <= MOST_OPTIONS or not all(isinstance(text, str) for text in texts):
        raise InputError(f"options are 2 to {MOST_OPTIONS} texts, not {brief(options)}")
    if len({*texts}) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise InputError(f"the option {brief(twice)} is there twice; give each once")
    return texts


def _place(engine: Engine, prompt: Any, chat: bool | None) -> tuple[_OptionPlace, str | None]:
    """Return where options come, and the prompt as an answer shows it: in the blank of a text, or behind the prompt."""
    model, spec = engine.model, engine.model.spec
    check_sees_all(engine, "weighing options")
    prompt = one(prompt)
    if isinstance(prompt, str) and "[MASK" in prompt.upper():
        template = parse_template(prompt)
        if template.lengths != (1,) or template.is_open:
            raise InputError(f"options go into one blank, [MASK], whose length is theirs; {brief(prompt)} has others")
        before, after = (encoded(piece, codec_of(model), spec.mask_id) for piece in template.pieces)
        return _OptionPlace(before, after[1:], tuple(after[:1]) or (spec.eos_id,)), prompt
    tokens = prepare(model, [prompt], None, 1, False, chat).tokens[0, :-1].tolist()
    turn = [end for end in model.stop_ids if end != spec.eos_id]
    ends = (*turn, spec.eos_id) if not isinstance(prompt, str) or model.chats(chat) else (spec.eos_id, *turn)
    return _OptionPlace(tokens, [], ends), shown(prompt)


def _weighed(
    engine: Engine, place: _OptionPlace, options: Sequence[Sequence[int]], samples: int | None
) -> tuple[list[float], int]:
    """Return the log-probability of each option and of what comes next, in nats, and the forwards that took.

    Without `samples` all their tokens are masked, so that options of one length share a row and all rows a forward.
    """
    if samples is not None and (type(samples) is not int or samples < 1):
        raise InputError(f"samples = {brief(samples)}; give at least 1, or None for one forward")
    mask, start = engine.model.spec.mask_id, len(place.before)
    jobs: dict[tuple[int, ...], list[tuple[int, tuple[int, ...], float]]] = {}
    for number, option in enumerate(options):
        written = [*option, place.ends[0]]
        for masked, weight in _sets(len(written), samples):
            hidden = [mask if at in masked else token for at, token in enumerate(written)]
            row = (*place.before, *hidden, *place.after)
            jobs.setdefault(row, []).append((number, masked, weight))
    found, forwards, rows = [0.0] * len(options), 0, list(jobs)
    for first in range(0, len(rows), _AT_ONCE):
        part = rows[first : first + _AT_ONCE]
        columns = [[start + at for at in jobs[row][0][1]] for row in part]
        forwards += 1
        for row, log_probs in zip(part, masked_log_probs(engine, part, columns), strict=True):
            for number, masked, weight in jobs[row]:
                wanted: list[Sequence[int]] = [options[number][at : at + 1] or place.ends for at in masked]
                each = [log_probs[at, torch.tensor(tokens)].logsumexp(0).double() for at, tokens in enumerate(wanted)]
                found[number] += weight * float(sum(each))
    return found, forwards


def _sets(length: int, samples: int | None) -> list[tuple[tuple[int, ...], float]]:
    """Return which of `length` tokens are masked together, and what each such set counts."""
    if samples is None:
        return [(tuple(range(length)), 1.0)]
    sets = mask_sets(length, samples, seed=0)
    return [
        (tuple(row.nonzero().flatten().tolist()), weight)
        for row, weight in zip(sets.masked, sets.weights.tolist(), strict=True)
    ]
