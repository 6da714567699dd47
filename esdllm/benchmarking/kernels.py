"""What the bare loop multiplies with: the fastest that torch has, chosen as the first-party plugins choose it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Matrix", "attend", "matrix"]

Matrix = Callable[[Tensor], Tensor]
"""Maps features (..., I) to features (..., O)."""


def matrix(weight: Tensor, bias: Tensor | None = None) -> Matrix:
    """Return what multiplies by a weight (O, I) and adds a bias (O,)."""
    if not _in_bfloat16(weight):
        return partial(F.linear, weight=weight, bias=bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 16)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return (B, N, H D): queries (B, N, H, D) attend to keys and values (B, L, G, D)."""
    rows, window, heads, dim = queries.shape
    groups = keys.shape[2]
    lined = queries.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4).reshape(rows, groups, -1, dim)
    if _in_bfloat16(queries):
        lines = zip(lined * dim**-0.5, keys.transpose(1, 2), values.transpose(1, 2), strict=True)
        a = torch.stack([torch.bmm(torch.bmm(q, k.contiguous().transpose(1, 2)).softmax(-1), v) for q, k, v in lines])
    else:
        a = F.scaled_dot_product_attention(lined, keys.transpose(1, 2), values.transpose(1, 2))
    return a.view(rows, groups, -1, window, dim).permute(0, 3, 1, 2, 4).reshape(rows, window, heads * dim)


def _in_bfloat16(x: Tensor) -> bool:
    """Return whether oneDNN multiplies it in bfloat16."""
    here = x.device.type == "cpu" and x.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available()
    return here and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
