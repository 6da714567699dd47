"""What our kernels and xformers' ask of a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch

__all__ = ["gpu_problems"]

_CAPABILITY = (8, 0)


def gpu_problems(device: torch.device) -> Iterator[str]:
    """Yield why a device is none on which kernels for CUDA from compute capability 8.0 on can run."""
    if device.type != "cuda":
        yield f"it needs a CUDA GPU, not the device '{device}'"
    elif torch.version.hip:
        yield "it needs a CUDA GPU, and this torch is built for ROCm"
    elif (found := torch.cuda.get_device_capability(device)) < _CAPABILITY:
        yield f"the GPU has compute capability {found[0]}.{found[1]}; 8.0 or above is needed"
