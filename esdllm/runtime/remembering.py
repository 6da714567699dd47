"""What a scorer remembers: numbers of each position at each layer, kept on the canvas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from esdllm.runtime.canvas import Canvas
from esdllm.views import ImportanceView

__all__ = ["remembering"]


def remembering(scorer: Any, canvas: Canvas, view: ImportanceView, columns: Tensor) -> ImportanceView:
    """Return a scorer's view of columns (R, N) with what it remembers, this step included; store that for the next."""
    if canvas.score_memory is None:
        return view
    held = canvas.score_memory[:, :, :, view.layer]  # (B, L, branches, M), a view
    index = columns[: len(held)].unsqueeze(-1).expand(-1, -1, held.shape[-1])  # both branches compute the same columns
    before = [held[:, :, branch].gather(1, index) for branch in range(canvas.branches)]
    memory: Tensor = scorer.remember(view._replace(memory=before[0] if len(before) == 1 else torch.cat(before)))
    for branch, part in enumerate(memory.chunk(canvas.branches)):
        held[:, :, branch].scatter_(1, index, part)
    return view._replace(memory=memory)
