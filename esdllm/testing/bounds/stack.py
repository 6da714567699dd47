"""The bounds of `esdllm.testing.bounds`, layer by layer, up to the logits: what one step's stale cache can do to them.

For a stack of the usual layers: RMS norm, rotated queries, attention, output projection, RMS norm, SwiGLU, both added to the
residual stream. An error that enters at a layer is followed through the Jacobians of all later layers, taken at the run's own
states; what is not linear is bounded and enters as an error of its own. Where that grows beyond what attention, norms and
feed-forward can do at all, their own bounds take over. docs/bounds.md has the derivation.

Shapes: N positions, K keys, C hidden, H heads, G key-value heads, D head dimension, I inside the feed-forward, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from esdllm.errors import InputError
from esdllm.testing.bounds.attention import (
    SILU_CURVATURE,
    SILU_SLOPE,
    AttentionDrift,
    attention_drift,
    norm_bound,
    norm_jacobian,
    norm_remainder,
    spectral_bound,
)

__all__ = [
    "Attended",
    "FeedForward",
    "LayerWeights",
    "Path",
    "StackWeights",
    "feed_forward",
    "through_layer",
    "to_logits",
]


@attrs.frozen(eq=False)
class LayerWeights:
    """One layer's weights in float64, each norm's weight multiplied into the matrices that read it, and their norms."""

    query: Tensor
    """(H, D, C), before the rotation"""
    out: Tensor
    """(H, C, D)"""
    gate: Tensor
    """(I, C)"""
    up: Tensor
    """(I, C)"""
    down: Tensor
    """(C, I)"""
    query_norms: Tensor = attrs.field(init=False)
    """(H,) spectral"""
    out_norms: Tensor = attrs.field(init=False)
    """(H,) spectral"""
    out_norm: Tensor = attrs.field(init=False)
    """() spectral, of all heads side by side"""
    products: Tensor = attrs.field(init=False)
    """() bounds |gate x| |up x| elementwise, in 2-norm, for |x| = 1"""
    spectra: Tensor = attrs.field(init=False)
    """(3,) spectral, of gate, up and down"""

    def __attrs_post_init__(self) -> None:
        norm, rows = torch.linalg.matrix_norm, torch.linalg.vector_norm
        spectra = torch.stack([norm(x, ord=2) for x in (self.gate, self.up, self.down)])
        longest = [rows(x, dim=1).amax() for x in (self.gate, self.up)]
        found = {
            "query_norms": norm(self.query, ord=2),
            "out_norms": norm(self.out, ord=2),
            "out_norm": norm(self.out.transpose(0, 1).flatten(1), ord=2),
            "products": torch.minimum(longest[0] * spectra[1], longest[1] * spectra[0]),
            "spectra": spectra,
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)


@attrs.frozen(eq=False)
class StackWeights:
    """What the bound needs of a model."""

    layers: tuple[LayerWeights, ...]
    head: Tensor
    """(V, C), the last norm's weight multiplied in"""
    frequencies: Tensor
    """(D / 2,) by which the halves of a query rotate against each other a position, as in Llama"""
    eps: float
    """added to the mean square in every RMS norm"""

    @classmethod
    def of(cls, adapter: Any) -> StackWeights:
        """Return those of a model adapter that shows dense weights under the names that esdllm_models.decoder has.

        Raises:
            InputError: it does not; names what is missing.
        """
        heads, dim = adapter.spec.n_heads, adapter.spec.head_dim
        if switched := getattr(adapter, "switched", ()):
            raise InputError(
                f"no bound for a {adapter.spec.family}: its layers have {' and '.join(switched)}, and the bound's have not; pass "
                "bound=False"
            )
        try:
            layers = tuple(_layer(layer, heads, dim) for layer in adapter.layers)
            head = adapter.head.weight.double() * adapter.norm.double()
            return cls(layers, head, adapter.frequencies.double(), adapter.geometry.norm_eps)
        except AttributeError as error:
            raise InputError(
                f"no bound for a {type(adapter).__name__}: {error}; the bound needs dense weights, so load the model without "
                "quantize and on one device, or pass bound=False"
            ) from error


