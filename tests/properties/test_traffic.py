"""The law of slots: whatever comes and goes beside a row, it is decoded as if it were alone.

    pytest tests/properties/test_traffic.py --hypothesis-show-statistics

prints how many examples were drawn, and how often each kind of case came up.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import pytest
from drawing import (
    CATALOGUE,
    IMPORTANCE,
    MASK,
    SKIPS,
    Settings,
    Shape,
    engine_of,
    policies,
    shapes,
    token_ids,
    watching_ties,
)
from hypothesis import event, given
from hypothesis import strategies as st
from sampling import examples

from esdllm import DecodeConfig, Engine, Generation
from esdllm.config import merge
from esdllm.runtime.slots import Slots
from esdllm.testing.tape import record_steps

pytestmark = pytest.mark.no_cover

LONGEST = 26
"""columns of the longest canvas"""

BLOCKS = st.sampled_from(
    [{"name": "fixed"}, {"name": "fixed"}, {"name": "sliding"}, {"name": "own"}, {"name": "pruned", "window": 3}]
)
SEEDS = st.integers(0, 3)
COUNTS = st.integers(2, 5)
TRAFFIC = st.integers(0, 2**32).map(Random)
"""who comes and goes when; of a seed, since what hypothesis draws bit by bit rarely lets two rows meet"""
STORES = st.sampled_from(["dense", "int8", "offloaded", "disk"])


class Asked(NamedTuple):
    """A request."""

    prompt: list[int]
    seed: int | None
    infill: bool
    own: Settings
    """what it wants otherwise than the engine's configuration"""


REVISING = st.sampled_from(
    [
        {"name": "wino"},
        {"name": "p2", "steps_per_block": 5},
        {"name": "editing", "threshold": 0.3, "editing_threshold": 0.1, "editing_steps": 3},
    ]
)
"""policies that look again at what is decided"""

OWN = st.fixed_dictionaries(
    {},
    optional={
        "gen_length": st.integers(1, 12),
        "sampler": st.sampled_from([{"name": "gumbel", "temperature": 0.7}, {"name": "gumbel", "temperature": 1.5}]),
        "early_stop": st.booleans(),
        "seed": st.integers(0, 3),
    },
)


@st.composite
def requests(draw: st.DrawFn) -> list[Asked]:
    """Draw prompts of a few lengths, and canvases with masks anywhere, in an order of arrival."""
    known = draw(st.lists(st.integers(2, 12), min_size=1, max_size=3))
    found = []
    for length in draw(st.lists(st.sampled_from(known), min_size=2, max_size=7)):
        infill = draw(st.integers(0, 3)) == 0
        words = draw(st.lists(token_ids, min_size=length, max_size=length))
        holes = draw(st.sets(st.integers(1, length - 1), min_size=1)) if infill else ()
        own = draw(OWN) if draw(st.booleans()) else {}
        event(f"settings of its own: {sorted(own)}")
        seed = None if "seed" in own else draw(SEEDS)
        found.append(Asked([MASK if at in holes else word for at, word in enumerate(words)], seed, infill, own))
    return found


@st.composite
def settings(draw: st.DrawFn) -> Settings:
    """Draw settings of any mode whose steps can be planned."""
    found = {**draw(policies()), "early_stop": draw(st.booleans()), "check_every": draw(st.integers(1, 4))}
    blocks = draw(BLOCKS)
    if blocks["name"] != "fixed":
        found = {**found, "blocks": blocks, "block_length": draw(st.integers(2, 6)), "refresh": {"name": "dual-cache"}}
    kind = draw(st.sampled_from(["held", "held", "held", "sparse", "none", "learning", "revoking"]))
    if kind == "sparse":
        found = {**found, "cache": {"name": "sparse", "keep": 0.5}, "skip": "none", "refresh": "dual-cache"}
        found["blocks"] = "fixed"
    elif kind == "none":
        found = {**found, "cache": "none", "skip": "none", "refresh": "every-step"}
    else:
        found["cache"] = draw(STORES)
    if kind == "learning":
        found = {**found, "refresh": {"name": "drift"}, "blocks": "fixed"}
    if kind == "revoking":
        found = {**found, "unmasking": draw(REVISING), "delay_eos": False}
    event(f"cache: {found['cache'] if isinstance(found['cache'], str) else 'sparse'}")
    event(f"kind: {kind}, blocks: {blocks['name']}")
    return found


def alone(engine: Engine, asked: Asked) -> Generation:
    """Return what a row is by itself."""
    config = DecodeConfig.from_dict(merge(engine.config.to_dict(), asked.own))
    engine = Engine.build(engine.model, config, CATALOGUE) if asked.own else engine
    return engine.generate([asked.prompt], seed=asked.seed, infill=asked.infill)


