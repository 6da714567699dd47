"""Attention by Triton kernels of our own, for GPUs: what skip steps ask, few queries over many keys."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from esdllm import KeyValue, ModelSpec
from esdllm_backends.attention.gpu import gpu_problems

_DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
_LARGEST_HEAD = 256


@attrs.frozen
class TritonAttention:
    """Triton kernels that split the keys of few queries between programs; for CUDA, not measured on a GPU."""

    block_causal: ClassVar[bool] = True

    @property
    def rank(self) -> None:
        """Only by name, as long as it has not been measured."""
        return

    def problems(self, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[str]:
        """Return all that is missing here: a GPU, Triton, a dtype, a head size; or what Triton says when it is tried."""
        found = [*gpu_problems(device), *_missing(spec, dtype)]
        return found or list(_trial(spec, device, dtype))

    def attend(self, queries: Tensor, read: KeyValue) -> Tensor:
        """Return (R, N, H, D). Heads of a group read one copy of the keys; no tensor of N x K is made, and no mask.

        The keys of a row that are padding are known by their number and not read; where a store chose keys, the bias (R, K) is
        read. Where queries are of several blocks, the numbers of blocks are compared. A compiled step calls it as one operator.
        """
        inputs = (queries, read.keys, read.values, read.bias, read.padding, read.query_blocks, read.key_blocks)
        return _operator(*inputs) if torch.compiler.is_compiling() else _attend(*inputs)


def _missing(spec: ModelSpec, dtype: torch.dtype) -> Iterator[str]:
    if find_spec("triton") is None:
        yield "triton is not installed; it comes with torch for CUDA"
    if dtype not in _DTYPES:
        yield f"it computes in {', '.join(_DTYPES.values())}, not in {str(dtype).removeprefix('torch.')}"
    if spec.head_dim > _LARGEST_HEAD:
        yield f"the model's head size is {spec.head_dim}; up to {_LARGEST_HEAD} is served"


def _trial(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Iterator[str]:
    """Attend once: Triton may be installed and have no compiler, or be none for this GPU."""
    queries = torch.zeros(1, 1, spec.n_heads, spec.head_dim, device=device, dtype=dtype)
    keys = torch.zeros(1, 1, spec.n_kv_heads, spec.head_dim, device=device, dtype=dtype)
    try:
        with torch.cuda.device(device):
            _attend(queries, keys, keys, None, None, None, None)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        yield f"triton fails here: {type(error).__name__}: {reason}; it needs a C compiler, and to be the one of your torch"


def _attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    padding: Tensor | None,
    query_blocks: Tensor | None,
    key_blocks: Tensor | None,
) -> Tensor:
    from esdllm_backends.attention.split_keys import attend_splitting  # imports triton, which only GPUs have

    return attend_splitting(queries, keys, values, bias, padding, query_blocks=query_blocks, key_blocks=key_blocks)


@torch.library.custom_op("esdllm::triton_attention", mutates_args=())
def _operator(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    padding: Tensor | None,
    query_blocks: Tensor | None,
    key_blocks: Tensor | None,
) -> Tensor:
    """Return the same as one operator, which a compiled step does not look into."""
    return _attend(queries, keys, values, bias, padding, query_blocks, key_blocks)


@_operator.register_fake
def _shape(queries: Tensor, *read: Tensor | None) -> Tensor:
    return queries.new_empty(queries.shape)
