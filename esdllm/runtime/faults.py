"""What may be wrong with what a kernel gives, each fault as a sentence that only lacks its subject; empty if nothing is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from esdllm.views import Candidates, ImportanceView, SampleView, UnmaskingView

STATELESS = (
    "a scorer is a pure function of its view, for steps are compiled, replayed without its Python, and made over any rows: what "
    "it goes by from earlier steps the runtime keeps for it, as numbers of each position, if it implements RememberingScorer "
    "(memory, remember(view)); noise is esdllm.uniform's"
)
"""What to tell the author of a scorer that keeps state."""

__all__ = [
    "STATELESS",
    "candidates_fault",
    "change_fault",
    "copied",
    "draft_fault",
    "memory_fault",
    "numbers",
    "score_fault",
    "scored",
    "selection_fault",
    "state_fault",
    "tensor_fault",
]


def numbers(x: Any) -> str:
    """Return a tensor's values in one line, cut short; anything else as it is."""
    if isinstance(x, Tensor):
        return str(x.tolist() if not x.is_meta else tuple(x.shape))[:200]
    return str(x)[:200]


def copied(view: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a view whose tensors are copies."""
    made: tuple[Any, ...] = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, view)
    return made


def change_fault(view: tuple[Any, ...], before: tuple[Any, ...]) -> str:
    """Return which tensor of a view differs from the copy that was made before a call."""
    for name, old, new in zip(getattr(view, "_fields", range(len(view))), before, view, strict=True):
        if isinstance(old, Tensor) and not (old.shape == new.shape and torch.equal(*_comparable(old, new))):
            return f"changes its input '{name}'; a kernel is a pure function"
    return ""


def _comparable(*pair: Tensor) -> tuple[Tensor, ...]:
    """Return tensors in which what is no number equals itself."""
    return tuple(x.nan_to_num(0.5, 0.25, 0.125) if x.is_floating_point() else x for x in pair)


def state_fault(call: Callable[[Any], Any], view: tuple[Any, ...], other: tuple[Any, ...]) -> str:
    """Return how a call that should be a pure function is none: what it gives of a view goes by what it saw before."""
    first = call(view)
    call(other)
    again = call(view)
    mine, theirs = (
        [_comparable(x)[0] for x in tree_leaves(found) if isinstance(x, Tensor)] for found in (first, again)
    )
    if len(mine) == len(theirs) and all(map(torch.equal, mine, theirs)):
        return ""
    return (
        f"is not deterministic: it gives {numbers(again)[:60]} of a view of which it gave {numbers(first)[:60]} before it saw "
        "another, so it keeps state or draws chance of its own"
    )


def tensor_fault(what: str, x: Any, shape: Sequence[int], dtype: torch.dtype) -> str:
    """Return how `x` differs from a tensor of a shape and dtype."""
    if not isinstance(x, Tensor):
        return f"returned {type(x).__name__} as {what}; return a tensor {tuple(shape)}"
    if tuple(x.shape) == tuple(shape) and x.dtype == dtype:
        return ""
    return f"returned {what} of {tuple(x.shape)} {x.dtype}; it must be {tuple(shape)} {dtype}"


def scored(scorer: Any, view: ImportanceView) -> Any:
    """Return a scorer's score, what it remembers remembered before, as the runtime does."""
    return scorer.score(view if view.memory is None else view._replace(memory=scorer.remember(view)))


def score_fault(score: Any, view: ImportanceView) -> str:
    """Return what is wrong with importance scores: (R, N) float32 without NaN."""
    if fault := tensor_fault("the score", score, view.positions.shape, torch.float32):
        return fault
    nan = f"scored NaN: {numbers(score)}; a score is a number, or nothing is sorted"
    return nan if bool(score.isnan().any()) else ""


def candidates_fault(found: Any, view: SampleView) -> str:
    """Return what is wrong with candidates: tokens of the vocabulary whose logit is not -inf, and their probability."""
    if not isinstance(found, Candidates):
        return f"returned {type(found).__name__}; return Candidates(tokens, confidence)"
    shape, vocab = view.positions.shape, view.raw.shape[-1]
    fault = tensor_fault("tokens", found.tokens, shape, torch.int64)
    if fault := fault or tensor_fault("confidence", found.confidence, shape, torch.float32):
        return fault
    if not bool(((found.tokens >= 0) & (found.tokens < vocab)).all()):
        return f"chose {numbers(found.tokens)} of a vocabulary of {vocab}"
    if bool((view.raw.gather(-1, found.tokens.unsqueeze(-1)) == float("-inf")).any()):
        return "chose a token whose logit is -inf; so the mask token's is, in every run"
    if not bool(((found.confidence >= 0) & (found.confidence <= 1.001)).all()):  # NaN is neither
        return f"gave confidence {numbers(found.confidence)}; a probability is a number from 0 to 1"
    return ""


def selection_fault(chosen: Any, allowed: Tensor, verb: str = "selected", kind: str = "eligible") -> str:
    """Return what is wrong with a choice of positions: bool, and a subset of those allowed."""
    if fault := tensor_fault("the selection", chosen, allowed.shape, torch.bool):
        return fault
    outside = chosen & ~allowed
    return f"{verb} {numbers(outside.nonzero())}, (row, index), which are not {kind}" if bool(outside.any()) else ""


def draft_fault(drafted: Any, view: UnmaskingView) -> str:
    """Return what is wrong with what a drafting policy shows: (B, N) int64 of the vocabulary, or -1."""
    if fault := tensor_fault("its drafts", drafted, view.tokens.shape, torch.int64):
        return fault
    wrong = (drafted < -1) | (drafted >= view.raw.shape[-1])
    return f"drafts {numbers(drafted[wrong])}; draft a token, or -1 for none" if bool(wrong.any()) else ""


def memory_fault(kept: Any, view: UnmaskingView | ImportanceView, size: int) -> str:
    """Return what is wrong with what a policy or a scorer remembers: (B, N, M) float32, numbers all."""
    if fault := tensor_fault("what it remembers", kept, (*view.positions.shape, size), torch.float32):
        return fault
    return f"remembers NaN: {numbers(kept)}; remember numbers" if bool(kept.isnan().any()) else ""
