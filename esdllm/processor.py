"""What the processor or the GPU at hand can do, as torch tells."""

from __future__ import annotations

from importlib.util import find_spec

import torch

__all__ = ["logits_at_once", "multiplies_bfloat16", "runs_triton"]

_LOGITS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 25}


def logits_at_once(device: torch.device) -> int:
    """Return how many logits a sampler holds in float32 or float64 at once: what a cache holds, or enough for few launches.

    What a step takes of memory is predicted by it.
    """
    return _LOGITS_AT_ONCE.get(device.type, _LOGITS_AT_ONCE["cpu"])


def multiplies_bfloat16() -> bool:
    """Return whether oneDNN multiplies bfloat16 on this processor: from AVX-512 on, or with Arm's instructions for it."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def runs_triton(device: torch.device) -> bool:
    """Return whether kernels that are written in Triton run on a device: on a CUDA GPU, where Triton is installed.

    A module of such kernels is imported only then: that takes a second, and fails where there is no Triton.
    """
    return device.type == "cuda" and not torch.version.hip and find_spec("triton") is not None
