"""The published formulas of importance and of keep counts."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from esdllm import ImportanceView
from esdllm_policies.importance import HybridScorer, RandomScorer, variation
from esdllm_policies.skipping import DepthSkip, NoSkip


def view(**over: Any) -> ImportanceView:
    draw = torch.Generator().manual_seed(0)
    found = ImportanceView(
        layer=0,
        x=torch.randn(2, 6, 8, generator=draw),
        last=torch.randn(2, 6, 8, generator=draw),
        confidence=torch.tensor([[0.1, 0.9, 0.0, 0.3, 0.8, 0.0], [0.0, 0.0, 0.0, 0.4, 0.0, 0.0]]),
        undecided=torch.tensor([[1, 1, 0, 1, 1, 0], [0, 0, 0, 1, 0, 0]], dtype=torch.bool),
        committed=torch.tensor([[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]], dtype=torch.bool),
        positions=torch.arange(6).expand(2, -1),
        seeds=torch.tensor([3, 4]),
        step=torch.tensor(5),
    )
    return found._replace(**over)


def test_variation_is_the_mean_change_over_the_last_rms_scaled_by_the_row_s_maximum() -> None:
    v = view()
    raw = (v.x - v.last).abs().mean(-1) / (v.last.pow(2).mean(-1).sqrt() + 1e-6)
    assert float(raw.max()) > 1
    assert torch.allclose(variation(v), raw / raw.max(1, keepdim=True).values.clamp(min=1))
    small = view(x=v.last * 1.01)
    assert float(variation(small).max()) < 0.02  # below 1 nothing is scaled
    assert (variation(view(x=v.last)) == 0).all()


def test_the_hybrid_adds_2_to_the_two_most_confident_and_3_to_what_was_just_committed() -> None:
    v = view(x=view().last)  # no variation
    score = HybridScorer(alpha=0.5).score(v)
    assert torch.allclose(score[0], torch.tensor([0.05, 2.45, 3.0, 0.15, 2.4, 0.0]))
    assert torch.allclose(score[1], torch.tensor([0.0, 0.0, 0.0, 2.2, 0.0, 3.0]))  # never to a confidence of 0
    assert torch.equal(HybridScorer(alpha=0.0).score(v), 3.0 * v.committed)
    assert float(HybridScorer(alpha=1.0).score(v)[0, 2]) == 0


def test_chance_is_uniform_new_at_every_step_and_layer_and_the_same_wherever_a_position_stands() -> None:
    none = torch.zeros(2, 600, dtype=torch.bool)
    v = view(positions=torch.arange(600).expand(2, -1), committed=none, undecided=none, confidence=none.float())
    score = RandomScorer().score(v)
    assert score.shape == (2, 600)
    assert score.dtype == torch.float32
    assert 0 < float(score.min()) < float(score.max()) < 1
    assert abs(float(score.mean()) - 0.5) < 0.05
    for other in (v._replace(step=torch.tensor(6)), v._replace(layer=1), v._replace(seeds=torch.tensor([5, 6]))):
        assert abs(float(torch.corrcoef(torch.stack([score[0], RandomScorer().score(other)[0]]))[0, 1])) < 0.15
    shuffled = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    moved = v._replace(positions=v.positions[:, shuffled])
    assert torch.equal(RandomScorer().score(moved), score[:, shuffled])


def test_chance_raises_what_the_hybrid_raises_unless_told_not_to() -> None:
    raised, plain = RandomScorer().score(view()), RandomScorer(raised=False).score(view())
    difference = raised - plain
    assert torch.allclose(difference[0], torch.tensor([0.0, 2.0, 3.0, 0.0, 2.0, 0.0]), atol=1e-5)
    assert float(plain.max()) < 1


def test_the_published_schedule_keeps_half_and_then_a_quarter() -> None:
    assert DepthSkip().keep_counts(16, 64, 1, 64) == (64, 64, *(32,) * 2, *(16,) * 12)
    assert DepthSkip().keep_counts(8, 10, 1, 10) == (10, 5, 3, 3, 3, 3, 3, 3)  # never under committed + 2
    assert NoSkip().keep_counts(3, 7, 1, 7) == (7, 7, 7)


@given(
    layers=st.integers(1, 40),
    window=st.integers(1, 300),
    committed=st.integers(0, 80),
    ratios=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5),
    block=st.integers(1, 64),
)
def test_keep_counts_never_grow_and_stay_in_the_window(
    layers: int, window: int, committed: int, ratios: list[float], block: int
) -> None:
    keep = [[i / len(ratios), ratio] for i, ratio in enumerate(sorted(ratios, reverse=True))]
    counts = DepthSkip(keep=keep).keep_counts(layers, window, committed, min(block, window))
    assert len(counts) == layers
    assert all(1 <= b <= a <= window for a, b in zip((window, *counts), counts, strict=False))
