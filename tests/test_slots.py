"""Slots: who may come, who goes, what stands between, and what it costs."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import attrs
import pytest
import torch
from runs import MODELS, Build, Watch, prompts

from esdllm import CacheWrite, Engine, Generation, NumericsError, Phase, UnavailableError
from esdllm.errors import ConfigError, ContextError, EsdllmError, InputError
from esdllm.runtime.run import StepFunction
from esdllm.runtime.slots import Slots
from esdllm.testing.memory import TensorMemory
from esdllm.testing.tape import record_steps
from esdllm_backends.cache.dense import DenseCache, DenseStore

SETTINGS: dict[str, Any] = {"gen_length": 16, "block_length": 8}


def row(length: int, seed: int = 0) -> list[list[int]]:
    """Return one random prompt."""
    return prompts(1, length, seed).tolist()


def drain(slots: Slots) -> dict[int, Generation]:
    """Make all steps of the rows that are there, the largest group first; return what became of them by slot."""
    found = {}
    while slots.busy:
        found |= {slot: slots.take(slot) for slot in slots.finished()}
        if groups := slots.groups():
            slots.step(max(groups, key=len))
    return found


def slotted_cache(engine: Engine) -> Any:
    """Return the cache of four slots."""
    gathering = engine.slots(4, 40)._gathering
    assert gathering is not None
    return gathering.cache


# ------------------------------------------------------------------------------------------------------ coming and going


def test_rows_of_one_form_share_every_step(build: Build) -> None:
    engine = build("llada-0", "es-dllm", **SETTINGS)
    slots = engine.slots(3, 40)
    asked = [row(12, seed) for seed in range(3)]
    for prompt in asked:
        slots.admit(prompt)
    ticks = 0
    while not slots.finished():
        (group,) = slots.groups()
        assert group == (0, 1, 2)
        slots.step(group)
        ticks += 1
    expected = [engine.generate(prompt) for prompt in asked]
    assert ticks == expected[0].steps
    assert [slots.take(slot).answers for slot in range(3)] == [each.answers for each in expected]


def test_rows_of_different_lengths_share_the_steps_whose_window_is_a_block(build: Build) -> None:
    engine = build("llada-0", "es-dllm", gen_length=8, block_length=8)
    slots = engine.slots(3, 40)
    asked = [row(length, length) for length in (5, 12, 30)]
    for prompt in asked:
        slots.admit(prompt)
    assert slots.groups() == [(0,), (1,), (2,)]  # a refresh computes a whole canvas
    for slot in range(3):
        slots.step([slot])
    while not slots.finished():
        groups = slots.groups()
        assert groups == [(0, 1, 2)] or slots.seat(0).refreshes
        for group in groups:
            slots.step(group)
    for slot, prompt in enumerate(asked):
        expected = engine.generate(prompt)
        assert slots.seat(slot).effort.layer_work == expected.layer_work
        assert slots.take(slot).tokens.tolist() == expected.tokens.tolist()


@pytest.mark.parametrize("forms", [False, True])
@pytest.mark.parametrize("family", ["llada-0", "dream-0"])
@pytest.mark.parametrize("canvas", [None, 36])
def test_rows_whose_last_blocks_are_shorter_make_their_steps_with_the_others(
    canvas: int | None, family: str, forms: bool, build: Build
) -> None:
    """Prompts are equally long, or so long that all canvases are: what fills a window up is hidden there too."""
    settings: dict[str, Any] = {
        "block_length": 8,
        "skip": {"keep": [[0, 1.0], [0.5, 0.5]]},
        "importance": {"name": "random"},
        "refresh": {"prompt_refresh": 64},
    }
    engine = build(family, "es-dllm", gen_length=24, **settings)
    if forms:
        record_steps(engine)
    slots, lengths = engine.slots(3, 40), (24, 21, 19)
    asked = [row(12 if canvas is None else canvas - length, 3) for length in lengths]
    for length, prompt in zip(lengths, asked, strict=True):
        slots.admit(prompt, components=slots.components.varied({"gen_length": length}, build.catalogue))
    for slot in range(3):
        slots.step([slot])
    shared = 0
    while not slots.finished():
        groups = slots.groups()
        shared += groups == [(0, 1, 2)] and slots.seat(1).block.start >= 12 + 16 - 1
        for group in groups:
            slots.step(group)
    assert shared >= 2  # until the shortest is decided
    for slot, found in drain(slots).items():
        alone = build(family, "es-dllm", gen_length=lengths[slot], **settings).generate(asked[slot])
        assert found.tokens[:, -lengths[slot] :].tolist() == alone.tokens[:, -lengths[slot] :].tolist()
        assert forms or (found.tokens.tolist(), found.layer_work) == (alone.tokens.tolist(), alone.layer_work)


def test_a_row_alone_computes_no_more_than_its_shorter_last_block(build: Build) -> None:
    engine = build("llada-0", "es-dllm", gen_length=19, block_length=8)
    slots, widths = engine.slots(2, 40), set()
    slots.admit(row(12, 3))
    made = slots.step_function.__class__.__call__

    def watched(function: Any, parts: Any, plan: Any, canvas: Any, *rest: Any, **named: Any) -> None:
        widths.add((plan.block, canvas.columns.shape[0], canvas.bias is None))
        made(function, parts, plan, canvas, *rest, **named)

    with patch.object(slots.step_function.__class__, "__call__", watched):
        drain(slots)
    assert widths == {(8, 31, True), (3, 31, True)}


def test_a_row_has_its_own_settings_and_shares_steps_only_with_those_that_sample_alike(build: Build) -> None:
    engine = build("llada-0", "es-dllm", gen_length=8, block_length=8)
    slots, catalogue = engine.slots(4, 40), build.catalogue
    own: list[dict[str, Any]] = [
        {},
        {"gen_length": 16},
        {"sampler": {"name": "gumbel", "temperature": 1.0}},
        {"seed": 3, "sampler": {"name": "gumbel", "temperature": 1.0}, "gen_length": 20},
    ]
    for settings in own:
        slots.admit(row(12), components=slots.components.varied(settings, catalogue))
    for slot in range(4):
        slots.step([slot])
    assert slots.groups() == [(0, 1), (2, 3)]
    found = drain(slots)
    for slot, settings in enumerate(own):
        alone = build("llada-0", "es-dllm", **{"gen_length": 8, "block_length": 8, **settings})
        assert found[slot].tokens.tolist() == alone.generate(row(12)).tokens.tolist()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"cache": "int8"}, "cache"),
        ({"attention": "eager"}, "attention"),
        ({"canvas_multiple": 8}, "canvas_multiple"),
        ({"cfg_scale": 1.0}, "cfg_scale, which is 0 for all rows or for none"),
        ({"importance": {"name": "hybrid", "site": "key"}}, "importance, which scores at another site"),
        ({"unmasking": "wino"}, "unmasking, which remembers, puts back, replaces or drafts otherwise"),
        ({"unmasking": "dc-leap"}, "unmasking, which remembers"),
        ({"blocks": "growing"}, "blocks, which end by the step's logits in one alone"),
        ({"refresh": {"name": "drift"}}, "refresh, which learns from drift in one alone"),
    ],
)
def test_what_all_rows_have_in_common_is_no_setting_of_one(build: Build, settings: dict[str, Any], named: str) -> None:
    slots = build("llada-0", "es-dllm", **SETTINGS).slots(1, 40)
    other = slots.components.varied(settings, build.catalogue)
    with pytest.raises(ConfigError, match=f"rows beside each other cannot differ in {named}"):
        slots.admit(row(12), components=other)
    assert slots.free == 1


def test_few_sets_of_kernels_are_recorded_and_steps_of_others_are_made_all_the_same(build: Build) -> None:
    engine = build("llada-0", "es-dllm", gen_length=4, block_length=4)
    record_steps(engine)
    slots = engine.slots(1, 40)
    for number in range(12):
        settings = {"sampler": {"name": "gumbel", "temperature": 0.1 * number}}
        slots.admit(row(12), components=slots.components.varied(settings, build.catalogue))
        alone = build("llada-0", "es-dllm", gen_length=4, block_length=4, **settings)
        assert drain(slots)[0].tokens.tolist() == alone.generate(row(12)).tokens.tolist()
    assert len(slots._known) == 8


def test_a_slot_that_is_free_again_is_taken_next_and_shows_nothing_of_who_was_there(build: Build) -> None:
    engine = build("dream-0", "es-dllm", **SETTINGS)
    slots = engine.slots(2, 48)
    first, second = slots.admit(row(30)), slots.admit(row(9))
    for _ in range(5):
        slots.step([first])
    slots.release(first)
    assert slots.admit(row(12, 5)) == first
    found = drain(slots)
    assert found[first].tokens.tolist() == engine.generate(row(12, 5)).tokens.tolist()
    assert found[second].tokens.tolist() == engine.generate(row(9)).tokens.tolist()
    assert (slots.free, slots.busy) == (2, False)


def test_seeds_chat_and_infill_are_those_of_generate(build: Build) -> None:
    engine = build("llada-0", "es-dllm", sampler={"name": "gumbel", "temperature": 1.0}, **SETTINGS)
    slots = engine.slots(3, 40)
    holes = [[3, engine.model.spec.mask_id, 5, engine.model.spec.mask_id, 7]]
    slots.admit(row(12), seed=1)
    slots.admit(row(12), seed=2)
    slots.admit(holes, infill=True)
    found = drain(slots)
    assert found[0].answers == engine.generate(row(12), seed=1).answers
    assert found[1].answers == engine.generate(row(12), seed=2).answers
    assert found[0].answers != found[1].answers
    assert found[2].tokens.tolist() == engine.generate(holes, infill=True).tokens.tolist()


def test_what_cannot_be_admitted_is_told_why_and_takes_no_slot(build: Build) -> None:
    slots = build("llada-0", "es-dllm", **SETTINGS).slots(1, 40)
    with pytest.raises(ContextError, match="the prompt's canvas has 41 columns, and a slot has 40"):
        slots.admit(row(25))
    for prompt, message in (
        (prompts(2, 4).tolist(), "2 prompts for one slot; admit them one by one"),
        ([[]], "prompt 0 is empty"),
    ):
        with pytest.raises(InputError, match=message):
            slots.admit(prompt)
    with pytest.raises(InputError, match="seed = -1 for 1 rows"):
        slots.admit(row(4), seed=-1)
    assert slots.free == 1
    slots.admit(row(24))
    with pytest.raises(InputError, match="all 1 slots are taken"):
        slots.admit(row(4))


def test_what_is_asked_of_the_wrong_slot_is_told_so(build: Build) -> None:
    slots = build("llada-0", "es-dllm", **SETTINGS).slots(3, 40)
    slots.admit(row(4))
    slots.admit(row(20))
    slots.step([0])
    with pytest.raises(InputError, match=r"the slots \[0, 1\] have no next step in common; give one of `groups\(\)`"):
        slots.step([0, 1])
    with pytest.raises(InputError, match=r"the slots \[\] have no next step in common"):
        slots.step([])
    with pytest.raises(InputError, match=r"slot 2 is not taken; taken are \[0, 1\]"):
        slots.release(2)
    with pytest.raises(InputError, match="the row in slot 1 is not finished; make its steps, or release it"):
        slots.take(1)
    slots.close()
    with pytest.raises(InputError, match="these slots are closed"):
        slots.admit(row(4))


@pytest.mark.parametrize(("count", "length"), [(0, 40), (-1, 40), (2, 0), (2, 10**6), (1.5, 40), (2, "40")])
def test_slots_of_no_number_or_size_are_refused(build: Build, count: Any, length: Any) -> None:
    with pytest.raises(InputError, match="give at least one, and columns within the model's context of"):
        build("llada-0", "es-dllm").slots(count, length)


def test_an_answer_that_is_not_finished_is_lost_when_slots_are_closed_and_their_memory_is_free(build: Build) -> None:
    engine = build("llada-0", "es-dllm", **SETTINGS)
    with TensorMemory() as memory:
        slots = engine.slots(2, 40)
        slots.admit(row(12))
        slots.step([0])
        held = memory.held
        slots.close()
        slots.close()
        assert memory.held < held / 20
    assert engine.generate(row(12)).committed == 16


@pytest.mark.slow
def test_a_cache_that_holds_more_than_memory_is_closed_with_its_slots(build: Build) -> None:
    slots = build("llada-0", "es-dllm", cache="disk", **SETTINGS).slots(2, 40)
    assert slots._gathering is not None
    cache = slots._gathering.cache
    slots.close()
    with pytest.raises(EsdllmError, match="this cache was closed"):
        cache.reset()


@pytest.mark.parametrize("preset", ["vanilla", "dual-cache"])
def test_rows_whose_blocks_lie_elsewhere_in_the_canvas_share_no_step_of_it(preset: str, build: Build) -> None:
    engine = build("llada-0", preset, **SETTINGS)
    slots = engine.slots(2, 40)
    slots.admit(row(12, 1))
    for _ in range(8):
        slots.step([0])  # its first block
    slots.admit(row(12, 2))
    assert slots.groups() == [(0,), (1,)]
    plans = [seat.next.plan for seat in slots._seats.values() if seat.next is not None]
    assert plans[0] == plans[1]
    with pytest.raises(InputError, match="have no next step in common"):
        slots.step([0, 1])
    found = drain(slots)
    assert found[0].answers == engine.generate(row(12, 1)).answers
    assert found[1].answers == engine.generate(row(12, 2)).answers


def test_an_engine_decodes_beside_its_slots(build: Build) -> None:
    engine = build("llada-0", "es-dllm", **SETTINGS)
    slots = engine.slots(2, 40)
    slots.admit(row(12))
    expected = build("llada-0", "es-dllm", **SETTINGS).generate(row(12)).answers
    while slots.groups():
        slots.step([0])
        assert engine.generate(row(7)).committed == 16
    assert slots.take(0).answers == expected


# ------------------------------------------------------------------------------------------------------------- apart


def test_a_row_of_nan_takes_no_other_row_with_it(build: Build) -> None:
    engine = build("llada-0", "es-dllm", **SETTINGS)
    bad = 7
    adapter: Any = engine.model.adapter
    embedding = adapter.embedding.clone()
    embedding[bad] = float("nan")
    model = attrs.evolve(engine.model, adapter=attrs.evolve(adapter, embedding=embedding))
    spoiled = Engine.build(model, engine.config)
    slots = spoiled.slots(2, 40)
    sound = [[token if token != bad else 8 for token in row(12)[0]]]
    slots.admit(sound)
    slots.admit([[1, 2, bad, *row(9)[0]]])
    while len(slots.finished()) < 2:
        slots.step(slots.groups()[0])
    with pytest.raises(NumericsError, match="NaN logits at step 0; the embedding is the first that is not finite"):
        slots.take(1)
    assert slots.take(0).answers == spoiled.generate(sound).answers
    assert slots.free == 2


class Unslotted(DenseStore):
    """Its store, which says nothing of it."""

    def allocate(self, shape: Any) -> Any:
        """Return that cache, without the method."""
        made = DenseCache(shape)

        class Bare:
            reset, update, recall, remember = made.reset, made.update, made.recall, made.remember

        return Bare()


class Refusing(DenseStore):
    """A store that says that it has no slots."""

    def problems(self, shape: Any) -> list[str]:
        """Return that."""
        return ["its rows come and go together"] if shape.slotted else []


def test_a_store_without_slots_serves_whole_batches_alone(build: Build) -> None:
    engine = build("llada-0", "es-dllm", **SETTINGS)
    for store, message in ((Unslotted(), "has no method 'slots'"), (Refusing(), "its rows come and go together")):
        engine.components = attrs.evolve(engine.components, cache=store)
        with pytest.raises(UnavailableError, match=message):
            engine.slots(2, 40)
        assert build("llada-0", "es-dllm", **SETTINGS).generate(row(5)).committed == 16


def test_observers_watch_runs_and_not_slots(build: Build) -> None:
    engine = build("llada-0", "es-dllm", **SETTINGS)
    engine.components = attrs.evolve(engine.components, observers=(Watch(),))
    with pytest.raises(ConfigError, match="slots need a configuration without any"):
        engine.slots(2, 40)


# ----------------------------------------------------------------------------------------------------- what it costs


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_traffic_records_no_more_graphs_than_plans_times_canvas_lengths_times_numbers_of_rows(
    model: str, build: Build
) -> None:
    engine, plain = build(model, "es-dllm", **SETTINGS), build(model, "es-dllm", **SETTINGS)
    tape = record_steps(engine)
    slots = engine.slots(3, 96)
    waiting = [row(4 + 5 * number, number) for number in range(14)]
    lengths = {-(-(len(prompt[0]) + 16) // 32) * 32 for prompt in waiting}
    found: list[tuple[list[list[int]], Generation]] = []
    seated: dict[int, list[list[int]]] = {}
    plans = set()
    while waiting or slots.busy:
        found += [(seated.pop(slot), slots.take(slot)) for slot in slots.finished()]
        while waiting and slots.free:
            prompt = waiting.pop(0)
            seated[slots.admit(prompt)] = prompt
        for group in slots.groups():
            plans |= {(seat.length, seat.next.plan) for seat in slots._seats.values() if seat.next is not None}
            slots.step(group)
    assert len(found) == 14
    assert {length for length, _ in plans} == lengths
    numbers = 2  # one or two, and all three
    assert len(tape.replays) <= len(plans) * (numbers + 1)
    assert sum(tape.replays) > 3 * len(tape.replays)
    for prompt, made in found:
        assert made.tokens[0].tolist() == plain.generate(prompt).tokens[0].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("groups", [[[0], [1, 2, 3]], [[0], [1], [2, 3]]], ids=str)
def test_groups_of_as_many_rows_are_of_their_own_rows_where_steps_are_recorded(
    groups: list[list[int]], build: Build
) -> None:
    """The last three slots and the spare one, a neighbour, are four as all are; two slots alone are one row each."""
    engine, plain = build("llada-0", "es-dllm", **SETTINGS), build("llada-0", "es-dllm", **SETTINGS)
    record_steps(engine)
    slots = engine.slots(4, 32)
    asked = [row(12, seed) for seed in range(4)]
    for prompt in asked:
        slots.admit(prompt)
    while not slots.finished():
        for group in groups:
            slots.step(group)
    for slot in range(4):
        assert slots.take(slot).answers == plain.generate(asked[slot]).answers


def test_compiled_steps_serve_traffic_and_are_compiled_once_for_each_number_of_rows(build: Build) -> None:
    settings = {"gen_length": 8, "block_length": 8}
    engine, plain = build("llada-shallow", "es-dllm", **settings), build("llada-shallow", "es-dllm", **settings)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    engine.step_function = StepFunction(compiled=True, backend="eager")
    slots, plans = engine.slots(2, 32), set()
    asked = [row(length, length) for length in (5, 20, 11)]
    slots.admit(asked[0])
    slots.admit(asked[1])
    found: dict[int, Generation] = {}
    for tick in range(40):
        for slot in slots.finished():
            found[len(found)] = slots.take(slot)
        if tick == 3:
            slots.step([0])
        if len(found) == 1 and slots.free == 1 and len(asked) == 3:
            slots.admit(asked.pop())
        for group in slots.groups():
            plans |= {(len(group), seat.next.plan) for seat in slots._seats.values() if seat.next is not None}
            slots.step(group)
    assert len(found) == 3
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= len(plans)
    for made in found.values():
        prompt = made.tokens[:, :-8].tolist()
        assert made.tokens.tolist() == plain.generate(prompt).tokens.tolist()


def test_rows_that_ask_what_was_decided_wait_for_the_device_once_together(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build("llada-0", "es-dllm", unmasking={"name": "threshold", "threshold": 0.02}, **SETTINGS)
    slots = engine.slots(4, 40)
    for seed in range(4):
        slots.admit(row(12, seed))
    reads = 0

    def counted(x: torch.Tensor) -> Any:
        nonlocal reads
        reads += 1
        return tolist(x)

    tolist = torch.Tensor.tolist
    ticks = 0
    while groups := slots.groups():
        with monkeypatch.context() as patched:
            patched.setattr(torch.Tensor, "tolist", counted)
            for group in groups:
                slots.step(group)
            ticks += 1
            slots.groups()
    assert ticks > 1
    assert reads <= ticks


@torch.inference_mode()
@pytest.mark.parametrize("store", ["dense", "sparse"])
def test_the_keys_of_neighbours_are_read_where_they_are_and_those_of_others_copied(store: str, build: Build) -> None:
    engine = build("llada-0", "dual-cache", cache=store, **SETTINGS)
    heads, dim, cache = engine.model.spec.n_kv_heads, engine.model.spec.head_dim, slotted_cache(engine)
    home = getattr(cache, "dense", cache).keys[0].x
    for rows, shared in ((slice(1, 3), True), (torch.tensor([0, 2]), False)):
        numbers = torch.ones(2, 8, heads, dim)
        block = torch.arange(8).expand(2, -1)
        read = cache.slots(rows, 40).update(CacheWrite(0, block, numbers, numbers, numbers, None, block, Phase.ALL))
        assert (read.keys.untyped_storage().data_ptr() == home.untyped_storage().data_ptr()) is shared


@torch.inference_mode()
@pytest.mark.parametrize("store", ["dense", "int8", "offloaded", "disk", "sparse"])
def test_a_row_begins_with_an_empty_cache(store: str, build: Build) -> None:
    engine = build("llada-0", "dual-cache", cache=store, **SETTINGS)
    slots = engine.slots(2, 40)
    for seed in range(2):
        slots.admit(row(12, seed))
        slots.step([seed])
    assert slots._gathering is not None
    slots.release(0)
    slots.admit(row(12, 3))
    positions = torch.arange(28).unsqueeze(0)
    for slot, filled in ((0, False), (1, True)):
        held = slots._gathering.cache.slots(slice(slot, slot + 1), 40).recall(1, "key", positions)
        assert bool(held.any()) is filled
