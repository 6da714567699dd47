"""Attention by torch's own fused kernels."""

from __future__ import annotations

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from esdllm import ModelSpec


@attrs.frozen
class SdpaAttention:
    """torch.nn.functional.scaled_dot_product_attention; no (N, K) mask, no repeated keys."""

    def problems(self, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[str]:
        """Return nothing: torch falls back to a kernel that serves."""
        return []

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Return (R, N, H, D). The query heads of a group stand in line as more queries of one head."""
        rows, window, heads, dim = queries.shape
        groups = keys.shape[2]
        lined = queries.view(rows, window, groups, heads // groups, dim).permute(0, 2, 3, 1, 4)
        mask = None if bias is None else bias[:, None, None, :]
        attended = F.scaled_dot_product_attention(
            lined.reshape(rows, groups, -1, dim), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask
        )
        return attended.view(rows, groups, -1, window, dim).permute(0, 3, 1, 2, 4).reshape(rows, window, heads, dim)
