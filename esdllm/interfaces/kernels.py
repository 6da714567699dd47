"""Kernels: pure functions of tensors, called inside the step.

No device read, no branch on a tensor's value, output shapes known from input shapes. Shapes are those of `esdllm.views`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from esdllm.planning.planners import BlockSchedule, StepCounts
from esdllm.views import (
    BlockView,
    Candidates,
    EndView,
    ImportanceView,
    KeyValue,
    ModelSpec,
    Projection,
    SampleView,
    Signal,
    Site,
    UnmaskingView,
)

__all__ = [
    "AttentionBackend",
    "BlockAttention",
    "DraftingPolicy",
    "EditingPolicy",
    "EndingBlocks",
    "ImportanceScorer",
    "ModelAdapter",
    "MovingBlocks",
    "RememberingPolicy",
    "RememberingScorer",
    "RevokingPolicy",
    "SignalScorer",
    "SpreadAdapter",
    "TokenSampler",
    "UnmaskingPolicy",
]


class ImportanceScorer(Protocol):
    """Which positions matter most to the layers that follow."""

    @property
    def site(self) -> Site:
        """Where positions are scored and dropped."""
        ...

    @property
    def keeps_history(self) -> bool:
        """Whether `view.last` is read; if not, nothing is remembered and no memory is taken."""
        ...

    def score(self, view: ImportanceView) -> Tensor:
        """Return (R, N) float32, higher survives. The leftmost masked position always survives, whatever its score."""
        ...


@runtime_checkable
class RememberingScorer(ImportanceScorer, Protocol):
    """A scorer that goes by what earlier steps showed. The numbers it remembers are kept by the runtime, layer by layer.

    A scorer is a pure function: one that kept state of its own would see other rows' numbers, and would not compile.
    """

    @property
    def memory(self) -> int:
        """M, the floats remembered of each position at each layer that drops; all 0 at first."""
        ...

    def remember(self, view: ImportanceView) -> Tensor:
        """Return (R, N, M) float32: `view.memory`, as this layer last left it, with this step added.

        Called at each layer that drops positions, of all that come to it and before `score`, whose view carries what was
        returned. A step that drops none leaves everything as it is.
        """
        ...


@runtime_checkable
class SignalScorer(ImportanceScorer, Protocol):
    """A scorer that goes by more of a position's last logits than the candidate's confidence. No other pays for it."""

    @property
    def signals(self) -> Collection[Signal]:
        """Which fields of the view are filled: "entropy", "margin"."""
        ...


class TokenSampler(Protocol):
    """Which token to put at a position. Where to put one is the unmasking policy's decision."""

    def sample(self, view: SampleView) -> Candidates:
        """Return a candidate for every position."""
        ...


class UnmaskingPolicy(StepCounts, Protocol):
    """How many positions to commit at a step, and which."""

    def select(self, view: UnmaskingView) -> Tensor:
        """Return (B, N) bool, a subset of `view.eligible`."""
        ...


@runtime_checkable
class RememberingPolicy(UnmaskingPolicy, Protocol):
    """An unmasking policy that goes by what earlier steps showed. The numbers it remembers are kept by the runtime."""

    @property
    def memory(self) -> int:
        """M, the floats remembered of each position; all 0 at first."""
        ...

    def remember(self, view: UnmaskingView) -> Tensor:
        """Return (B, N, M) float32: `view.memory`, left when each position last had logits, with this step added.

        Called once per step, before `select`, whose view carries what was returned.
        """
        ...


@runtime_checkable
class RevokingPolicy(UnmaskingPolicy, Protocol):
    """An unmasking policy that may take a decision back. Its `counts` returns None."""

    @property
    def revisions(self) -> int:
        """How often a position may be put back; the runtime counts, so that a run ends."""
        ...

    def revoke(self, view: UnmaskingView) -> Tensor:
        """Return (B, N) bool, the positions that become masks again, a subset of `view.revocable`."""
        ...


