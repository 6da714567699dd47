"""Checks of planners: skip schedules, refresh policies, block schedules."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product

import torch

from esdllm.errors import ConfigError
from esdllm.interfaces import (
    BlockSchedule,
    EndingBlocks,
    LearningRefresh,
    MovingBlocks,
    PruningBlocks,
    RefreshPolicy,
    ReturningSkip,
    SkipSchedule,
)
from esdllm.plan import Block, Drift, Moment, Scope, Window
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.samples import block_view, end_view
from esdllm.testing.contracts.generation import check_generation, short_config
from esdllm.testing.contracts.laws import kernel_laws, law, member_laws, row_laws, tensor_law

__all__ = ["check_block_schedule", "check_refresh_policy", "check_skip_schedule"]

_LAYERS, _BLOCKS, _COMMITTED = (1, 2, 4, 28, 32), (1, 6, 32), (0, 1, 5, 40)


def check_skip_schedule(schedule: SkipSchedule) -> None:
    """Check a skip schedule, by itself and in whole generations of a tiny model.

    Its counts are whole numbers, one per layer, in [1, window], the same for the same; they never grow but at layers that one
    which lets positions back in names in `returning`, and those drop none; a layer that drops
    positions in some window drops some in a block, in a window of up to two blocks, or in the canvas, for there it is
    looked up where something is to be remembered. A number of layers may be refused by a ConfigError.

    Raises:
        AssertionError: a law fails; says which.
    """
    who, answered = member_laws("skip", schedule), False
    for n_layers, block in product(_LAYERS, _BLOCKS):
        try:
            usual = [_drops(window, _counts(who, schedule, n_layers, window, 0, block)) for window in _usual(block)]
        except ConfigError:  # it refuses so few layers
            continue
        answered = True
        found = frozenset[int]().union(*usual)
        for window, committed in product((block, block + 1, 2 * block, 4 * block), _COMMITTED):
            counts = _counts(who, schedule, n_layers, window, committed, block)
            elsewhere = _drops(window, counts) - found
            law(
                not elsewhere,
                f"{who} drops positions at layers {sorted(elsewhere)} of a window of {window}, but not in those of one to "
                f"two blocks of {block} nor in the canvas; only the number may depend on the window",
            )
    law(answered, f"{who} refuses every number of layers that was tried: {_LAYERS}")
    check_generation(skip=schedule)


def _usual(block: int) -> Iterator[int]:
    """Yield the windows that the runtime looks at to see which layers drop: of one to two blocks, and a canvas."""
    yield from range(block, 2 * block)
    yield 4 * block


def _drops(window: int, counts: tuple[int, ...]) -> frozenset[int]:
    """Return the layers that hand on fewer positions than they were given."""
    return frozenset(layer for layer, (given, kept) in enumerate(pairwise((window, *counts))) if kept < given)


def _counts(
    who: str, schedule: SkipSchedule, n_layers: int, window: int, committed: int, block: int
) -> tuple[int, ...]:
    counts = schedule.keep_counts(n_layers, window, committed, block)
    asked = f"{who}.keep_counts(n_layers={n_layers}, window={window}, committed={committed}, block={block}) = {counts!r:.200}"
    plain = isinstance(counts, tuple) and all(type(count) is int for count in counts)
    law(plain, f"{asked}; give a tuple of whole numbers")
    law(len(counts) == n_layers, f"{asked} has {len(counts)} counts; give one per layer")
    back = schedule.returning(n_layers) if isinstance(schedule, ReturningSkip) else ()
    grown = [layer for layer, (a, b) in enumerate(pairwise((window, *counts))) if a < b]
    law(
        max(counts) <= window and set(grown) <= set(back),
        f"{asked} grows, or begins above the window; counts only fall, but at layers that `returning` names, here {back}",
    )
    stuck = sorted(_drops(window, counts).intersection(back))
    law(not stuck, f"{asked} falls at layers {stuck}, at which `returning` says that positions come back")
    law(min(counts) >= 1, f"{asked} keeps nothing; a layer hands on at least one position")
    again = schedule.keep_counts(n_layers, window, committed, block)
    law(again == counts, f"{asked}, and {again!r:.200} when asked again; the same for the same")
    return counts


def check_refresh_policy(policy: RefreshPolicy) -> None:
    """Check a refresh policy, one that learns too, by itself and in whole generations of a tiny model.

    Its answer is a Scope of a Window and a bool, the same for the same moment; a run's first step computes the whole canvas
    and is a refresh, for nothing is cached yet. What one that learns makes of a drift is as many numbers as it begins with.
    Moments at which only the device knows what was committed may be refused by a ConfigError.

    Raises:
        AssertionError: a law fails; says which.
    """
    who = member_laws("refresh", policy)
    first = _scope(who, policy, _moment(policy, 0, 0, 0))
    law(first is not None, f"{who} refuses the first step of a run")
    law(
        first is not None and first.window is Window.CANVAS and first.refresh,
        f"{who}: the first step is {first}; it computes the canvas and is a refresh, for nothing is cached yet",
    )
    for step_in_block, block, unrefreshed in product((0, 1, 2, 3, 7, 8, 16), (0, 1, 3), (0, 1, 9, 200, None)):
        if step_in_block or block:
            _scope(who, policy, _moment(policy, 32 * block + step_in_block, step_in_block, block, unrefreshed))
    if isinstance(policy, LearningRefresh):
        _learning_laws(who, policy)
    asks = _scope(who, policy, _moment(policy, 1, 1, 0)._replace(first_undecided=None)) is None
    catalogue = Catalogue.load()
    told = {**short_config(catalogue, skips=False).to_dict(), "unmasking": "threshold"}
    check_generation(catalogue.configure(None, settings=told) if asks else None, refresh=policy)


def _moment(policy: RefreshPolicy, step: int, step_in_block: int, block: int, unrefreshed: int | None = 0) -> Moment:
    since = None if step == 0 else step_in_block or 1
    learned = tuple(policy.learned) if isinstance(policy, LearningRefresh) else ()
    return Moment(step, step_in_block, block, unrefreshed, since, since, learned, first_undecided=step_in_block < 2)


def _scope(who: str, policy: RefreshPolicy, moment: Moment) -> Scope | None:
    """Return the scope at a moment; None if it is refused because only the device knows what was committed."""
    try:
        scope = policy.scope(moment)
    except ConfigError:
        law(
            None in (moment.unrefreshed, moment.first_undecided),
            f"{who} refuses {moment}; only one whose unrefreshed or first_undecided is None may be refused",
        )
        return None
    right = isinstance(scope, Scope) and isinstance(scope.window, Window) and type(scope.refresh) is bool
    law(right, f"{who} answered {scope!r} at {moment}; give Scope(a Window, a bool)")
    again = policy.scope(moment)
    law(again == scope, f"{who} answered {scope}, then {again}, at {moment}; the same for the same")
    return scope


def _learning_laws(who: str, policy: LearningRefresh) -> None:
    learned = policy.learned
    plain = isinstance(learned, tuple) and all(isinstance(number, (int, float)) for number in learned)
    law(plain, f"{who}: learned = {learned!r}; give a tuple of numbers")
    for block, prompt in ((0.0, 0.0), (0.01, None), (0.5, 0.2), (3.0, 4.0)):
        moment = _moment(policy, 9, 9, 0, 9)._replace(learned=learned)
        found = policy.learn(moment, Drift(block, prompt))
        law(
            isinstance(found, tuple) and len(found) == len(policy.learned),
            f"{who} made {found!r} of the drift {block}, {prompt}; give as many numbers as `learned` has",
        )
        law(policy.learn(moment, Drift(block, prompt)) == found, f"{who}.learn is not deterministic at {moment}")
        learned = found
        _scope(who, policy, moment._replace(learned=learned))


def check_block_schedule(schedule: BlockSchedule) -> None:
    """Check a block schedule, one that prunes or moves too, by itself and in whole generations of a tiny model.

    A block begins where everything before is decided, holds at least one position and ends within the canvas, so that
    blocks cover it; the same for the same. Positions seen right of a block ascend and lie right of it. Where rows have
    blocks of their own, these are a kernel's: (B,) int64, no device read, a row's as for the row alone.

    Raises:
        AssertionError: a law fails; says which.
    """
    who = member_laws("blocks", schedule)
    for start, length, block_length in product((0, 3), (1, 7, 64), (1, 4, 64, 100)):
        position, end = start, start + length
        while position < end:
            position = _block(who, schedule, position, end, block_length).stop
    if isinstance(schedule, PruningBlocks):
        _suffix_laws(who, schedule)
    if isinstance(schedule, MovingBlocks):
        _moving_laws(who, schedule)
    check_generation(blocks=schedule)


def _block(who: str, schedule: BlockSchedule, position: int, end: int, block_length: int) -> Block:
    block = schedule.next_block(position, end, block_length)
    asked = f"{who}.next_block({position}, {end}, {block_length}) = {block!r}"
    plain = isinstance(block, Block) and all(type(number) is int for number in block)
    law(plain, f"{asked}; give a Block of whole numbers")
    law(
        block.start == position and position < block.stop <= end,
        f"{asked}; a block begins at {position}, where all before is decided, and ends above it and at {end} at most",
    )
    again = schedule.next_block(position, end, block_length)
    law(again == block, f"{asked}, and {again!r} when asked again; the same for the same")
    return block


def _suffix_laws(who: str, schedule: PruningBlocks) -> None:
    for block, length in ((Block(3, 7), 40), (Block(3, 7), 8), (Block(3, 7), 7)):
        found = schedule.suffix(block, length)
        asked = f"{who}.suffix({tuple(block)}, {length}) = {found!r:.100}"
        plain = isinstance(found, tuple) and all(type(position) is int for position in found)
        law(plain, f"{asked}; give a tuple of whole numbers")
        ascending = all(a < b for a, b in pairwise((block.stop - 1, *found, length)))
        law(ascending, f"{asked}; give ascending positions from the block's end, below the canvas' length")


def _moving_laws(who: str, schedule: MovingBlocks) -> None:
    law(type(schedule.reach) is int and schedule.reach >= 0, f"{who}: reach = {schedule.reach!r}; give a whole number")
    view = block_view()
    starts = kernel_laws(f"{who}.starts", schedule.starts, view)
    tensor_law(f"{who}.starts", "the starts", starts, (3,), torch.int64)
    row_laws(f"{who}.starts", schedule.starts, view)
    if isinstance(schedule, EndingBlocks):
        told = end_view()
        found = kernel_laws(f"{who}.ends", schedule.ends, told)
        tensor_law(f"{who}.ends", "the ends", found, (3,), torch.int64)
        row_laws(f"{who}.ends", schedule.ends, told)
