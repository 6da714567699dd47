"""Attention as its formula: the oracle that other backends are compared with."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import Tensor

from esdllm import KeyValue, ModelSpec


@attrs.frozen
class EagerAttention:
    """Softmax of scaled products in float32, written out; the oracle for the others."""

    block_causal: ClassVar[bool] = True

    @property
    def rank(self) -> None:
        """By name only: it is the slowest."""
        return

    def problems(self, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[str]:
        """Return nothing: it serves everywhere."""
        return []

    def attend(self, queries: Tensor, read: KeyValue) -> Tensor:
        """Return softmax(q k / sqrt(D) + bias) v, (R, N, H, D)."""
        grouped = queries.unflatten(2, (read.keys.shape[2], -1)).float()  # (R, N, G, H / G, D)
        scores = torch.einsum("rngjd,rkgd->rgjnk", grouped, read.keys.float()) * queries.shape[-1] ** -0.5
        if (shifts := read.shifts()) is not None:
            scores = scores + shifts.float()[:, None, None]
        mixed = torch.einsum("rgjnk,rkgd->rngjd", scores.softmax(-1), read.values.float())
        return mixed.flatten(2, 3).to(queries.dtype)
