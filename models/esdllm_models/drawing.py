"""Random weights for a model that is measured and not read."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Fill", "drawing"]


class Fill(Protocol):
    """Fills a model's weights, layer by layer."""

    def __call__(self, layer: int | None, slots: Mapping[str, Tensor]) -> None:
        """Write weights into place, by our names; `layer` is None for the outer ones."""
        ...


def drawing(seed: int, tied: bool) -> Fill:
    """Return what draws weights that keep the hidden states of one size: norms 1, routers' biases 0, the others even around 0.

    An embedding that is `tied`, to be the head too, is drawn as a head is.
    """

    def fill(layer: int | None, slots: Mapping[str, Tensor]) -> None:
        for name, slot in slots.items():
            if name.endswith("norm") or name == "router_bias":
                slot.fill_(name != "router_bias")
                continue
            if slot.is_meta:  # which has no numbers to draw
                continue
            width = 1.0 if name == "embedding" and not tied else (3 / slot.shape[-1]) ** 0.5
            drawn = sha256(f"{seed} {layer} {name}".encode()).digest()
            generator = torch.Generator(slot.device).manual_seed(int.from_bytes(drawn[:4], "big"))
            slot.uniform_(-width, width, generator=generator)

    return fill
