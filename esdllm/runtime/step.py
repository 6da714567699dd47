"""One denoising step: forward, candidates, commit. No hook, no name, no device read, no branch on a tensor's value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from esdllm.interfaces import TokenSampler
from esdllm.plan import StepPlan
from esdllm.runtime.canvas import Canvas
from esdllm.runtime.diagnosis import overflow_bound
from esdllm.runtime.forward import forward
from esdllm.runtime.parts import ForwardPass, Parts, StepInputs
from esdllm.runtime.signals import note_signals
from esdllm.views import Candidates, EndView, SampleView, UnmaskingView

__all__ = ["denoise"]


def denoise(parts: Parts, plan: StepPlan, canvas: Canvas, inputs: StepInputs) -> None:
    """Make one step: write the canvas and the cache in place."""
    hidden, positions, largest = forward(ForwardPass(parts, plan, canvas, inputs))
    logits = parts.model.logits(hidden)
    if canvas.branches > 1:
        logits = _guide(logits.float(), parts.cfg_scale)
    places = canvas.logical.gather(1, positions)
    shown = (canvas.undecided, canvas.tokens, canvas.logical)
    sampled = SampleView(logits, canvas.seeds, inputs.step, places, positions, *shown)
    found = _candidates(parts.sampler, sampled, canvas.spec.mask_id)
    masked = canvas.masked(positions, inputs.block)
    if canvas.ends is not None:
        masked = masked & (positions < _ends(parts, canvas, positions, found).unsqueeze(1))
    forbidden = _forbidden(canvas, positions, inputs.block, found.tokens) if parts.delay_eos else None
    eligible = masked if forbidden is None else masked & ~forbidden
    view = UnmaskingView(
        raw=logits,
        tokens=found.tokens,
        confidence=found.confidence,
        eligible=eligible,
        positions=places,
        previous_tokens=canvas.guess.gather(1, positions),
        previous_confidence=canvas.guess_confidence.gather(1, positions),
        quota=inputs.counts,
        step=inputs.step,
        seeds=canvas.seeds,
        columns=positions,
        undecided=canvas.undecided,
        step_in_block=inputs.step_in_block,
        block=inputs.block,
        block_number=inputs.block_number,
        block_length=inputs.block_length,
    )
    view = _remembering(parts.unmasking, canvas, _revising(canvas, view, masked, forbidden))
    selected = eligible if plan.leads else parts.unmasking.select(view)
    counted = (masked if canvas.spec.remembers_forbidden else eligible) & ~selected
    revoked, edited = _changed(parts.unmasking, view)
    drafted = _drafted(parts.unmasking, canvas, view)  # of what is undecided before the step
    counted = counted if revoked is None else counted | revoked
    _note(canvas, positions, found, counted)
    note_signals(canvas, positions, logits, counted)
    _check(canvas, inputs.step, largest, found.confidence)
    canvas.commit(positions, found.tokens, selected)
    if revoked is not None:
        canvas.revoke(positions, revoked)
    if edited is not None:
        canvas.edit(positions, found.tokens, edited, masked)
    if drafted is not None:
        canvas.draft(positions, drafted)


def _candidates(sampler: TokenSampler, view: SampleView, mask_id: int) -> Candidates:
    """Return candidates, of which the mask is none; the probability that it has still counts, as in the published code."""
    column = view.raw.select(-1, mask_id)
    held = column.clone()
    column.fill_(float("-inf"))
    found = sampler.sample(view)
    column.copy_(held)
    chosen = view.raw.gather(-1, found.tokens.unsqueeze(-1)).squeeze(-1)
    odds = (held.float() - chosen.float()).exp().clamp(max=1e30)  # of the mask against the candidate
    return found._replace(confidence=found.confidence / (1 + found.confidence * odds))


def _ends(parts: Parts, canvas: Canvas, positions: Tensor, found: Candidates) -> Tensor:
    """Return (B,) int64, where each row's block ends at this step; store that for the next."""
    assert parts.blocks is not None
    assert canvas.ends is not None
    own, first = ~canvas.given.roll(-canvas.spec.logit_shift, 1), canvas.first_undecided()
    view = EndView(
        first=first,
        begins=canvas.first(own),
        stops=(own * (canvas.columns + 1)).amax(1),
        ends=canvas.ends.clone(),
        committed=(own & ~canvas.undecided).sum(1),
        columns=positions,
        tokens=found.tokens,
        confidence=found.confidence,
        length=parts.block_length,
    )
    canvas.ends.copy_(parts.blocks.ends(view).maximum(first + 1))
    return canvas.ends


