"""A trace: plain data on the host, one record a step. S steps, L positions of the canvas."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import attrs
import numpy as np
from numpy.typing import NDArray

from esdllm.plan import Block

__all__ = ["Candidate", "Kind", "Scored", "Trace", "TraceStep", "spans"]

Kind = Literal["refresh", "skip", "reuse"]
"""refresh: the window in every layer, to make the caches fresh; skip: deeper layers compute less; reuse: neither"""


class Candidate(NamedTuple):
    """What the model would put at a column, when its position had logits."""

    column: int
    """where the token stands: the computed position and the model's logit shift"""
    token: int
    """the sampler's choice"""
    confidence: float
    """its probability under the unperturbed logits"""
    best: tuple[tuple[int, float], ...]
    """the most probable tokens and their probabilities, at most three"""


@attrs.frozen(eq=False)
class Scored:
    """What a skip layer saw of the positions that it chose from."""

    layer: int
    """number of the layer, from 0"""
    importance: NDArray[Any]
    """(L,) float32, the scorer's; NaN at positions that were not there to choose from"""
    variation: NDArray[Any]
    """(L,) float32, of the scored tensor since the position last survived the layer, not divided by a row's maximum; NaN
    where there is none, or the scorer keeps no history"""


@attrs.frozen(eq=False)
class TraceStep:
    """One denoising step."""

    step: int
    """step of the whole generation; jumps to the next multiple of block_length at a block's start"""
    step_in_block: int
    """step of the block, from 0"""
    block_number: int
    """number of the block, from 0"""
    block: Block
    """the computed positions being decoded"""
    window: str
    """which positions the refresh policy asked for"""
    kind: Kind
    """what the step was for"""
    keep: tuple[int, ...]
    """for every layer, the number of positions that it hands on"""
    depth: NDArray[Any]
    """(L,) int64, the layers that computed a position: the first `depth` of them; 0 where only the cache was read"""
    change: NDArray[Any]
    """(n_layers, L) float32, how far a computed position's values are from those that stood there before; NaN where nothing
    was computed, or nothing stood"""
    scored: tuple[Scored, ...]
    """one per layer that dropped positions"""
    candidates: tuple[Candidate, ...]
    """for every position that had logits, ascending"""
    committed: Mapping[int, int]
    """column to token, of what was decided at this step"""
    revoked: tuple[int, ...]
    """columns that became masks again"""
    seconds: float | None = None
    """wall-clock time, of a run that was not traced; None if not taken"""

    @property
    def layer_work(self) -> int:
        """Different positions computed, summed over the layers."""
        return int(self.depth.sum())


@attrs.frozen(eq=False)
class Trace:
    """One prompt's run."""

    name: str
    """what the configuration is called"""
    model: str
    """what the model is called"""
    n_layers: int
    """transformer layers"""
    prompt: str
    """as it was given"""
    text: str
    """the answer"""
    config: Mapping[str, Any]
    """the settings, as `DecodeConfig.to_dict` gives them"""
    tokens: NDArray[Any]
    """(L,) int64, the canvas before the first step"""
    mask: int
    """the mask's id"""
    shift: int
    """s: the token that position p decides stands at column p + s"""
    pieces: Mapping[int, str]
    """the text of every token that occurs"""
    steps: tuple[TraceStep, ...]
    """in order"""

    @property
    def start(self) -> int:
        """First column of the answer."""
        return int((self.tokens == self.mask).argmax())

    @property
    def seconds(self) -> float | None:
        """Wall-clock time of all steps; None if not taken."""
        times = [step.seconds for step in self.steps if step.seconds is not None]
        return sum(times) if len(times) == len(self.steps) else None

    @property
    def layer_share(self) -> float:
        """Positions computed in all layers, as a share of what computing all of them at each step would be."""
        return sum(step.layer_work for step in self.steps) / max(1, len(self.steps) * self.n_layers * len(self.tokens))

    def canvas(self, steps: int) -> NDArray[Any]:
        """Return the canvas (L,) int64 after so many steps."""
        tokens: NDArray[Any] = self.tokens.copy()
        for step in self.steps[:steps]:
            tokens[list(step.revoked)] = self.mask
            tokens[list(step.committed)] = list(step.committed.values())
        return tokens

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON holds it: positions as ranges [first, last], other numbers to four digits."""
        return {
            "name": self.name,
            "model": self.model,
            "n_layers": self.n_layers,
            "prompt": self.prompt,
            "text": self.text,
            "config": dict(self.config),
            "tokens": self.tokens.tolist(),
            "mask": self.mask,
            "logit_shift": self.shift,
            "pieces": {str(token): text for token, text in self.pieces.items()},
            "seconds": self.seconds,
            "layer_share": self.layer_share,
            "steps": [_step_dict(step) for step in self.steps],
        }


def spans(positions: NDArray[Any]) -> list[list[int]]:
    """Return ascending positions as ranges [first, last]."""
    if not len(positions):
        return []
    cuts = [i for i, (a, b) in enumerate(pairwise(positions.tolist()), 1) if b > a + 1]
    return [[int(part[0]), int(part[-1])] for part in np.split(positions, cuts)]


def _step_dict(step: TraceStep) -> dict[str, Any]:
    names = ("step", "step_in_block", "block_number", "block", "window", "kind", "keep", "seconds")
    return {
        **{name: getattr(step, name) for name in names},
        "computed": [spans(np.flatnonzero(step.depth > layer)) for layer in range(len(step.keep))],
        "value_change": [_known(row) for row in step.change],
        "scored": [
            {"layer": one.layer, "importance": _known(one.importance), "variation": _known(one.variation)}
            for one in step.scored
        ],
        "candidates": [
            {**one._asdict(), "confidence": _short(one.confidence), "best": [[t, _short(p)] for t, p in one.best]}
            for one in step.candidates
        ],
        "committed": [list(pair) for pair in step.committed.items()],
        "revoked": list(step.revoked),
    }


def _known(row: NDArray[Any]) -> dict[str, Any]:
    """Return the numbers of a row that are known, and where they stand."""
    where = np.flatnonzero(np.isfinite(row))
    return {"positions": spans(where), "values": [_short(x) for x in row[where].tolist()]}


def _short(x: float) -> float:
    return float(f"{x:.4g}")
