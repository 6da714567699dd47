"""How far stale keys and values can move attention, a norm, a feed-forward: bounds that hold for every drift.

Two passes over the same positions are compared. The *run* attends to cached keys and values, of which some are stale; the
*exact* pass recomputes them. What is known is the run's; a drift is a 2-norm by which the exact pass may be off it, in any
direction. docs/bounds.md derives every formula. All is float64, and rounding is not counted.

Shapes: ... any leading dimensions, K keys, C hidden, D head dimension, I features inside the feed-forward.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "SILU_CURVATURE",
    "SILU_SLOPE",
    "AttentionDrift",
    "WeightRange",
    "attention_bound",
    "attention_drift",
    "norm_bound",
    "norm_jacobian",
    "norm_remainder",
    "spectral_bound",
    "tilted_mass",
    "total_variation",
    "weight_range",
]

_LARGE = 50.0  # of a logit drift: e^50 is beyond float64's digits, and no weight is bounded any more

SILU_SLOPE = 1.0998393195
"""the largest |silu'|, rounded up"""
SILU_CURVATURE = 0.5
"""the largest |silu''|, at 0"""


# --------------------------------------------------------------------------------- attention, stale on a set of keys


def tilted_mass(mass: Tensor, delta: Tensor) -> Tensor:
    """Return m e^d / (1 - m + m e^d): the most weight that keys of weight m can get if their logits alone move, by at most d.

    `mass` in [0, 1] and `delta` of at least 0 broadcast; a sum of weights that rounding took beyond 1 counts as 1.
    """
    return torch.sigmoid(torch.logit(mass.double().clamp(0, 1)) + delta.double())


def total_variation(mass: Tensor, delta: Tensor) -> Tensor:
    """Return the most total variation between two softmaxes whose logits differ on a set of keys only, by at most `delta`.

    `mass` is the set's weight under one of them. It is the supremum over all ways to spread that weight and to move the
    logits; tanh(delta / 2) where the mass is 1.
    """
    m, d = torch.broadcast_tensors(mass.double().clamp(0, 1), delta.double())
    small = d.clamp(max=_LARGE)
    up, down, spread = torch.expm1(small), -torch.expm1(-small), 2 * torch.sinh(small)
    # the part of the set that gains (loses), and by how much the sum of all weights grows (shrinks) meanwhile
    gain, grown = (_root(up * (1 - m)) + m * down) / spread, _root(up * (1 - m))
    loss, shrunk = (m * up - _root(-down * (1 - m))) / spread, -_root(-down * (1 - m))
    gain, grown = gain.minimum(m), grown.where(gain <= m, m * up)
    loss, shrunk = loss.minimum(m), shrunk.where(loss <= m, m * down)
    found = torch.maximum(gain * (up - grown) / (1 + grown), loss * (down - shrunk) / (1 - shrunk))
    return found.where(d <= _LARGE, 1.0).masked_fill((d == 0) | (m == 0), 0.0)


def _root(x: Tensor) -> Tensor:
    """Return sqrt(1 + x) - 1 without cancellation."""
    return x / (1 + (1 + x).sqrt())


def attention_bound(
    mass: Tensor, key_drift: Tensor, value_drift: Tensor, query_norm: Tensor, diameter: Tensor, scale: float
) -> Tensor:
    """Return how far one head's output (2-norm) can be from the exact one, where keys and values are stale on a set S.

    TV(m, d) diameter + m' value_drift, where d = scale query_norm key_drift, TV is `total_variation` and m' is
    `tilted_mass`.

    Args:
        mass: the run's attention weight m on S.
        key_drift: the largest 2-norm by which a key of S is off.
        value_drift: the largest 2-norm by which a value of S is off.
        query_norm: 2-norm of the query, which both passes share.
        diameter: the largest distance between two of the run's values.
        scale: what the products are multiplied by, D ** -0.5.
    """
    delta = scale * query_norm.double() * key_drift.double()
    return total_variation(mass, delta) * diameter.double() + tilted_mass(mass, delta) * value_drift.double()


# ------------------------------------------------------------------------------------------ attention, key by key


class WeightRange(NamedTuple):
    """How far each attention weight can move, (..., K), and all together."""

    gain: Tensor
    """(..., K) by how much it can grow"""
    loss: Tensor
    """(..., K) by how much it can shrink"""
    highest: Tensor
    """(..., K) the most it can be"""
    variation: Tensor
    """(...,) the most total variation"""


def weight_range(weights: Tensor, logit_drift: Tensor) -> WeightRange:
    """Return how attention weights (..., K), float64, can move if each logit moves by at most `logit_drift` (..., K)."""
    p, d = weights.double(), logit_drift.double()
    small, free = d.clamp(max=_LARGE), (d > _LARGE).any(-1, keepdim=True)
    up, down = torch.expm1(small), -torch.expm1(-small)
    rest = _others(p)
    gain = p * (rest * up + _others(p * down)) / (_others(p * (-small).exp()) + p * small.exp())
    loss = p * (rest * down + _others(p * up)) / (_others(p * small.exp()) + p * (-small).exp())
    gain, loss = gain.minimum(1 - p).where(~free, 1 - p), loss.minimum(p).where(~free, p)
    moved = (p * (d > 0)).sum(-1)
    variation = total_variation(moved, d.amax(-1)).minimum(gain.sum(-1)).minimum(loss.sum(-1))
    return WeightRange(gain, loss, p + gain, variation)


def _others(x: Tensor) -> Tensor:
    """Return (..., K), the sum of all of x (..., K) but each itself, without cancellation."""
    before = torch.nn.functional.pad(x[..., :-1], (1, 0)).cumsum(-1)
    after = torch.nn.functional.pad(x[..., 1:], (0, 1)).flip(-1).cumsum(-1).flip(-1)
    return before + after


