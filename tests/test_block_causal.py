"""Models whose positions see their own block and those before it."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from oracle import block_causal

from esdllm import BlockCausal, Catalogue, CheckpointError, Engine, Model, ModelSpec
from esdllm.runtime.records import until_stop
from esdllm.testing import tiny_model

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
