"""How many slots fit: as many as there is memory for, and a number beyond is refused with what would do."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from helpers import read_config
from runs import Build

from esdllm import Catalogue, Engine, UnavailableError
from esdllm.checkpoints.loading import random_model
from esdllm.errors import InputError
from esdllm.machine import Device, Machine
from esdllm.serving.sizing import MOST, Sizing, choose_slots, outgrown
from esdllm.testing.memory import TensorMemory

LENGTH = 48


def machine(free: int) -> Machine:
    """Return a machine with so many bytes free in its one memory."""
    return attrs.evolve(Machine.here(), devices=(Device("cpu", "", 2 * free, free),))


def sizing(engine: Engine, free: int, length: int = LENGTH) -> Sizing:
    """Return the sizing of slots in so many free bytes."""
    (cpu,) = machine(free).devices
    return Sizing.of(engine, length, cpu, cpu)


def taken(engine: Engine, count: int) -> int:
    """Return what so many slots take, and leave free."""
    return -(-sizing(engine, 0).fit(count).device() * 10 // 9)


@pytest.fixture
def engine(build: Build) -> Engine:
    return build("llada-0", "es-dllm")


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_as_many_slots_as_fit_are_made_and_not_one_more(engine: Engine, count: int) -> None:
    exactly = taken(engine, count)
    assert choose_slots(engine, LENGTH, machine=machine(exactly + 1)) == count
    if count > 1:
        assert choose_slots(engine, LENGTH, machine=machine(exactly - 2)) == count - 1


def test_no_more_slots_are_made_than_are_of_use_unless_they_are_asked_for(engine: Engine) -> None:
    plenty = machine(taken(engine, 1000))
    assert choose_slots(engine, LENGTH, machine=plenty) == MOST["cpu"]
    assert choose_slots(engine, LENGTH, wanted=MOST["cpu"] + 5, machine=plenty) == MOST["cpu"] + 5


def test_slots_that_do_not_fit_are_refused_with_how_many_would(engine: Engine) -> None:
    room = machine(taken(engine, 3) + 1)
    assert choose_slots(engine, LENGTH, wanted=3, machine=room) == 3
    with pytest.raises(
        UnavailableError, match=r"4 slots of 48 columns take .* of cpu, where .* are free; .*: 3 would fit"
    ):
        choose_slots(engine, LENGTH, wanted=4, machine=room)


@pytest.mark.parametrize("wanted", [None, 1, 7])
def test_where_not_one_fits_it_is_said_what_takes_less(engine: Engine, wanted: int | None) -> None:
    with pytest.raises(UnavailableError, match=r"give fewer columns, or a cache store that takes less"):
        choose_slots(engine, LENGTH, wanted=wanted, machine=machine(taken(engine, 1) - 2))


@pytest.mark.parametrize("wanted", [0, -1, True, 2.0, "8"])
def test_what_is_no_number_of_slots_is_refused(engine: Engine, wanted: Any) -> None:
    with pytest.raises(InputError, match="slots; give a whole number of at least 1, or none"):
        choose_slots(engine, LENGTH, wanted=wanted)


@pytest.mark.parametrize("length", [0, 16, 10**9, 20.0])
def test_a_slot_without_room_for_a_prompt_or_beyond_the_context_is_refused(build: Build, length: Any) -> None:
    with pytest.raises(InputError, match=r"give more than gen_length = 16, .* no more than the model's context of"):
        choose_slots(build("llada-0", "es-dllm", gen_length=16), length)


def test_a_longer_slot_takes_more_and_so_does_another_row_under_guidance(build: Build) -> None:
    plain, guided = build("llada-0", "es-dllm"), build("llada-0", "es-dllm", cfg_scale=1.0)
    assert sizing(plain, 0, 64).fit(2).device() > sizing(plain, 0, 48).fit(2).device()
    assert sizing(guided, 0).fit(2).device() == pytest.approx(2 * sizing(plain, 0).fit(2).device(), rel=0.05)


def test_the_host_is_asked_too_where_a_store_lies_there(build: Build) -> None:
    engine = build("llada-0", "es-dllm", cache="offloaded")
    fit = sizing(engine, 0).fit(2)
    assert fit.host() > 0
    device, small = Device("cuda:0", "", 10**12, 10**12), Device("cpu", "", 10**12, fit.host())
    assert Sizing.of(engine, LENGTH, device, small).fitting(4) == 1
    assert "of the host, where" in Sizing.of(engine, LENGTH, device, small).refusal(2, 1)


def test_a_store_that_cannot_hold_slots_is_refused_with_its_reason(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = type(engine.components.cache)
    monkeypatch.setattr(store, "problems", lambda self, shape: ["it knows no slots"] if shape.slotted else [])
    with pytest.raises(UnavailableError, match="cache 'dense' cannot hold slots here: it knows no slots"):
        choose_slots(engine, LENGTH)


@pytest.mark.parametrize(
    ("settings", "fits"),
    [
        ({}, True),
        ({"gen_length": 24}, True),
        ({"block_length": 8}, True),
        ({"block_length": 16}, False),
        ({"refresh": "every-step", "skip": "none"}, True),
        ({"refresh": "delayed"}, False),
        ({"sampler": {"name": "gumbel", "temperature": 1.0}}, True),
    ],
    ids=str,
)
def test_a_row_whose_settings_ask_for_more_than_slots_were_made_for_is_told(
    build: Build, settings: dict[str, Any], fits: bool, catalogue: Catalogue
) -> None:
    engine = build("llada-0", "es-dllm", gen_length=16, block_length=8)
    said = outgrown(engine, engine.components.varied(settings, catalogue), LENGTH)
    assert (said == "") is fits
    assert fits or "and slots are made for 8: block_length = " in said


WIDE = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 20_000, "num_hidden_layers": 2}
"""a model whose logits are most of what a step takes"""
DEEP = {"hidden_size": 128, "intermediate_size": 384, "vocab_size": 500, "num_hidden_layers": 2}


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [WIDE, DEEP])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cache": "int8"},
        {"cache": "offloaded"},
        {"cfg_scale": 1.0},
        {"sampler": {"name": "gumbel", "temperature": 0.5}},
        {"sampler": {"name": "gumbel", "temperature": 0.5}, "cfg_scale": 1.0, "unmasking": "entropy-bound"},
        {"unmasking": "klass"},
        {"refresh": "delayed"},
        {"blocks": "own", "refresh": "dual-cache"},
        {"blocks": "pruned"},
    ],
    ids=str,
)
def test_slots_never_take_more_than_was_said(
    sizes: dict[str, int], settings: dict[str, Any], catalogue: Catalogue
) -> None:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    model = random_model({**read_config("dream-0"), **sizes, **heads}, "cpu", torch.float32, catalogue)
    short = {"gen_length": 32, "block_length": 16, "attention": "sdpa"}
    engine = Engine.build(model, catalogue.configure("es-dllm", settings={**short, **settings}), catalogue)
    fit = sizing(engine, 0, 96).fit(3)
    with TensorMemory() as memory:
        slots = engine.slots(3, 96)
        for seed in range(3):
            slots.admit([list(range(seed, seed + 64))])
        for _ in range(3):
            for group in slots.groups():
                slots.step(group)
        slots.step(part for part in slots.groups()[0] if part != 1)  # no neighbours
        slots.close()
    assert memory.peak <= fit.device() + fit.host()
