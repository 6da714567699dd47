"""Blocks that every row has for itself: sliding ones, and fixed ones that no row waits at."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import MODELS, MODES, REFRESH, Build, Watch, compiled, prompts
from sampling import pairwise

from esdllm import BlockView, ConfigError, Model
from esdllm_policies.blocks import OwnBlocks, SlidingBlocks

MOVING = ("sliding", "own")
ADAPTIVE = ("threshold", "klass", "longest-prefix", "wino")


def eligible_columns(watch: Watch, mask: int = 254) -> list[list[int]]:
    """Return for every step and row how far from the row's first mask the last commit was."""
    found = []
    for before, committed in zip(watch.tokens, watch.committed, strict=False):
        first = (before == mask).int().argmax(1)
        last = committed.shape[1] - 1 - committed.flip(1).int().argmax(1)
        found.append([int(b - a) if row.any() else 0 for a, b, row in zip(first, last, committed, strict=True)])
    return found


PARTIAL = {"name": "partial", "prompt_refresh": 8, "block_refresh": 4, "full": 2}
REACHING: dict[str, Any] = {
    "sliding": {"blocks": {"name": "sliding", "reach": 6}, "refresh": REFRESH["refresh"]},
    "own": {"blocks": {"name": "own", "reach": 20}, "refresh": REFRESH["refresh"]},
    "fixed, partial": {"blocks": "fixed", "refresh": PARTIAL},
    "sliding, partial": {"blocks": {"name": "sliding", "reach": 6}, "refresh": PARTIAL},
    "own, partial": {"blocks": {"name": "own", "reach": 9}, "refresh": PARTIAL},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reaching", "site", "scale"), pairwise(product(MODELS, REACHING, ("hidden", "query"), (0.0, 1.0)))
)
def test_padding_changes_nothing_where_windows_reach_into_it(
    name: str, reaching: str, site: str, scale: float, build: Build
) -> None:
    """Rows of two tokens and of many: the window of the short ones holds padding, in a batch and alone."""
    over = {**REACHING[reaching], "importance": {"site": site}, "cfg_scale": scale}
    engine = build(name, "es-dllm", skip={"keep": [[0.0, 1.0], [0.25, 0.5], [0.5, 0.3]]}, **over)
    rows = [prompts(1, length, seed=length)[0].tolist() for length in (2, 19, 5, 12)]
    batch = engine.generate(rows)
    for number, row in enumerate(rows):
        alone = engine.generate([row])
        assert alone.answers[0] == batch.answers[number]
        assert alone.tokens.shape == (1, len(row) + 24)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("blocks", MOVING)
@pytest.mark.parametrize("mode", MODES)
def test_a_row_of_a_batch_is_the_row_alone(name: str, blocks: str, mode: str, build: Build) -> None:
    engine = build(name, mode, blocks=blocks)
    rows = [prompts(1, length, seed=length)[0].tolist() for length in (12, 9, 10)]
    batch = engine.generate(rows)
    for number, row in enumerate(rows):
        assert engine.generate([row]).answers[0] == batch.answers[number]


@pytest.mark.slow
@pytest.mark.parametrize("blocks", MOVING)
@pytest.mark.parametrize("mode", MODES)
def test_one_token_a_step_reads_nothing_from_the_device(
    blocks: str, mode: str, shape_only: dict[str, Model], build: Build
) -> None:
    assert build(shape_only["llada-0"], mode, blocks=blocks).generate(prompts(2)).forwards == 24


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_block_as_long_as_the_answer_never_moves(name: str, build: Build) -> None:
    for mode in MODES:
        over = ("fixed", {"name": "sliding", "reach": 0})
        fixed, sliding = (build(name, mode, blocks=blocks, block_length=24).generate(prompts(2)) for blocks in over)
        assert torch.equal(fixed.tokens, sliding.tokens)


@pytest.mark.parametrize("name", MODELS)
def test_own_blocks_of_rows_in_step_are_fixed_blocks(name: str, build: Build) -> None:
    """One token per step: no row is ahead."""
    fixed, own = (build(name, "vanilla", blocks=blocks).generate(prompts(3)) for blocks in ("fixed", "own"))
    assert torch.equal(fixed.tokens, own.tokens)


