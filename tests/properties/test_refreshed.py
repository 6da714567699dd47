"""What a refresh leaves in the cache: what is computed afresh from the same canvas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from drawing import (
    ADAPTIVE,
    FIXED,
    IMPORTANCE,
    MASK,
    PERIODIC,
    SKIPS,
    Settings,
    Shape,
    engine_of,
    lengths,
    rows,
    shapes,
)
from hypothesis import event, given
from hypothesis import strategies as st
from sampling import examples
from torch import Tensor

from esdllm import Engine, KeyValue, ModelSpec, StepRecord
from esdllm.runtime.plain import plain_attention

pytestmark = pytest.mark.no_cover  # thousands of small generations, which measuring slows fivefold

EXACT = {"rtol": 1e-3, "atol": 1e-3}
"""RoPE's cosines are float32, whose last bit depends on where in a vector they stand (6e-8), and a norm of small features
amplifies up to 1 / sqrt(eps) = 316 times; what is stale is off by the features' own size"""


class State(NamedTuple):
    """A step, and what the cache held after it."""

    record: StepRecord
    canvas: Tensor
    """(B, L) int64, the tokens that the step read"""
    keys: Tensor
    """(layers, B, L, G, D)"""
    values: Tensor
    remembered: dict[int, Tensor]
    """by skip layer, (B, L, F)"""


class States:
    """Keeps a copy of all that the cache holds after each step; stops at the first if told."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.found = engine, list[State]()

    def start(self, tokens: Tensor, spec: ModelSpec) -> None:
        self.canvas, self.columns = tokens.clone(), torch.arange(tokens.shape[1]).expand(tokens.shape)

    def step(self, record: StepRecord) -> None:
        spec, site = self.engine.model.spec, self.engine.components.importance.site
        keys, values = (
            torch.stack([self.read(layer, what) for layer in range(spec.n_layers)]).unflatten(-1, (spec.n_kv_heads, -1))
            for what in ("key", "value")
        )
        history = self.engine.components.importance.keeps_history and site in ("hidden", "query")
        # the last layer of a step that decides the block alone computes no more than the block
        whole = [layer for layer in record.plan.scored if not (record.plan.narrow and layer == spec.n_layers - 1)]
        remembered = {layer: self.read(layer, site) for layer in whole} if history else {}
        self.found.append(State(record, self.canvas, keys, values, remembered))
        self.canvas = record.tokens.clone()

    def read(self, layer: int, site: Any) -> Tensor:
        assert self.engine.cache is not None
        return self.engine.cache.recall(layer, site, self.columns).clone()

    def end(self) -> None: ...


def padding_of(state: State, prompts: list[list[int]]) -> tuple[int, ...]:
    return state.record.padding or (0,) * len(prompts)


@given(
    shape=shapes(),
    prompts=rows,
    common=lengths(),
    skip=st.sampled_from(sorted(SKIPS)).flatmap(lambda name: SKIPS[name]),
    importance=IMPORTANCE,
    unmasking=FIXED | ADAPTIVE,
)
@examples(40)
def test_a_refresh_of_the_canvas_leaves_what_a_fresh_run_over_it_makes(
    shape: Shape, prompts: list[list[int]], common: Settings, skip: Settings, importance: Settings, unmasking: Settings
) -> None:
    chosen = {**common, "skip": skip, "importance": importance, "unmasking": unmasking, "refresh": "dual-cache"}
    engine = engine_of(shape, chosen)
    run = States(engine)
    engine.generate(prompts, observers=[run])
    mask = torch.ones_like(run.canvas)
    for row, pad in enumerate(padding_of(run.found[0], prompts)):
        mask[row, :pad] = 0
    for state in run.found:
        if state.record.moment.step_in_block or not (state.canvas == MASK).any():
            continue
        event(f"after {'nothing' if state.record.moment.block == 0 else 'some steps'}")
        fresh_engine = engine_of(shape, chosen)
        fresh = States(fresh_engine)
        fresh_engine.generate(state.canvas, attention_mask=mask, infill=True, observers=[fresh])
        first, real = fresh.found[0], mask.bool()
        torch.testing.assert_close(state.keys[:, real], first.keys[:, real], **EXACT)
        torch.testing.assert_close(state.values[:, real], first.values[:, real], **EXACT)
        for layer in state.remembered.keys() & first.remembered.keys():
            torch.testing.assert_close(state.remembered[layer][real], first.remembered[layer][real], **EXACT)


def computed_afresh(
    engine: Engine, state: State, before: State, window: slice, padding: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the keys and values (layers, B, L, G, D) where those of a window are computed anew, the others as before."""
    model, canvas = engine.model.adapter, state.canvas
    padded = torch.arange(canvas.shape[1]) < torch.tensor(padding)[:, None]
    positions = (torch.arange(canvas.shape[1]) - torch.tensor(padding)[:, None]).clamp(min=0)
    bias = torch.zeros(canvas.shape, dtype=model.dtype).masked_fill(padded, float("-inf"))
    places, hidden = model.encode(positions[:, window]), model.embed(canvas[:, window])
    keys, values = before.keys.clone(), before.values.clone()
    for layer in range(model.spec.n_layers):
        queries, keys[layer, :, window], values[layer, :, window] = model.project(layer, hidden, places)
        hidden = model.mix(layer, hidden, plain_attention(queries, KeyValue(keys[layer], values[layer], bias)))
    return keys, values


@given(
    shape=shapes(),
    prompts=rows,
    common=lengths(),
    skip=st.sampled_from(sorted(SKIPS)).flatmap(lambda name: SKIPS[name]),
    refresh=PERIODIC | st.sampled_from([{"name": "prefix-cache"}, {"name": "dual-cache"}]),
    importance=IMPORTANCE,
    rate=st.integers(1, 3),
)
@examples(60)
def test_a_step_that_skips_nothing_leaves_its_window_as_computed_afresh_and_the_rest_as_it_was(
    shape: Shape,
    prompts: list[list[int]],
    common: Settings,
    skip: Settings,
    refresh: Settings,
    importance: Settings,
    rate: int,
) -> None:
    engine = engine_of(
        shape,
        {**common, "skip": skip, "refresh": refresh, "importance": importance, "unmasking": {"tokens_per_step": rate}},
    )
    run = States(engine)
    engine.generate(prompts, observers=[run])
    length, padding = run.canvas.shape[1], padding_of(run.found[0], prompts)
    whole = length - min(padding)
    for before, state in zip(run.found, run.found[1:], strict=False):
        plan, block = state.record.plan, state.record.block
        if plan.skips or plan.clamped:
            continue
        suffix = refresh["name"] == "prefix-cache" and state.record.moment.step_in_block
        stop = length if suffix or plan.window == whole else block.stop
        event(f"window of {'the canvas' if plan.window == whole else 'a part'}")
        with torch.inference_mode():
            keys, values = computed_afresh(engine, state, before, slice(stop - plan.window, stop), padding)
        real = (torch.arange(length) >= torch.tensor(padding)[:, None]).expand(len(prompts), -1)
        torch.testing.assert_close(state.keys[:, real], keys[:, real], **EXACT)
        torch.testing.assert_close(state.values[:, real], values[:, real], **EXACT)
