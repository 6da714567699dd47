"""Exact tensors of every step: each canvas of a run goes once more through every layer, no cache, nothing skipped.

Held at any time: the tensors of the step before, and the hidden states, keys and values of at most two steps earlier still.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esdllm.interfaces import ModelAdapter
from esdllm.measure.analysis.measures import Floats
from esdllm.measure.analysis.trajectory import Trajectory
from esdllm.runtime.plain import layers
from esdllm.runtime.variation import relative_variation

__all__ = ["AGES", "Padded", "Sites", "StepChange", "confidences", "exact_layers", "pad", "replay"]

AGES = (1, 2, 4, 8, 16, 32)
"""steps between a tensor and the older one that it is compared with"""
_SPACING = AGES[-1] // 2
"""steps between two of the older ones that are kept"""
_SLICE = 64
"""positions whose logits exist at once: a vocabulary is large"""


class Sites(NamedTuple):
    """The tensors of one layer, (R, L, F): what it hands on, and its queries, keys and values after RoPE, heads together."""

    hidden: Tensor
    query: Tensor
    key: Tensor
    value: Tensor


class Padded(NamedTuple):
    """Where rows of different lengths stand in a batch, padded on the left."""

    padding: tuple[int, ...]
    """columns before each row's first token"""
    positions: Tensor
    """(R, L) int64, counted from each row's first token"""
    bias: Tensor | None
    """(R, L) 0 at tokens, -inf at padding; None if nothing is padded"""


class StepChange(NamedTuple):
    """One row between two of its steps."""

    row: Trajectory
    state: int
    """the later step"""
    confidence: tuple[Floats, Floats]
    """(L,) before and after, by the column that is decided; NaN at the first columns under a logit shift"""
    variation: Floats
    """(4, layers, L), the sites in the order of `Sites`, by column computed"""
    stale: dict[int, Floats]
    """by age, (3, layers, L): hidden, key and value against that many steps before"""


def exact_layers(model: ModelAdapter, tokens: Tensor, positions: Tensor, bias: Tensor | None) -> Iterator[Sites]:
    """Yield every layer's tensors for tokens (R, L) at positions (R, L), all attending to all but padding."""
    for hidden, made in layers(model, model.embed(tokens), positions, bias):
        yield Sites(hidden, *(x.flatten(2) for x in made))


def confidences(model: ModelAdapter, hidden: Tensor) -> Tensor:
    """Return the largest softmax probability (R, L) float32 of the logits of hidden (R, L, C), by column computed."""
    found = []
    for part in hidden.split(_SLICE, dim=1):
        logits = model.logits(part).float()
        found.append((logits.amax(-1) - logits.logsumexp(-1)).exp())
    return torch.cat(found, dim=1)


def pad(rows: Sequence[Trajectory], model: ModelAdapter) -> Padded:
    """Return how rows stand in a batch."""
    length = max(len(row.tokens) for row in rows)
    padding = tuple(length - len(row.tokens) for row in rows)
    columns = torch.arange(length) - torch.tensor(padding)[:, None]
    bias = torch.zeros(columns.shape, dtype=model.dtype).masked_fill(columns < 0, float("-inf")).to(model.device)
    return Padded(padding, columns.clamp(min=0).to(model.device), bias if any(padding) else None)


def _canvases(rows: Sequence[Trajectory], state: int, padding: Sequence[int], model: ModelAdapter) -> Tensor:
    filler = model.spec.eos_id
    found = [
        np.pad(row.canvas(state), (room, 0), constant_values=filler) for row, room in zip(rows, padding, strict=False)
    ]
    return torch.from_numpy(np.stack(found)).to(model.device)


class _Past:
    """The tensors to compare with: those of the step before, and of a few older steps."""

    def __init__(self) -> None:
        self.last: list[Sites] = []
        self._older: dict[int, list[Sites]] = {}

    def compare(self, layer: int, sites: Sites) -> Tensor:
        """Return the variation (4, R, L) of a layer's tensors since the last step."""
        return torch.stack(
            [relative_variation(x, old[: len(x)]) for x, old in zip(sites, self.last[layer], strict=True)]
        )

    def stale(self, state: int) -> dict[int, Floats]:
        """Return by age the variation (3, layers, R, L) of the last step's tensors since the older steps."""
        found = {}
        for then, older in self._older.items():
            if state - then in AGES:
                pairs = zip(self.last, older, strict=True)
                found[state - then] = torch.stack([_drift(now, old) for now, old in pairs], dim=1).cpu().numpy()
        return found

    def keep(self, state: int) -> None:
        """Keep the last step's tensors for later, if it is their turn, and forget what is too old."""
        self._older = {then: kept for then, kept in self._older.items() if state - then < AGES[-1]}
        if state % _SPACING == 0:
            empty = self.last[0].hidden[:0]
            self._older[state] = [sites._replace(query=empty) for sites in self.last]


def _drift(now: Sites, old: Sites) -> Tensor:
    pairs = ((now.hidden, old.hidden), (now.key, old.key), (now.value, old.value))
    return torch.stack([relative_variation(x, then[: len(x)]) for x, then in pairs])


def replay(model: ModelAdapter, rows: Sequence[Trajectory]) -> Iterator[list[StepChange]]:
    """Yield, for every step, the changes since the step before in the rows that have both; none at the first.

    Rows go by their own steps, so that a row is the same in any batch.
    """
    rows = sorted((row for row in rows if row.states), key=lambda row: -row.states)
    if not rows:
        return
    padded, past, before = pad(rows, model), _Past(), torch.empty(0)
    for state in range(rows[0].states):
        alive = [row for row in rows if row.states > state]
        tokens = _canvases(alive, state, padded.padding, model)
        bias = None if padded.bias is None else padded.bias[: len(alive)]
        changes = []
        for layer, sites in enumerate(exact_layers(model, tokens, padded.positions[: len(alive)], bias)):
            if state:
                changes.append(past.compare(layer, sites))
                past.last[layer] = sites
            else:
                past.last.append(sites)
        confidence = confidences(model, past.last[-1].hidden).cpu()
        stale = past.stale(state)
        past.keep(state)
        if state:
            variation = torch.stack(changes, dim=1).cpu().numpy()
            yield [
                StepChange(
                    row,
                    state,
                    (_decided(before[i, room:], model), _decided(confidence[i, room:], model)),
                    variation[:, :, i, room:],
                    {age: x[:, :, i, room:] for age, x in stale.items()},
                )
                for i, (row, room) in enumerate(zip(alive, padded.padding, strict=False))
            ]
        else:
            yield []
        before = confidence


def _decided(confidence: Tensor, model: ModelAdapter) -> Floats:
    """Return confidences (L,) by the column that is decided, from those by the column computed."""
    shift = model.spec.logit_shift
    found = np.full(len(confidence), np.nan)
    found[shift:] = confidence[: len(confidence) - shift].numpy()
    return found