def drive(traffic: Random, slots: Slots, waiting: list[Asked]) -> list[tuple[Asked, Generation]]:
    """Let rows come, go and be cancelled, and steps be made of any part of a group, as `traffic` has it."""
    waiting, seated, made = list(waiting), {}, []
    admitting, whole = traffic.choice([1.0, 0.7, 0.2]), traffic.choice([1.0, 0.9, 0.3])
    while waiting or slots.busy:
        made += [(seated.pop(slot), slots.take(slot)) for slot in slots.finished()]
        if waiting and slots.free and (not slots.busy or traffic.random() < admitting):
            asked = waiting.pop(0)
            own = slots.components.varied(asked.own, CATALOGUE) if asked.own else None
            seated[slots.admit([asked.prompt], seed=asked.seed, infill=asked.infill, components=own)] = asked
        elif slots.busy and traffic.random() < 0.02:
            slots.release(slot := traffic.choice(sorted(seated)))
            del seated[slot]
            event("cancelled")
        elif groups := slots.groups():
            group = max(groups, key=len) if traffic.random() < whole else traffic.choice(groups)
            part = group if traffic.random() < whole else traffic.sample(group, traffic.randint(1, len(group)))
            event(f"rows of a step: {len(part)}, of lengths: {len({slots.seat(slot).length for slot in part})}")
            slots.step(part)
    return made


def same(engine: Engine, made: list[tuple[Asked, Generation]], padded: bool) -> None:
    """Compare rows with what each is by itself, and unless canvases are `padded` to shared lengths, with what it took."""
    for asked, found in made:
        with watching_ties() as ties:
            expected = alone(engine, asked)
        equal = (found.tokens.tolist(), found.answers) == (expected.tokens.tolist(), expected.answers)
        event(f"equal scores at a layer's end: {bool(ties)}")
        assert equal or (padded and ties)
        assert padded or (found.steps, found.layer_work) == (expected.steps, expected.layer_work)


@given(shape=shapes(), chosen=settings(), asked=requests(), traffic=TRAFFIC, count=COUNTS)
@examples(100)
def test_a_row_among_any_others_is_the_row_alone(
    shape: Shape, chosen: Settings, asked: list[Asked], traffic: Random, count: int
) -> None:
    engine = engine_of(shape, chosen)
    slots = engine.slots(count, LONGEST)
    made = drive(traffic, slots, asked)
    slots.close()
    same(engine, made, padded=False)


@given(
    shape=shapes(),
    cache=STORES,
    lengths=st.lists(st.integers(2, 14), min_size=2, max_size=4),
    generated=st.integers(4, 12),
    traffic=TRAFFIC,
)
@examples(60)
def test_rows_of_different_lengths_are_the_rows_alone(
    shape: Shape, cache: str, lengths: list[int], generated: int, traffic: Random
) -> None:
    engine = engine_of(shape, {"gen_length": generated, "block_length": 4, "cache": cache})
    asked = [Asked([traffic.randrange(MASK - 1) for _ in range(length)], 0, False, {}) for length in lengths]
    slots = engine.slots(len(asked), LONGEST)
    seated = {slots.admit([each.prompt]): each for each in asked}
    while slots.busy:
        same(engine, [(seated[slot], slots.take(slot)) for slot in slots.finished()], padded=False)
        groups = slots.groups()
        for group in [group for group in groups if slots.seat(group[0]).refreshes] or groups:
            event(f"lengths of a step: {len({slots.seat(slot).length for slot in group})}")
            slots.step(group)


@given(
    shape=shapes(),
    skip=st.one_of(strategy for name, strategy in SKIPS.items() if name != "none"),
    importance=IMPORTANCE,
    cache=STORES,
    block=st.integers(4, 6),
    prompts=st.lists(st.integers(2, 9), min_size=2, max_size=4),
    traffic=TRAFFIC,
    recorded=st.booleans(),
)
@examples(80)
def test_rows_whose_last_blocks_are_shorter_are_the_rows_alone(
    shape: Shape,
    skip: Settings,
    importance: Settings,
    cache: str,
    block: int,
    prompts: list[int],
    traffic: Random,
    recorded: bool,
) -> None:
    chosen = {"gen_length": 14, "block_length": block, "cache": cache, "skip": skip, "importance": importance}
    chosen["refresh"] = {"name": "periodic", "prompt_refresh": 64, "block_refresh": traffic.randint(3, 9)}
    engine = engine_of(shape, {**chosen, "canvas_multiple": 4})
    if recorded:
        record_steps(engine)
    slots, seated, before = engine.slots(len(prompts), LONGEST), {}, traffic.choice([0, block])
    for prompt in prompts:
        own = {"gen_length": before + traffic.randint(1, block)}
        each = Asked([traffic.randrange(MASK - 1) for _ in range(prompt)], 0, False, own)
        seated[slots.admit([each.prompt], components=slots.components.varied(each.own, CATALOGUE))] = each
    while slots.busy:
        made = [(seated[slot], slots.take(slot)) for slot in slots.finished()]
        same(engine_of(shape, chosen), made, padded=recorded)
        groups = slots.groups()
        for group in [group for group in groups if slots.seat(group[0]).refreshes] or groups:
            steps = [step for slot in group if (step := slots.next(slot)) is not None]
            blocks = {step.block.stop - step.block.start for step in steps}
            event(f"blocks of several lengths: {len(blocks) > 1}, skipping: {steps[0].plan.skips}")
            slots.step(group)


@given(shape=shapes(), chosen=settings(), asked=requests(), traffic=TRAFFIC, count=COUNTS)
@examples(60)
def test_a_row_among_any_others_is_the_row_alone_where_steps_are_recorded(
    shape: Shape, chosen: Settings, asked: list[Asked], traffic: Random, count: int
) -> None:
    engine = engine_of(shape, {**chosen, "canvas_multiple": 8})
    record_steps(engine)
    slots = engine.slots(count, LONGEST)
    made = drive(traffic, slots, asked)
    slots.close()
    same(engine_of(shape, chosen), made, padded=True)
