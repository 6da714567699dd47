"""Unmasking policies that read the logits: their rules, and what every policy must hold to."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from esdllm import Catalogue, ComponentConfig, ConfigError, UnmaskingView
from esdllm_policies.parallel import (
    CreditUnmasking,
    EntropyBoundUnmasking,
    FactorUnmasking,
    KlassUnmasking,
    LongestPrefixUnmasking,
)
from esdllm_policies.unmasking import ThresholdUnmasking

CATALOGUE = Catalogue.load()
VOCAB = 7


def view(seed: int = 0, rows: int = 3, length: int = 9, sharp: float = 4.0, **over: Any) -> UnmaskingView:
    """Return a view of random logits on a canvas three columns longer at either end."""
    draw = torch.Generator().manual_seed(seed)
    logits = sharp * torch.randn(rows, length, VOCAB, generator=draw)
    confidence, tokens = logits.softmax(-1).max(-1)
    eligible = torch.rand(rows, length, generator=draw) < 0.7
    columns = torch.arange(3, 3 + length).expand(rows, -1)
    undecided = torch.zeros(rows, length + 6, dtype=torch.bool).scatter(1, columns, eligible)
    undecided[:, -3:] = True  # a later block
    found = UnmaskingView(
        raw=logits,
        tokens=tokens,
        confidence=confidence,
        eligible=eligible,
        positions=columns,
        previous_tokens=torch.full_like(tokens, -1),
        previous_confidence=torch.zeros_like(confidence),
        quota=torch.full((rows,), 2),
        step=torch.tensor(0),
        seeds=torch.arange(rows),
        columns=columns,
        undecided=undecided,
    )
    return found._replace(**over)


def build(name: str, **options: Any) -> Any:
    return CATALOGUE.build("unmasking", ComponentConfig(name, options))


def selected(policy: Any, found: UnmaskingView) -> Tensor:
    """Return what a policy selects, having remembered what it remembers."""
    memory = getattr(policy, "memory", 0)
    if memory:
        if found.memory is None:
            found = found._replace(memory=torch.zeros(*found.tokens.shape, memory))
        found = found._replace(memory=policy.remember(found))
    chosen: Tensor = policy.select(found)
    return chosen


# -------------------------------------------------------------------------------------------------------- factor


@given(st.integers(0, 10**6), st.floats(0.05, 2.5))
def test_factor_takes_the_most_confident_n_of_the_largest_n_within_the_bound(seed: int, factor: float) -> None:
    found = view(seed)
    chosen = FactorUnmasking(factor).select(found)
    for row in range(3):
        confidence = sorted(found.confidence[row][found.eligible[row]].tolist(), reverse=True)
        within = [n for n in range(1, len(confidence) + 1) if (n + 1) * (1 - confidence[n - 1]) < factor - 1e-6]
        almost = [n for n in range(1, len(confidence) + 1) if (n + 1) * (1 - confidence[n - 1]) < factor + 1e-6]
        number = int(chosen[row].sum())
        assert min(1, len(confidence)) <= number
        assert max([*within, min(1, len(confidence))]) <= number <= max([*almost, min(1, len(confidence))])
        assert sorted(found.confidence[row][chosen[row]].tolist(), reverse=True) == confidence[:number]


def test_factor_by_hand() -> None:
    """3 * (1 - 0.8) = 0.6 and 4 * (1 - 0.7) = 1.2: two at factor 1, three at factor 1.3."""
    found = view(rows=1, length=4)._replace(
        confidence=torch.tensor([[0.5, 0.8, 0.9, 0.7]]), eligible=torch.ones(1, 4, dtype=torch.bool)
    )
    assert FactorUnmasking(1.0).select(found).tolist() == [[False, True, True, False]]
    assert FactorUnmasking(1.3).select(found).tolist() == [[False, True, True, True]]
    assert FactorUnmasking(0.1).select(found).tolist() == [[False, False, True, False]]


# ------------------------------------------------------------------------------------------------- entropy bound


def entropies(found: UnmaskingView) -> Tensor:
    probability = found.logits.double().softmax(-1)
    return -(probability * probability.log()).sum(-1)


@pytest.mark.parametrize("order", ["entropy", "confidence", "margin"])
@given(seed=st.integers(0, 10**6), gamma=st.floats(0.0, 3.0))
def test_the_entropy_of_what_is_selected_less_its_largest_is_within_the_bound_and_one_more_would_not_be(
    order: Any, seed: int, gamma: float
) -> None:
    found = view(seed)
    chosen = EntropyBoundUnmasking(gamma, order).select(found)
    doubt = entropies(found)
    for row in range(3):
        inside = doubt[row][chosen[row]]
        if not len(inside):
            continue
        assert float(inside.sum() - inside.max()) <= gamma + 1e-4
        if order == "entropy" and (left := found.eligible[row] & ~chosen[row]).any():
            assert float(inside.sum()) > gamma - 1e-4  # with a larger one, all of these would count
            assert float(doubt[row][left].min()) >= float(inside.max()) - 1e-5


def test_no_entropy_allowed_is_one_position_a_step_and_any_amount_is_all() -> None:
    found = view()
    assert EntropyBoundUnmasking(0.0).select(found).sum(1).tolist() == [1, 1, 1]
    assert torch.equal(EntropyBoundUnmasking(1e9).select(found), found.eligible)


# ------------------------------------------------------------------------------------------------ longest prefix


@given(st.integers(0, 10**6), st.floats(0.0, 1.0), st.integers(0, 2**9 - 1))
def test_the_piece_is_every_mask_up_to_the_first_that_is_not_stable(seed: int, threshold: float, hidden: int) -> None:
    """`hidden` are masks that have no logits, as an early skip leaves them."""
    found = view(seed)
    dropped = torch.tensor([bool(hidden >> bit & 1) for bit in range(9)])
    found = found._replace(eligible=found.eligible & ~dropped)  # still undecided on the canvas
    chosen = LongestPrefixUnmasking(threshold).select(found)
    for row in range(3):
        expected = set()
        for place in range(9):
            if not found.undecided[row, 3 + place]:
                continue
            if not found.eligible[row, place] or found.confidence[row, place] <= threshold:
                break
            expected.add(place)
        eligible = found.eligible[row].nonzero()[:, 0].tolist()
        assert set(chosen[row].nonzero()[:, 0].tolist()) == (expected | set(eligible[:1]))


def test_a_piece_ends_after_its_last_delimiter_and_is_whole_where_it_has_none() -> None:
    everything = torch.ones(1, 5, dtype=torch.bool)
    found = view(rows=1, length=5)._replace(
        confidence=torch.tensor([[0.9, 0.9, 0.9, 0.9, 0.1]]),
        tokens=torch.tensor([[1, 6, 2, 3, 6]]),
        eligible=everything,
        undecided=torch.cat([torch.zeros(1, 3, dtype=torch.bool), everything, torch.zeros(1, 3, dtype=torch.bool)], 1),
    )
    assert LongestPrefixUnmasking(0.5).select(found)[0].tolist() == [True, True, True, True, False]
    assert LongestPrefixUnmasking(0.5, [6]).select(found)[0].tolist() == [True, True, False, False, False]
    assert LongestPrefixUnmasking(0.5, [2, 6]).select(found)[0].tolist() == [True, True, True, False, False]
    assert LongestPrefixUnmasking(0.5, [5]).select(found)[0].tolist() == [True, True, True, True, False]


# -------------------------------------------------------------------------------------------------------- credit


def steps(policy: Any, *views: UnmaskingView) -> list[Tensor]:
    """Return what the policy remembers after each of several views of the same positions."""
    memory = torch.zeros(*views[0].tokens.shape, policy.memory)
    tokens = torch.full_like(views[0].tokens, -1)
    found = []
    for one in views:
        memory = policy.remember(one._replace(memory=memory, previous_tokens=tokens))
        tokens = one.tokens
        found.append(memory)
    return found


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.floats(0.0, 1.0), st.floats(0.0, 2.0))
def test_credit_is_the_decayed_sum_over_the_steps_since_the_candidate_last_changed(
    seeds: list[int], decay: float, power: float
) -> None:
    policy, views = CreditUnmasking(decay=decay, power=power), [view(seed) for seed in seeds]
    credit = steps(policy, *views)[-1].squeeze(-1)
    for row in range(3):
        for place in range(9):
            expected, age = 0.0, 0
            for one in reversed(views):
                if one.tokens[row, place] != views[-1].tokens[row, place]:
                    break
                expected, age = expected + decay**age * float(one.confidence[row, place]) ** power, age + 1
            assert float(credit[row, place]) == pytest.approx(expected, rel=1e-4)


@given(st.integers(0, 10**6), st.floats(0.0, 3.0), st.floats(0.0, 5.0))
def test_the_raised_confidence_is_the_softmax_with_the_credit_added_to_the_candidate_s_logit(
    seed: int, alpha: float, credit: float
) -> None:
    found = view(seed)
    bonus = torch.zeros_like(found.logits).scatter(
        -1, found.tokens.unsqueeze(-1), torch.full((3, 9, 1), alpha * math.log1p(credit))
    )
    expected = (found.logits + bonus).softmax(-1).gather(-1, found.tokens.unsqueeze(-1)).squeeze(-1)
    raised = CreditUnmasking(alpha=alpha).raised(found._replace(memory=torch.full((3, 9, 1), credit)))
    assert torch.allclose(raised, expected, atol=1e-5)
    assert (raised >= found.confidence - 1e-6).all()


@given(st.integers(0, 10**6))
def test_credit_without_weight_is_the_threshold(seed: int) -> None:
    found = view(seed)
    assert torch.equal(
        selected(CreditUnmasking(threshold=0.8, alpha=0.0), found), ThresholdUnmasking(0.8).select(found)
    )


# --------------------------------------------------------------------------------------------------------- klass


def klass_after(policy: KlassUnmasking, first: UnmaskingView, second: UnmaskingView) -> Tensor:
    (memory,) = steps(policy, first)
    return policy.divergences(second._replace(memory=memory))


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, VOCAB))
def test_the_divergence_is_the_whole_kl_at_the_vocabulary_s_size_and_never_more_with_fewer_tokens(
    one: int, other: int, tokens: int
) -> None:
    first, second = view(one, sharp=2.0), view(other, sharp=2.0)
    now, last = second.logits.double().log_softmax(-1), first.logits.double().log_softmax(-1)
    whole = (now.exp() * (now - last)).sum(-1).float()
    assert torch.allclose(klass_after(KlassUnmasking(tokens=VOCAB + 3), first, second), whole, rtol=1e-3, atol=1e-4)
    assert (klass_after(KlassUnmasking(tokens=tokens), first, second) <= whole + 1e-4).all()
    assert klass_after(KlassUnmasking(tokens=tokens), first, first).abs().max() < 1e-5


def test_klass_waits_for_as_many_comparisons_as_its_history_and_a_move_starts_them_anew() -> None:
    policy, still, moved = KlassUnmasking(tokens=4, history=2), view(0), view(1)
    counts = [memory[..., -1] for memory in steps(policy, still, still, still, moved, moved)]
    assert [float(count.max()) for count in counts[:3]] == [0, 1, 2]  # the first time there is nothing to compare
    assert float(counts[3].max()) == 0
    assert float(counts[4].min()) == 1


def test_klass_takes_the_confident_that_stand_still_and_where_none_does_the_best() -> None:
    policy = KlassUnmasking(threshold=0.5, tokens=4, history=1)
    found = view(rows=1, length=3)._replace(
        confidence=torch.tensor([[0.6, 0.9, 0.7]]), eligible=torch.ones(1, 3, dtype=torch.bool)
    )
    memory = torch.zeros(1, 3, policy.memory)
    assert policy.select(found._replace(memory=memory)).tolist() == [[False, True, False]]
    memory[0, :, -1] = torch.tensor([1.0, 0.0, 2.0])
    assert policy.select(found._replace(memory=memory)).tolist() == [[True, False, True]]
    surer = KlassUnmasking(threshold=0.65, tokens=4, history=2)
    assert surer.select(found._replace(memory=memory)).tolist() == [[False, False, True]]


# ------------------------------------------------------------------------------------------------- wrong options

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("factor", {"factor": 0}, "'factor' must be > 0.0: 0.0"),
    ("entropy-bound", {"gamma": -1}, "'gamma' must be >= 0.0: -1.0"),
    ("entropy-bound", {"order": "entropie"}, r"option 'order': unknown value 'entropie'; did you mean 'entropy'\?"),
    ("longest-prefix", {"threshold": 2}, "'threshold' must be <= 1.0: 2.0"),
    ("longest-prefix", {"delimiters": [3, -1]}, r"delimiters = \[3, -1\] must be token ids, 0 or more"),
    ("credit", {"decay": 1.1}, "'decay' must be <= 1.0: 1.1"),
    ("credit", {"memory": 2}, "unmasking 'credit' has no option 'memory'"),
    ("klass", {"history": 0}, "'history' must be >= 1: 0"),
    ("klass", {"divergence": 0}, "'divergence' must be > 0.0: 0.0"),
]


@pytest.mark.parametrize(("name", "options", "message"), WRONG, ids=str)
def test_a_wrong_option_is_refused_by_name(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, **options)


# -------------------------------------------------------------------------------------------------------- prophet


@given(st.integers(0, 2**16), st.floats(0.0, 8.0))
def test_prophet_takes_all_of_a_row_whose_mean_gap_reaches_the_bar_and_else_the_best(seed: int, bar: float) -> None:
    found = view(seed)
    chosen = selected(build("prophet", early=bar, middle=bar, late=bar), found)
    first, second = found.logits.topk(2, dim=-1).values.unbind(-1)
    for row in range(len(chosen)):
        eligible = found.eligible[row]
        if not eligible.any():
            assert not chosen[row].any()
        elif bool((first - second)[row][eligible].mean() >= bar):
            assert torch.equal(chosen[row], eligible)
        else:
            assert chosen[row].nonzero().tolist() == [
                [found.confidence[row].masked_fill(~eligible, -1).argmax().item()]
            ]


@pytest.mark.parametrize(("decided", "bar"), [(0, 9.0), (2, 9.0), (3, 6.0), (5, 6.0), (6, 3.0), (8, 3.0)])
def test_prophet_s_bar_falls_with_what_is_decided(decided: int, bar: float) -> None:
    """Of nine positions: 9 while more than two thirds are masks, 6 while more than one third, then 3."""
    for gap, sure in ((bar - 0.5, False), (bar + 0.5, True)):
        found = view(rows=1)
        eligible = torch.arange(9).unsqueeze(0) >= decided
        logits = torch.zeros(1, 9, VOCAB)
        logits[..., 0] = gap
        undecided = torch.zeros_like(found.undecided).scatter(1, found.columns, eligible)
        chosen = selected(
            build("prophet", early=9.0, middle=6.0, late=3.0),
            found._replace(raw=logits, eligible=eligible, undecided=undecided),
        )
        assert bool(chosen.sum() == eligible.sum()) is (sure or decided == 8)
