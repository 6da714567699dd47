"""One bidirectional transformer decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU, optional q/k/v biases.

LLaDA and Dream are this; they differ in sizes, biases, names and special tokens, which is what their adapters hold.
The weights that read the same input are one `Linear`: queries, keys and values; gate and up.
"""

from __future__ import annotations

from typing import NamedTuple

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from esdllm import ModelSpec, Projection
from esdllm_models.elementwise import PLAIN, Elementwise, Rotation, elementwise
from esdllm_models.linear import Dense, Linear

__all__ = ["Geometry", "Layer", "Transformer"]


@attrs.frozen
class Geometry:
    """What a ModelSpec does not say: the inside of the layers."""

    rope_theta: float
    norm_eps: float
    qkv_bias: bool


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
    gate_up: Linear
    """C -> 2 I, the features inside the feed-forward"""
    down: Linear
    """I -> C"""


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
    """(D / 2,) float32, RoPE's"""
    elementwise: Elementwise = attrs.field(init=False)
    """what is computed between the products, outside compiled steps"""

    @elementwise.default
    def _elementwise(self) -> Elementwise:
        return elementwise(self.device)

    @frequencies.default
    def _frequencies(self) -> Tensor:
        powers = torch.arange(0, self.spec.head_dim, 2, dtype=torch.float32, device=self.device) / self.spec.head_dim
        return self.geometry.rope_theta**-powers

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
        x, rotate = self._normed(hidden, weights.attn_norm), self._between.rotate
        if readers is None:
            joint = weights.qkv(x).unflatten(-1, (-1, dim))
            turned, values = joint.split([heads + kv_heads, kv_heads], dim=2)
            queries, keys = rotate(turned, places).split([heads, kv_heads], dim=2)
            return Projection(queries, keys, values)
        queries = weights.q(x[:, readers]).unflatten(-1, (-1, dim))
        keys, values = weights.kv(x).unflatten(-1, (-1, dim)).split([kv_heads, kv_heads], dim=2)
        there = Rotation(places.cos[:, readers], places.sin[:, readers])
        return Projection(rotate(queries, there), rotate(keys, places), values)

    def mix(self, layer: int, hidden: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output: attention's result added, then the feed-forward's."""
        weights, between = self.layers[layer], self._between
        attended = weights.out(attended.flatten(2))
        hidden, normed = between.add_norm(hidden, attended, weights.mlp_norm, self.geometry.norm_eps)
        inner = weights.gate_up(normed)
        del attended, normed  # before the widest tensors are made
        return self._plus(hidden, weights.down, between.gate(inner))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return (R, N, V), in the model's dtype."""
        return self.head(self._normed(hidden, self.norm))

    @property
    def _between(self) -> Elementwise:
        return PLAIN if torch.compiler.is_compiling() else self.elementwise

    def _plus(self, hidden: Tensor, linear: Linear, x: Tensor) -> Tensor:
        """Return hidden + linear(x); `hidden` is the caller's own, and may be overwritten."""
        if hidden.is_cuda and isinstance(linear, Dense) and linear.bias is None and not torch.compiler.is_compiling():
            hidden.flatten(0, 1).addmm_(x.flatten(0, 1), linear.weight.t())  # added by the product's own kernel
            return hidden
        return hidden + linear(x)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (self.spec.hidden,), weight, self.geometry.norm_eps)
