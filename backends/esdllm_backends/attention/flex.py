"""Attention by a kernel that torch compiles for it (FlexAttention, arXiv 2412.05496)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from esdllm import KeyValue, ModelSpec

_DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
_SMALLEST_HEAD = 16  # that torch's Triton kernel takes


@attrs.frozen
class FlexAttention:
    """torch's flex_attention, compiled; grouped queries and padding without a mask; for CUDA, not measured on a GPU."""

    block_causal: ClassVar[bool] = True

    @property
    def rank(self) -> None:
        """Only by name: it takes seconds to compile, and sdpa serves wherever it does."""
        return

    def problems(self, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[str]:
        """Return why it cannot serve.

        A CPU is refused: with torch 2.13 the kernel for it cannot be compiled for shapes in general, only for each one
        anew, which takes seconds, where a skip step has a shape for every number of positions kept.
        """
        return list(_problems(spec, device, dtype))

    def attend(self, queries: Tensor, read: KeyValue) -> Tensor:
        """Return (R, N, H, D). The kernel adds the bias (R, K) to each score as it makes it, and compares the numbers of blocks
        where there are several; no tensor of N x K is made.

        Inside a compiled step it is a part of the step's graph; outside it compiles itself, once for shapes in general.
        """
        attend = _attend if torch.compiler.is_compiling() else _compiled()
        return attend(queries, read.keys, read.values, read.bias, read.query_blocks, read.key_blocks)


def _problems(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Iterator[str]:
    if device.type == "cpu":
        yield "on a CPU it would be compiled anew for every shape, for seconds each; sdpa serves there"
    elif device.type != "cuda":
        yield f"it needs a CUDA GPU, not the device '{device}'"
    if find_spec("triton") is None:
        yield "triton, which compiles it, is not installed; it comes with torch for CUDA"
    if dtype not in _DTYPES:
        yield f"it computes in {', '.join(_DTYPES.values())}, not in {str(dtype).removeprefix('torch.')}"
    if spec.head_dim < _SMALLEST_HEAD:
        yield f"the model's head size is {spec.head_dim}; {_SMALLEST_HEAD} or above is served"


def _attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    query_blocks: Tensor | None,
    key_blocks: Tensor | None,
) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention  # imports sympy, which others do not need

    def changed(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if bias is not None:
            score = score + bias[row, key]
        if query_blocks is not None and key_blocks is not None:
            score = torch.where(key_blocks[row, key] > query_blocks[row, query], float("-inf"), score)
        return score

    attended: Tensor = flex_attention(
        queries.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        score_mod=None if bias is None and query_blocks is None else changed,
        enable_gqa=keys.shape[2] != queries.shape[2],
    )
    return attended.transpose(1, 2)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(_attend, dynamic=True, fullgraph=True)
