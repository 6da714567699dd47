"""Models whose positions see their own block and those before it."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from oracle import block_causal
from runs import compiled

from esdllm import BlockCausal, Catalogue, CheckpointError, Engine, Model, ModelSpec
from esdllm.runtime.records import until_stop
from esdllm.testing import check_generation, full_logits, tiny_model
from esdllm.testing.contracts.families import _adapter_laws as adapter_laws
from esdllm.testing.contracts.families import _decoding_laws as decoding_laws
from esdllm.testing.tape import record_steps

CATALOGUE = Catalogue.load()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"size": 0}, "size 0"),
        ({"size": -4}, "size -4"),
        ({"size": True}, "size True"),
        ({"size": 4.0}, r"size 4\.0"),
        ({"size": "4"}, "size '4'"),
        ({"size": 4, "grid": "end"}, "begin at 'end'"),
        ({"size": 4, "grid": None}, "begin at None"),
        ({"size": 4, "written": 0}, "blocks of 0"),
        ({"size": 4, "written": 3}, "blocks of 3"),
        ({"size": 4, "written": 8}, "blocks of 8"),
        ({"size": 4, "written": True}, "blocks of True"),
        ({"size": 4, "leads": 1}, "leads is 1"),
        ({"size": 4, "fills": None}, "fills is None"),
        ({"size": 4, "whole_prompt": "yes"}, "whole_prompt is 'yes'"),
        ({"size": 4, "whole_prompt": True}, "one block ends where blocks begin"),
        ({"size": 4, "grid": "prompt-end", "whole_prompt": True, "written": 1}, "one block ends where blocks begin"),
    ],
)
def test_a_form_of_attention_that_is_none_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        BlockCausal(**fields)


def test_keys_are_written_in_blocks_of_the_size_unless_told_otherwise() -> None:
    assert BlockCausal(8).write_size == 8
    assert BlockCausal(8, written=1).write_size == 1


def test_a_model_says_its_attention_by_its_type_alone() -> None:
    sizes = (1, 8, 1, 1, 8, 16, 32)
    assert ModelSpec("any", *sizes, mask_id=5, eos_id=4).attention is None
    with pytest.raises(CheckpointError, match="attention is 'block-causal'"):
        ModelSpec("any", *sizes, mask_id=5, eos_id=4, attention="block-causal")  # type: ignore[arg-type]


FORMS = {
    "start": (BlockCausal(4), 0),
    "start, filled": (BlockCausal(8, fills=True), 0),
    "prompt-end": (BlockCausal(4, "prompt-end"), 0),
    "prompt-end, causally written": (BlockCausal(4, "prompt-end", written=1, leads=True), 0),
    "start, shifted": (BlockCausal(4, leads=True, fills=True), 1),
    "start, shifted, unfilled": (BlockCausal(8, leads=True), 1),
    "prompt-end, whole prompt": (BlockCausal(4, "prompt-end", whole_prompt=True), 0),
    "one by one": (BlockCausal(1, leads=True), 1),
    "written in halves": (BlockCausal(8, written=4), 0),
}
PROMPTS = [[5, 9, 2, 40, 17], [3], [11, 12, 13, 14, 15, 16, 17, 18], [8, 1, 30, 2, 2, 7, 50, 33, 21, 6, 4, 19, 44]]


def model_of(attention: BlockCausal, shift: int = 0, seed: int = 0, device: str = "cpu") -> Model:
    model = tiny_model("llada", device, CATALOGUE, seed=seed)
    spec = attrs.evolve(model.spec, attention=attention, logit_shift=shift)
    return attrs.evolve(model, adapter=attrs.evolve(model.adapter, spec=spec))


def engine_of(model: Model, preset: str, **settings: Any) -> Engine:
    settings = {"gen_length": 10, "block_length": 8, "early_stop": False, "attention": "eager", **settings}
    return Engine.build(model, CATALOGUE.configure(preset, settings=settings), CATALOGUE)


@pytest.mark.parametrize("preset", ["vanilla", "dual-cache", "prefix-cache"])
@pytest.mark.parametrize("form", FORMS)
def test_a_batch_is_decoded_as_each_row_alone_and_computed_anew(form: str, preset: str) -> None:
    model = model_of(*FORMS[form])
    made = engine_of(model, preset).generate(PROMPTS)
    for prompt, tokens in zip(PROMPTS, made.answers, strict=True):
        expected = block_causal(model.adapter, [*prompt, *[model.spec.mask_id] * 10], fill=True)
        assert expected.margin > 1e-6
        assert tokens == until_stop(expected.tokens[len(prompt) : len(prompt) + 10], model.stop_ids)


@pytest.mark.parametrize("preset", ["vanilla", "dual-cache", "es-dllm"])
@pytest.mark.parametrize("form", FORMS)
def test_a_row_in_a_slot_is_decoded_as_alone_whatever_its_block(form: str, preset: str) -> None:
    engine = engine_of(model_of(*FORMS[form]), preset)
    alone = [engine.generate([prompt]).answers[0] for prompt in PROMPTS]
    slots = engine.slots(len(PROMPTS), 24)
    taken = [slots.admit([prompt]) for prompt in PROMPTS]
    while groups := slots.groups():
        slots.step(groups[-1])
    assert [slots.take(slot).answers[0] for slot in taken] == alone


@pytest.mark.parametrize("preset", ["vanilla", "dual-cache", "es-dllm"])
@pytest.mark.parametrize("form", FORMS)
def test_a_whole_run_reads_nothing_back_and_branches_on_no_value(form: str, preset: str) -> None:
    made = engine_of(model_of(*FORMS[form], device="meta"), preset, attention="sdpa").generate(PROMPTS)
    assert made.forwards == engine_of(model_of(*FORMS[form]), preset).generate(PROMPTS).forwards


@pytest.mark.parametrize("form", FORMS)
def test_steps_that_are_replayed_give_the_same(form: str) -> None:
    model = model_of(*FORMS[form])
    expected = engine_of(model, "es-dllm").generate(PROMPTS).answers
    engine = engine_of(model, "es-dllm")
    tape = record_steps(engine)
    for _ in range(3):
        assert engine.generate(PROMPTS).answers == expected
    assert sum(tape.replays) > 0


@pytest.mark.slow
@pytest.mark.parametrize("form", ["prompt-end", "start, shifted"])
def test_steps_compile_to_one_graph_for_each_plan_and_blocks_share_plans(form: str) -> None:
    model = model_of(*FORMS[form])
    rows = torch.tensor([PROMPTS[2], PROMPTS[3][:8]])
    expected = engine_of(model, "dual-cache", gen_length=24).generate(rows)
    found, graphs, plans = compiled(engine_of(model, "dual-cache", gen_length=24, compile=True, attention="sdpa"), rows)
    assert found.answers == expected.answers
    assert graphs == len(plans) <= 6


@pytest.mark.parametrize("form", FORMS)
def test_the_contracts_of_families_and_generations_hold(form: str) -> None:
    model = model_of(*FORMS[form])
    adapter_laws("the family", model.adapter, 1e-4)
    decoding_laws("the family", model.adapter, lambda tokens: full_logits(model.adapter, tokens), 1e-4)
    check_generation(model=model)
