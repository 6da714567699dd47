"""What a config.json describes: the model, its switches, and what its checkpoints call the weights and how large they are."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from esdllm import ModelSpec
from esdllm.checkpoints.weights import Shape, Stated
from esdllm_models.decoder import Geometry

__all__ = ["Blueprint", "Names", "Sizes"]


@attrs.frozen
class Names:
    """What a family's checkpoints call the modules that hold weights."""

    outer: Mapping[str, str]
    """by our names embedding, norm, head"""
    layer: str
    """how the names of a layer begin, with {} for its number"""
    inner: Mapping[str, str]
    """by our names attn_norm, q, k, v (or qkv for one that has all three), q_norm, k_norm, out, mlp_norm, gate, up, down, router,
    shared_gate, shared_up, shared_down: the rest"""
    experts: Mapping[str, str] = attrs.field(factory=dict)
    """by our names gate, up, down, with {} for an expert's number"""
    router_bias: str = ""
    """the tensor that is added to the router's scores"""
    tied: bool = False
    """whether the head is the embedding; a head that is in the files all the same is not read"""

    def module(self, layer: int | None, name: str) -> str:
        """Return the checkpoint's name of the module of one of our weights; `layer` is None for the outer ones."""
        if layer is None:
            return self.outer[name]
        kind, _, rest = name.partition(".")  # experts.3.gate
        number, _, own = rest.partition(".")
        return self.layer.format(layer) + (self.experts[own].format(number) if rest else self.inner[kind])

    def of(self, layer: int | None, name: str) -> str:
        """Return the checkpoint's name of one of our weights, or of a bias, such as q_bias."""
        if name == "router_bias":
            return self.layer.format(layer) + self.router_bias
        if name.endswith("_bias"):
            return f"{self.module(layer, name.removesuffix('_bias'))}.bias"
        return f"{self.module(layer, 'embedding' if self.tied and name == 'head' else name)}.weight"

    @property
    def unread(self) -> tuple[str, ...]:
        """Tensors that may be there and are not read."""
        return (f"{self.outer['head']}.weight",) if self.tied else ()


@attrs.frozen
class Sizes:
    """The sizes of a family's weights, as config.json states them."""

    layers: Stated
    hidden: Stated
    queries: Stated
    """features of all heads"""
    keys: Stated
    """features of all key-value heads"""
    vocab: Stated
    intermediate: Stated
    """features inside a feed-forward that is none of experts"""
    head_dim: Stated | None = None
    """features of a head, where a key has them; else they follow from the others"""
    experts: Stated | None = None
    expert: Stated | None = None
    """features inside an expert"""
    shared: Stated | None = None
    """features inside the experts that all positions go through; None without any"""


@attrs.frozen
class Blueprint:
    """A model and where its weights are found."""

    spec: ModelSpec
    geometry: Geometry
    names: Names
    sizes: Sizes

    def shapes(self) -> dict[str, Shape]:
        """Return the shapes of all weights, by the checkpoint's names."""
        sizes = self.sizes
        words = (sizes.vocab, sizes.hidden)
        outer: dict[str, Shape] = {"embedding": words, "norm": (sizes.hidden,), "head": words}
        found = {self.names.of(None, name): shape for name, shape in outer.items()}
        for layer in range(self.spec.n_layers):
            inner = {**self._attention(), **(self._experts() if self.spec.routes(layer) else self._feed_forward())}
            found |= {self.names.of(layer, name): shape for name, shape in inner.items()}
        return found

    def _attention(self) -> dict[str, Shape]:
        sizes, geometry = self.sizes, self.geometry
        hidden, queries, keys = sizes.hidden, sizes.queries, sizes.keys
        head = self.spec.head_dim if sizes.head_dim is None else sizes.head_dim
        joint = queries.size + 2 * keys.size
        split: dict[str, Shape] = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden)}
        found: dict[str, Shape] = {"qkv": (joint, hidden)} if "qkv" in self.names.inner else split
        if geometry.qkv_bias:
            found |= {f"{name}_bias": shape[:1] for name, shape in found.items()}
        if geometry.qk_norm:
            found |= {"q_norm": (head,), "k_norm": (head,)}
        if geometry.out_bias:
            found["out_bias"] = (hidden,)
        return {"attn_norm": (hidden,), "mlp_norm": (hidden,), "out": (hidden, queries), **found}

    def _feed_forward(self, prefix: str = "", inner: Stated | None = None) -> dict[str, Shape]:
        hidden, inner = self.sizes.hidden, inner or self.sizes.intermediate
        found: dict[str, Shape] = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
        if self.geometry.mlp_bias:
            found |= {f"{name}_bias": shape[:1] for name, shape in found.items()}
        return {f"{prefix}{name}": shape for name, shape in found.items()}

    def _experts(self) -> dict[str, Shape]:
        sizes, routing = self.sizes, self.geometry.routing
        assert sizes.experts is not None  # so that the spec has experts
        found: dict[str, Shape] = {"router": (sizes.experts, sizes.hidden)}
        if routing is not None and routing.bias != "none":
            found["router_bias"] = (sizes.experts,)
        for number in range(sizes.experts.value):
            found |= self._feed_forward(f"experts.{number}.", sizes.expert)
        if sizes.shared is not None:
            found |= self._feed_forward("shared_", sizes.shared)
        return found
