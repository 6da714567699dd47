"""Schedules of published procedures: how many positions each step commits, against the formulas in NumPy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from test_unmasking import build, entropies, view

from esdllm import ConfigError


def linear_schedule(masks: int, steps: int) -> tuple[int, ...]:
    """Return A2D's counts: the share in float32 as its code forms it, the product in float64, half to even."""
    found = []
    for left in range(steps, 0, -1):
        t, s = np.float32(left / steps), np.float32((left - 1) / steps)
        one = np.float32(1)
        share = 1 - float((one - (one - s)) / (one - (one - t)))
        found.append(int(np.round(np.float64(masks) * share)))
        masks -= found[-1]
    return tuple(count for count in found if count)


def test_linear_schedule_takes_the_public_codes_share_of_what_is_left() -> None:
    for masks, steps in product(range(1, 65), repeat=2):
        counts = build("linear-schedule", steps=steps).counts(masks, 1)
        assert counts == linear_schedule(masks, steps), (masks, steps)
        assert sum(counts) == masks


def test_linear_schedule_takes_steps_of_all_or_of_a_block() -> None:
    assert build("linear-schedule").counts(8, 4) == linear_schedule(8, 64)
    with pytest.raises(ConfigError, match="steps = 9 and steps_per_block = 4 contradict; give one"):
        build("linear-schedule", steps=9, steps_per_block=4)


def test_linear_schedule_by_hand() -> None:
    """5 of 2 is 2.5, which is even at 2; and of what is 10 in 16 steps, many a step would take half a mask and takes none."""
    assert build("linear-schedule", steps=2).counts(5, 1) == (2, 3)
    assert build("linear-schedule", steps_per_block=2).counts(5, 7) == (2, 3)
    assert len(build("linear-schedule", steps=16).counts(10, 1)) < 16


@pytest.mark.parametrize(("steps", "blocks", "each"), [(24, 3, 8), (9, 3, 3), (20, 3, 7), (5, 2, 3), (1, 4, 1)])
def test_linear_schedule_shares_its_steps_among_blocks_and_rounds_up(steps: int, blocks: int, each: int) -> None:
    assert build("linear-schedule", steps=steps).counts(8, blocks) == linear_schedule(8, each)


def test_lowest_entropy_leaves_the_floor_of_the_share_of_steps_left() -> None:
    for masks, steps in product(range(1, 40), range(1, 50)):
        left, found = masks, []
        for step in range(steps - 1, -1, -1):
            kept = int(np.floor(masks * step / steps))
            found.append(left - kept)
            left = kept
        assert build("lowest-entropy", steps=steps).counts(masks, 1) == tuple(filter(None, found))


def test_lowest_entropy_goes_by_the_entropy_at_its_temperature() -> None:
    """Two near equals beside nothing else, against one likely token and a long tail: which is surer depends on temperature."""
    pair, tail = [3.0, 2.9, *[-9.0] * 30], [5.0, *[0.0] * 31]
    found = view(rows=1, length=2)._replace(
        raw=torch.tensor([[pair, tail]]), eligible=torch.ones(1, 2, dtype=torch.bool), quota=torch.tensor([1])
    )
    assert build("lowest-entropy", temperature=1.0).select(found).tolist() == [[True, False]]
    assert build("lowest-entropy", temperature=0.5).select(found).tolist() == [[False, True]]
    halved = entropies(found._replace(raw=found.raw / 0.5))
    assert halved[0, 1] < halved[0, 0]


@pytest.mark.parametrize(
    ("options", "masks", "counts"),
    [
        ({"steps_per_block": 4}, 8, (2, 2, 2, 2)),
        ({"steps_per_block": 3}, 8, (3, 3, 2)),
        ({"steps_per_block": 8}, 3, (1, 1, 1)),  # no step without a mask
        ({"steps_per_block": 2}, 1, (1,)),
        ({"steps_per_block": 3, "spread": "block"}, 4, (2, 1, 1)),
    ],
)
def test_top_k_spreads_a_blocks_masks_over_its_steps(
    options: dict[str, object], masks: int, counts: tuple[int, ...]
) -> None:
    for blocks in (1, 3):
        assert build("top-k", **options).counts(masks, blocks) == counts


def test_what_is_spread_over_a_block_is_told_by_its_length() -> None:
    assert build("top-k", steps_per_block=3, spread="block").block_counts(4, 2) == (2, 1, 1)
    assert build("top-k", steps_per_block=3).block_counts(4, 2) is None
    assert build("threshold", steps_per_block=3).block_counts(8, 2) == (3, 3, 2)
    assert build("threshold", steps_per_block=20).block_counts(4, 2) == (1, 1, 1, 1)
    assert build("threshold").block_counts(4, 2) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 4, "steps_per_block": 2}, "steps = 4 and steps_per_block = 2 contradict; give one"),
        ({"tokens_per_step": 1, "steps_per_block": 2}, "tokens_per_step = 1 and steps_per_block = 2 contradict"),
        ({"spread": "block"}, "spread = block says what is spread over steps_per_block; give that too"),
        ({"steps_per_block": 0}, "'steps_per_block' must be >= 1: 0"),
        ({"spread": "rows"}, "unknown value 'rows'; known: block, masks"),
    ],
)
def test_settings_of_top_k_that_contradict_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("top-k", **options)


def test_the_leftmost_come_first_where_order_is_sequential() -> None:
    for seed in range(5):
        found = view(seed)
        chosen = build("top-k", order="sequential").select(found)
        for row in range(3):
            eligible = found.eligible[row].nonzero()[:, 0].tolist()
            assert chosen[row].nonzero()[:, 0].tolist() == eligible[:2]


def test_a_threshold_with_steps_commits_the_confident_or_the_quotas_best_whichever_are_more() -> None:
    policy = build("threshold", threshold=0.6, steps_per_block=4)
    for seed, quota in product(range(8), (1, 2, 5)):
        found = view(seed, quota=torch.full((3,), quota))
        chosen = policy.select(found)
        for row in range(3):
            sure = found.confidence[row].masked_fill(~found.eligible[row], -1)
            number = max(int((sure > 0.6).sum()), min(quota, int(found.eligible[row].sum())))
            best = sure.argsort(descending=True)[:number]
            assert sorted(best.tolist()) == chosen[row].nonzero()[:, 0].tolist()


def test_entropy_bound_commits_all_that_is_left_at_the_last_of_its_steps() -> None:
    policy = build("entropy-bound", gamma=0.0, steps_per_block=4)
    found = view()
    early, late = (policy.select(found._replace(step_in_block=torch.full((3,), step))) for step in (2, 3))
    assert torch.equal(early, build("entropy-bound", gamma=0.0).select(found))
    assert early.sum(1).tolist() == [1, 1, 1]
    assert torch.equal(late, found.eligible)