def _remembering(policy: Any, canvas: Canvas, view: UnmaskingView) -> UnmaskingView:
    """Return the view with what the policy remembers, this step included; store that for the next."""
    if canvas.memory is None:
        return view
    index = view.columns.unsqueeze(-1).expand(-1, -1, canvas.memory.shape[-1])
    memory = policy.remember(view._replace(memory=canvas.memory.gather(1, index)))
    canvas.memory.scatter_(1, index, memory)
    return view._replace(memory=memory)


def _revising(canvas: Canvas, view: UnmaskingView, masked: Tensor, forbidden: Tensor | None) -> UnmaskingView:
    """Return the view with what of the block may be put back or replaced, where the policy ever does; `masked` are its masks."""
    mine, editable = canvas.revocable(view.columns), canvas.editable(view.columns, masked)
    if (block := view.block) is None or (mine is None and editable is None):
        return view
    inside = (view.columns >= block[:, :1]) & (view.columns <= block[:, -1:])
    if mine is not None:
        unfinished = canvas.undecided.gather(1, block).any(
            1, keepdim=True
        )  # or what is put back would go by other rows
        mine = mine & inside & unfinished
    if editable is not None:
        editable = editable & inside if forbidden is None else editable & inside & ~forbidden
    return view._replace(held=canvas.held(view.columns), revocable=mine, editable=editable)


def _changed(policy: Any, view: UnmaskingView) -> tuple[Tensor | None, Tensor | None]:
    """Return (B, N) bool each, what the policy puts back and what it replaces; None where it never does."""
    return (
        None if view.revocable is None else policy.revoke(view) & view.revocable,
        None if view.editable is None else policy.edit(view) & view.editable,
    )


def _drafted(policy: Any, canvas: Canvas, view: UnmaskingView) -> Tensor | None:
    """Return (B, N) int64, the tokens that the policy shows in the place of masks from now on; None if it never drafts."""
    return None if canvas.drafts is None else policy.draft(view)


def _guide(logits: Tensor, scale: float) -> Tensor:
    """Return guided logits (B, N, V) of the branches' (2 B, N, V): u + (scale + 1) (c - u)."""
    conditional, unconditional = logits.chunk(2)
    return unconditional + (scale + 1) * (conditional - unconditional)


def _forbidden(canvas: Canvas, positions: Tensor, block: Tensor, tokens: Tensor) -> Tensor:
    """Return (B, N) bool: a row's first end-of-text, where the position before is in the block and still masked."""
    eos = canvas.spec.eos_id
    started = ((canvas.tokens == eos) & ~canvas.given).any(1, keepdim=True)
    before = canvas.undecided.gather(1, (positions - 1).clamp(min=0)) & (positions > block[:, :1])
    return (tokens == eos) & before & ~started


def _note(canvas: Canvas, positions: Tensor, found: Candidates, counted: Tensor) -> None:
    """Store what the next step may compare with."""
    canvas.confidence.scatter_(1, positions, found.confidence.masked_fill(~counted, 0.0))
    canvas.guess.scatter_(1, positions, found.tokens)
    canvas.guess_confidence.scatter_(1, positions, found.confidence)
    if canvas.computed is not None:
        canvas.computed.zero_().scatter_(1, positions, True)


def _check(canvas: Canvas, step: Tensor, largest: Tensor, confidence: Tensor) -> None:
    """Store of each row the first step whose numbers are none, or so large that products of queries and keys overflow."""
    largest = largest.unflatten(0, (canvas.branches, -1)).amax(0)
    sound = (largest < overflow_bound(canvas.spec)) & confidence.sum(1).isfinite()
    canvas.poisoned.copy_(torch.where(sound | (canvas.poisoned >= 0), canvas.poisoned, step))
