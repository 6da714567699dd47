"""What `generate` refuses: each by a message that says what is wrong and what would do."""

from __future__ import annotations

import json
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CASES, EOS, MASK, write_checkpoint
from safetensors.torch import load_file

from esdllm import Catalogue, Engine, InputError, Model, NumericsError, load_model
from esdllm.errors import ContextError


@pytest.fixture
def build(catalogue: Catalogue) -> Callable[..., Engine]:
    def make(model: Model, preset: str = "vanilla", **settings: Any) -> Engine:
        chosen = {"gen_length": 4, "block_length": 4, **settings}
        return Engine.build(model, catalogue.configure(preset, settings=chosen), catalogue)

    return make


def ids(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int64)


PROMPTS: list[tuple[Any, str]] = [
    ([], "there is no prompt; give at least one"),
    ([[]], "prompt 0 is empty; give it at least one token"),
    ([[1], []], "prompt 1 is empty"),
    (5, "prompts are text, a list of prompts, or a tensor, not 5"),
    (None, "prompts are text, a list of prompts, or a tensor, not None"),
    ({"role": "user", "content": "hi"}, "prompts are text, a list of prompts, or a tensor, not {'role': 'user'"),
    ([1, 2, 3], "a prompt is text, a conversation or a list of token ids, not 1"),
    ([[1.0]], r"a prompt is .* a list of token ids, not \[1\.0\]"),
    ([[True]], r"a prompt is .* a list of token ids, not \[True\]"),
    ([{"role": "user", "content": "hi"}], "a prompt is text, a conversation .* not {'role'"),
    ([[{"role": "user"}]], "a turn of a conversation is {'role': text, 'content': text}, not {'role': 'user'}"),
    ([[{"role": "user", "content": "hi"}, "there"]], "a turn of a conversation is .*, not 'there'"),
    ("hello", "text needs a tokenizer"),
    ([[{"role": "user", "content": "hi"}]], "text needs a tokenizer"),
    ([[1, 256]], "the token 256 is outside the vocabulary of 256"),
    ([[-1]], "the token -1 is outside the vocabulary of 256"),
    ([[2**70]], f"the token {2**70} is outside the vocabulary of 256"),
    (ids([1, 300]), "the token 300 is outside the vocabulary"),
    ([[1], [2, MASK]], "prompt 1 holds the mask token 254; pass infill=True to have it filled in"),
    (torch.tensor([1, 2]), r"prompts are \(B, P\) int64, not \(2,\) torch.int64"),
    (torch.tensor([[1.0]]), r"prompts are \(B, P\) int64, not \(1, 1\) torch.float32"),
    (torch.tensor([[1]], dtype=torch.int32), r"prompts are \(B, P\) int64, not \(1, 1\) torch.int32"),
    (torch.zeros(0, 3, dtype=torch.int64), r"prompts of shape \(0, 3\) are empty"),
    (torch.zeros(2, 0, dtype=torch.int64), r"prompts of shape \(2, 0\) are empty"),
]


