"""What is asked of a processor or GPU before kernels are chosen for it."""

from __future__ import annotations

import pytest
import torch

from esdllm import processor, runs_triton

GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "hip", "installed", "runs"),
    [
        (GPU, None, True, True),
        (GPU, None, False, False),
        (GPU, "6.2", True, False),
        (torch.device("cpu"), None, True, False),
        (torch.device("meta"), None, True, False),
    ],
)
def test_triton_s_kernels_run_on_a_cuda_gpu_where_triton_is_installed(
    device: torch.device, hip: str | None, installed: bool, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(processor, "find_spec", lambda name: name if installed else None)
    assert runs_triton(device) is runs
