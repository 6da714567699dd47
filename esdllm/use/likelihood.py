"""How probable a model holds a continuation: the bound that LLaDA is scored by, and its greedy check.

Source: LLaDA (arXiv 2502.09992), equation 6, appendix B.5 and algorithm 3, and its published evaluation code.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from math import comb
from typing import NamedTuple

import attrs
import torch
from torch import Tensor

from esdllm.errors import InputError
from esdllm.interfaces import AttentionBackend, ModelAdapter
from esdllm.runtime.plain import layers

__all__ = ["Likelihood", "MaskSets", "Pair", "all_mask_sets", "groups", "mask_sets", "sampled_mask_sets", "windows"]


class Pair(NamedTuple):
    """Tokens that are given, and tokens to score after them."""

    context: Sequence[int]
    """at least one token where the model has a logit shift"""
    continuation: Sequence[int]
    """at least one token"""


class MaskSets(NamedTuple):
    """Which tokens of a continuation of length L are masked together, and what each such set counts."""

    masked: Tensor
    """(S, L) bool, at least one per row"""
    weights: Tensor
    """(S,) float64"""


def all_mask_sets(length: int) -> MaskSets:
    """Return all 2^L - 1 sets; the weighted sum over them is the expectation that `sampled_mask_sets` estimates.

    A set of l positions has probability 1 / (L C(L, l)) and counts L / l, hence the weight 1 / (l C(L, l)).
    """
    masked = (torch.arange(1, 2**length).unsqueeze(1) >> torch.arange(length)) % 2 == 1
    weights = [1 / (count * comb(length, count)) for count in masked.sum(1).tolist()]
    return MaskSets(masked, torch.tensor(weights, dtype=torch.float64))


def sampled_mask_sets(length: int, samples: int, generator: torch.Generator) -> MaskSets:
    """Return sets drawn as LLaDA draws them: l uniform in 1..L, then l positions without replacement, counting L / l.

    The numbers l are evenly spread over 1..L from one random offset, so each is uniform and all sizes occur alike
    (LLaDA's code spreads them within a batch; here over all samples, so that the batch size changes nothing).
    """
    offset = torch.randint(length, (), generator=generator)
    counts = (offset + torch.arange(samples) * length // samples) % length + 1
    ranks = torch.rand(samples, length, generator=generator).argsort(1)
    return MaskSets(ranks < counts.unsqueeze(1), length / (counts.double() * samples))


def mask_sets(length: int, samples: int, seed: int) -> MaskSets:
    """Return all sets if they are no more than `samples`, else `samples` drawn ones; equal arguments, equal sets."""
    if length < 63 and 2**length - 1 <= samples:
        return all_mask_sets(length)
    return sampled_mask_sets(length, samples, torch.Generator().manual_seed(seed))


def windows(tokens: Sequence[int], size: int, before: Sequence[int]) -> list[Pair]:
    """Return pairs of at most `size` tokens that together score every token of a text once.

    The context is `before` for the first, the token before it for the next ones, and for the last as much as fits.
    """
    ends = [min(start + size - 1, len(tokens)) for start in range(0, len(tokens), size - 1)]
    starts = [0, *ends[:-1]] if ends else []
    return [
        Pair(tokens[max(0, end - size) : start] or before, tokens[start:end])
        for start, end in zip(starts, ends, strict=True)
    ]


def groups(keys: Sequence[Hashable]) -> list[list[int]]:
    """Return the indices of equal keys together, in the order of their first."""
    found: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        found.setdefault(key, []).append(i)
    return list(found.values())


def _lengths(pairs: Sequence[Pair]) -> list[tuple[int, int]]:
    return [(len(pair.context), len(pair.continuation)) for pair in pairs]


def _no_progress(done: int) -> None:
    pass


@attrs.frozen(eq=False)
class Likelihood:
    """Scores continuations with plain passes over the whole text: no cache, nothing skipped.

    All of it raises InputError where the model is block-causal, whose likelihood is a product over blocks.
    """

    model: ModelAdapter
    attention: AttentionBackend
    samples: int = 128
    """mask sets drawn for a continuation (LLaDA's mc_num)"""
    batch: int = 16
    """rows of a pass"""
    seed: int = 0
    cfg_scale: float = 0.0
    """strength of classifier-free guidance; 0 is none"""

    def rows(self, pairs: Sequence[Pair]) -> int:
        """Return the number of rows that `bounds` computes, one per mask set."""
        return sum(min(2 ** len(pair.continuation) - 1, self.samples) for pair in pairs)

    def bounds(self, pairs: Sequence[Pair], advance: Callable[[int], None] = _no_progress) -> list[float]:
        """Return for every pair a lower bound of log p(continuation | context), in nats.

        With y the continuation, L its length, and S the masked positions, l of them,

            log p(y | x) >= E [ L / l  sum over i in S of log p(y_i | x, y outside S) ],   l ~ U{1..L}, S ~ U{|S| = l},

        estimated by the mean over `samples` sets (unbiased), or summed over all sets where they are no more than that;
        for one token it is log p itself. `advance` is told the rows done after each pass.
        """
        found = [0.0] * len(pairs)
        for group in groups(_lengths(pairs)):
            for i, bound in zip(group, self._bounds([pairs[i] for i in group], advance), strict=True):
                found[i] = bound
        return found

    def _bounds(self, pairs: Sequence[Pair], advance: Callable[[int], None]) -> list[float]:
        """Return the bounds of pairs of equal lengths."""
        tokens, start = self._tokens(pairs)
        sets = mask_sets(tokens.shape[1] - start, self.samples, self.seed)
        masked, weights = sets.masked.to(tokens.device), sets.weights.to(tokens.device)
        totals = torch.zeros(len(pairs), dtype=torch.float64, device=tokens.device)
        jobs = torch.cartesian_prod(torch.arange(len(pairs)), torch.arange(len(weights))).to(tokens.device)
        for pair, drawn in (part.unbind(1) for part in jobs.split(self.batch)):
            rows = tokens[pair]
            logits = self.logits(self._hide(rows, start, masked[drawn]), start)
            scores = logits.log_softmax(-1).gather(-1, rows[:, start:].unsqueeze(-1)).squeeze(-1).double()
            scores = scores.masked_fill(~masked[drawn], 0.0).sum(1) * weights[drawn]
            totals.index_add_(0, pair, scores)
            advance(len(pair))
        return [float(total) for total in totals]

    def greedy(self, pairs: Sequence[Pair]) -> list[bool]:
        """Return for every pair whether decoding gives the continuation: the surest position first, one per pass, arg-max.

        LLaDA's suffix_greedy_prediction, given up at the first token that differs.
        """
        found = [False] * len(pairs)
        for group in groups(_lengths(pairs)):
            for i, same in zip(group, self._greedy([pairs[i] for i in group]), strict=True):
                found[i] = same
        return found

    def _greedy(self, pairs: Sequence[Pair]) -> list[bool]:
        """Return the same of pairs of equal lengths."""
        tokens, start = self._tokens(pairs)
        masked = torch.ones_like(tokens[:, start:], dtype=torch.bool)
        alive = torch.arange(len(pairs), device=tokens.device)
        for _ in range(masked.shape[1]):
            alive = torch.cat([self._decide(tokens, start, masked, rows) for rows in alive.split(self.batch)])
            if not alive.numel():
                break
        return torch.isin(torch.arange(len(pairs)), alive.cpu()).tolist()

    def _decide(self, tokens: Tensor, start: int, masked: Tensor, rows: Tensor) -> Tensor:
        """Decide the surest position of each of `rows`, and return the rows where its token is the right one."""
        logits = self.logits(self._hide(tokens[rows], start, masked[rows]), start)
        surest, best = logits.log_softmax(-1).max(-1)
        place = surest.masked_fill(~masked[rows], float("-inf")).argmax(1)
        masked[rows, place] = False
        return rows[best.gather(1, place.unsqueeze(1)).squeeze(1) == tokens[rows, start + place]]

    def logits(self, tokens: Tensor, start: int) -> Tensor:
        """Return logits (R, N - start, V) float32 of the tokens from column `start` on, of rows (R, N) without padding."""
        if (attention := self.model.spec.attention) is not None:
            raise InputError(
                f"{self.model.spec.family} is block-causal (blocks of {attention.size}): likelihoods are those of models whose "
                "positions see the whole text; give tasks that generate"
            )
        given = self._given_logits(tokens, start)
        if not self.cfg_scale:
            return given
        hidden = torch.cat([torch.full_like(tokens[:, :start], self.model.spec.mask_id), tokens[:, start:]], dim=1)
        free = self._given_logits(hidden, start)
        return free + (self.cfg_scale + 1) * (given - free)

    @torch.inference_mode()
    def _given_logits(self, tokens: Tensor, start: int) -> Tensor:
        model, shift = self.model, self.model.spec.logit_shift
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        passed = layers(model, model.embed(tokens), positions, attend=self.attention.attend)
        hidden, _ = deque(passed, maxlen=1).pop()  # one layer at a time is held
        return model.logits(hidden[:, start - shift : tokens.shape[1] - shift]).float()

    def _tokens(self, pairs: Sequence[Pair]) -> tuple[Tensor, int]:
        """Return the tokens (P, N) of pairs, and the column where the continuations start."""
        tokens = torch.tensor([[*pair.context, *pair.continuation] for pair in pairs], device=self.model.device)
        return tokens, len(pairs[0].context)

    def _hide(self, tokens: Tensor, start: int, masked: Tensor) -> Tensor:
        """Return tokens (R, N) with the masked (R, L) ones of the continuation hidden."""
        shown = tokens[:, start:].masked_fill(masked, self.model.spec.mask_id)
        return torch.cat([tokens[:, :start], shown], dim=1)
