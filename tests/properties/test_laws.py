"""Exact laws of a generation, over random models, settings, prompts and paddings.

    pytest tests/properties --hypothesis-show-statistics

prints how many examples each law was run on, and how often each kind of case came up.
"""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from drawing import (
    ADAPTIVE,
    EOS,
    FIXED,
    IMPORTANCE,
    KEEPS_ALL,
    MASK,
    REFRESHES,
    SKIPS,
    VOCAB,
    Settings,
    Shape,
    Watch,
    engine_of,
    lengths,
    model_of,
    policies,
    rows,
    rows_apart,
    shapes,
    watching_ties,
)
from hypothesis import event, example, given
from hypothesis import strategies as st
from sampling import examples

from esdllm import Model
from esdllm_models.decoder import Transformer
from esdllm_models.linear import Dense

pytestmark = pytest.mark.no_cover  # thousands of small generations, which measuring slows fivefold

QUIET = 24
"""from this id on, tokens look to `deaf` models like a mask"""


# ----------------------------------------------------------------------------------------------- equal by definition


@given(
    shape=shapes(), prompts=rows, common=lengths(), keeps=KEEPS_ALL, importance=IMPORTANCE, unmasking=FIXED | ADAPTIVE
)
@examples(60)
def test_keep_ratio_1_is_the_dual_cache(
    shape: Shape, prompts: list[list[int]], common: Settings, keeps: Settings, importance: Settings, unmasking: Settings
) -> None:
    common = {**common, "unmasking": unmasking}
    kept = engine_of(shape, {**common, "skip": keeps, "importance": importance, "refresh": "dual-cache"})
    plain = engine_of(shape, common, "dual-cache")
    event(f"schedule: {keeps['name']}")
    assert torch.equal(kept.generate(prompts).tokens, plain.generate(prompts).tokens)


@given(shape=shapes(), prompts=rows, chosen=policies(), keeps=KEEPS_ALL)
@examples(60)
def test_keep_ratio_1_is_no_skipping_under_any_refresh_policy(
    shape: Shape, prompts: list[list[int]], chosen: Settings, keeps: Settings
) -> None:
    event(f"refresh: {chosen['refresh']['name']}")
    kept = engine_of(shape, {**chosen, "skip": keeps}).generate(prompts)
    none = engine_of(shape, {**chosen, "skip": "none"}).generate(prompts)
    assert torch.equal(kept.tokens, none.tokens)
    assert kept.layer_work == none.layer_work


@given(shape=shapes(), prompts=rows, chosen=policies())
@examples(60)
def test_refreshing_everything_at_every_step_is_vanilla(
    shape: Shape, prompts: list[list[int]], chosen: Settings
) -> None:
    alike = {name: value for name, value in chosen.items() if name not in ("skip", "refresh", "importance")}
    refreshed = engine_of(shape, {**chosen, "refresh": "every-step"}).generate(prompts)
    vanilla = engine_of(shape, alike, "vanilla").generate(prompts)
    assert torch.equal(refreshed.tokens, vanilla.tokens)
    assert refreshed.layer_share == vanilla.layer_share == 1


def deaf(model: Model) -> Model:
    """Return the model with all tokens from QUIET on embedded as the mask is, and no other ever the most probable."""
    adapter: Any = model.adapter
    assert isinstance(adapter, Transformer)
    embedding, head = adapter.embedding.clone(), adapter.head.weight.clone()  # type: ignore[attr-defined]
    embedding[QUIET:] = embedding[MASK]
    head[:QUIET] = 0.0
    return Model(attrs.evolve(adapter, embedding=embedding, head=Dense(head)))


@given(
    shape=shapes(),
    prompts=st.lists(st.lists(st.integers(0, QUIET - 1), min_size=2, max_size=6), min_size=1, max_size=3),
    common=lengths(sampler={"name": "gumbel"}, delay_eos=False),
    skip=st.sampled_from(["by-depth", "decay", "adaptive"]).flatmap(lambda name: SKIPS[name]),
    refresh=REFRESHES,
    importance=IMPORTANCE,
    unmasking=FIXED | ADAPTIVE,
)
@examples(80)
def test_skipping_positions_whose_input_did_not_change_changes_nothing(
    shape: Shape,
    prompts: list[list[int]],
    common: Settings,
    skip: Settings,
    refresh: Settings,
    importance: Settings,
    unmasking: Settings,
) -> None:
    """What is written looks to these models like the mask that stood there, so no layer's state ever changes."""
    chosen = {**common, "unmasking": unmasking}
    unhearing, watch = deaf(model_of(shape)), Watch()
    engine = engine_of(unhearing, {**chosen, "skip": skip, "refresh": refresh, "importance": importance})
    skipped = engine.generate(prompts, observers=[watch])
    vanilla = engine_of(unhearing, chosen, "vanilla").generate(prompts)
    event(f"skips at some step: {any(record.plan.skips for record in watch.records)}")
    answer = watch.tokens[0][:, -vanilla.tokens.shape[1] :] == MASK
    assert (vanilla.tokens[answer] >= QUIET).all()  # so the law's premise holds
    assert torch.equal(skipped.tokens, vanilla.tokens)


# ------------------------------------------------------------------------------------------- what a row depends on


TIES: Settings = {
    "gen_length": 5,
    "block_length": 3,
    "early_stop": False,
    "skip": {"name": "adaptive", "per_commit": 1.0},
    "importance": {"name": "entropy", "prefer": "sure", "site": "query"},
    "refresh": {"name": "partial", "prompt_refresh": 1, "block_refresh": 1, "full": 2},
    "unmasking": {"name": "top-k", "tokens_per_step": 1},
}
"""settings under which equal scores are kept or not in a window that holds another row's padding"""

