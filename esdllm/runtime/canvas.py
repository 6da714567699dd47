"""The canvas: the tokens being denoised, and what is known of each position. Allocated once per run, written in place."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from esdllm.plan import Block, Facts
from esdllm.runtime.layouts import undecided_positions
from esdllm.runtime.needs import CanvasNeeds
from esdllm.runtime.telling import numbers, told
from esdllm.views import ModelSpec

__all__ = ["Canvas"]


@attrs.frozen(eq=False)
class Canvas:
    """B rows of L columns. `tokens` and `given` go by column; the rest by computed position (column - logit shift)."""

    tokens: Tensor
    """(B, L) int64"""
    given: Tensor
    """(B, L) bool, columns that came with the input"""
    undecided: Tensor
    """(B, L) bool"""
    confidence: Tensor
    """(B, L) float32, what importance reads"""
    committed: Tensor
    """(B, L) bool, at the last step"""
    guess: Tensor
    """(B, L) int64, the last candidate; -1 if none yet"""
    guess_confidence: Tensor
    """(B, L) float32, its confidence"""
    logical: Tensor
    """(B, L) int64, positions counted from each row's first token"""
    bias: Tensor | None
    """(R, L), 0 at tokens and -inf at padding; None if nothing is padded"""
    padding: Tensor | None
    """(R,) int64, the columns of padding at each row's head; None if nothing is padded, or rows end with padding too"""
    offsets: Tensor
    """(B,) int64, each row's first column that is no padding"""
    columns: Tensor
    """(L,) int64, 0 to L - 1"""
    seeds: Tensor
    """(B,) int64"""
    poisoned: Tensor
    """(B,) int64, each row's first step whose numbers were none, or overflow in attention; -1 if none"""
    memory: Tensor | None
    """(B, L, M) float32, what the unmasking policy remembers; None if it remembers nothing"""
    score_memory: Tensor | None
    """(B, L, branches, layers, M) float32, what the scorer remembers at each layer; None if it remembers nothing"""
    entropy: Tensor | None
    """(B, L) float32, of the last logits, 0 where `confidence` is; None unless the scorer asks for it"""
    margin: Tensor | None
    """(B, L) float32, the first probability less the second; likewise"""
    revoked: Tensor | None
    """(B, L) bool, put back at the last step; None if the policy never revokes"""
    revisions: Tensor | None
    """(B, L) int64, how often a position may still be put back; None likewise"""
    edited: Tensor | None
    """(B, L) bool, replaced at the last step; None if the policy never edits"""
    edits_left: Tensor | None
    """(B,) int64, how many more steps may edit each row's block once no mask is left in it; None likewise"""
    drafts: Tensor | None
    """(B, L) int64, the tokens that undecided columns show to the model, the mask where none; None if the policy never drafts"""
    ends: Tensor | None
    """(B,) int64, where each row's block ended at the last step, 0 before the first; None if that is not told by step"""
    computed: Tensor | None
    """(B, L) bool, had logits at the last step; None if nobody watches"""
    drift: Tensor | None
    """(B, 2) float32, what the last refresh measured, of the block and of what is left of it; None if nothing measures"""
    spec: ModelSpec
    branches: int
    """1, or 2 under guidance: the prompt, and the prompt masked"""
    edits: int = 0
    """how many steps may edit a block once no mask is left in it"""
    apart: bool = False
    """whether each row goes by itself; if not, windows go by what any row of the batch committed, as published"""

    @classmethod
    def of(
        cls,
        tokens: Tensor,
        attention_mask: Tensor,
        seeds: Tensor,
        spec: ModelSpec,
        branches: int,
        device: torch.device,
        dtype: torch.dtype,
        asked: CanvasNeeds | None = None,
        watched: bool = False,
        apart: bool = False,
    ) -> Canvas:
        """Return the canvas of tokens (B, L) int64 and attention mask (B, L) bool, both on the host.

        `asked` is what components ask to be kept, nothing if None; `watched` says whether observers are told which positions
        had logits, `apart` whether each row goes by itself.
        """
        asked = asked or CanvasNeeds()

        bias = torch.zeros(tokens.shape, dtype=dtype).masked_fill(~attention_mask, float("-inf")).repeat(branches, 1)
        return cls(
            tokens=tokens.to(device, copy=True),
            given=(tokens != spec.mask_id).to(device),
            undecided=undecided_positions(tokens, spec).to(device),
            confidence=torch.zeros(tokens.shape, device=device),
            committed=torch.zeros_like(attention_mask, device=device),
            guess=torch.full_like(tokens, -1, device=device),
            guess_confidence=torch.zeros(tokens.shape, device=device),
            logical=(attention_mask.long().cumsum(1) - 1).clamp(min=0).to(device),
            bias=None if attention_mask.all() else bias.to(device),
            padding=_padding(attention_mask, branches, device),
            offsets=attention_mask.long().argmax(1).to(device),
            columns=torch.arange(tokens.shape[1], device=device),
            seeds=seeds.to(device),
            poisoned=torch.full((tokens.shape[0],), -1, dtype=torch.int64, device=device),
            computed=torch.zeros_like(attention_mask, device=device) if watched else None,
            **asked.tensors(tokens.shape, branches, spec.n_layers, device),
            spec=spec,
            branches=branches,
            edits=asked.edits or 0,
            apart=apart,
        )

    @property
    def form(self) -> tuple[object, ...]:
        """What canvases have in common of which one can take the other over: shapes, dtypes, and what is no tensor."""
        values = [getattr(self, field.name) for field in attrs.fields(Canvas)]
        return tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in values)

    def take_over(self, other: Canvas) -> None:
        """Copy another canvas of this one's form into this one's tensors."""
        for field in attrs.fields(Canvas):
            mine = getattr(self, field.name)
            if isinstance(mine, Tensor):
                mine.copy_(getattr(other, field.name))

    def rows(self, x: Tensor) -> Tensor:
        """Return x (B, ...) for every row of the model's batch: (R, ...)."""
        return x if self.branches == 1 else torch.cat([x] * self.branches)

    def inputs(self) -> Tensor:
        """Return what the model reads, (R, L) int64: the tokens, and under guidance the tokens with the prompt masked.

        What is drafted stands in the place of masks.
        """
        mask = self.spec.mask_id
        shown = self.tokens if self.drafts is None else torch.where(self.tokens == mask, self.drafts, self.tokens)
        return shown if self.branches == 1 else torch.cat([shown, shown.masked_fill(self.given, mask)])

    def masked(self, positions: Tensor, block: Tensor) -> Tensor:
        """Return (B, N) bool, which of the positions (B, N) are masked ones of the block (B, M)."""
        in_block = (positions >= block[:, :1]) & (positions <= block[:, -1:])
        return self.undecided.gather(1, positions) & in_block

    def leftmost_committed(self) -> Tensor:
        """Return (B, 1) int64, each row's leftmost position committed at the last step; L if none.

        Unless rows stand apart, (1, 1): the leftmost over all rows.
        """
        return self.first(self.committed if self.apart else self.committed.any(0, keepdim=True)).unsqueeze(1)

    def open(self, count: int) -> Tensor:
        """Return (B, count) int64, ascending: each row's positions undecided or committed at the last step.

        A row with fewer is filled up with the last of its others: what is decided and was computed since.
        """
        length = self.columns.shape[0]
        rank = self.columns + length * (self.undecided | self.committed)
        return rank.topk(count, dim=1).indices.sort(dim=1).values

    def commit(self, positions: Tensor, tokens: Tensor, selected: Tensor) -> None:
        """Write tokens (B, N) where selected (B, N), at distinct computed positions (B, N)."""
        self._write(self.committed.zero_().scatter_(1, positions, selected), positions, tokens)
        self.undecided.logical_and_(~self.committed)

    def _write(self, chosen: Tensor, positions: Tensor, tokens: Tensor, to: Tensor | None = None) -> None:
        """Write tokens (B, N), which computed positions (B, N) decide, where `chosen` (B, L), to the canvas' tokens or `to`."""
        shift = self.spec.logit_shift
        written = self.columns.shape[0] - shift
        candidates = torch.zeros_like(self.tokens).scatter(1, positions, tokens)
        target = (self.tokens if to is None else to)[:, shift:]
        target.copy_(torch.where(chosen[:, :written], candidates[:, :written], target))

    def changed(self) -> Tensor:
        """Return (B, L) bool, the positions that were committed, put back or replaced at the last step."""
        found = self.committed if self.revoked is None else self.committed | self.revoked
        return found if self.edited is None else found | self.edited

    def held(self, positions: Tensor) -> Tensor:
        """Return (B, N) int64, the tokens that computed positions (B, N) decide."""
        return self.tokens.roll(-self.spec.logit_shift, 1).gather(1, positions)

    def revocable(self, positions: Tensor) -> Tensor | None:
        """Return (B, N) bool, the positions (B, N) decided in this run that may be put back; None if none ever is."""
        return None if self.revisions is None else (self._own() & (self.revisions > 0)).gather(1, positions)

    def editable(self, positions: Tensor, masked: Tensor) -> Tensor | None:
        """Return (B, N) bool, the positions (B, N) decided in this run, if the row's block may be edited; None if none ever is.

        `masked` (B, N) are the masks among them. Where there are any, the steps that may edit it without one begin anew.
        """
        if self.edits_left is None:
            return None
        unfinished = masked.any(1)
        open_ = (unfinished | (self.edits_left > 0)).unsqueeze(1)
        self.edits_left.sub_(1).clamp_(min=0).masked_fill_(unfinished, self.edits)
        return self._own().gather(1, positions) & open_

    def _own(self) -> Tensor:
        """Return (B, L) bool, the positions that were decided in this run."""
        return ~self.given.roll(-self.spec.logit_shift, 1) & ~self.undecided

    def revoke(self, positions: Tensor, selected: Tensor) -> None:
        """Make masks again of what is selected (B, N), at distinct computed positions (B, N) that are revocable."""
        if self.revoked is None or self.revisions is None:
            return
        self.revoked.zero_().scatter_(1, positions, selected)
        self.undecided.logical_or_(self.revoked)
        self.revisions.sub_(self.revoked.long())
        self.tokens.masked_fill_(self.by_column(self.revoked), self.spec.mask_id)

    def edit(self, positions: Tensor, tokens: Tensor, selected: Tensor, masked: Tensor) -> None:
        """Write tokens (B, N) where selected (B, N), at distinct computed positions (B, N) that are editable.

        A row that had none of `masked` (B, N), and of which nothing is selected, is not edited again in this block.
        """
        if self.edited is None or self.edits_left is None:
            return
        self._write(self.edited.zero_().scatter_(1, positions, selected), positions, tokens)
        self.edits_left.masked_fill_(~(masked | selected).any(1), 0)

    def draft(self, positions: Tensor, tokens: Tensor) -> None:
        """Show tokens (B, N), -1 for the mask, while what computed positions (B, N), all distinct, decide is undecided."""
        if self.drafts is not None:
            told = torch.zeros_like(self.undecided).scatter(1, positions, True)
            self._write(told, positions, tokens.masked_fill(tokens < 0, self.spec.mask_id), self.drafts)

    def by_column(self, x: Tensor) -> Tensor:
        """Return x (B, L), which goes by computed position, by the column that each position decides."""
        return x.roll(self.spec.logit_shift, 1)

    def undecided_columns(self) -> Tensor:
        """Return (B, L) bool, the columns still to be decided."""
        return self.by_column(self.undecided)

    def first_stop(self, stop_ids: Tensor) -> Tensor:
        """Return (B,) int64, the first decided column that holds one of `stop_ids`; L if none does."""
        return self.first(self.stops(stop_ids, self.undecided_columns()))

    def stops(self, stop_ids: Tensor, undecided: Tensor) -> Tensor:
        """Return (B, L) bool, the decided columns that hold one of `stop_ids`; `undecided` (B, L) goes by column."""
        return torch.isin(self.tokens, stop_ids) & ~(self.given | undecided)

    def first(self, x: Tensor) -> Tensor:
        """Return (...) int64, the first column where x (..., L) bool holds; L if none.

        By a fill: torch.where with a number would copy it from the host and wait. As the largest distance from the end:
        compiled for AVX2, inductor's least of int64 is wrong, its largest right.
        """
        length = self.columns.shape[0]
        return length - (length - self.columns).expand(x.shape).masked_fill(~x, 0).amax(-1)

    def first_undecided(self) -> Tensor:
        """Return (B,) int64, each row's first undecided position; L if it has none."""
        return self.first(self.undecided)

    def facts(self, block: Block, stop_ids: Tensor) -> Facts:
        """Read from the device what planning asks for: the one wait of an adaptive run."""
        return told(self, numbers(self, block.start, block.stop, stop_ids).amax(0).tolist())

    def facts_of_rows(self, blocks: Tensor, stop_ids: Tensor) -> list[Facts]:
        """Read each row's facts at once, where blocks (B, 2) int64 says from where to where its block goes."""
        starts, stops = blocks.unsqueeze(1).unbind(2)
        return [told(self, row) for row in numbers(self, starts, stops, stop_ids).tolist()]


def _padding(attention_mask: Tensor, branches: int, device: torch.device) -> Tensor | None:
    if attention_mask.all() or not attention_mask[:, -1].all():
        return None
    return (~attention_mask).sum(1).repeat(branches).to(device)
