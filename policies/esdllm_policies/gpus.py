"""What options that choose a kernel for GPUs ask of the device."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from esdllm import UnavailableError, runs_triton

__all__ = ["check_triton"]

_runs_triton = cache(runs_triton)


def check_triton(option: str, x: Tensor) -> None:
    """Return if our Triton kernels can read a tensor.

    Raises:
        UnavailableError: they cannot, because of its device or dtype; names the option that asks for them.
    """
    if not _runs_triton(x.device) or x.dtype == torch.float64:
        raise UnavailableError(
            f"{option} = true needs a CUDA GPU with Triton, and numbers of 32 bits at most; here they are "
            f"{str(x.dtype).removeprefix('torch.')} on '{x.device}': leave it out"
        )
