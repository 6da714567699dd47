"""OLMo 2's layers without the causal mask, opened where esdllm reaches in.

Shapes: R rows, N positions, M of them that attend, C hidden, H heads, G key-value heads, D head dimension, I features inside
the feed-forward, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from esdllm import ModelSpec, Projection


class Rotation(NamedTuple):
    """RoPE's cosine and sine of a set of positions, (R, N, 1, D / 2) float32."""

    cos: Tensor
    sin: Tensor


@attrs.define(eq=False, slots=False)
class Olmo2:
    """A ModelAdapter over weights that lie on one device, by the names that checkpoints give them."""

    spec: ModelSpec
    rope_theta: float
    norm_eps: float
    weights: Mapping[str, Tensor]
    """all that `shapes` names"""
    frequencies: Tensor = attrs.field(init=False)
    """(D / 2,) float32, RoPE's"""

    @frequencies.default
    def _frequencies(self) -> Tensor:
        powers = torch.arange(0, self.spec.head_dim, 2, dtype=torch.float32, device=self.device) / self.spec.head_dim
        return self.rope_theta**-powers

    @property
    def embedding(self) -> Tensor:
        """(V, C)."""
        return self.weights["model.embed_tokens.weight"]

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
        """Return the rotation of positions (R, N)."""
        angles = positions.float()[..., None, None] * self.frequencies
        return Rotation(angles.cos(), angles.sin())

    def project(self, layer: int, hidden: Tensor, places: Rotation, readers: Tensor | None = None) -> Projection:
        """Return queries of `readers` (all if None), keys and values; queries and keys normed over all heads, then rotated."""
        keys = self._normed(layer, "self_attn.k_norm", self._linear(layer, "self_attn.k_proj", hidden))
        values = self._linear(layer, "self_attn.v_proj", hidden)
        x, there = hidden, places
        if readers is not None:
            x, there = hidden[:, readers], Rotation(places.cos[:, readers], places.sin[:, readers])
        queries = self._normed(layer, "self_attn.q_norm", self._linear(layer, "self_attn.q_proj", x))
        return Projection(_rotate(self._heads(queries), there), _rotate(self._heads(keys), places), self._heads(values))

    def mix(self, layer: int, hidden: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output (R, N, C): attention's result (R, N, H, D) normed and added, then the feed-forward's."""
        x = self._linear(layer, "self_attn.o_proj", attended.flatten(2))
        hidden = hidden + self._normed(layer, "post_attention_layernorm", x)
        gate, up = self._linear(layer, "mlp.gate_proj", hidden), self._linear(layer, "mlp.up_proj", hidden)
        x = self._linear(layer, "mlp.down_proj", F.silu(gate) * up)
        return hidden + self._normed(layer, "post_feedforward_layernorm", x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return (R, N, V); the head is the embedding where the checkpoint ties them."""
        x = F.rms_norm(hidden, hidden.shape[-1:], self.weights["model.norm.weight"], self.norm_eps)
        return F.linear(x, self.weights.get("lm_head.weight", self.embedding))

    def _weight(self, layer: int, name: str) -> Tensor:
        return self.weights[f"model.layers.{layer}.{name}.weight"]

    def _linear(self, layer: int, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weight(layer, name))

    def _heads(self, x: Tensor) -> Tensor:
        """Return (R, N, heads, D)."""
        split: Tensor = x.unflatten(-1, (-1, self.spec.head_dim))
        return split

    def _normed(self, layer: int, name: str, x: Tensor) -> Tensor:
        """Return x divided by the root mean square of its last dimension."""
        return F.rms_norm(x, x.shape[-1:], self._weight(layer, name), self.norm_eps)


def _rotate(x: Tensor, places: Rotation) -> Tensor:
    """Return x (R, N, H, D) with its halves rotated, computed in float32."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = places
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def shapes(spec: ModelSpec, tied: bool) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight by its checkpoint name; without a head where it is tied to the embedding."""
    queries, keys = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    hidden, inner = spec.hidden, spec.intermediate
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.q_norm": (queries,),
        "self_attn.k_norm": (keys,),
        "self_attn.o_proj": (hidden, queries),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "post_feedforward_layernorm": (hidden,),
    }
    found: dict[str, tuple[int, ...]] = {
        f"model.layers.{n}.{name}.weight": shape for n in range(spec.n_layers) for name, shape in layer.items()
    }
    found |= {"model.embed_tokens.weight": (spec.vocab, hidden), "model.norm.weight": (hidden,)}
    return found if tied else found | {"lm_head.weight": (spec.vocab, hidden)}