def _layer(layer: Any, heads: int, dim: int) -> LayerWeights:
    gate, up = (layer.mlp.gate_up.weight.double() * layer.mlp_norm.double()).chunk(2)
    query = (layer.q.weight.double() * layer.attn_norm.double()).unflatten(0, (heads, dim))
    out = layer.out.weight.double().unflatten(1, (heads, dim)).transpose(0, 1)
    return LayerWeights(query, out, gate, up, layer.mlp.down.weight.double())


class Attended(NamedTuple):
    """One layer of the run at N positions, and how far the keys and values that it read were off. float64."""

    hidden: Tensor
    """(N, C), the layer's input"""
    positions: Tensor
    """(N,) int64, counted without padding"""
    queries: Tensor
    """(N, H, D), rotated"""
    keys: Tensor
    """(K, G, D), without padding"""
    values: Tensor
    """(K, G, D)"""
    key_drift: Tensor
    """(K, G), 2-norm by which each key was off"""
    value_drift: Tensor
    """(K, G)"""


class Path(NamedTuple):
    """Errors on their way through the layers, E of them so far."""

    drift: Tensor
    """(N,) bounds the 2-norm of what the hidden states are off"""
    jacobians: Tensor
    """(E, N, C, C) of all that each error went through since it entered"""
    entered: Tensor
    """(E, N) bounds the 2-norm of each when it entered"""

    @classmethod
    def exact(cls, hidden: Tensor) -> Path:
        """Return that of hidden states (N, C) that are off by nothing, as embeddings are."""
        count, size = hidden.shape
        none = torch.zeros(0, count, dtype=torch.float64, device=hidden.device)
        return cls(torch.zeros_like(hidden[:, 0], dtype=torch.float64), none.new_zeros(0, count, size, size), none)

    def through(self, jacobian: Tensor, entering: Tensor, at_most: Tensor) -> Path:
        """Return the path behind a map of Jacobian (N, C, C), where an error (N,) enters.

        `at_most` (N,) is another bound of what comes out. Where it is the lower one, that is the error that entered, and the
        older ones are forgotten.
        """
        jacobians = jacobian @ self.jacobians
        drift = entering + (spectral_bound(jacobians) * self.entered).sum(0)
        fresh = torch.eye(jacobian.shape[-1], dtype=torch.float64, device=jacobian.device).expand(1, *jacobian.shape)
        anew = at_most < drift
        if anew.all():
            return Path(at_most, fresh, at_most[None])
        entered = torch.cat([self.entered.masked_fill(anew, 0.0), at_most.where(anew, entering)[None]])
        return Path(at_most.minimum(drift), torch.cat([jacobians, fresh]), entered)


def through_layer(weights: LayerWeights, seen: Attended, path: Path, stack: StackWeights) -> Path:
    """Return the path behind one layer."""
    attended, path = _attention(weights, seen, path, stack)
    hidden = seen.hidden + torch.einsum("hcd,nhd->nc", weights.out, attended)
    return _feed_forward(weights, hidden, path, stack.eps)