@pytest.mark.parametrize(("prompts", "message"), PROMPTS, ids=lambda value: repr(value)[:40])
def test_a_prompt_that_cannot_be_decoded_is_refused(
    build: Callable[..., Engine], llada: Model, prompts: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build(llada).generate(prompts)


MASKS: list[tuple[Any, str]] = [
    (ids([1, 0, 1], [1, 1, 1]), "the attention mask of row 0 has holes or ends with padding; only padding on the left"),
    (ids([1, 1, 1], [1, 1, 0]), "the attention mask of row 1 has holes or ends with padding"),
    (ids([1, 1, 1], [0, 0, 0]), "the attention mask of row 1 has holes or ends with padding"),
    (ids([1, 1], [1, 1]), r"the attention mask is \(2, 2\) torch.int64; it must be \(2, 3\), bool or integer"),
    (torch.ones(2, 3), r"the attention mask is \(2, 3\) torch.float32"),
    ([[1, 1, 1], [1, 1, 1]], "the attention mask is a list; it must be a tensor like the prompts"),
]


@pytest.mark.parametrize(("mask", "message"), MASKS, ids=lambda value: repr(value)[:40])
def test_a_wrong_attention_mask_is_refused(build: Callable[..., Engine], llada: Model, mask: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(llada).generate(ids([1, 2, 3], [4, 5, 6]), attention_mask=mask)


def test_an_attention_mask_goes_with_a_tensor_alone(build: Callable[..., Engine], llada: Model) -> None:
    with pytest.raises(InputError, match="an attention mask goes with a tensor of token ids; other prompts are padded"):
        build(llada).generate([[1, 2]], attention_mask=ids([1, 1]))


@pytest.mark.parametrize("padding", [EOS, MASK, 0, -100, 10**6])
@pytest.mark.parametrize("name", ["llada", "dream"])
def test_what_stands_in_padding_changes_nothing(
    build: Callable[..., Engine], request: pytest.FixtureRequest, name: str, padding: int
) -> None:
    engine = build(request.getfixturevalue(name), "es-dllm")
    prompts = ids([padding, padding, 3, 4], [5, 6, 7, 8])
    found = engine.generate(prompts, attention_mask=ids([0, 0, 1, 1], [1, 1, 1, 1]))
    assert found.answers == engine.generate([[3, 4], [5, 6, 7, 8]]).answers
    assert found.committed == 8


def test_a_canvas_over_the_context_is_refused(build: Callable[..., Engine], llada: Model) -> None:
    message = (
        "4093 prompt tokens and 4 to generate exceed the model's context of 4096; shorten the prompt or gen_length"
    )
    with pytest.raises(ContextError, match=message):
        build(llada).generate([[1] * 4093])
    with pytest.raises(ContextError, match="4097 prompt tokens and 0 to generate exceed"):
        build(llada).generate([[1] * 4096 + [MASK]], infill=True)


def test_a_canvas_that_fills_the_context_is_decoded(catalogue: Catalogue, llada: Model, tmp_path: Path) -> None:
    config = {**json.loads((CASES / "llada-0" / "config.json").read_text()), "max_sequence_length": 12}
    folder = write_checkpoint(tmp_path, config, load_file(CASES / "llada-0" / "model.safetensors"))
    model = load_model(folder, "cpu", catalogue=catalogue)
    engine = Engine.build(model, catalogue.configure("vanilla", settings={"gen_length": 4}), catalogue)
    assert engine.generate([[1] * 8]).tokens.shape == (1, 12)
    with pytest.raises(ContextError, match="9 prompt tokens and 4 to generate exceed the model's context of 12"):
        engine.generate([[1] * 9])


def test_there_must_be_something_to_fill_in(build: Callable[..., Engine], llada: Model) -> None:
    with pytest.raises(InputError, match="there is nothing to fill in: no canvas holds the mask token 254"):
        build(llada).generate([[1, 2]], infill=True)


def test_a_canvas_that_begins_with_a_mask_needs_a_model_without_a_shift(
    build: Callable[..., Engine], llada: Model, dream: Model
) -> None:
    canvases = [[MASK, 1, 2], [3, MASK]]  # padding before the second is no mask
    message = "a canvas begins with a mask, which a model with logit shift 1 cannot fill in; put a token before"
    with pytest.raises(InputError, match=message):
        build(dream).generate(canvases, infill=True)
    assert MASK not in build(dream).generate(canvases[1:], infill=True).tokens
    assert MASK not in build(llada).generate(canvases, infill=True).tokens


@pytest.mark.parametrize("seed", [-1, 1.5, True, 2**63, "ab", [1], [1, 2, 3], [1, None], [1, -2], [1, 2.0]])
def test_a_wrong_seed_is_refused(build: Callable[..., Engine], llada: Model, seed: Any) -> None:
    with pytest.raises(InputError, match=r"seed = .* for 2 rows; give one whole number from 0 to .*, or one per row"):
        build(llada).generate([[1], [2]], seed=seed)


@pytest.mark.parametrize("seed", [None, 0, 2**63 - 1, [3, 4], (5, 2**63 - 1)])
def test_a_right_seed_is_taken(build: Callable[..., Engine], llada: Model, seed: Any) -> None:
    engine = build(llada, sampler={"temperature": 1.0})
    first, second = (engine.generate([[1], [2]], seed=seed).tokens for _ in range(2))
    assert first.equal(second)
    assert MASK not in first


@pytest.mark.parametrize("preset", ["vanilla", "es-dllm", "es-dllm-parallel"])
@pytest.mark.parametrize(
    ("layer", "weight", "where"),
    [
        (3, "kv", "the output of layer 3 is the first that is not finite"),
        (3, "q", "the output of layer 3 is the first that is not finite"),
        (0, "mlp.down", "the output of layer 0 is the first that is not finite"),
        (None, "embedding", "the embedding is the first that is not finite"),
        (None, "head", "all layers are finite, the head's output is not"),
    ],
)
def test_numbers_that_are_none_are_found_with_their_step_and_layer(
    build: Callable[..., Engine], catalogue: Catalogue, preset: str, layer: int | None, weight: str, where: str
) -> None:
    model = load_model(CASES / "llada-0", "cpu", catalogue=catalogue)
    adapter: Any = model.adapter
    found = attrgetter(weight)(adapter if layer is None else adapter.layers[layer])
    getattr(found, "weight", found).fill_(float("nan"))
    engine = build(model, preset, attention="eager")  # torch's fused CPU kernel gives 0 where all scores are NaN
    with pytest.raises(NumericsError, match=f"NaN logits at step 0; .*{where}.*Look at the weights, or use a wider"):
        engine.generate([[1, 2]])


def test_a_bad_number_in_the_branch_without_the_prompt_is_found_too(
    build: Callable[..., Engine], catalogue: Catalogue
) -> None:
    model = load_model(CASES / "llada-0", "cpu", catalogue=catalogue)
    adapter: Any = model.adapter
    plain = adapter.mix

    def poisoned(layer: int, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        out = plain(layer, hidden, attended)
        masked = (hidden[:, 0] == adapter.embedding[MASK]).all(1)  # the branch whose prompt is masked
        return out.masked_fill((masked & (layer == 0))[:, None, None], float("nan"))

    adapter.mix = poisoned
    engine = build(model, "vanilla", cfg_scale=1.0, attention="eager")
    with pytest.raises(NumericsError, match="NaN logits at step 0; the output of layer 0"):
        engine.generate([[1, 2]])


def test_an_engine_is_whole_after_a_refusal(build: Callable[..., Engine], llada: Model) -> None:
    engine = build(llada, "es-dllm")
    before = engine.generate([[1, 2, 3]]).tokens
    with pytest.raises(InputError, match="outside the vocabulary"):
        engine.generate([[999]])
    assert engine.generate([[1, 2, 3]]).tokens.equal(before)


@pytest.mark.parametrize("prompt", ["a\udcff", [{"role": "user", "content": "a\udcff"}]])
def test_text_that_cannot_be_encoded_is_refused(catalogue: Catalogue, prompt: Any) -> None:
    engine = Engine.build(
        load_model("tiny-llada", "cpu", catalogue=catalogue), catalogue.configure("es-dllm"), catalogue
    )
    with pytest.raises(InputError, match="not valid UTF-8 at character 1; convert it first"):
        engine.generate([prompt], chat=True)
