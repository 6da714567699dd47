"""A layer's second half: a gated feed-forward, or many of them, its experts, of which each position goes through a few.

Which experts those are is computed, never read: a position's experts are sorted with all others' and every expert multiplies its
own rows (`Stacked.grouped`); or where rows are few, all experts multiply all rows, and what was not asked for counts 0.

Shapes: M rows (positions of all canvases), C hidden, E experts, K of them a row, I features inside one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from esdllm_models.grouped import Stacked
from esdllm_models.linear import Linear

__all__ = ["Experts", "Mlp", "Router", "Routing"]

_LOOP = (
    200_000  # multiplications per row and expert, below which a CPU multiplies sooner than it begins another product
)
_GPU_ROWS = 64  # up to which a GPU waits for the weights of all experts, not for the arithmetic
_AT_ONCE = 256  # rows that all experts compute at once

Gate = Callable[[Tensor], Tensor]


class Mlp(NamedTuple):
    """A gated feed-forward."""

    gate_up: Linear
    """C -> 2 I, the features inside"""
    down: Linear
    """I -> C"""


@attrs.frozen
class Routing:
    """How a row finds its experts, and what their outputs weigh."""

    chosen: int
    """K"""
    score: Literal["softmax", "sigmoid"] = "softmax"
    """what makes scores of the router's outputs: over all experts, or each by itself"""
    normed: bool = False
    """whether the chosen experts' weights are divided by their sum"""
    scaling: float = 1.0
    """what they are multiplied with then"""
    bias: Literal["none", "choice", "score"] = "none"
    """what is added to scores: nothing, a bias that steers the choice alone, or one that stays in the weights"""
    groups: int = 1
    """groups of neighbouring experts"""
    open_groups: int = 1
    """how many groups, those whose two best experts score highest, a row may choose from"""


@attrs.frozen(eq=False)
class Router:
    """Chooses experts. It computes in float32, whatever the model's dtype."""

    routing: Routing
    weight: Tensor
    """(E, C) float32"""
    bias: Tensor | None
    """(E,) float32"""

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the experts of rows (M, C), (M, K) int64, and their weights, (M, K) float32."""
        routing, scores = self.routing, F.linear(rows.to(self.weight.dtype), self.weight)
        scores = scores.softmax(-1) if routing.score == "softmax" else scores.sigmoid()
        ranks = scores if self.bias is None else scores + self.bias
        if routing.bias == "score":
            scores = ranks
        if routing.open_groups < routing.groups:
            ranks = self._open(ranks)
        experts = ranks.topk(routing.chosen, sorted=False).indices
        weights = scores.gather(-1, experts)
        if routing.normed:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return experts, weights * routing.scaling

    def _open(self, ranks: Tensor) -> Tensor:
        """Return ranks (M, E) with those of closed groups at -inf."""
        grouped = ranks.unflatten(-1, (self.routing.groups, -1))
        best = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
        opened = best.topk(self.routing.open_groups, dim=-1, sorted=False).indices
        closed = torch.ones_like(best, dtype=torch.bool).scatter(-1, opened, False)
        opened_ranks: Tensor = grouped.masked_fill(closed[..., None], float("-inf"))
        return opened_ranks.flatten(-2)


@attrs.frozen(eq=False)
class Experts:
    """E gated feed-forwards, of which a row goes through K, and one that all rows go through beside."""

    router: Router
    gate_up: Stacked
    """C -> 2 I"""
    down: Stacked
    """I -> C"""
    shared: Mlp | None = None

    def __call__(self, x: Tensor, gate: Gate) -> Tensor:
        """Return the weighted sum of the experts' outputs of x (..., C), and the shared one's, in x's dtype."""
        rows = x.flatten(0, -2)
        chosen, weights = self.router(rows)
        if self.sorts(len(rows)):
            made = self._sorted(rows, chosen, weights, gate)
        else:
            some = zip(*(x.split(_AT_ONCE) for x in (rows, chosen, weights)), strict=True)
            made = torch.cat([self._all(here, experts, weigh, gate) for here, experts, weigh in some])
        made = made.to(x.dtype).reshape(x.shape)
        return made if self.shared is None else made + self.shared.down(gate(self.shared.gate_up(x)))

    def sorts(self, rows: int) -> bool:
        """Return whether so many rows are sorted by expert; else all experts compute all of them."""
        if not (self.gate_up.groups and self.down.groups):
            return False
        width = self.router.weight.shape[1] * self.gate_up.outputs
        return rows > _GPU_ROWS if self.router.weight.is_cuda else rows * width > _LOOP

    def _sorted(self, rows: Tensor, chosen: Tensor, weights: Tensor, gate: Gate) -> Tensor:
        flat, each = chosen.flatten(), chosen.shape[1]
        order = flat.argsort(stable=True)
        numbers = torch.arange(len(self.router.weight), device=flat.device)
        ends = torch.searchsorted(flat[order], numbers, right=True)
        inner = gate(self.gate_up.grouped(rows[order // each], ends))
        made = self.down.grouped(inner, ends)[order.argsort()]
        weighted: Tensor = made.unflatten(0, (-1, each)) * weights[..., None]
        return weighted.sum(1)

    def _all(self, rows: Tensor, chosen: Tensor, weights: Tensor, gate: Gate) -> Tensor:
        spread = weights.new_zeros(len(rows), len(self.router.weight)).scatter(1, chosen, weights)
        made = self.down.every(gate(self.gate_up.every(rows)))
        return (made * spread.t()[..., None]).sum(0)
