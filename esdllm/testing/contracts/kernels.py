"""Checks of what a step decides by: token samplers, unmasking policies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from esdllm.errors import ConfigError
from esdllm.interfaces import (
    BlockCounts,
    DraftingPolicy,
    EditingPolicy,
    RememberingPolicy,
    RevokingPolicy,
    TokenSampler,
    UnmaskingPolicy,
)
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.faults import (
    candidates_fault,
    draft_fault,
    memory_fault,
    numbers,
    selection_fault,
)
from esdllm.runtime.samples import sample_view, unmasking_view
from esdllm.testing.contracts.generation import check_generation, short_config
from esdllm.testing.contracts.laws import close, kernel_laws, law, member_laws, pure, row_laws
from esdllm.views import SampleView, UnmaskingView

__all__ = ["check_token_sampler", "check_unmasking_policy", "selected"]


def check_token_sampler(sampler: TokenSampler) -> None:
    """Check a token sampler, by itself and in whole generations of a tiny model.

    Candidates are (B, N): tokens int64 of the vocabulary, none whose logit is -inf, and their probability under the
    unperturbed logits, float32. What
    is drawn depends on a row's seed, the step and the position alone, so a row's is that of the row alone, and a
    position's is the same wherever it stands. And what every kernel holds to.

    Raises:
        AssertionError: a law fails; says which.
    """
    who, view = member_laws("sampler", sampler), sample_view()
    kernel_laws(who, sampler.sample, view)
    row_laws(who, sampler.sample, view)
    for other in (
        view,
        sample_view(1, window=1),
        sample_view(2, rows=1, sharp=30.0),
        sample_view(3, vocab=2, sharp=0.01),
        view._replace(raw=view.raw.bfloat16()),
    ):
        _candidate_laws(who, sampler, other)
    _mask_law(who, sampler)
    check_generation(sampler=sampler)


def _mask_law(who: str, sampler: TokenSampler) -> None:
    """What has a logit of -inf, as the mask token has in a run, is never chosen, be it the likeliest otherwise."""
    view = sample_view(4, vocab=3)
    for token in range(3):
        raw = view.raw.clone()
        raw[..., token] = float("-inf")
        silenced = view._replace(raw=raw)
        law(not (fault := candidates_fault(pure(who, sampler.sample)(silenced), silenced)), f"{who} {fault}")


def _candidate_laws(who: str, sampler: TokenSampler, view: SampleView) -> None:
    found = pure(who, sampler.sample)(view)
    law(not (fault := candidates_fault(found, view)), f"{who} {fault}")
    expected = view.logits.softmax(-1).gather(-1, found.tokens.unsqueeze(-1)).squeeze(-1)
    law(
        close(found.confidence, expected),
        f"{who}: confidence {numbers(found.confidence)} is not the tokens' probability under the unperturbed logits, "
        f"{numbers(expected)}",
    )
    flipped = sampler.sample(view._replace(raw=view.raw.flip(1), positions=view.positions.flip(1)))
    law(
        torch.equal(flipped.tokens.flip(1), found.tokens),
        f"{who}: a candidate does not go with its position: {numbers(flipped.tokens.flip(1))} where the positions came "
        f"the other way round, and {numbers(found.tokens)} where they did not",
    )


def check_unmasking_policy(policy: UnmaskingPolicy) -> None:
    """Check an unmasking policy, one with a memory too, by itself and in whole generations of a tiny model.

    What it selects is (B, N) bool, a subset of the eligible; as many as planned where it plans, and at least one where it
    does not, if any is eligible; the same wherever padding stands; a row's as for the row alone. `counts` suffice for the
    masks, or are None whatever is asked. A policy with a memory returns it as (B, N, M) float32 and leaves the old one as
    it was; one that revokes or edits does so with a subset of what it may, and plans nothing; one that revokes may select
    none in the first `revisions` steps of a block; one that goes by the block and by the logits commits at least as many
    as the block asks for. And what every kernel holds to.

    Raises:
        AssertionError: a law fails; says which.
    """
    who = member_laws("unmasking", policy)
    planned, size = _count_laws(who, policy), policy.memory if isinstance(policy, RememberingPolicy) else 0
    law(isinstance(size, int) and size >= 0, f"{who}: memory = {size!r}; give a number of floats")
    made = partial(
        unmasking_view,
        memory=size,
        revokes=isinstance(policy, RevokingPolicy),
        edits=isinstance(policy, EditingPolicy),
    )
    kernel_laws(who, policy.select, _memory_laws(who, policy, made, size) if size else made())
    row_laws(who, lambda one: selected(policy, one), made())
    for seed, quota in ((1, 1), (2, 3), (3, 20)):
        other = made(seed, quota=quota, sharp=0.5 if seed == 1 else 9.0)
        _selection_laws(who, policy, other, planned)
        padded = made(seed, quota=quota, sharp=0.5 if seed == 1 else 9.0, padding=5)
        law(
            torch.equal(selected(policy, padded), selected(policy, other)),
            f"{who} selects others where 5 columns of padding stand before; `positions` are counted without padding",
        )
    none = made(4)
    _selection_laws(who, policy, none._replace(eligible=torch.zeros_like(none.eligible)), planned)
    if isinstance(policy, RevokingPolicy):
        least = type(policy.revisions) is int and policy.revisions >= 1
        law(least, f"{who}: revisions = {policy.revisions!r}; give 1 or more")
        _changing_laws(who, "revokes", policy.revoke, made(5), made(5).revocable, planned)
    if isinstance(policy, EditingPolicy):
        least = type(policy.editing_steps) is int and policy.editing_steps >= 0
        law(least, f"{who}: editing_steps = {policy.editing_steps!r}; give 0 or more")
        _changing_laws(who, "edits", policy.edit, made(5), made(5).editable, planned)
    if isinstance(policy, DraftingPolicy):
        law(not (fault := draft_fault(kernel_laws(who, policy.draft, made(5)), made(5))), f"{who} {fault}")
    check_generation(unmasking=policy)
    if not planned:  # rows are apart only where nothing is skipped
        check_generation(short_config(Catalogue.load(), skips=False), unmasking=policy)


def selected(policy: UnmaskingPolicy, view: UnmaskingView) -> Tensor:
    """Return what a policy selects, having remembered what it remembers, as the runtime does at each step."""
    if view.memory is not None:
        view = view._replace(memory=policy.remember(view))  # type: ignore[attr-defined]
    return policy.select(view)


def _count_laws(who: str, policy: UnmaskingPolicy) -> bool:
    """Return whether the policy plans how many it commits."""
    answers = []
    for masked in (1, 2, 7, 8, 64):
        for blocks in (1, 2, 4):
            try:
                counts = policy.counts(masked, blocks)
            except ConfigError:  # it refuses blocks that its steps cannot be shared by
                continue
            answers.append(counts is None)
            if counts is None:
                continue
            plain = isinstance(counts, tuple) and all(type(count) is int and count >= 0 for count in counts)
            law(plain, f"{who}.counts({masked}, {blocks}) = {counts!r:.80}; give a tuple of whole numbers, or None")
            law(sum(counts) >= masked, f"{who}.counts({masked}, {blocks}) = {counts!r:.80} do not suffice for {masked}")
    if isinstance(policy, BlockCounts):
        _block_count_laws(who, policy)
    law(bool(answers), f"{who}.counts refuses every number of masks and blocks that was tried")
    law(
        len(set(answers)) == 1, f"{who}.counts is None for some numbers of masks and not for others; it is one or other"
    )
    return not answers[0]


def _selection_laws(who: str, policy: UnmaskingPolicy, view: UnmaskingView, planned: bool) -> None:
    chosen = pure(who, lambda one: selected(policy, one))(view)
    law(not (fault := selection_fault(chosen, view.eligible)), f"{who} {fault}")
    number, eligible = chosen.sum(1), view.eligible.sum(1)
    if planned:
        law(
            torch.equal(number, torch.minimum(view.quota, eligible)),
            f"{who} selected {numbers(number)} in each row; planned are {numbers(view.quota)} of {numbers(eligible)} "
            "eligible, and fewer only where fewer are eligible",
        )
    if not planned and isinstance(policy, BlockCounts) and policy.block_counts(8, 1) is not None:
        law(
            bool((number >= torch.minimum(view.quota, eligible)).all()),
            f"{who} selected {numbers(number)} in each row; planned are {numbers(view.quota)} of {numbers(eligible)} eligible",
        )
    if isinstance(policy, RevokingPolicy):  # one that goes by its steps may wait, until it has made them
        late = view._replace(step_in_block=torch.full_like(view.quota, policy.revisions))
        number = selected(policy, late).sum(1)
    law(
        bool((number >= eligible.clamp(max=1)).all()),
        f"{who} selected {numbers(number)} of {numbers(eligible)} eligible; a step that selects none never ends",
    )


def _memory_laws(who: str, policy: Any, made: Callable[[int], UnmaskingView], size: int) -> UnmaskingView:
    """Return the view of a second step, with what the first left."""
    view = made(0)
    for seed in (0, 1):
        step = made(seed)._replace(memory=view.memory)
        kept = kernel_laws(f"{who}.remember", policy.remember, step)
        law(not (fault := memory_fault(kept, view, size)), f"{who} {fault}")
        row_laws(f"{who}.remember", policy.remember, step)
        view = step._replace(memory=kept)
    return view


def _block_count_laws(who: str, policy: BlockCounts) -> None:
    for length in (1, 2, 7, 8, 64):
        for blocks in (1, 2, 4):
            found = policy.block_counts(length, blocks)
            plain = found is None or (isinstance(found, tuple) and all(type(n) is int and n >= 1 for n in found))
            law(
                plain,
                f"{who}.block_counts({length}, {blocks}) = {found!r:.80}; give a tuple of whole numbers above 0, or None",
            )
            law(
                found is None or sum(found) >= length,
                f"{who}.block_counts({length}, {blocks}) = {found!r:.80} do not suffice for {length}",
            )


def _changing_laws(
    who: str,
    verb: str,
    call: Callable[[UnmaskingView], Tensor],
    view: UnmaskingView,
    allowed: Tensor | None,
    planned: bool,
) -> None:
    """What is put back, or replaced, is a subset of what may be, and a row's own."""
    law(not planned, f"{who} {verb}, so how many steps a block takes is not known; its counts return None")
    name, does, may = {"revokes": ("revoke", "puts back", "revocable"), "edits": ("edit", "replaces", "editable")}[verb]
    changed = kernel_laws(f"{who}.{name}", call, view)
    allowed = torch.zeros_like(view.eligible) if allowed is None else allowed
    law(not (fault := selection_fault(changed, allowed, does, may)), f"{who} {fault}")
    row_laws(f"{who}.{name}", call, view)
