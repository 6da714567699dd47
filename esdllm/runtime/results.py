"""What was made, read from the device when all is over."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from esdllm.checkpoints.loading import Model
from esdllm.config import SECTIONS
from esdllm.errors import PluginError
from esdllm.runtime.canvas import Canvas
from esdllm.runtime.components import Components
from esdllm.runtime.diagnosis import raise_if_poisoned
from esdllm.runtime.records import Effort, Generation, until_stop

__all__ = ["generation"]


def generation(
    model: Model,
    components: Components,
    canvas: Canvas,
    stop_ids: Tensor,
    effort: Effort,
    room: int,
    spans: Sequence[slice],
    *,
    fill: bool,
    end: bool,
    complete: bool = True,
) -> Generation:
    """Return what was made behind `room`, the answers in the columns `spans`, and if `end` up to their first stop.

    `fill` writes end-of-text behind the first stop, so that a row is the same in any batch. Unless it is to be `complete`, masks
    may be left.

    Raises:
        NumericsError: NaN among the logits; says since which step and layer.
        PluginError: masks are left.
    """
    tokens = canvas.tokens.clone()
    answers: list[list[int]] = []
    committed = 0
    if not tokens.is_meta:
        raise_if_poisoned(model.adapter, canvas, components.named("sampler", "cache", "attention"))
        committed = int((~canvas.given & ~canvas.undecided_columns()).sum())
        if fill:
            first = canvas.first_stop(stop_ids).unsqueeze(1)
            tokens = tokens.masked_fill(canvas.columns > first, model.spec.eos_id)
        if complete:
            _check_decided((tokens == model.spec.mask_id) & ~canvas.given, components)
        tokens = tokens.cpu()
        answers = [row[span] for row, span in zip(tokens.tolist(), spans, strict=True)]
        answers = [until_stop(row, model.stop_ids) for row in answers] if end else answers
    return Generation(
        tokens=tokens[:, room:],
        answers=answers,
        text=[model.codec.decode(row) for row in answers] if model.codec else None,
        steps=effort.steps,
        forwards=effort.steps,
        committed=committed,
        layer_work=effort.layer_work * tokens.shape[0] * canvas.branches,
        layer_share=effort.layer_work / max(1, effort.vanilla_work),
        seconds=effort.seconds,
        compile_seconds=effort.compile_seconds,
        compute=model.compute,
    )


def _check_decided(left: Tensor, components: Components) -> None:
    """Refuse what a run made if masks (B, L) bool are left in it.

    Raises:
        PluginError: the components left them undecided, or the sampler chose the mask.
    """
    if left.any():
        row, column = left.nonzero()[0].tolist()
        raise PluginError(
            f"{int(left.sum())} masks are left at the end of the run, the first at row {row}, column {column}: a component "
            f"broke its contract; check {components.named(*SECTIONS[:6])} with esdllm.testing"
        )
