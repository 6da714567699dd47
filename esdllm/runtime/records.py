"""What a generation returns."""

from __future__ import annotations

from collections.abc import Container, Sequence

import attrs
from torch import Tensor

from esdllm.plan import Step

__all__ = ["Effort", "Generation", "until_stop"]


@attrs.frozen
class Effort:
    """What decoding took."""

    steps: int = 0
    """denoising steps made"""
    layer_work: int = 0
    """positions of a row computed, summed over layers and steps"""
    vanilla_work: int = 0
    """those that vanilla decoding computes in as many steps"""
    seconds: float = 0.0
    """wall-clock time of the steps"""
    compile_seconds: float = 0.0
    """of which in the first call of each plan that was compiled"""

    def after(self, step: Step, length: int, seconds: float = 0.0, compile_seconds: float = 0.0) -> Effort:
        """Return this with a step more, on a canvas of `length` columns."""
        seen = length if step.sight is None else step.sight
        return Effort(
            self.steps + 1,
            self.layer_work + step.plan.layer_work(),
            self.vanilla_work + len(step.plan.keep) * seen,
            self.seconds + seconds,
            self.compile_seconds + compile_seconds,
        )


@attrs.frozen(eq=False)
class Generation:
    """The result of `Engine.generate`, B rows."""

    tokens: Tensor
    """(B, L) int64 on the host (on the meta device for shape-only runs), prompts included"""
    answers: list[list[int]]
    """for every row, the tokens after its prompt, up to the first end-of-text or end of turn; when infilling, the whole
    row without its padding"""
    text: list[str] | None
    """the answers as text; None without a tokenizer"""
    steps: int
    """denoising steps made"""
    forwards: int
    """forward passes of the model (NFE); under guidance a pass holds both branches"""
    committed: int
    """positions decided, over all rows, ends of text included"""
    layer_work: int
    """positions computed, summed over layers, steps and rows"""
    layer_share: float
    """positions computed in all layers, as a share of what vanilla decoding computes in as many steps: the canvas, or in a
    block-causal model all up to the block's end"""
    seconds: float
    """wall-clock time of the steps"""
    compile_seconds: float
    """of which in the first call of each plan that was compiled"""
    compute: str | None = None
    """the kernel of linear layers that the model was loaded with; None as in `Model`"""

    @property
    def answer_tokens(self) -> int:
        """Tokens of the answers, over all rows, ends of text not counted."""
        return sum(len(answer) for answer in self.answers)

    @property
    def tokens_per_forward(self) -> float:
        """Answer tokens per row and forward pass."""
        return self.answer_tokens / max(1, self.forwards * len(self.answers))

    @property
    def canvas_tokens_per_forward(self) -> float:
        """Positions decided per row and forward pass, ends of text included."""
        return self.committed / max(1, self.forwards * len(self.answers))

    @property
    def tokens_per_second(self) -> float:
        """Answer tokens per second, over all rows."""
        return self.answer_tokens / self.seconds if self.seconds else 0.0


def until_stop(tokens: Sequence[int], stop_ids: Container[int]) -> list[int]:
    """Return tokens up to the first that ends an answer."""
    return list(tokens[: next((i for i, token in enumerate(tokens) if token in stop_ids), len(tokens))])
