"""What kernels receive and return: in the step, and where blocks are placed."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

__all__ = [
    "BlockView",
    "Candidates",
    "EndView",
    "ImportanceView",
    "Projection",
    "SampleView",
    "Signal",
    "Site",
    "UnmaskingView",
]

Site = Literal["hidden", "query", "key", "value"]
"""The tensor whose variation is scored: a layer's output, or its query, key or value after RoPE."""

Signal = Literal["entropy", "margin"]
"""What a position's logits show beyond the candidate's confidence: the distribution's entropy in nats, or the most probable
token's probability less the second's."""


class ImportanceView(NamedTuple):
    """What a scorer may read of the positions still alive in a layer."""

    layer: int
    """number of the layer, from 0"""
    x: Tensor
    """(R, N, F) the tensor at the scorer's site"""
    last: Tensor
    """(R, N, F) the same when the position last survived this layer; `x` itself if the scorer keeps no history"""
    confidence: Tensor
    """(R, N) float32, of the last time the position had logits; 0 outside the masked positions of the block"""
    undecided: Tensor
    """(R, N) bool, masked positions of the block"""
    committed: Tensor
    """(R, N) bool, committed at the last step, or put back"""
    positions: Tensor
    """(R, N) int64, in no particular order, counted from the row's first real token, so that padding changes nothing"""
    seeds: Tensor
    """(R,) int64, one per row"""
    step: Tensor
    """(R,) int64, the steps that each row has behind it"""
    entropy: Tensor | None = None
    """(R, N) float32, in nats, of the last time the position had logits, and 0 where `confidence` is; None unless the scorer
    asks for it (see `SignalScorer`)"""
    margin: Tensor | None = None
    """(R, N) float32, the most probable token's probability less the second's; likewise"""
    memory: Tensor | None = None
    """(R, N, M) float32, what the scorer remembers of each position at this layer; None if it remembers nothing"""


class SampleView(NamedTuple):
    """What a sampler may read."""

    raw: Tensor
    """(B, N, V) logits as the head gives them, in the model's dtype; guided ones are float32"""
    seeds: Tensor
    """(B,) int64, one per row"""
    step: Tensor
    """(B,) int64, the steps that each row has behind it"""
    positions: Tensor
    """(B, N) int64, positions counted from the row's first real token, so that padding changes nothing"""
    columns: Tensor | None = None
    """(B, N) int64, the same positions counted with padding: indices into what follows; None where a view was made by hand"""
    undecided: Tensor | None = None
    """(B, L) bool, every masked position of the canvas, those without logits too; likewise"""
    canvas: Tensor | None = None
    """(B, L) int64, the tokens by column, with masks; likewise"""
    logical: Tensor | None = None
    """(B, L) int64, every column's position counted from the row's first real token, 0 before it; likewise"""

    @property
    def logits(self) -> Tensor:
        """(B, N, V) float32, made anew at each use if the model's dtype is another."""
        return self.raw.float()


class Candidates(NamedTuple):
    """What to put at each position, and how sure the model is of it."""

    tokens: Tensor
    """(B, N) int64"""
    confidence: Tensor
    """(B, N) float32, the token's probability under the unperturbed logits"""


class BlockView(NamedTuple):
    """What a schedule of moving blocks may read, in computed positions."""

    first: Tensor
    """(B,) int64, each row's first undecided position; L if it has none"""
    undecided: Tensor
    """(B, L) bool"""
    begin: int
    """the first position that any row had to decide"""
    stop: int
    """one beyond the last"""
    length: int
    """M, positions of a block"""


class EndView(NamedTuple):
    """What a schedule may read that tells at each step where blocks end; the step's positions are ascending."""

    first: Tensor
    """(B,) int64, each row's first undecided column; L if it has none"""
    begins: Tensor
    """(B,) int64, the first column that the row has to decide in the run"""
    stops: Tensor
    """(B,) int64, one beyond the last"""
    ends: Tensor
    """(B,) int64, where its block ended at the last step; 0 at the first"""
    committed: Tensor
    """(B,) int64, how many columns it has decided in the run"""
    columns: Tensor
    """(B, N) int64, the columns that have logits at this step"""
    tokens: Tensor
    """(B, N) int64, their candidates"""
    confidence: Tensor
    """(B, N) float32, of the candidates"""
    length: int
    """block_length, as it is set"""


class UnmaskingView(NamedTuple):
    """What an unmasking policy may read; every tensor is (B, N, ...), ascending in position, where not said otherwise."""

    raw: Tensor
    """(B, N, V) logits as the head gives them, in the model's dtype; guided ones are float32"""
    tokens: Tensor
    """int64, the candidates"""
    confidence: Tensor
    """float32, of the candidates"""
    eligible: Tensor
    """bool, positions that may be committed now"""
    positions: Tensor
    """int64, counted from the row's first real token"""
    previous_tokens: Tensor
    """int64, the candidates when the position last had logits; -1 if never"""
    previous_confidence: Tensor
    """float32, their confidence; 0 if never"""
    quota: Tensor
    """(B,) int64, the planned number; where `counts` returned None the least, or meaningless if
    the policy knows none"""
    step: Tensor
    """(B,) int64, the steps that each row has behind it"""
    seeds: Tensor
    """(B,) int64"""
    columns: Tensor
    """int64, the same positions counted with padding, ascending: indices into `undecided`"""
    undecided: Tensor
    """(B, L) bool, every masked position of the canvas, those without logits too"""
    memory: Tensor | None = None
    """(B, N, M) float32, what the policy remembers of each position; None if it remembers nothing"""
    held: Tensor | None = None
    """int64, the tokens that stand there now, the mask's id where undecided; None unless the policy may revoke or edit"""
    revocable: Tensor | None = None
    """bool, decided in this run, in the block, and not yet put back as often as may be; None unless the policy may revoke"""
    editable: Tensor | None = None
    """bool, decided in this run, in a block that may still be edited; None unless the policy may edit"""
    step_in_block: Tensor | None = None
    """(B,) int64, the steps that each row's block has behind it; None where a view was made by hand"""
    block: Tensor | None = None
    """(B, M) int64, the columns of each row's block; likewise"""
    block_number: Tensor | None = None
    """(B,) int64, the number of each row's block in the canvas, from 0; 0 where blocks move; likewise"""
    block_length: Tensor | None = None
    """(B,) int64, the positions of each row's block: M, or fewer where columns behind the row fill it up; likewise"""

    @property
    def logits(self) -> Tensor:
        """(B, N, V) float32, made anew at each use if the model's dtype is another."""
        return self.raw.float()


class Projection(NamedTuple):
    """Queries (R, M, H, D), keys and values (R, N, G, D), after RoPE."""

    queries: Tensor
    """(R, M, H, D), of the positions that attend"""
    keys: Tensor
    """(R, N, G, D)"""
    values: Tensor
    """(R, N, G, D)"""
