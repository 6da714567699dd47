"""What a layer computes between its matrix products: rotation, norm, gate. Plainly here; in fused kernels on a CUDA GPU.

Between the products of a skip step a GPU would else start thirty small kernels per layer, each of which reads and writes all of
its input: a quarter of the step's time at LLaDA-8B's size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from esdllm import runs_triton

__all__ = ["ACTIVATIONS", "PLAIN", "Elementwise", "Plain", "Rotation", "elementwise"]

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
"""Of a feed-forward's gate, by the names that transformers has for them."""


class Rotation(NamedTuple):
    """RoPE's cosine and sine of a set of positions, (R, N, 1, D / 2) float32."""

    cos: Tensor
    sin: Tensor
    scale: Tensor | None = None
    """(R, N, 1, 1) float32, what queries are multiplied with beside; None for nothing"""

    def at(self, readers: Tensor) -> Rotation:
        """Return that of some of the positions, by index into N, (M,) int64."""
        scale = None if self.scale is None else self.scale[:, readers]
        return Rotation(self.cos[:, readers], self.sin[:, readers], scale)

    def to(self, device: torch.device) -> Rotation:
        """Return it on another device."""
        scale = None if self.scale is None else self.scale.to(device)
        return Rotation(self.cos.to(device), self.sin.to(device), scale)


class Elementwise(Protocol):
    """What is computed between the products."""

    def rotate(self, x: Tensor, places: Rotation) -> Tensor:
        """Return x (R, N, H, D) with its halves rotated, as Llama does, computed in float32."""
        ...

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Return x + y, (R, N, C), and that normed by its root mean square and scaled by `weight` (C,)."""
        ...

    def gate(self, joint: Tensor) -> Tensor:
        """Return silu(a) * b, (R, N, I), of a and b side by side, (R, N, 2 I)."""
        ...


@attrs.frozen
class Plain:
    """By torch's own operators."""

    def rotate(self, x: Tensor, places: Rotation) -> Tensor:
        """Return x (R, N, H, D) rotated."""
        first, second = x.float().chunk(2, dim=-1)
        cos, sin = places.cos, places.sin
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Return x + y and that normed."""
        both = x + y
        return both, F.rms_norm(both, weight.shape, weight, eps)

    def gate(self, joint: Tensor) -> Tensor:
        """Return silu(a) * b."""
        first, second = joint.chunk(2, dim=-1)
        return F.silu(first) * second


PLAIN = Plain()
"""What serves everywhere, and inside a compiled step, where the compiler fuses."""


def elementwise(device: torch.device) -> Elementwise:
    """Return what is fastest on a device."""
    if not runs_triton(device):
        return PLAIN
    from esdllm_models.fused import Fused

    return Fused()