def _attention(weights: LayerWeights, seen: Attended, path: Path, stack: StackWeights) -> tuple[Tensor, Path]:
    """Return the run's attention (N, H, D), and the path behind the residual."""
    scale, repeat = seen.queries.shape[-1] ** -0.5, seen.queries.shape[1] // seen.keys.shape[1]
    moved = norm_bound(seen.hidden, path.drift, stack.eps)
    turned = _rotated(weights.query, seen.positions, stack.frequencies)  # (N, H, D, C)
    made, drifts, slopes = list[Tensor](), list[AttentionDrift](), list[Tensor]()
    for head in range(seen.queries.shape[1]):
        query, keys, values = seen.queries[:, head], seen.keys[:, head // repeat], seen.values[:, head // repeat]
        key_drift, value_drift = seen.key_drift[:, head // repeat], seen.value_drift[:, head // repeat]
        p = (scale * query @ keys.T).softmax(-1)
        output, center = p @ values, p @ keys
        query_drift = (weights.query_norms[head] * moved)[:, None]
        key_part = scale * (query.norm(dim=-1, keepdim=True) + query_drift) * key_drift
        query_part = scale * query_drift * torch.cdist(center, keys)
        distance, diameter = torch.cdist(output, values), torch.cdist(values, values).amax()
        drifts.append(attention_drift(p, distance, diameter, value_drift.expand(p.shape), key_part, query_part))
        slope = scale * torch.einsum("nk,kd,ke->nde", p, values, keys) - scale * output[:, :, None] * center[:, None]
        slopes.append(weights.out[head] @ slope @ turned[:, head])
        made.append(output)
    linear = torch.stack(slopes).sum(0)  # (N, C, C), of the normed input
    size = norm_remainder(seen.hidden, path.drift, stack.eps) * spectral_bound(linear)
    jacobian = linear @ norm_jacobian(seen.hidden, stack.eps)
    jacobian = jacobian + torch.eye(jacobian.shape[-1], dtype=torch.float64, device=jacobian.device)
    at_most = path.drift + _joined(weights, torch.stack([drift.whole for drift in drifts], 1))
    entering = size + _joined(weights, torch.stack([drift.rest for drift in drifts], 1))
    return torch.stack(made, 1), path.through(jacobian, entering, at_most)


def _joined(weights: LayerWeights, drift: Tensor) -> Tensor:
    """Return how far the output projection (N,) is off where its heads are off by drift (N, H)."""
    return torch.minimum((drift * weights.out_norms).sum(1), drift.norm(dim=1) * weights.out_norm)


def _rotated(query: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """Return the queries' matrices (H, D, C) followed by the rotation at each position: (N, H, D, C)."""
    angles = (positions.double()[:, None] * frequencies)[:, None, :, None]
    first, second = query.chunk(2, dim=1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=2)


class FeedForward(NamedTuple):
    """A feed-forward at N normed inputs."""

    made: Tensor
    """(N, C), its output"""
    jacobian: Tensor
    """(N, C, C)"""
    rest: Tensor
    """(N,), how far it can be from its linearisation, in 2-norm"""


def feed_forward(weights: LayerWeights, unit: Tensor, moved: Tensor) -> FeedForward:
    """Return the feed-forward at inputs (N, C) that the norm made, and what it does if they move by at most `moved` (N,)."""
    gate, up = unit @ weights.gate.T, unit @ weights.up.T
    sigmoid = gate.sigmoid()
    slope = sigmoid * (1 + gate * (1 - sigmoid))
    linear = weights.down @ (F.silu(gate)[..., None] * weights.up + (slope * up)[..., None] * weights.gate)
    bent = (up.abs() * weights.gate.norm(dim=1)).amax(-1) * weights.spectra[0]
    rest = weights.spectra[2] * moved**2 * (SILU_SLOPE * weights.products + SILU_CURVATURE / 2 * bent)
    return FeedForward((F.silu(gate) * up) @ weights.down.T, linear, rest)


def _feed_forward(weights: LayerWeights, hidden: Tensor, path: Path, eps: float) -> Path:
    """Return the path behind the feed-forward and its residual, from that of its input (N, C)."""
    moved = norm_bound(hidden, path.drift, eps)
    found = feed_forward(weights, hidden / (hidden.square().mean(-1, keepdim=True) + eps).sqrt(), moved)
    norm = spectral_bound(found.jacobian)
    jacobian = found.jacobian @ norm_jacobian(hidden, eps)
    jacobian = jacobian + torch.eye(jacobian.shape[-1], dtype=torch.float64, device=jacobian.device)
    # |silu(g)| <= |g|, so on the sphere of the norm the feed-forward is at most this
    largest = weights.spectra[2] * weights.products * hidden.shape[-1]
    at_most = path.drift + (norm * moved + found.rest).minimum(found.made.norm(dim=-1) + largest)
    return path.through(jacobian, norm * norm_remainder(hidden, path.drift, eps) + found.rest, at_most)


def to_logits(stack: StackWeights, hidden: Tensor, path: Path) -> Tensor:
    """Return how far each logit (N, V) can be off, from the last layer's output (N, C) and the path to it."""
    lengths, jacobian = stack.head.norm(dim=1), norm_jacobian(hidden, stack.eps)
    linear = stack.head @ jacobian
    found: Tensor = lengths * norm_remainder(hidden, path.drift, stack.eps)[:, None]
    found = found + ((linear @ path.jacobians).norm(dim=-1) * path.entered[..., None]).sum(0)
    at_most = lengths * norm_bound(hidden, path.drift, stack.eps)[:, None]
    return found.minimum(at_most)
