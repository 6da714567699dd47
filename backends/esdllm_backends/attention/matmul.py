"""Attention as two matrix products, for processors on which torch's fused kernel does not use the fast bfloat16 instructions.

To the compiler it is an operator of its own, or it would put the fused kernel in its place.
"""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import Tensor

from esdllm import KeyValue, ModelSpec, multiplies_bfloat16
from esdllm_backends.attention.parts import in_parts

_SCORES = 1 << 23  # products of a query and a key that are held at once
_KEYS = 1 << 21  # numbers of the keys that are laid out at once, so that a processor's cache holds them


@attrs.frozen
class MatmulAttention:
    """Products in bfloat16 by oneDNN, some queries at a time, and a softmax in float32 between them.

    The products of queries and keys are rounded to bfloat16 before the softmax, which torch's fused kernel does not do.
    """

    block_causal: ClassVar[bool] = True

    @property
    def rank(self) -> int:
        """Before torch's fused kernel, which it outruns where it serves."""
        return 15

    def problems(self, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[str]:
        """Return why it cannot serve: it is for bfloat16 on processors that multiply it."""
        found = []
        if device.type != "cpu":
            found.append(f"it multiplies by oneDNN, which computes on a CPU, not on {device.type}")
        if dtype != torch.bfloat16:
            found.append(f"it is for bfloat16, not for {str(dtype).removeprefix('torch.')}")
        if not multiplies_bfloat16():
            found.append("this processor or this torch has no bfloat16 products by oneDNN")
        return found

    def attend(self, queries: Tensor, read: KeyValue) -> Tensor:
        """Return (R, N, H, D), some rows at a time."""
        return in_parts(_called, queries, read)


def _called(queries: Tensor, read: KeyValue) -> Tensor:
    """Return the same of queries whose mask is small; a compiled step calls it as one operator."""
    if torch.compiler.is_compiling():
        found: Tensor = torch.ops.esdllm_backends.matmul_attention(queries, read.keys, read.values, read.shifts())
        return found
    return _matmul_attention(queries, read.keys, read.values, read.shifts())


def _matmul_attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    at_once = max(1, _KEYS // keys[0].numel())
    biases = [None] * queries.shape[0] if bias is None else bias.split(at_once)
    parts = zip(queries.split(at_once), keys.split(at_once), values.split(at_once), biases, strict=False)
    return _joined([_rows(*part) for part in parts], 0)


def _shape(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    return torch.empty_like(queries, memory_format=torch.contiguous_format)


def _rows(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Return (R, N, H, D). The query heads of a group stand in line as more queries of one head."""
    rows, window, heads, dim = queries.shape
    length, groups = keys.shape[1:3]
    scaled = (queries * dim**-0.5).view(rows, window, groups, heads // groups, dim)
    lined = scaled.permute(0, 2, 3, 1, 4).reshape(rows * groups, -1, dim)
    keys = keys.transpose(1, 2).contiguous().flatten(0, 1).transpose(1, 2)  # (R G, D, K), each head's in one piece
    values = values.transpose(1, 2).flatten(0, 1)
    shifts = None if bias is None else bias.repeat_interleave(groups, 0)
    if shifts is not None and shifts.shape[1] > 1:
        shifts = shifts.repeat(1, heads // groups, 1)
    at_once = max(1, _SCORES // (rows * groups * length))
    parts = lined.split(at_once, 1)
    each = [shifts] * len(parts) if shifts is None or shifts.shape[1] == 1 else shifts.split(at_once, 1)
    attended = _joined([_attend(some, keys, values, left) for some, left in zip(parts, each, strict=True)], 1)
    turned = attended.view(rows, groups, -1, window, dim).permute(0, 3, 1, 2, 4)
    return turned.reshape(rows, window, heads, dim).contiguous()


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Return (B, N, D) of queries (B, N, D), keys (B, D, K), values (B, K, D) and a bias (B, 1 or N, K)."""
    scores = torch.bmm(queries, keys)
    if bias is not None:
        scores = scores + bias
    return torch.bmm(scores.softmax(-1), values)


_LIBRARY = torch.library.Library("esdllm_backends", "DEF")
_LIBRARY.define("matmul_attention(Tensor queries, Tensor keys, Tensor values, Tensor? bias) -> Tensor")
_LIBRARY.impl("matmul_attention", _matmul_attention, "CompositeExplicitAutograd")
torch.library.register_fake("esdllm_backends::matmul_attention", _shape, lib=_LIBRARY)
