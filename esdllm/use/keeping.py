"""Decoding that keeps to patterns: at every step the candidates are the most probable text that still matches.

Source: DINGO (Suresh et al., arXiv 2505.23061), section 4: dynamic programming over an automaton's states and the positions.
"""

from __future__ import annotations

from typing import NamedTuple

import attrs
import torch
from torch import Tensor

from esdllm.interfaces import TokenSampler
from esdllm.use.automata import Automaton
from esdllm.views import Candidates, SampleView

__all__ = ["KeepingSampler", "Kept"]


class Kept(NamedTuple):
    """Where a row keeps to a pattern."""

    span: range
    """counted from the row's first token"""
    automaton: Automaton
    """on the model's device"""


@attrs.frozen(eq=False)
class KeepingSampler:
    """Takes the place of a sampler in a run over one row, parts of which keep to patterns.

    There the candidates are the tokens of the most probable text that matches, given what is decided: whichever of them are
    committed, the rest can still be completed. So a run ends with a match under any unmasking policy. Positions without logits
    at a step count as if every token were as probable. Elsewhere the candidates are the sampler's own.
    """

    inner: TokenSampler
    kept: tuple[Kept, ...]
    logit_shift: int

    def sample(self, view: SampleView) -> Candidates:
        """Return the candidates; the confidence of each is its probability under the model's own logits."""
        found = self.inner.sample(view)
        for each in self.kept:
            found = self._keep(view, each, found)
        return found

    def _keep(self, view: SampleView, kept: Kept, found: Candidates) -> Candidates:
        """Return candidates with those of a span replaced."""
        columns, undecided, canvas, logical = view.columns, view.undecided, view.canvas, view.logical
        if columns is None or undecided is None or canvas is None or logical is None:
            raise AssertionError("a run's views have all of these")
        first = (logical == 0).sum(1) - 1  # columns before the row's first token count as 0 too
        span = first + torch.arange(kept.span.start, kept.span.stop, device=canvas.device)
        is_at = columns[0].unsqueeze(0) == (span - self.logit_shift).unsqueeze(1)  # (n, N)
        free = undecided[0, span - self.logit_shift]
        log_probs = view.raw[0, is_at.int().argmax(1)].float().log_softmax(-1)  # (n, V)
        classes = kept.automaton.classes
        best = _of_classes(log_probs, classes, kept.automaton.steps.shape[1])
        best = torch.where(is_at.any(1, keepdim=True), best, 0.0)
        held = canvas[0, span]
        one = torch.full_like(best, -torch.inf).scatter(1, classes[held].unsqueeze(1), 0.0)
        chosen = _best_path(kept.automaton, torch.where(free.unsqueeze(1), best, one))
        tokens = log_probs.masked_fill(classes != chosen.unsqueeze(1), -torch.inf).argmax(1)
        tokens = torch.where(free, tokens, held)
        sure = log_probs.gather(1, tokens.unsqueeze(1)).squeeze(1).exp()
        inside, at = is_at.any(0), is_at.int().argmax(0)
        return Candidates(
            torch.where(inside, tokens[at], found.tokens), torch.where(inside, sure[at], found.confidence)
        )


def _of_classes(log_probs: Tensor, classes: Tensor, count: int) -> Tensor:
    """Return (n, K), the largest of the log-probabilities (n, V) of each class's tokens."""
    found = log_probs.new_full((log_probs.shape[0], count), -torch.inf)
    return found.scatter_reduce(1, classes.expand_as(log_probs), log_probs, "amax")


def _best_path(automaton: Automaton, scores: Tensor) -> Tensor:
    """Return (n,) int64, the classes of the best way from the first state to one that accepts, by scores (n, K)."""
    steps, accepting = automaton.steps, automaton.accepting
    states, count = steps.shape
    to = torch.where(steps < 0, states, steps)  # what leads nowhere goes to one state more
    reached = [scores.new_full((states,), -torch.inf).scatter(0, steps.new_zeros(1), 0.0)]
    for score in scores:
        led = (reached[-1].unsqueeze(1) + score).flatten()
        reached.append(led.new_full((states + 1,), -torch.inf).scatter_reduce(0, to.flatten(), led, "amax")[:states])
    state = reached.pop().masked_fill(~accepting, -torch.inf).argmax()
    path: list[Tensor] = []
    for score, before in zip(scores.flip(0), reversed(reached), strict=True):
        way = (before.unsqueeze(1) + score).masked_fill(to != state, -torch.inf).flatten().argmax()
        path.append(way % count)
        state = way // count
    return torch.stack(path[::-1])
