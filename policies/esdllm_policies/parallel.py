"""Unmasking policies that read from the logits how many positions to commit: as many as one step can decide together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from attrs import validators
from torch import Tensor

from esdllm import UnmaskingView, option
from esdllm_policies.unmasking import (
    Deciding,
    Order,
    chosen_or_best,
    entropy,
    placed,
    probability_option,
    ranking,
    steps_per_block_option,
    token_ids,
)

_PAST = 1e-12  # what a probability of 0 counts as in a divergence


@attrs.frozen
class FactorUnmasking(Deciding):
    """The n most confident, n the largest with (n + 1) (1 - c_n) < factor, c_n the n-th confidence; at least one.

    Fast-dLLM, arXiv 2505.22618, section 3.3: for n positions this confident, the product of the marginals has the same
    mode as their joint distribution if factor is at most 1.
    """

    factor: float = option(
        "bound on (n + 1) (1 - confidence); higher commits more",
        validators.gt(0.0),
        default=1.0,
        tune=(0.5, 0.75, 1.0, 1.5, 2.0),
    )
    with_last: bool = option(
        "whether the last mask of a block goes with all its others, however unsure, as in the public code",
        default=False,
    )

    def select(self, view: UnmaskingView) -> Tensor:
        """Return the largest set that the bound allows."""
        confidence = view.confidence.masked_fill(~view.eligible, float("-inf"))
        ordered = confidence.sort(dim=1, descending=True, stable=True)
        n = torch.arange(1, confidence.shape[1] + 1, device=confidence.device)
        taken = ((n + 1) * (1 - ordered.values) < self.factor) | (n == 1)
        if self.with_last:
            taken = taken | (taken.sum(1) + 1 == view.eligible.sum(1)).unsqueeze(1)
        return placed(taken, ordered.indices, view.eligible)


@attrs.frozen
class EntropyBoundUnmasking(Deciding):
    """The first n of the order while the sum of their entropies, less the largest, is at most gamma; at least one.

    EB-Sampler, arXiv 2505.24857: that sum bounds what the positions, decided independently, fail to tell each other.
    """

    gamma: float = option(
        "bound on the entropy, in nats; higher commits more",
        validators.ge(0.0),
        default=0.1,
        tune=(0.01, 0.05, 0.1, 0.25, 0.5, 1.0),
    )
    order: Order = option(
        "which come first: lowest entropy, highest confidence, margin, or random",
        validators.in_(("confidence", "margin", "entropy", "random")),
        default="entropy",
    )
    steps_per_block: int | None = steps_per_block_option("the last of which commits all that is left (RND1)")

    def select(self, view: UnmaskingView) -> Tensor:
        """Return the longest beginning of the order that the bound allows."""
        doubt = entropy(view)
        score = -doubt if self.order == "entropy" else ranking(view, self.order)
        order = score.masked_fill(~view.eligible, float("-inf")).sort(dim=1, descending=True, stable=True).indices
        doubt = doubt.masked_fill(~view.eligible, 0.0).clamp(min=0.0).gather(1, order)  # rounding can leave -0.0...01
        taken = doubt.cumsum(1) - doubt.cummax(1).values <= self.gamma
        taken = taken | (torch.arange(taken.shape[1], device=taken.device) == 0)
        if self.steps_per_block is not None:
            assert view.step_in_block is not None
            taken = taken | (view.step_in_block + 1 >= self.steps_per_block).unsqueeze(1)
        return placed(taken, order, view.eligible)


@attrs.frozen
class LongestPrefixUnmasking(Deciding):
    """From the block's first mask on, every position up to the first one that is not confident; at least one.

    LSP, arXiv 2603.05454: what is decided is always one piece from the left, which is kind to a cache. The paper also
    cuts the piece back to a delimiter, as `delimiters` does, and adapts its threshold from step to step, which this
    policy does not.
    """

    threshold: float = probability_option(0.9, "confidence above which a position counts as stable")
    delimiters: Sequence[int] = option(
        "token ids, such as a full stop's; a piece that holds one is cut after the last",
        token_ids,
        default=(),
        converter=tuple,
    )

    def select(self, view: UnmaskingView) -> Tensor:
        """Return the piece. A masked position without logits, or one that may not be committed yet, ends it."""
        stable = view.eligible & (view.confidence > self.threshold)
        masks = view.undecided.cumsum(1).gather(1, view.columns)  # up to each position, on the whole canvas
        piece = stable & (stable.cumsum(1) == masks)
        ends = torch.zeros_like(piece)
        for token in self.delimiters:
            ends = ends | (piece & (view.tokens == token))
        before_an_end = ends.flip(1).cumsum(1).flip(1) > 0
        piece = piece & (before_an_end | ~ends.any(1, keepdim=True))
        leftmost = view.eligible & (view.eligible.cumsum(1) == 1)
        return piece | leftmost


def _shares(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probabilities (B, N, T) of tokens `ids` and (B, N, 1) of all others; by 1 - sum small ones would be lost."""
    whole = logits.logsumexp(-1, keepdim=True)
    others = logits.scatter(-1, ids, float("-inf")).logsumexp(-1, keepdim=True)
    return (logits.gather(-1, ids) - whole).exp(), (others - whole).exp()


