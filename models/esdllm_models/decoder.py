"""One transformer decoder with switches: RMSNorm, RoPE, grouped-query attention, gated feed-forward or experts.

The families differ in sizes, in names and special tokens, and in switches: biases, a norm of each head's queries and keys, the
kind of RoPE, the activation, experts. The weights that read the same input are one `Linear`: queries, keys and values; gate and
up.
"""

from __future__ import annotations

from typing import NamedTuple

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from esdllm import ModelSpec, Projection
from esdllm_models.elementwise import ACTIVATIONS, PLAIN, Elementwise, Rotation, elementwise
from esdllm_models.feedforward import Experts, Mlp, Routing
from esdllm_models.linear import Dense, Linear
from esdllm_models.rope import Rope

__all__ = ["Geometry", "Layer", "Transformer"]


@attrs.frozen
class Geometry:
    """What a ModelSpec does not say: the inside of the layers."""

    rope: Rope
    norm_eps: float
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """whether each head's queries and keys are normed before they are turned"""
    activation: str = "silu"
    """of the feed-forward's gate, of ACTIVATIONS"""
    routing: Routing | None = None
    """how positions find their experts; None without any"""


class Layer(NamedTuple):
    """The weights of one layer. `q` and `kv` compute parts of what `qkv` computes, from the same memory."""

    attn_norm: Tensor
    """(C,)"""
    qkv: Linear
    """C -> (H + 2 G) D"""
    q: Linear
    """C -> H D"""
    kv: Linear
    """C -> 2 G D"""
    out: Linear
    """H D -> C"""
    mlp_norm: Tensor
    """(C,)"""
    mlp: Mlp | Experts
    q_norm: Tensor | None = None
    """(D,), of each head's queries"""
    k_norm: Tensor | None = None
    """(D,), of each head's keys"""


