"""Regular expressions over a model's tokens: from a pattern to the automaton that a canvas keeps to."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import attrs
import numpy as np
import torch
from torch import Tensor

from esdllm.errors import InputError, UnavailableError, brief, installing
from esdllm.interfaces import TextCodec

__all__ = ["Automaton", "automaton", "core"]

_MOST_STATES = 1024  # the tokens' ways take states x vocabulary x 2 bytes while they are made
_DEAD = -1
_ANCHOR = "a"  # before which a token is written, since some tokenizers drop the space of a first one


@attrs.frozen(eq=False)
class Automaton:
    """Which tokens lead where: Q states, K classes of tokens that are alike to all of them, V tokens. State 0 is the first."""

    steps: Tensor
    """(Q, K) int64, the state that a class of tokens leads to; -1 if none"""
    classes: Tensor
    """(V,) int64, each token's class"""
    accepting: Tensor
    """(Q,) bool, states in which a text may end"""

    def to(self, device: torch.device) -> Automaton:
        """Return the automaton on a device."""
        return Automaton(self.steps.to(device), self.classes.to(device), self.accepting.to(device))

    def fits(self, length: int) -> bool:
        """Return whether any text of so many tokens matches."""
        reached, led = {0}, self.steps.tolist()
        for _ in range(length):
            reached = {to for state in reached for to in led[state] if to != _DEAD}
        return bool(self.accepting[list(reached)].any())

    def accepts(self, tokens: Sequence[int]) -> bool:
        """Return whether a text of these tokens matches."""
        state = 0
        for token in tokens:
            state = int(self.steps[state, self.classes[token]])
            if state == _DEAD:
                return False
        return bool(self.accepting[state])


def automaton(pattern: str, codec: TextCodec, vocab: int, ends: tuple[int, ...] = ()) -> Automaton:
    """Return a pattern's automaton over the tokens of a codec, by outlines-core's automaton over bytes.

    Where a text may end, one of `ends` may come, and after it only these. Tokens that are not whole characters lead nowhere.

    Raises:
        InputError: it is no pattern, needs what an automaton cannot have, or has too many states.
        UnavailableError: outlines-core is not installed.
    """
    table, accepting = _over_bytes(pattern)
    spelt = _spellings(cast(Any, codec), vocab)
    lengths = np.array([len(word) for word in spelt])
    places = np.tile(
        np.arange(len(table), dtype=table.dtype), (vocab, 1)
    )  # (V, Q), where each token leads from each state
    for at in range(lengths.max(initial=0)):
        going = np.flatnonzero(lengths > at)
        read = np.array([spelt[number][at] for number in going])
        here = places[going]
        places[going] = np.where(here == _DEAD, _DEAD, table[here, read[:, None]])
    places[lengths == 0] = _DEAD
    over = np.full((vocab, 1), _DEAD, dtype=table.dtype)
    if ends:
        places[list(ends)] = np.where(accepting, len(table), _DEAD)
        over[list(ends)] = len(table)
        accepting = np.append(accepting, True)
        places = np.concatenate([places, over], 1)
    numbers: dict[bytes, int] = {}
    classes = [numbers.setdefault(row.tobytes(), len(numbers)) for row in places]
    steps = np.frombuffer(b"".join(numbers), dtype=table.dtype).reshape(len(numbers), -1)
    return Automaton(
        torch.from_numpy(steps.T.copy()).long(),
        torch.tensor(classes),
        torch.from_numpy(np.asarray(accepting, dtype=bool)),
    )


def _over_bytes(pattern: str) -> tuple[np.ndarray, np.ndarray]:
    """Return where each byte leads from each state (Q, 256), the first state first, and where a text may end (Q,).

    outlines-core (0.2.14) forgets the ways from a state in which a text may end to one in which it may not. So an end that is
    written is asked for, the byte 0: the states from which it leads on are those in which a text may end.
    """
    outlines = core()
    if not isinstance(pattern, str) or not pattern:
        raise InputError(f"a pattern is a regular expression, such as '[0-9]+', not {brief(pattern)}")
    bytewise = outlines.Vocabulary(256, {bytes([byte]): [byte] for byte in range(256)})
    try:
        outlines.Index(pattern, bytewise)  # which is no pattern may become one between parentheses
        index = outlines.Index(f"(?:{pattern})\\x00", bytewise)
    except ValueError as error:
        raise InputError(
            f"{brief(pattern)} is no pattern that can be kept to: {error}; look-around, back-references and anchors are none"
        ) from error
    transitions = index.get_transitions()
    finals = index.get_final_states()
    states = [index.get_initial_state(), *sorted({*transitions} - {index.get_initial_state(), *finals})]
    if len(states) > _MOST_STATES:
        raise InputError(
            f"{brief(pattern)} has {len(states)} states, more than {_MOST_STATES}; shorten its repetitions"
        )
    numbers = {state: number for number, state in enumerate(states)}
    table = np.full((len(states), 256), _DEAD, dtype=np.int16)
    for state, number in numbers.items():
        for byte, to in transitions.get(state, {}).items():
            if 0 < byte < 256 and to in numbers:
                table[number, byte] = numbers[to]
    return table, np.array([transitions.get(state, {}).get(0) in finals for state in states])


def core() -> Any:
    """Return outlines-core.

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        import outlines_core
    except ImportError as error:
        raise UnavailableError(f"patterns need outlines-core: {installing('pattern')}") from error
    return outlines_core


@lru_cache(maxsize=4)
def _spellings(codec: TextCodec, vocab: int) -> tuple[bytes, ...]:
    """Return the bytes of every token; none of one that is special, or that is not whole characters."""
    start = codec.encode(_ANCHOR)
    head = len(codec.decode(start))
    words = (codec.decode([*start, token])[head:] for token in range(vocab))
    return tuple(b"" if "\ufffd" in word else word.encode() for word in words)
