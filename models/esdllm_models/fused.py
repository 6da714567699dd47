"""What a layer computes between its matrix products, as Triton kernels: each reads its input once and writes its result once.

They round where `Plain` rounds, so results differ from its by a last digit at most.
"""

from __future__ import annotations

import attrs
import torch
import triton
import triton.language as tl
from torch import Tensor

from esdllm_models.elementwise import Rotation

__all__ = ["Fused"]

_HEADS = 16  # that one program rotates
_GATED = 1024  # features that one program gates


@attrs.frozen
class Fused:
    """By kernels of our own, for tensors on the current CUDA device."""

    def rotate(self, x: Tensor, places: Rotation) -> Tensor:
        """Return x (R, N, H, D) rotated."""
        rows, window, heads, dim = x.shape
        turned = torch.empty_like(x, memory_format=torch.contiguous_format)
        x = x if x.stride(3) == 1 and x.stride(0) == window * x.stride(1) else x.contiguous()
        cos, sin = places.cos.contiguous(), places.sin.contiguous()
        grid = (rows * window, triton.cdiv(heads, _HEADS))
        half = dim // 2
        _rotate[grid](x, turned, cos, sin, x.stride(1), x.stride(2), heads, half, triton.next_power_of_2(half), _HEADS)
        return turned

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Return x + y and that normed."""
        x, y = x.contiguous(), y.contiguous()
        both, normed = torch.empty_like(x), torch.empty_like(x)
        features = x.shape[-1]
        block = triton.next_power_of_2(features)
        warps = max(1, min(16, block // 512))
        _add_norm[(x.numel() // features,)](x, y, weight, both, normed, features, eps, block, num_warps=warps)
        return both, normed

    def gate(self, joint: Tensor) -> Tensor:
        """Return silu(a) * b."""
        joint = joint.contiguous()
        features = joint.shape[-1] // 2
        gated = joint.new_empty((*joint.shape[:-1], features))
        _gate[(gated.numel() // features, triton.cdiv(features, _GATED))](joint, gated, features, _GATED)
        return gated


@triton.jit
def _rotate(
    x, turned, cos, sin, line, head, heads, half, BLOCK: tl.constexpr, HEADS: tl.constexpr
):  # x (M, H, 2 half), lines and heads apart by `line` and `head`; cos, sin (M, half)
    row = tl.program_id(0).to(tl.int64)
    numbers = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    features = tl.arange(0, BLOCK)[None, :]
    there = (numbers < heads) & (features < half)
    angle = row * half + tl.arange(0, BLOCK)
    c = tl.load(cos + angle, tl.arange(0, BLOCK) < half, 0.0)[None, :]
    s = tl.load(sin + angle, tl.arange(0, BLOCK) < half, 0.0)[None, :]
    source = x + row * line + numbers * head + features
    first = tl.load(source, there, 0.0).to(tl.float32)
    second = tl.load(source + half, there, 0.0).to(tl.float32)
    target = turned + (row * heads + numbers) * 2 * half + features
    tl.store(target, (first * c - second * s).to(turned.dtype.element_ty), there)
    tl.store(target + half, (second * c + first * s).to(turned.dtype.element_ty), there)


@triton.jit
def _add_norm(x, y, weight, both, normed, features, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    there = column < features
    place = row * features + column
    total = tl.load(x + place, there, 0.0).to(tl.float32) + tl.load(y + place, there, 0.0).to(tl.float32)
    total = total.to(both.dtype.element_ty)
    tl.store(both + place, total, there)
    total = total.to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(total * total, 0) / features + eps)
    found = total * scale * tl.load(weight + column, there, 0.0).to(tl.float32)
    tl.store(normed + place, found.to(normed.dtype.element_ty), there)


@triton.jit
def _gate(joint, gated, features, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = column < features
    first = tl.load(joint + row * 2 * features + column, there, 0.0).to(tl.float32)
    second = tl.load(joint + row * 2 * features + features + column, there, 0.0).to(tl.float32)
    active = (first / (1 + tl.exp(-first))).to(gated.dtype.element_ty).to(tl.float32)
    tl.store(gated + row * features + column, (active * second).to(gated.dtype.element_ty), there)
