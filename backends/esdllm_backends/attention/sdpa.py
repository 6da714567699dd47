"""Attention by torch's own fused kernels."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from esdllm import KeyValue, ModelSpec
from esdllm_backends.attention.parts import in_parts


@attrs.frozen
class SdpaAttention:
    """torch.nn.functional.scaled_dot_product_attention; no repeated keys, a mask by query only where they differ."""

    block_causal: ClassVar[bool] = True

    @property
    def rank(self) -> int:
        """After what is faster where it serves."""
        return 20

    def problems(self, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[str]:
        """Return nothing: torch falls back to a kernel that serves."""
        return []

    def attend(self, queries: Tensor, read: KeyValue) -> Tensor:
        """Return (R, N, H, D). The query heads of a group stand in line as more queries of one head."""
        return in_parts(_attend, queries, read)


def _attend(queries: Tensor, read: KeyValue) -> Tensor:
    rows, window, heads, dim = queries.shape
    keys, values = read.keys.transpose(1, 2), read.values.transpose(1, 2)
    groups = keys.shape[1]
    mask = None if (shifts := read.shifts()) is None else shifts.unsqueeze(1)
    if groups == heads:
        return F.scaled_dot_product_attention(queries.transpose(1, 2), keys, values, attn_mask=mask).transpose(1, 2)
    if mask is not None and mask.shape[2] > 1:
        mask = mask.repeat(1, 1, heads // groups, 1)
    lined = queries.view(rows, window, groups, heads // groups, dim).permute(0, 2, 3, 1, 4)
    attended = F.scaled_dot_product_attention(lined.reshape(rows, groups, -1, dim), keys, values, attn_mask=mask)
    return attended.view(rows, groups, -1, window, dim).permute(0, 3, 1, 2, 4).reshape(rows, window, heads, dim)