@attrs.frozen
class CreditUnmasking(Deciding):
    """Confidence above a threshold, raised for a candidate that earlier steps named too; and always the best one.

    CreditDecoding, arXiv 2510.06133: credit = decay * credit + confidence ** power, and alpha * ln(1 + credit) is added
    to the candidate's logit. The paper keeps a credit for every token of the vocabulary; this keeps the candidate's
    alone, one number per position, and another candidate starts from nothing. The defaults are this package's, unmeasured.
    """

    threshold: float = probability_option(0.9, "confidence, credit included, above which a position is committed")
    alpha: float = option(
        "weight of the credit; 0 is the policy 'threshold'", validators.ge(0.0), default=0.7, tune=(0.25, 0.5, 0.7, 1.0)
    )
    decay: float = option(
        "share of the credit that is left after a step", validators.ge(0.0), validators.le(1.0), default=0.8
    )
    power: float = option(
        "exponent of the confidence that a step adds; below 1 it favours the unsure", validators.ge(0.0), default=0.2
    )

    @property
    def memory(self) -> int:
        """The candidate's credit."""
        return 1

    def remember(self, view: UnmaskingView) -> Tensor:
        """Return the candidates' credits (B, N, 1)."""
        assert view.memory is not None
        same = view.tokens == view.previous_tokens
        credit = self.decay * view.memory.squeeze(-1) * same + view.confidence**self.power
        return credit.unsqueeze(-1)

    def raised(self, view: UnmaskingView) -> Tensor:
        """Return (B, N), each candidate's probability once the credit is added to its logit."""
        assert view.memory is not None
        factor = (1 + view.memory.squeeze(-1)) ** self.alpha  # e ** (alpha * ln(1 + credit))
        return view.confidence * factor / (1 + view.confidence * (factor - 1))

    def select(self, view: UnmaskingView) -> Tensor:
        """Return those whose raised confidence is above the threshold."""
        raised = self.raised(view)
        return chosen_or_best(raised > self.threshold, raised, view.eligible)


