"""The check of importance scorers, those that remember too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import torch

from esdllm.interfaces import ImportanceScorer, RememberingScorer, SignalScorer
from esdllm.runtime.faults import STATELESS, memory_fault, numbers, score_fault, scored, state_fault
from esdllm.runtime.samples import importance_view
from esdllm.testing.contracts.generation import check_generation
from esdllm.testing.contracts.laws import close, kernel_laws, law, member_laws, pure, row_laws
from esdllm.views import ImportanceView, Signal, Site

__all__ = ["check_importance_scorer"]


def check_importance_scorer(scorer: ImportanceScorer) -> None:
    """Check an importance scorer, by itself and in whole generations of a tiny model.

    Its score is (R, N) float32 without NaN, at windows of any length and in any dtype; it goes with its position wherever
    that stands; a row's is that of the row alone; `view.last` is read only if `keeps_history`. And what every kernel holds
    to: inputs unchanged, the same for the same, no device read, one graph. One that remembers returns (R, N, M) float32
    and holds nothing itself; it is checked at its second step too.

    Raises:
        AssertionError: a law fails; says which.
    """
    who = member_laws("importance", scorer)
    law(scorer.site in get_args(Site), f"{who}: site = {scorer.site!r}; give one of {', '.join(get_args(Site))}")
    law(isinstance(scorer.keeps_history, bool), f"{who}: keeps_history = {scorer.keeps_history!r}; give a bool")
    size = scorer.memory if isinstance(scorer, RememberingScorer) else 0
    law(type(size) is int and size >= 0, f"{who}: memory = {size!r}; give a number of floats")
    signals = scorer.signals if isinstance(scorer, SignalScorer) else ()
    made = partial(importance_view, memory=size, signals=signals)
    state = state_fault(partial(scored, scorer), made(), made(5))
    law(not state, f"{who} {state}; {STATELESS}")
    kernel_laws(who, scorer.score, made())
    row_laws(who, scorer.score, made())
    second = _kept_laws(who, scorer, made, size) if size else made()
    long = made(2, rows=1, window=30, dtype=torch.bfloat16)
    for view in (made(), second, made(1, window=1), long, _nothing(made(3))):
        _score_laws(who, scorer, view)
    check_generation(importance=scorer)


def _kept_laws(who: str, scorer: Any, made: Callable[..., ImportanceView], size: int) -> ImportanceView:
    """Return the view of a second step, with what the first left."""
    view = made()
    for seed in (0, 1):
        view = made(seed)._replace(memory=view.memory)
        kept = kernel_laws(f"{who}.remember", scorer.remember, view)
        law(not (fault := memory_fault(kept, view, size)), f"{who} {fault}")
        row_laws(f"{who}.remember", scorer.remember, view)
        view = view._replace(memory=kept)
    return view


def _nothing(view: ImportanceView) -> ImportanceView:
    """Return a view in which nothing is undecided, committed or changed."""
    none = torch.zeros_like(view.undecided)
    given: dict[str, Any] = {
        name: none.float() for name in ("confidence", *get_args(Signal)) if getattr(view, name) is not None
    }
    return view._replace(undecided=none, committed=none, last=view.x, **given)


def _score_laws(who: str, scorer: ImportanceScorer, view: ImportanceView) -> None:
    told = partial(scored, scorer)
    score = pure(who, told)(view)
    law(not (fault := score_fault(score, view)), f"{who} {fault}")
    order = torch.randperm(score.shape[1], generator=torch.Generator().manual_seed(0))
    by_position = ("x", "last", "confidence", "undecided", "committed", "positions", "entropy", "margin", "memory")
    given = {name: x for name in by_position if (x := getattr(view, name)) is not None}
    moved = told(view._replace(**{name: x[:, order] for name, x in given.items()}))
    law(
        close(moved, score[:, order]),
        f"{who}: a score does not go with its position: {numbers(moved)} where the positions were moved, and "
        f"{numbers(score[:, order])} where they were not; positions come in no order",
    )
    if not scorer.keeps_history:
        unread = told(view._replace(last=torch.full_like(view.last, float("nan"))))
        law(close(unread, score), f"{who} reads view.last though keeps_history is False; nothing is remembered for it")
