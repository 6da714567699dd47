"""A decoder whose layers lie on several devices."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from esdllm import ModelSpec, Projection
from esdllm_models.decoder import Transformer
from esdllm_models.elementwise import PLAIN, Rotation

__all__ = ["Spread"]


@attrs.frozen(eq=False)
class Spread:
    """A ModelAdapter over a decoder whose layers, final norm and head may each lie elsewhere than the embedding.

    What goes in and what comes out lies where the embedding does; a layer's input goes over to its weights, and what they
    make of it comes back. So the runtime sees one device, and holds the whole cache there.
    """

    whole: Transformer
    device: torch.device
    """where the embedding lies"""
    layers: tuple[torch.device, ...]
    """where each layer lies"""
    head: torch.device
    """where the final norm and the head lie"""

    def __attrs_post_init__(self) -> None:
        self.whole.elementwise = PLAIN  # the fused kernels start on the current device

    @property
    def spec(self) -> ModelSpec:
        """The model's geometry and special ids."""
        return self.whole.spec

    @property
    def devices(self) -> frozenset[torch.device]:
        """All that take part."""
        return frozenset((self.device, *self.layers, self.head))

    @property
    def dtype(self) -> torch.dtype:
        """The weights' and hidden states' dtype."""
        return self.whole.dtype

    def embed(self, tokens: Tensor) -> Tensor:
        """Return (R, N, C) of tokens (R, N)."""
        return self.whole.embed(tokens)

    def encode(self, positions: Tensor) -> Mapping[torch.device, Rotation]:
        """Return the rotation of positions (R, N), on every device: sent once, not for each layer."""
        places = self.whole.encode(positions)
        return {device: places.to(device) for device in {self.device, *self.layers}}

    def project(
        self, layer: int, hidden: Tensor, places: Mapping[torch.device, Rotation], readers: Tensor | None = None
    ) -> Projection:
        """Return queries, keys and values, computed where the layer lies."""
        there = self.layers[layer]
        readers = None if readers is None else readers.to(there)
        return Projection(
            *(x.to(self.device) for x in self.whole.project(layer, hidden.to(there), places[there], readers))
        )

    def mix(self, layer: int, hidden: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output, computed where the layer lies."""
        there = self.layers[layer]
        return self.whole.mix(layer, hidden.to(there), attended.to(there)).to(self.device)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return (R, N, V), computed where the head lies."""
        return self.whole.logits(hidden.to(self.head)).to(self.device)