@attrs.frozen
class KlassUnmasking(Deciding):
    """Positions whose confidence is above a threshold and whose distribution has stopped moving; else the best one.

    KLASS, arXiv 2511.05664: stopped moving is that KL(now | last) was below `divergence` at each of the last `history`
    steps at which the position had logits. The paper compares whole distributions. This compares the `tokens` that were
    most probable the last time, each by itself, and all others as one: that KL is never more than the whole one, and is
    the whole one where `tokens` is the vocabulary's size.
    """

    threshold: float = probability_option(0.9, "confidence above which a position may be committed")
    divergence: float = option(
        "KL, in nats, below which a distribution stands still",
        validators.gt(0.0),
        default=0.01,
        tune=(0.001, 0.003, 0.01, 0.03),
    )
    history: int = option("comparisons in a row that must stand still", validators.ge(1), default=2)
    tokens: int = option(
        "tokens compared one by one; a position remembers two numbers for each", validators.ge(1), default=16
    )

    @property
    def memory(self) -> int:
        """Probabilities, token ids, and how often in a row the distribution stood still."""
        return 2 * self.tokens + 2

    def divergences(self, view: UnmaskingView) -> Tensor:
        """Return (B, N) float32, KL(now | last) over the remembered tokens and the rest; `view.memory` as it was left."""
        assert view.memory is not None
        count = min(self.tokens, view.raw.shape[-1])
        last = view.memory[..., :count]
        ids = view.memory[..., self.tokens : self.tokens + count].long()
        now = torch.cat(_shares(view.logits, ids), dim=-1)
        last = torch.cat([last, view.memory[..., -2:-1]], dim=-1)
        return (now * ((now + _PAST).log() - (last + _PAST).log())).sum(-1)

    def remember(self, view: UnmaskingView) -> Tensor:
        """Return the most probable tokens' probabilities and ids, the rest's probability, the comparisons that stood still."""
        assert view.memory is not None
        still = (self.divergences(view) < self.divergence) & (view.previous_tokens >= 0)
        steps = (view.memory[..., -1] + 1) * still
        count = min(self.tokens, view.raw.shape[-1])
        ids = view.raw.topk(count, dim=-1).indices
        shares, rest = _shares(view.logits, ids)
        unused = view.memory.new_zeros(*steps.shape, self.tokens - count)
        return torch.cat([shares, unused, ids.to(shares.dtype), unused, rest, steps.unsqueeze(-1)], dim=-1)

    def select(self, view: UnmaskingView) -> Tensor:
        """Return the confident that stand still."""
        assert view.memory is not None
        still = view.memory[..., -1] >= self.history
        return chosen_or_best(still & (view.confidence > self.threshold), view.confidence, view.eligible)


def _gap(default: float, share: str) -> Any:
    return option(
        f"mean gap that decides everything, {share}",
        validators.ge(0.0),
        default=default,
        tune=(1.0, 2.5, 5.0, 7.5, 10.0),
    )


@attrs.frozen
class ProphetUnmasking(Deciding):
    """All that is left at once, as soon as the largest logit is far enough ahead of the second; until then the best one.

    Prophet, arXiv 2508.19982: the mean gap over the masks must reach a bar that is lower the more is decided. Here that is
    the decided share of the stretch from the first to the last position that has logits: in a step that skips nothing,
    of the block.
    """

    early: float = _gap(7.5, "while less than a third is decided")
    middle: float = _gap(5.0, "while less than two thirds are")
    late: float = _gap(2.5, "after that")

    def select(self, view: UnmaskingView) -> Tensor:
        """Return all that is eligible in rows that are sure enough, and the best one in the others."""
        first, second = view.raw.topk(2, dim=-1).values.float().unbind(-1)
        masks = view.eligible.sum(1, keepdim=True)
        gap = ((first - second) * view.eligible).sum(1, keepdim=True) / masks.clamp(min=1)
        columns = torch.arange(view.undecided.shape[1], device=gap.device)
        stretch = (columns >= view.columns[:, :1]) & (columns <= view.columns[:, -1:])
        left = (view.undecided & stretch).sum(1, keepdim=True) / stretch.sum(1, keepdim=True)
        bar = (
            torch.full_like(gap, self.late).masked_fill(left > 1 / 3, self.middle).masked_fill(left > 2 / 3, self.early)
        )
        return chosen_or_best((gap >= bar).expand_as(view.eligible), view.confidence, view.eligible)
