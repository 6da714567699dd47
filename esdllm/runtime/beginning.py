"""What a run begins with: a canvas on the device, and what planning knows of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import attrs
import torch
from torch import Tensor

from esdllm.checkpoints.loading import Model
from esdllm.errors import InputError, brief
from esdllm.plan import Layout
from esdllm.planning.coming import returning_layers
from esdllm.planning.keeping import KeepCounts
from esdllm.runtime.aligning import aligned
from esdllm.runtime.canvas import Canvas
from esdllm.runtime.components import Components
from esdllm.runtime.layouts import layout, undecided_positions
from esdllm.runtime.needs import CanvasNeeds
from esdllm.runtime.prompts import Prepared, seed_list

__all__ = ["Beginning", "begin", "empty"]


class Beginning(NamedTuple):
    """A canvas, nothing of which is decided yet."""

    canvas: Canvas
    layout: Layout
    """the canvas as planning sees it"""
    room: int
    """columns of padding that were put before all rows"""
    spans: tuple[slice, ...]
    """the columns of each row's answer; for infilling, of the row without padding"""


def begin(
    model: Model,
    components: Components,
    prepared: Prepared,
    seed: int | Sequence[int] | None,
    has_forms: bool,
    infill: bool,
    watched: bool = False,
) -> Beginning:
    """Return what a run over prompts begins with.

    `has_forms` says whether a step of another form is compiled or recorded anew, `watched` whether observers look on.

    Raises:
        InputError: the seed is no whole number, or not one per row.
    """
    attention = model.spec.attention
    if attention is not None:
        prepared = aligned(prepared, attention, model.spec, infill)
    spare = _spare(components, prepared, model)
    room = spare + _room(components, prepared.padded(spare, model.spec), model, has_forms)
    tokens, present, starts, stops = prepared.padded(room, model.spec)
    seeds = _seeds(components.config.seed if seed is None else seed, tokens.shape[0])
    canvas = _canvas(model, components, tokens, present, seeds, watched=watched)
    spans = tuple(map(slice, starts, stops or [tokens.shape[1]] * len(starts)))
    return Beginning(canvas, layout(tokens, present, model.spec)._replace(spare=0 if attention else spare), room, spans)


def empty(model: Model, components: Components, rows: int, length: int) -> Canvas:
    """Return a canvas on which nothing is to be decided, whose rows stand apart, with a bias and padding of one branch."""
    tokens = torch.full((rows, length), model.spec.eos_id)
    present = torch.ones_like(tokens, dtype=torch.bool)
    canvas = _canvas(model, components, tokens, present, torch.zeros(rows, dtype=torch.int64), apart=True)
    bias = torch.zeros(rows, length, dtype=model.adapter.dtype, device=canvas.tokens.device)
    return attrs.evolve(canvas, bias=bias, padding=torch.zeros_like(canvas.seeds))


def _canvas(
    model: Model,
    components: Components,
    tokens: Tensor,
    present: Tensor,
    seeds: Tensor,
    watched: bool = False,
    apart: bool = False,
) -> Canvas:
    adapter, can = model.adapter, components.can
    return Canvas.of(
        tokens,
        present,
        seeds,
        adapter.spec,
        branches=components.branches,
        device=adapter.device,
        dtype=adapter.dtype,
        asked=CanvasNeeds(
            can.memory,
            can.score_memory,
            can.signals,
            can.revisions,
            can.edits,
            drafts=None if can.drafting is None else adapter.spec.mask_id,
            ends=can.ending is not None,
            measures=can.learning is not None,
        ),
        watched=watched,
        apart=apart,
    )


def _room(components: Components, prepared: Prepared, model: Model, has_forms: bool) -> int:
    """Return the columns of padding to put before all rows."""
    first = 0
    if components.can.reach:
        first = int(undecided_positions(prepared.tokens, model.spec).long().argmax(1).min())
    return components.room(first, prepared.tokens.shape[1], has_forms, model.spec.attention)


def _spare(components: Components, prepared: Prepared, model: Model) -> int:
    """Return the columns of padding to put before all rows so that each has some, where rows differ and steps skip.

    A row that keeps fewer positions than another goes on with padding.
    """
    present, attention = prepared.attention_mask, model.spec.attention
    if present.all() or not present[:, 0].any():
        return 0
    returning = returning_layers(components.can.returning, model.spec.n_layers)
    keeps = KeepCounts(components.skip, model.spec.n_layers, Layout(present.shape[1], ()), returning)
    if not keeps.skip_layers({1, components.config.block_length}):
        return 0
    return 1 if attention is None else attention.size


def _seeds(seed: int | Sequence[int], rows: int) -> Tensor:
    found = seed_list(seed, rows)
    if len(found) != rows or any(type(number) is not int or not 0 <= number < 2**63 for number in found):
        raise InputError(
            f"seed = {brief(seed)} for {rows} rows; give one whole number from 0 to 2**63 - 1, or one per row"
        )
    return torch.tensor(found, dtype=torch.int64)
