"""One bidirectional transformer decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU, optional q/k/v biases.

LLaDA and Dream are this; they differ in sizes, biases, names and special tokens, which is what their adapters hold.
The weights that read the same input lie in one tensor: queries, keys and values; gate and up.
"""

from __future__ import annotations

from typing import NamedTuple

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from esdllm import ModelSpec, Projection

__all__ = ["Geometry", "Rotation", "Transformer"]


@attrs.frozen
class Geometry:
    """What a ModelSpec does not say: the inside of the layers."""

    mlp: int
    rope_theta: float
    norm_eps: float
    qkv_bias: bool


class Rotation(NamedTuple):
    """RoPE's cosine and sine of a set of positions, (R, N, 1, D / 2) float32."""

    cos: Tensor
    sin: Tensor


class _Layer(NamedTuple):
    attn_norm: Tensor
    """(C,)"""
    qkv: Tensor
    """((H + 2 G) D, C)"""
    qkv_bias: Tensor | None
    """((H + 2 G) D,)"""
    out: Tensor
    """(C, H D)"""
    mlp_norm: Tensor
    """(C,)"""
    gate_up: Tensor
    """(2 mlp, C)"""
    down: Tensor
    """(C, mlp)"""


class Transformer:
    """A ModelAdapter. Weights are allocated and not initialised; `slots` says where each one goes.

    Shapes: R rows, N positions, C hidden, H heads, G key-value heads, D head dimension, V vocabulary.
    """

    def __init__(self, spec: ModelSpec, geometry: Geometry, device: torch.device, dtype: torch.dtype) -> None:
        self.spec, self.geometry = spec, geometry

        def empty(*size: int) -> Tensor:
            return torch.empty(*size, device=device, dtype=dtype)

        joint, attended = (spec.n_heads + 2 * spec.n_kv_heads) * spec.head_dim, spec.n_heads * spec.head_dim
        self.embedding = empty(spec.vocab, spec.hidden)
        self.layers = [
            _Layer(
                attn_norm=empty(spec.hidden),
                qkv=empty(joint, spec.hidden),
                qkv_bias=empty(joint) if geometry.qkv_bias else None,
                out=empty(spec.hidden, attended),
                mlp_norm=empty(spec.hidden),
                gate_up=empty(2 * geometry.mlp, spec.hidden),
                down=empty(spec.hidden, geometry.mlp),
            )
            for _ in range(spec.n_layers)
        ]
        self.norm = empty(spec.hidden)
        self.head = empty(spec.vocab, spec.hidden)
        powers = torch.arange(0, spec.head_dim, 2, dtype=torch.float32, device=device) / spec.head_dim
        self.frequencies = geometry.rope_theta**-powers

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' and hidden states' dtype."""
        return self.embedding.dtype

    def embed(self, tokens: Tensor) -> Tensor:
        """Return (R, N, C) of tokens (R, N)."""
        return F.embedding(tokens, self.embedding)

    def encode(self, positions: Tensor) -> Rotation:
        """Return the rotation of positions (R, N); angles in float32, as the checkpoints' `rope_full_precision`."""
        angles = positions.float()[..., None, None] * self.frequencies
        return Rotation(angles.cos(), angles.sin())

    def project(self, layer: int, hidden: Tensor, places: Rotation, readers: Tensor | None = None) -> Projection:
        """Return queries of `readers` (all if None), keys and values; queries and keys rotated."""
        weights = self.layers[layer]
        heads, kv_heads, dim = self.spec.n_heads, self.spec.n_kv_heads, self.spec.head_dim
        x = F.rms_norm(hidden, (self.spec.hidden,), weights.attn_norm, self.geometry.norm_eps)
        if readers is None:
            joint = F.linear(x, weights.qkv, weights.qkv_bias).unflatten(-1, (-1, dim))
            turned, values = joint.split([heads + kv_heads, kv_heads], dim=2)
            queries, keys = _rotate(turned, places).split([heads, kv_heads], dim=2)
            return Projection(queries, keys, values)
        cut, bias = heads * dim, weights.qkv_bias
        queries = F.linear(x[:, readers], weights.qkv[:cut], None if bias is None else bias[:cut])
        joint = F.linear(x, weights.qkv[cut:], None if bias is None else bias[cut:]).unflatten(-1, (-1, dim))
        keys, values = joint.split([kv_heads, kv_heads], dim=2)
        there = Rotation(places.cos[:, readers], places.sin[:, readers])
        return Projection(_rotate(queries.unflatten(-1, (-1, dim)), there), _rotate(keys, places), values)

    def mix(self, layer: int, hidden: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output: attention's result added, then the feed-forward's."""
        weights = self.layers[layer]
        hidden = hidden + F.linear(attended.flatten(2), weights.out)
        x = F.rms_norm(hidden, (self.spec.hidden,), weights.mlp_norm, self.geometry.norm_eps)
        gate, up = F.linear(x, weights.gate_up).chunk(2, dim=-1)
        return hidden + F.linear(F.silu(gate) * up, weights.down)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return (R, N, V), in the model's dtype."""
        return F.linear(F.rms_norm(hidden, (self.spec.hidden,), self.norm, self.geometry.norm_eps), self.head)

    def slots(self, layer: int) -> dict[str, Tensor]:
        """Return a layer's weights under plain names, each a view of where it lies."""
        weights = self.layers[layer]
        q, kv = self.spec.n_heads * self.spec.head_dim, self.spec.n_kv_heads * self.spec.head_dim
        found = {"attn_norm": weights.attn_norm, "out": weights.out, "mlp_norm": weights.mlp_norm, "down": weights.down}
        found.update(zip(("q", "k", "v"), weights.qkv.split([q, kv, kv]), strict=True))
        if weights.qkv_bias is not None:
            found.update(zip(("q_bias", "k_bias", "v_bias"), weights.qkv_bias.split([q, kv, kv]), strict=True))
        found.update(zip(("gate", "up"), weights.gate_up.chunk(2), strict=True))
        return found


def _rotate(x: Tensor, places: Rotation) -> Tensor:
    """Return x (R, N, H, D) with its halves rotated, as Llama does, computed in float32."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = places
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
