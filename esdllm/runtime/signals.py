"""What logits show beyond the candidate's confidence, where a scorer asks for it."""

from __future__ import annotations

from torch import Tensor

from esdllm.runtime.canvas import Canvas

__all__ = ["note_signals"]


def note_signals(canvas: Canvas, positions: Tensor, logits: Tensor, counted: Tensor) -> None:
    """Store what logits (B, N, V) of positions (B, N) show, and 0 where they are not `counted` (B, N); nothing if none asks."""
    for held, measure in ((canvas.entropy, _entropy), (canvas.margin, _margin)):
        if held is not None:
            held.scatter_(1, positions, measure(logits.float()).masked_fill(~counted, 0.0))


def _entropy(logits: Tensor) -> Tensor:
    """Return (B, N) float32, in nats; a token whose logit is -inf counts for nothing."""
    log_probability = logits.log_softmax(-1)
    return -(log_probability.exp() * log_probability).nan_to_num(0.0).sum(-1)


def _margin(logits: Tensor) -> Tensor:
    """Return (B, N) float32, the most probable token's probability less the second's."""
    first, second = logits.softmax(-1).topk(2, dim=-1).values.unbind(-1)
    return first - second
