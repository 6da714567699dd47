"""How far a tensor is from what it was: the measure by which ES-dLLM skips."""

from __future__ import annotations

from torch import Tensor

__all__ = ["relative_variation"]


def relative_variation(x: Tensor, last: Tensor) -> Tensor:
    """Return mean|x - last| / (rms(last) + 1e-6) over the features: (..., F) twice in, (...) float32 out, no unit.

    The variation of ES-dLLM's importance score (arXiv 2603.10088, section 4.2, and its published code), before that divides
    by a row's maximum.
    """
    x, last = x.float(), last.float()
    return (x - last).abs().mean(-1) / (last.square().mean(-1).sqrt() + 1e-6)
