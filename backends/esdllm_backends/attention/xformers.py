"""Attention by xformers' kernels, for GPUs.

Source of the kernels: xformers.ops.fmha (flash attention; Flash-Decoding's split over the keys in Triton).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import attrs
import torch
from attrs import validators
from torch import Tensor

from esdllm import KeyValue, ModelSpec

_DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
_HEAD_DIMS = (16, 32, 64, 128, 256)  # that both the flash and the split-K kernel take
_CAPABILITY = (8, 0)
_LONG = 256  # keys from which a split over them can pay; xformers' own bound


@attrs.frozen
class XformersAttention:
    """xformers' memory-efficient attention, for CUDA in float16 or bfloat16; not measured on a GPU."""

    split_queries: int = attrs.field(
        default=32,
        validator=validators.ge(0),
        metadata={"help": "queries of a padded row up to which its keys are split between thread blocks; 0: never"},
    )

    @property
    def rank(self) -> int:
        """Before sdpa: padded rows stay with the flash kernel."""
        return 10

    def problems(self, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[str]:
        """Return all that is missing here: packages, a GPU, a dtype, a head size."""
        found = [*_device(device), *_packages(device), *_numbers(spec, dtype)]
        return found or list(_trial(spec, device, dtype))

    def attend(self, queries: Tensor, read: KeyValue) -> Tensor:
        """Return (R, N, H, D). Heads of a group read one copy of the keys; no tensor of N x K is made.

        - Nothing left out: no bias, and xformers chooses the kernel.
        - The first keys of rows left out: rows stand in line, as blocks of N queries and `K - padding` keys. xformers
          chooses the kernel, but the split-K one is asked for where a row has `split_queries` queries at most and 256
          keys or more, for the flash kernel would leave most of the GPU idle there.
        - Only a bias known: the split-K kernel, which reads the bias (R, K) itself, expanded over heads and queries with
          stride 0. It reads the keys once for every query head then.

        A compiled step calls all this as one operator. The padding is a constant of its graph there: a batch that is
        padded otherwise is compiled anew.
        """
        inputs = (queries, read.keys, read.values, read.bias, read.padding, self.split_queries)
        return _operator(*inputs) if torch.compiler.is_compiling() else _attend(*inputs)


def _device(device: torch.device) -> Iterator[str]:
    if device.type != "cuda":
        yield f"it needs a CUDA GPU, not the device '{device}'"
    elif torch.version.hip:
        yield "it needs a CUDA GPU, and this torch is built for ROCm"
    elif (found := torch.cuda.get_device_capability(device)) < _CAPABILITY:
        yield f"the GPU has compute capability {found[0]}.{found[1]}; 8.0 or above is needed"


def _packages(device: torch.device) -> Iterator[str]:
    missing = [name for name in ("xformers", "triton") if find_spec(name) is None]
    if "xformers" in missing:
        yield 'xformers is not installed: pip install "esdllm[xformers]"'
    if "triton" in missing:
        yield "triton is not installed; it comes with torch for CUDA"
    if missing or device.type != "cuda":  # where it cannot serve anyway, seconds of importing are spared
        return
    try:
        kernels = import_module("xformers.ops.fmha.triton_splitk")
    except Exception as error:
        yield f"xformers cannot be imported: {type(error).__name__}: {error}; install the release made for your torch"
        return
    if getattr(kernels, "_fwd_kernel_splitK", None) is None:
        yield "xformers cannot use the triton that is installed; install the one that your torch comes with"


def _trial(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Iterator[str]:
    """Attend once: a release may be installed without kernels for this torch or this GPU, which its import does not show."""
    queries = torch.zeros(1, 1, spec.n_heads, spec.head_dim, device=device, dtype=dtype)
    keys = torch.zeros(1, 1, spec.n_kv_heads, spec.head_dim, device=device, dtype=dtype)
    try:
        _attend(queries, keys, keys, None, None, 0)
    except Exception as error:
        reasons = " ".join(str(error).split())[-200:]
        yield (
            f"xformers fails here: {type(error).__name__}: ... {reasons}; `python -m xformers.info` tells what it was "
            "built with; install the release that was built for your torch"
        )


def _numbers(spec: ModelSpec, dtype: torch.dtype) -> Iterator[str]:
    if dtype not in _DTYPES:
        yield f"it computes in {' or '.join(_DTYPES.values())}, not in {str(dtype).removeprefix('torch.')}"
    if spec.head_dim not in _HEAD_DIMS:
        yield f"the model's head size is {spec.head_dim}; {', '.join(map(str, _HEAD_DIMS))} are served"


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, padding: tuple[int, ...] | None, few: int
) -> Tensor:
    """Return `XformersAttention.attend`'s result."""
    rows, window, heads, dim = queries.shape
    length, groups = keys.shape[1:3]
    mask, split = None, False
    if bias is not None and padding is not None:
        mask, split = _blocks(padding, window, length, queries.device), window <= few and length >= _LONG
        queries, keys, values = (x.reshape(1, -1, *x.shape[2:]) for x in (queries, keys, values))  # (1, R N, H, D)
    if groups < heads:
        queries = queries.unflatten(2, (groups, -1))  # (R, N, G, H / G, D)
        keys, values = (x.unsqueeze(3).expand(-1, -1, -1, heads // groups, -1) for x in (keys, values))
    if bias is not None and padding is None:
        per_head = bias.view(rows, *[1] * (queries.dim() - 2), length)
        mask, split = per_head.expand(rows, *queries.shape[2:-1], window, length), True
    return _run(queries, keys, values, mask, split).reshape(rows, window, heads, dim)


@lru_cache(maxsize=256)
def _blocks(padding: tuple[int, ...], window: int, length: int, device: torch.device) -> Any:
    """Return the mask of R rows in line, where a row's queries read its keys from `padding` on; built of host integers."""
    masks: Any = import_module("xformers.ops.fmha.attn_bias")
    return masks.BlockDiagonalGappyKeysMask.from_seqlens(
        q_seqlen=[window] * len(padding),
        kv_seqstarts=[*(row * length + left for row, left in enumerate(padding)), len(padding) * length],
        kv_seqlen=[length - left for left in padding],
        device=device,
    )


def _run(queries: Tensor, keys: Tensor, values: Tensor, mask: Any, split: bool) -> Tensor:
    """Return what xformers' own kernel gives, or if `split` the Triton kernel that splits the keys."""
    fmha: Any = import_module("xformers.ops.fmha")
    op = (fmha.triton_splitk.FwOp, None) if split else None
    attended: Tensor = fmha.memory_efficient_attention(queries, keys, values, attn_bias=mask, op=op)
    return attended


@torch.library.custom_op("esdllm::xformers_attention", mutates_args=())
def _operator(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, padding: list[int] | None, few: int
) -> Tensor:
    """Return the same as one operator, which a compiled step does not look into."""
    return _attend(queries, keys, values, bias, None if padding is None else tuple(padding), few).contiguous()


@_operator.register_fake
def _shape(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, padding: list[int] | None, few: int
) -> Tensor:
    return queries.new_empty(queries.shape)