@runtime_checkable
class EditingPolicy(UnmaskingPolicy, Protocol):
    """An unmasking policy that may replace a token that it has decided. Its `counts` returns None."""

    @property
    def editing_steps(self) -> int:
        """How many more steps a block gets once no mask is left in it; fewer if one of them replaces nothing."""
        ...

    def edit(self, view: UnmaskingView) -> Tensor:
        """Return (B, N) bool, the positions whose token becomes the candidate, a subset of `view.editable`."""
        ...


@runtime_checkable
class DraftingPolicy(UnmaskingPolicy, Protocol):
    """An unmasking policy that shows the model tokens which are not decided, in the place of masks."""

    def draft(self, view: UnmaskingView) -> Tensor:
        """Return (B, N) int64, the token that each position shows from the next step on while it is undecided, -1 for the mask.

        A position without logits at a step goes on showing what it did.
        """
        ...


@runtime_checkable
class MovingBlocks(BlockSchedule, Protocol):
    """A block schedule that places each row's block where the row is. All blocks are as long as `next_block`'s first."""

    @property
    def reach(self) -> int:
        """How many positions before the block a window of the block computes too, so that late commits reach the cache.

        No more than stand before the first block: where prompts are shorter than that, the batch decides.
        """
        ...

    def starts(self, view: BlockView) -> Tensor:
        """Return (B,) int64, each row's first position of its block; the runtime keeps the block within the canvas."""
        ...


@runtime_checkable
class EndingBlocks(MovingBlocks, Protocol):
    """A schedule of moving blocks that tells at each step, once its logits are known, where each row's block ends.

    `next_block`'s first is as long as a block can become: so many positions are computed, and only those before the end decided.
    """

    def ends(self, view: EndView) -> Tensor:
        """Return (B,) int64, one beyond the last column that each row may decide now; its first undecided one always may be."""
        ...


class AttentionBackend(Protocol):
    """Scaled dot-product attention without causality."""

    @property
    def rank(self) -> int | None:
        """Where `attention = "auto"` tries it, lower first; None if it serves by name only.

        One that serves everywhere has 20, so that one with less goes before it where it can serve, and only there.
        """
        ...

    def problems(self, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[str]:
        """Return why this backend cannot serve; empty if it can."""
        ...

    def attend(self, queries: Tensor, read: KeyValue) -> Tensor:
        """Return (R, N, H, D) from queries (R, N, H, D) and what they read: K keys and values of G heads, H a multiple of G."""
        ...


@runtime_checkable
class BlockAttention(AttentionBackend, Protocol):
    """An attention backend that serves block-causal models too: it leaves out what `KeyValue.query_blocks` says."""

    @property
    def block_causal(self) -> bool:
        """Whether a query reads those keys alone whose number in `read.key_blocks` is no higher than its own."""
        ...


class ModelAdapter(Protocol):
    """A model opened where the runtime needs to reach in: between its layers, and between attention's two halves."""

    @property
    def spec(self) -> ModelSpec:
        """The model's geometry and special ids."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What the hidden states are made of."""
        ...

    def embed(self, tokens: Tensor) -> Tensor:
        """Return hidden states (R, N, C) of tokens (R, N)."""
        ...

    def encode(self, positions: Tensor) -> Any:
        """Return what `project` needs of positions (R, N) int64 counted without padding; computed once a drop."""
        ...

    def project(self, layer: int, hidden: Tensor, places: Any, readers: Tensor | None = None) -> Projection:
        """Return queries, keys and values of hidden (R, N, C) at `places`.

        `readers` (M,) int64 names the positions, by index into N, whose queries are wanted; None for all.
        """
        ...

    def mix(self, layer: int, hidden: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output (R, N, C) from its input and the attention's result (R, N, H, D)."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (R, N, V) of the tokens at `positions + logit_shift`."""
        ...


@runtime_checkable
class SpreadAdapter(ModelAdapter, Protocol):
    """A model that computes on several devices. Its steps are not recorded as CUDA graphs."""

    @property
    def devices(self) -> Sequence[torch.device]:
        """Where it computes, each device once."""
        ...