def _spend(cost: Tensor, most: Tensor, budget: Tensor) -> Tensor:
    """Return the largest sum of x cost over x (..., K) from 0 to `most` whose sum is at most `budget` (...,)."""
    order = cost.argsort(-1, descending=True)
    most, cost = most.gather(-1, order), cost.gather(-1, order)
    before = most.cumsum(-1) - most
    return (torch.minimum(most, (budget.unsqueeze(-1) - before).clamp(min=0)) * cost).sum(-1)


class AttentionDrift(NamedTuple):
    """How far one head's output can be off."""

    whole: Tensor
    """(...,) 2-norm of the difference"""
    rest: Tensor
    """(...,) of the difference less what is linear in the query's drift"""


def attention_drift(
    weights: Tensor,
    distance: Tensor,
    diameter: Tensor,
    value_drift: Tensor,
    key_part: Tensor,
    query_part: Tensor | None = None,
) -> AttentionDrift:
    """Return how far one head's output can be off, from what is known of each key.

    Args:
        weights: (..., K), the run's.
        distance: (..., K), of each of the run's values from the run's output.
        diameter: the largest distance between two of the run's values.
        value_drift: (..., K), 2-norm by which each value is off.
        key_part: (..., K), by how much each logit moves at most because its key is off.
        query_part: (..., K), by how much because the query is off, keys counted from their weighted mean; None if it is not.
    """
    p, distance, value_drift = weights.double(), distance.double(), value_drift.double()
    key_part = key_part.double()
    moved = key_part if query_part is None else key_part + query_part.double()
    found, one = weight_range(p, moved), torch.ones(p.shape[:-1], dtype=torch.float64, device=p.device)

    def mean(x: Tensor) -> Tensor:
        """Return the largest weighted mean that x (..., K) of at least 0 can have."""
        return _spend(x.expand(p.shape), found.highest, one)

    shifted = _spend(distance, found.gain, found.variation) + _spend(distance, found.loss, found.variation)
    whole = torch.minimum(shifted, found.variation * diameter) + mean(value_drift)
    first = (p * key_part * distance).sum(-1) + (p * value_drift).sum(-1)
    # the second derivative on the way from the run to the exact pass, from E[(d - E d)^2 (v - E v)] + 2 Cov(d, dv)
    away = distance + value_drift + whole[..., None]  # of a value from the mean of all
    squared = mean(moved**2)
    center = mean(moved).minimum(
        (p * key_part).sum(-1) + squared
    )  # of d: keys are counted from their mean, so it starts small
    bent = mean(moved**2 * away) + 2 * center * mean(moved * away)
    bent = bent.minimum((diameter + 2 * value_drift.amax(-1)) * squared)
    second = bent + 2 * (mean(moved * value_drift) + mean(moved) * mean(value_drift))
    rest = first + second / 2
    return AttentionDrift(whole, rest if query_part is not None else torch.minimum(rest, whole))


# -------------------------------------------------------------------------------------------------------- RMS norm


def _rms(x: Tensor, eps: float) -> Tensor:
    found: Tensor = (x.double().square().mean(-1) + eps).sqrt()
    return found


def _lowest_rms(x: Tensor, drift: Tensor, eps: float) -> Tensor:
    lowest: Tensor = _rms(x, eps) - drift.double() / x.shape[-1] ** 0.5
    return lowest.clamp(min=eps**0.5)


def norm_bound(x: Tensor, drift: Tensor, eps: float) -> Tensor:
    """Return how far x / rms(x) can move (2-norm), rms(x) = sqrt(mean(x^2) + eps), if x (..., C) moves by at most `drift` (...,).

    2 drift / (rms + lowest rms), and never more than 2 sqrt(C). Whole vectors: the norm's weight belongs to what follows.
    """
    both: Tensor = _rms(x, eps) + _lowest_rms(x, drift, eps)
    return (2 * drift.double() / both).clamp(max=2 * x.shape[-1] ** 0.5)


def norm_jacobian(x: Tensor, eps: float) -> Tensor:
    """Return the Jacobian (..., C, C) of x / rms(x) at x (..., C)."""
    size, rms = x.shape[-1], _rms(x, eps)[..., None, None]
    unit = x.double().unsqueeze(-1) / rms
    return (torch.eye(size, dtype=torch.float64, device=x.device) - unit @ unit.mT / size) / rms


def norm_remainder(x: Tensor, drift: Tensor, eps: float) -> Tensor:
    """Return how far x / rms(x) can be from its linearisation at x (..., C), if x moves by at most `drift` (...,)."""
    found: Tensor = drift.double() ** 2 / ((3 * x.shape[-1]) ** 0.5 * _lowest_rms(x, drift, eps) ** 2)
    return found


# --------------------------------------------------------------------------------------------------------- matrices


def spectral_bound(x: Tensor, squarings: int = 4) -> Tensor:
    """Return an upper bound (...,) of the largest singular value of x (..., m, n), from the trace of a power of x^T x.

    At most min(m, n) ** (1 / 2 ** (squarings + 1)) times too large.
    """
    square = x.double().mT @ x.double() if x.shape[-1] <= x.shape[-2] else x.double() @ x.double().mT
    power, total = torch.zeros(square.shape[:-2], dtype=torch.float64, device=x.device), None
    for number in range(squarings + 1):
        square = square @ square if number else square
        total = square.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=1e-300)
        square, power = square / total[..., None, None], 2 * power + total.log() if number else total.log()
    found: Tensor = (power / 2 ** (squarings + 1)).exp()
    return found