MORE_OF_LESS: Settings = {
    "gen_length": 7,
    "block_length": 7,
    "early_stop": False,
    "delay_eos": False,
    "sampler": {"name": "gumbel", "temperature": 0.8},
    "skip": {"name": "adaptive", "per_commit": 4.0},
    "importance": {"name": "entropy", "prefer": "sure", "site": "hidden"},
    "refresh": {"name": "partial", "prompt_refresh": 1, "block_refresh": 1, "full": 2},
    "unmasking": {"name": "top-k", "tokens_per_step": 1},
}
"""settings under which a short row keeps 5 of its 9 positions, and a long one beside it 4 of its 13"""

ROUNDED: Settings = {**MORE_OF_LESS, "skip": {"name": "by-depth", "keep": [[0, 1], [0.3, 0.5], [0.6, 0.3]]}}
"""settings under which two rows keep equally many positions at one layer, and not so at the next"""


@given(shape=shapes(), prompts=rows, chosen=rows_apart())
@example(shape=Shape("llada", 2, 2, 2, 4, 0), prompts=[[0, 0], [0, 0, 0, 0]], chosen=TIES)
@example(shape=Shape("llada", 2, 1, 1, 4, 0), prompts=[[0, 0], [0, 0, 0, 0, 1, 0]], chosen=MORE_OF_LESS)
@example(shape=Shape("llada", 5, 2, 1, 4, 0), prompts=[[3], [1, 2, 3, 4, 5, 6], [7, 8]], chosen=ROUNDED)
@examples(80)
def test_a_row_of_a_batch_is_the_row_alone(shape: Shape, prompts: list[list[int]], chosen: Settings) -> None:
    """Of equal scores those go on that do if the row is alone, unless padding or a row that keeps more stands between."""
    engine, together = engine_of(shape, chosen), Watch()
    event(f"rows: {len(prompts)}")
    batch = engine.generate(prompts, observers=[together])
    for row, answer in zip(prompts, batch.answers, strict=True):
        apart = Watch()
        with watching_ties() as ties:
            alone = engine.generate([row], observers=[apart]).answers[0]
        longest = len(row) == max(map(len, prompts))
        more = any(a.plan.keep != b.plan.keep for a, b in zip(apart.records, together.records, strict=False))
        event(f"equal scores at a layer's end: {bool(ties)}")
        assert alone == answer or (ties and (not longest or more))


@given(shape=shapes(), prompts=rows, chosen=policies(), data=st.data())
@examples(160)
def test_permuted_rows_permute(shape: Shape, prompts: list[list[int]], chosen: Settings, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(prompts))))
    engine = engine_of(shape, chosen)
    event(f"moved: {order != sorted(order)}")
    assert torch.equal(engine.generate([prompts[i] for i in order]).tokens, engine.generate(prompts).tokens[order])


@given(
    shape=shapes(),
    row=st.lists(st.integers(0, EOS - 1), min_size=2, max_size=6),
    chosen=policies(),
    pad=st.integers(1, 9),
)
@examples(60)
def test_padding_changes_nothing(shape: Shape, row: list[int], chosen: Settings, pad: int) -> None:
    engine = engine_of(shape, chosen)
    padded = torch.tensor([[EOS] * pad + row])
    mask = torch.tensor([[0] * pad + [1] * len(row)])
    there = engine.generate(padded, attention_mask=mask)
    with watching_ties() as ties:
        alone = engine.generate([row])
    event(f"equal scores at a layer's end: {bool(ties)}")
    same = (there.tokens[:, pad:].tolist(), there.forwards) == (alone.tokens.tolist(), alone.forwards)
    assert same or ties


@given(shape=shapes(), prompts=rows, chosen=policies(), data=st.data())
@examples(60)
def test_what_stands_in_the_padding_changes_nothing(
    shape: Shape, prompts: list[list[int]], chosen: Settings, data: st.DataObject
) -> None:
    length = max(map(len, prompts)) + 1
    fill = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=length, max_size=length))
    tokens = torch.tensor([fill[: length - len(row)] + row for row in prompts])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in prompts])
    engine = engine_of(shape, chosen)
    filled = engine.generate(tokens, attention_mask=mask).tokens[:, length:]
    assert torch.equal(
        filled, engine.generate(tokens.masked_fill(mask == 0, EOS), attention_mask=mask).tokens[:, length:]
    )


# ----------------------------------------------------------------------------------------------------- what stays


@given(shape=shapes(), prompts=rows, chosen=policies())
@examples(80)
def test_committed_tokens_stay_and_every_mask_is_decided(
    shape: Shape, prompts: list[list[int]], chosen: Settings
) -> None:
    watch = Watch()
    found = engine_of(shape, chosen).generate(prompts, observers=[watch])
    decided = watch.tokens[0] != MASK
    for before, after, committed in zip(watch.tokens, watch.tokens[1:], watch.committed, strict=False):
        assert torch.equal(before[~committed], after[~committed])
        assert not (committed & decided).any()
        decided = decided | committed
    assert decided.all()
    event(f"several committed at a step: {any(int(step.sum(1).max()) > 1 for step in watch.committed)}")
    assert found.committed == chosen["gen_length"] * len(prompts)
    assert 1 <= found.forwards <= chosen["gen_length"] + chosen["block_length"]
