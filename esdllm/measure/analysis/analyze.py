"""Decodes prompts, makes every step's exact tensors again, and adds up what changed from one step to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch

from esdllm.errors import InputError
from esdllm.measure.analysis.replay import replay
from esdllm.measure.analysis.result import Analysis
from esdllm.measure.analysis.tally import Tally
from esdllm.measure.analysis.trajectory import decode
from esdllm.runtime.engine import Engine
from esdllm.views import Message, ModelSpec

__all__ = ["AnalysisInterrupted", "analyze"]


class AnalysisInterrupted(KeyboardInterrupt):
    """Ctrl-C, after at least one batch of prompts was compared."""

    def __init__(self, analysis: Analysis) -> None:
        super().__init__("the analysis was interrupted")
        self.analysis = analysis
        """of the batches that were done, as if no other prompt had been given"""


def analyze(
    engine: Engine,
    prompts: str | Sequence[str] | Sequence[Sequence[int]] | Sequence[Sequence[Message]],
    *,
    chat: bool | None = None,
    batch: int = 8,
    watch: Callable[[str, float], None] | None = None,
) -> Analysis:
    """Return what changes between consecutive steps when `engine` decodes `prompts`.

    Which tokens are committed, and when, is the engine's doing. The tensors are not: every canvas goes once more through
    a plain forward pass, so that they are exact under any preset. `batch` prompts are taken at a time; the result is the
    same for any number, up to rounding. `watch` gets what is being done and the share of all work that is done.

    The observation is that of ES-dLLM (arXiv 2603.10088, section 3).

    Raises:
        ConfigError: guidance is on.
        InputError: no prompt, one that cannot be decoded, or no run of two steps; or the model is block-causal.
        AnalysisInterrupted: Ctrl-C; holds what was found in the batches before. Plain KeyboardInterrupt in the first.
    """
    listed: Any = [prompts] if isinstance(prompts, str) else list(prompts)
    if not listed:
        raise InputError("there is no prompt to analyze; give at least one")
    _check_attention(engine.model.spec)
    if batch < 1:
        raise InputError(f"batch = {batch}: give at least 1 prompt at a time")
    watch = watch or (lambda stage, share: None)
    tally, done, steps = Tally(engine.model.spec), 0, 0
    with torch.inference_mode():
        while done < len(listed):
            kept = deepcopy(tally) if done else None
            try:
                more = _take(engine, listed, done, batch, chat, tally, watch)
            except KeyboardInterrupt:
                if kept is None or not kept.pairs:
                    raise
                raise AnalysisInterrupted(kept.result(done, steps)) from None
            done, steps = min(done + batch, len(listed)), steps + more
    if not tally.pairs:
        raise InputError(
            f"nothing to compare: every answer took a single step with gen_length = {engine.config.gen_length}; raise it, or "
            "commit fewer tokens per step"
        )
    return tally.result(len(listed), steps)


def _check_attention(spec: ModelSpec) -> None:
    if spec.attention is not None:
        raise InputError(
            f"{spec.family} is block-causal (blocks of {spec.attention.size}): what is left of its block never changes, and "
            "nothing right of it is seen, so there is nothing to measure between steps but the block; give a model whose "
            "positions see the whole canvas"
        )


def _take(
    engine: Engine,
    prompts: Any,
    start: int,
    batch: int,
    chat: bool | None,
    tally: Tally,
    watch: Callable[[str, float], None],
) -> int:
    """Add what changes between the steps of the next batch of prompts; return its steps, summed over the prompts."""
    chunk = prompts[start : start + batch]
    watch("decoding", start / len(prompts))
    rows = decode(engine, chunk, chat)
    most = max(row.states for row in rows)
    for number, changes in enumerate(replay(engine.model.adapter, rows)):
        for change in changes:
            tally.add(change)
        watch("comparing", (start + len(chunk) * (number + 1) / most) / len(prompts))
    return sum(row.states for row in rows)