def test_a_sliding_block_reaches_a_block_length_beyond_the_first_mask(build: Build) -> None:
    watch = Watch()
    build("llada-0", "vanilla", blocks="sliding", delay_eos=False).generate(prompts(6, seed=3), observers=[watch])
    assert max(max(row) for row in eligible_columns(watch)) == 7
    last = []
    for tokens, distances in zip(watch.tokens, eligible_columns(watch), strict=False):
        starts = (tokens == 254).int().argmax(1) - 12
        last += [int(start) % 8 + distance for start, distance in zip(starts, distances, strict=True)]
    assert max(last) > 7  # beyond the fixed block that the first mask is in


def test_no_row_waits_for_another(build: Build) -> None:
    """Each row takes the forwards that it takes alone; in fixed blocks the batch pays for the slowest of each block."""
    over: dict[str, Any] = {"unmasking": {"threshold": 0.3}, "delay_eos": False, "block_length": 4}
    rows = [row.tolist() for row in prompts(4, seed=1)]
    own = build("llada-0", "vanilla-parallel", blocks="own", **over)
    alone = [own.generate([row]).forwards for row in rows]
    assert len(set(alone)) > 1
    assert own.generate(rows).forwards == max(alone)
    assert build("llada-0", "vanilla-parallel", blocks="fixed", **over).generate(rows).forwards > max(alone)


@pytest.mark.parametrize("blocks", MOVING)
@pytest.mark.parametrize("unmasking", ADAPTIVE)
@pytest.mark.parametrize("mode", ["dual-cache", "es-dllm"])
def test_every_mask_is_decided(blocks: str, unmasking: str, mode: str, build: Build) -> None:
    result = build("dream-0", mode, blocks=blocks, unmasking=unmasking).generate(prompts(2))
    assert result.committed == 48


@pytest.mark.parametrize("blocks", MOVING)
def test_infilling_decides_every_mask_of_ragged_rows(blocks: str, build: Build) -> None:
    canvas = prompts(2, 20)
    canvas[0, 3:9] = 254
    canvas[1, 15:] = 254
    result = build("llada-0", "es-dllm", blocks=blocks, block_length=4).generate(canvas, infill=True)
    assert result.committed == 11
    assert not (result.tokens == 254).any()


@pytest.mark.slow
@pytest.mark.parametrize("blocks", MOVING)
def test_the_compiled_step_is_one_graph_a_plan_with_eager_s_tokens(blocks: str, build: Build) -> None:
    engine = build("llada-shallow", "es-dllm", blocks=blocks)
    eager = engine.generate(prompts(2))
    found, graphs, plans = compiled(engine, prompts(2))
    assert torch.equal(found.tokens, eager.tokens)
    assert graphs == len(plans) <= 4


@given(st.lists(st.integers(10, 40), min_size=1, max_size=4), st.integers(1, 12))
def test_own_blocks_lie_on_the_grid_and_hold_the_first_undecided(firsts: list[int], length: int) -> None:
    view = BlockView(torch.tensor(firsts), torch.zeros(len(firsts), 48, dtype=torch.bool), 10, 48, length)
    for first, start in zip(firsts, OwnBlocks().starts(view).tolist(), strict=True):
        assert start <= first < start + length
        assert (start - 10) % length == 0
    assert SlidingBlocks().starts(view).tolist() == firsts


def test_a_store_that_chooses_keys_for_one_block_is_refused(build: Build) -> None:
    with pytest.raises(ConfigError, match='which a block for every row has not; choose cache = "dense"'):
        build("llada-0", "es-dllm", blocks="sliding", cache="sparse")


def test_what_was_committed_within_reach_is_computed_at_the_next_step(build: Build) -> None:
    """The window of a block step begins `reach` before the block."""
    watch = Watch()
    build("llada-0", "dual-cache", blocks={"name": "sliding", "reach": 3}).generate(prompts(), observers=[watch])
    assert [record.plan.window for record in watch.records] == [36] + [11] * 23
    watch = Watch()
    short = build("llada-0", "dual-cache", blocks={"name": "sliding", "reach": 30})
    short.generate(prompts(), observers=[watch])
    assert [a.plan.window for a in watch.records[1:-1]] == [30 + 8] * 22
