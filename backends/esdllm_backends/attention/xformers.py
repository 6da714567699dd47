"""Attention by xformers' kernels, for GPUs.

Source of the kernels: xformers.ops.fmha (flash attention; Flash-Decoding's split over the keys in Triton).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

import attrs
import torch
from attrs import validators
from torch import Tensor

from esdllm import KeyValue, ModelSpec, option
from esdllm_backends.attention.gpu import gpu_problems
from esdllm_backends.attention.parts import in_parts

_DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
_HEAD_DIMS = (16, 32, 64, 128, 256)  # that both the flash and the split-K kernel take
_LONG = 256  # keys from which a split over them can pay; xformers' own bound


@attrs.frozen
class XformersAttention:
    """xformers' memory-efficient attention, for CUDA in float16 or bfloat16; not measured on a GPU."""

    split_queries: int = option(
        "queries of a padded row up to which its keys are split between thread blocks; 0: never",
        validators.ge(0),
        default=32,
    )

    block_causal: ClassVar[bool] = True

    @property
    def rank(self) -> int:
        """Before sdpa: padded rows stay with the flash kernel."""
        return 10

    def problems(self, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[str]:
        """Return all that is missing here: packages, a GPU, a dtype, a head size."""
        found = [*gpu_problems(device), *_packages(device), *_numbers(spec, dtype)]
        return found or list(_trial(spec, device, dtype))

    def attend(self, queries: Tensor, read: KeyValue) -> Tensor:
        """Return (R, N, H, D). Heads of a group read one copy of the keys; no tensor of N x K is made.

        - Nothing left out: no bias, and xformers chooses the kernel.
        - The first keys of rows left out: heads stand in line, as blocks of their queries and `K - padding` keys. xformers
          chooses the kernel, but the split-K one is asked for where a row has `split_queries` queries at most and 256
          keys or more, for the flash kernel would leave most of the GPU idle there.
        - Only a bias known: the split-K kernel, which reads the bias (R, K) itself, expanded over heads and queries with
          stride 0. It reads the keys once for every query head then.
        - Queries of several blocks: the same kernel, by a bias by query (R, N, K), which is made for some at a time.

        A compiled step calls all this as one operator. The padding is a tensor: however a batch is padded, nothing is
        compiled or recorded anew.
        """
        return in_parts(self._called, queries, read)

    def _called(self, queries: Tensor, read: KeyValue) -> Tensor:
        spans = read.query_blocks is not None
        bias, padding = (read.shifts(), None) if spans else (read.bias, read.padding)
        inputs = (queries, read.keys, read.values, bias, padding, self.split_queries)
        return _operator(*inputs) if torch.compiler.is_compiling() else _attend(*inputs)


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
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, padding: Tensor | None, few: int
) -> Tensor:
    """Return `XformersAttention.attend`'s result."""
    rows, window, heads, dim = queries.shape
    length, groups = keys.shape[1:3]
    if bias is not None and padding is not None:
        return _padded(queries, keys, values, padding, split=window <= few and length >= _LONG)
    mask = None
    if groups < heads:
        queries = queries.unflatten(2, (groups, -1))  # (R, N, G, H / G, D)
        keys, values = (x.unsqueeze(3).expand(-1, -1, -1, heads // groups, -1) for x in (keys, values))
    if bias is not None:
        bias = bias if bias.dim() > 2 else bias.unsqueeze(1)
        per_head = bias.unsqueeze(1) if queries.dim() == 4 else bias[:, None, None]
        mask = per_head.expand(rows, *queries.shape[2:-1], window, length)
    return _run(queries, keys, values, mask, bias is not None).reshape(rows, window, heads, dim)


def _padded(queries: Tensor, keys: Tensor, values: Tensor, padding: Tensor, split: bool) -> Tensor:
    """Return (R, N, H, D). Heads stand in line, a block each: the queries that share its keys, and those from `padding` on."""
    (rows, window, heads, dim), (length, groups) = queries.shape, keys.shape[1:3]
    grouped = queries.view(rows, window, groups, heads // groups, dim).permute(0, 2, 3, 1, 4)
    lined, (keys, pitch), (values, _) = grouped.reshape(1, -1, 1, dim), _lined(keys), _lined(values)
    attended = _run(lined, keys, values, _blocks(padding, groups, heads // groups * window, length, pitch), split)
    return attended.view(grouped.shape).permute(0, 3, 1, 2, 4).reshape(queries.shape)


def _lined(x: Tensor) -> tuple[Tensor, int]:
    """Return the heads of x (R, K, G, D) in line, (1, ..., 1, D), and the places from one head to the next.

    Nothing is copied where the positions of each head lie together, as in a cache, be it a part of them.
    """
    rows, length, groups, dim = x.shape
    row, position, head, one = x.stride()
    step = head if groups > 1 else row  # the stride of a dimension of one says nothing
    apart = rows > 1 and row != groups * step
    if one != 1 or position != dim or step % dim or step < length * dim or apart:
        return x.transpose(1, 2).reshape(1, -1, 1, dim), length
    pitch = step // dim
    places = (rows * groups - 1) * pitch + length
    return x.as_strided((1, places, 1, dim), (places * dim, dim, dim, 1)), pitch


def _blocks(padding: Tensor, groups: int, queries: int, length: int, pitch: int) -> Any:
    """Return the mask of R G heads in line: the queries of each read its `length` keys from `padding` (R,) on."""
    whole = _whole_blocks(len(padding) * groups, queries, length, pitch, padding.device)
    left, keys = padding.to(torch.int32).repeat_interleave(groups), whole.k_seqinfo
    starts = keys.seqstart + torch.nn.functional.pad(left, (0, 1))  # the last says where all ends
    return replace(whole, k_seqinfo=replace(keys, seqstart=starts, seqlen=keys.seqlen - left))


@cache
def _whole_blocks(number: int, queries: int, length: int, pitch: int, device: torch.device) -> Any:
    """Return the mask of so many blocks in line, `pitch` places apart, where the queries of each read all its keys.

    None is ever let go of: recorded steps read its tensors where they lie, and a few kilobytes each are all that it takes.
    """
    masks: Any = import_module("xformers.ops.fmha.attn_bias")
    starts = [pitch * block for block in range(number)]
    return masks.BlockDiagonalGappyKeysMask.from_seqlens(
        q_seqlen=[queries] * number,
        kv_seqstarts=[*starts, starts[-1] + length],
        kv_seqlen=[length] * number,
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
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, padding: Tensor | None, few: int
) -> Tensor:
    """Return the same as one operator, which a compiled step does not look into."""
    return _attend(queries, keys, values, bias, padding, few).contiguous()


@_operator.register_fake
def _shape(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, padding: Tensor | None, few: int
) -> Tensor:
    return queries.new_empty(queries.shape)