@attrs.define(eq=False, slots=False)
class Transformer:
    """A ModelAdapter whose weights lie on one device.

    Shapes: R rows, N positions, C hidden, H heads, G key-value heads, D head dimension, V vocabulary.
    """

    spec: ModelSpec
    geometry: Geometry
    embedding: Tensor
    """(V, C)"""
    layers: tuple[Layer, ...]
    norm: Tensor
    """(C,)"""
    head: Linear
    """C -> V"""
    frequencies: Tensor = attrs.field(init=False)
    """(D' / 2,) float32, RoPE's"""
    elementwise: Elementwise = attrs.field(init=False)
    """what is computed between the products, outside compiled steps"""

    @elementwise.default
    def _elementwise(self) -> Elementwise:
        return elementwise(self.device)

    @frequencies.default
    def _frequencies(self) -> Tensor:
        return self.geometry.rope.frequencies(self.device)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The hidden states' dtype; linear layers may hold weights in another."""
        return self.norm.dtype

    @property
    def switched(self) -> tuple[str, ...]:
        """What is computed beyond LLaDA's and Dream's layers."""
        geometry, rope = self.geometry, self.geometry.rope
        on = {
            "a bias of the output projection": geometry.out_bias,
            "biases in the feed-forward": geometry.mlp_bias,
            "a norm of queries and keys": geometry.qk_norm,
            f"the activation {geometry.activation}": geometry.activation != "silu",
            "experts": geometry.routing is not None,
            "another RoPE": bool(rope.stretch or rope.queries or rope.dim < self.spec.head_dim),
        }
        return tuple(name for name, is_on in on.items() if is_on)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return (R, N, C) of tokens (R, N)."""
        return F.embedding(tokens, self.embedding).to(self.dtype)

    def encode(self, positions: Tensor) -> Rotation:
        """Return the rotation of positions (R, N); angles in float32, as the checkpoints' `rope_full_precision`."""
        rope = self.geometry.rope
        angles = positions.float()[..., None, None] * self.frequencies
        cos, sin = angles.cos(), angles.sin()
        if rope.attention_factor != 1:
            cos, sin = cos * rope.attention_factor, sin * rope.attention_factor
        return Rotation(cos, sin, None if rope.queries is None else rope.queries.factors(positions)[..., None, None])

    def project(self, layer: int, hidden: Tensor, places: Rotation, readers: Tensor | None = None) -> Projection:
        """Return queries of `readers` (all if None), keys and values; queries and keys rotated."""
        weights = self.layers[layer]
        heads, kv_heads, dim = self.spec.n_heads, self.spec.n_kv_heads, self.spec.head_dim
        x = self._normed(hidden, weights.attn_norm)
        if readers is None:
            joint = weights.qkv(x).unflatten(-1, (-1, dim))
            if self._joint:  # both by one kernel
                turned, values = joint.split([heads + kv_heads, kv_heads], dim=2)
                queries, keys = self._between.rotate(turned, places).split([heads, kv_heads], dim=2)
                return Projection(queries, keys, values)
            queries, keys, values = joint.split([heads, kv_heads, kv_heads], dim=2)
            there = places
        else:
            queries = weights.q(x[:, readers]).unflatten(-1, (-1, dim))
            keys, values = weights.kv(x).unflatten(-1, (-1, dim)).split([kv_heads, kv_heads], dim=2)
            there = places.at(readers)
        queries = self._turned(queries, weights.q_norm, there)
        if there.scale is not None:
            queries = queries * there.scale.to(queries.dtype)
        return Projection(queries, self._turned(keys, weights.k_norm, places), values)

    def mix(self, layer: int, hidden: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output: attention's result added, then the feed-forward's."""
        weights, between = self.layers[layer], self._between
        attended = weights.out(attended.flatten(2))
        hidden, normed = between.add_norm(hidden, attended, weights.mlp_norm, self.geometry.norm_eps)
        del attended  # before the widest tensors are made
        if isinstance(weights.mlp, Experts):
            return hidden + weights.mlp(normed, self._gate)
        inner = weights.mlp.gate_up(normed)
        del normed
        return self._plus(hidden, weights.mlp.down, self._gate(inner))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return (R, N, V), in the model's dtype."""
        return self.head(self._normed(hidden, self.norm))

    @property
    def _between(self) -> Elementwise:
        return PLAIN if torch.compiler.is_compiling() else self.elementwise

    @property
    def _joint(self) -> bool:
        """Whether queries and keys go through the same."""
        geometry = self.geometry
        return not (geometry.qk_norm or geometry.rope.queries or geometry.rope.dim < self.spec.head_dim)

    def _turned(self, x: Tensor, norm: Tensor | None, places: Rotation) -> Tensor:
        """Return queries or keys (R, N, H, D), each head normed and its first features rotated."""
        if norm is not None:
            x = F.rms_norm(x, norm.shape, norm, self.geometry.norm_eps)
        dim = self.geometry.rope.dim
        if dim == self.spec.head_dim:
            return self._between.rotate(x, places)
        return torch.cat([self._between.rotate(x[..., :dim], places), x[..., dim:]], dim=-1)

    def _gate(self, joint: Tensor) -> Tensor:
        """Return act(a) * b, (..., I), of a and b side by side, (..., 2 I)."""
        if self.geometry.activation == "silu":
            return self._between.gate(joint)
        first, second = joint.chunk(2, dim=-1)
        return ACTIVATIONS[self.geometry.activation](first) * second

    def _plus(self, hidden: Tensor, linear: Linear, x: Tensor) -> Tensor:
        """Return hidden + linear(x); `hidden` is the caller's own, and may be overwritten."""
        if hidden.is_cuda and isinstance(linear, Dense) and linear.bias is None and not torch.compiler.is_compiling():
            hidden.flatten(0, 1).addmm_(x.flatten(0, 1), linear.weight.t())  # added by the product's own kernel
            return hidden
        return hidden + linear(x)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (self.spec.hidden,), weight, self.geometry.norm_eps)
