"""Options are weighed by what the model says of their tokens: by hand from plain passes, and by LLaDA's bound."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from esdllm import Catalogue, InputError, Pipeline
from esdllm.errors import ContextError
from esdllm.runtime.plain import full_logits
from esdllm.use.likelihood import Likelihood, Pair

OPTIONS = ["yes", " no", "perhaps, or not", "a", " 12"]


@pytest.fixture(scope="module")
def pipes(small: dict[str, Path], catalogue: Catalogue) -> dict[str, Pipeline]:
    held: Any = {"device": "cpu", "dtype": "float32", "catalogue": catalogue, "gen_length": 16, "block_length": 16}
    return {name: Pipeline.from_pretrained(small[name], **held) for name in ("tiny-llada", "tiny-dream", "tiny-sdar")}


@pytest.fixture(scope="module")
def pipe(pipes: dict[str, Pipeline]) -> Pipeline:
    return pipes["tiny-llada"]


def _by_hand(pipe: Pipeline, before: list[int], option: str, after: list[int], ends: set[int]) -> float:
    """Return the log-probability of an option and of what follows it, all of it masked in one row without padding."""
    spec, codec = pipe.model.spec, pipe.model.codec
    assert codec is not None
    tokens = codec.encode(option)
    row = [*before, *[spec.mask_id] * (len(tokens) + 1), *after]
    logits = full_logits(pipe.model.adapter, torch.tensor([row]))[0].double()
    logits[:, spec.mask_id] = -math.inf
    at = len(before) - spec.logit_shift
    found = logits.log_softmax(-1)[at : at + len(tokens) + 1].exp()
    parts = [float(found[i, token]) for i, token in enumerate(tokens)]
    return sum(map(math.log, [*parts, sum(float(found[-1, end]) for end in ends)]))


@pytest.mark.parametrize("name", ["tiny-llada", "tiny-dream"])
@pytest.mark.parametrize("kind", ["chat", "raw", "ids", "conversation", "blank", "last blank"])
def test_one_forward_adds_up_what_the_model_says_of_each_masked_token(
    pipes: dict[str, Pipeline], name: str, kind: str
) -> None:
    pipe = pipes[name]
    codec, spec = pipe.model.codec, pipe.model.spec
    assert codec is not None
    turn = [{"role": "user", "content": "Is it so?"}]
    chat, raw, stops = codec.encode_chat(turn), codec.encode("Is it so?"), set(pipe.model.stop_ids)
    after = codec.encode(" is what it is.")
    prompt, before, behind, ends = {
        "chat": ("Is it so?", chat, [], stops),
        "raw": ("Is it so?", raw, [], stops),
        "ids": (raw, raw, [], stops),
        "conversation": (turn, chat, [], stops),
        "blank": ("Is it so?[MASK] is what it is.", raw, after[1:], {after[0]}),
        "last blank": ("Is it so?[MASK]", raw, [], {spec.eos_id}),
    }[kind]
    found = pipe.choose(prompt, OPTIONS, chat=False if kind == "raw" else None)
    right = [_by_hand(pipe, before, option, behind, ends) for option in OPTIONS]
    assert found.log_probs == pytest.approx(right, abs=1e-3)
    assert found.forwards == 1
    total = sum(map(math.exp, right))
    assert found.probabilities == pytest.approx([math.exp(each) / total for each in right], abs=1e-4)
    assert found.text == OPTIONS[right.index(max(right))]


class _WithoutMask(Likelihood):
    """The bound of a model whose mask is no candidate, as in decoding."""

    def logits(self, tokens: torch.Tensor, start: int) -> torch.Tensor:
        found = super().logits(tokens, start).clone()
        found[..., self.model.spec.mask_id] = -torch.inf
        return found


@pytest.mark.parametrize("name", ["tiny-llada", "tiny-dream"])
@pytest.mark.parametrize("samples", [3, 64])
def test_with_samples_it_is_the_bound_that_likelihoods_are(pipes: dict[str, Pipeline], name: str, samples: int) -> None:
    pipe = pipes[name]
    codec, spec = pipe.model.codec, pipe.model.spec
    assert codec is not None
    before = codec.encode("It is")
    pairs = [Pair(before, [*codec.encode(option), spec.eos_id]) for option in OPTIONS]
    right = _WithoutMask(pipe.model.adapter, pipe.engine.components.attention, samples=samples).bounds(pairs)
    found = pipe.choose("It is[MASK]", OPTIONS, samples=samples)
    assert found.log_probs == pytest.approx(right, abs=1e-3)
    assert pipe.score("It is[MASK]", OPTIONS[2], samples=samples).log_prob == pytest.approx(
        found.log_probs[2], abs=1e-3
    )


def test_an_option_has_the_same_log_prob_whatever_else_is_to_choose_from(pipe: Pipeline) -> None:
    every = pipe.choose("Is it so?", OPTIONS).log_probs
    turned = pipe.choose("Is it so?", OPTIONS[::-1]).log_probs
    few = pipe.choose("Is it so?", OPTIONS[1:3]).log_probs
    assert every == pytest.approx(turned[::-1], abs=1e-4)
    assert every[1:3] == pytest.approx(few, abs=1e-4)


def test_yes_or_no_is_a_choice_of_two(pipe: Pipeline) -> None:
    assert pipe.yes_no("Is it so?") == pipe.choose("Is it so?", ["Yes", "No"]).probabilities[0]
    assert pipe.yes_no("So?", yes="ja", no="nein") == pytest.approx(1 - pipe.yes_no("So?", yes="nein", no="ja"))


def test_64_options_take_one_forward(pipe: Pipeline) -> None:
    options = [f"number {at} of the list" if at % 3 else f"{at}" for at in range(64)]
    found = pipe.choose("Which?", options)
    assert found.forwards == 1
    assert sum(found.probabilities) == pytest.approx(1)
    assert str(found).splitlines()[0].endswith(found.text)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-llada", "tiny-dream"])
@pytest.mark.parametrize("samples", [None, 8])
def test_a_model_that_knows_the_answer_chooses_it(catalogue: Catalogue, name: str, samples: int | None) -> None:
    pipe = Pipeline.from_pretrained(name, device="cpu", catalogue=catalogue)
    options = [f"The result is 12 + 7 = {n}." for n in (18, 20, 19, 9)]
    assert pipe.choose("What is 12 + 7?", options, samples=samples).best == 2


WRONG: list[tuple[Any, Any, dict[str, Any], str]] = [
    ("a", ["x"], {}, "options are 2 to 64 texts"),
    ("a", "xy", {}, "options are 2 to 64 texts, not 'xy'"),
    ("a", [str(n) for n in range(65)], {}, "options are 2 to 64 texts"),
    ("a", ["x", 3], {}, "options are 2 to 64 texts"),
    ("a", ["x", "y", "x"], {}, "the option 'x' is there twice"),
    ("a", ["x", ""], {}, "the option '' has no tokens"),
    ("a", ["x", "<|mdm_mask|>"], {}, "holds the model's mask token"),
    ("a [MASK:2]", ["x", "y"], {}, "options go into one blank"),
    ("a [MASK:1-2]", ["x", "y"], {}, "options go into one blank"),
    ("a [MASK] [MASK]", ["x", "y"], {}, "options go into one blank"),
    ("a", ["x", "y"], {"samples": 0}, "samples = 0; give at least 1"),
    ("a", ["x", "y"], {"samples": True}, "samples = True; give at least 1"),
    ("", ["x", "y"], {"chat": False}, "is empty"),
]


@pytest.mark.parametrize(("prompt", "options", "over", "message"), WRONG, ids=lambda value: repr(value)[:20])
def test_what_cannot_be_weighed_is_refused(
    pipe: Pipeline, prompt: Any, options: Any, over: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        pipe.choose(prompt, options, **over)


def test_a_prompt_and_an_option_beyond_the_context_are_refused(pipe: Pipeline) -> None:
    with pytest.raises(ContextError, match="exceeds the model's context of 1024"):
        pipe.choose("word " * 300, ["x " * 1000, "y"])
    with pytest.raises(InputError, match="what is scored is a text, not ''"):
        pipe.score("a", "")


def test_models_that_cannot_weigh_are_refused_by_what_they_are(pipes: dict[str, Pipeline]) -> None:
    with pytest.raises(InputError, match=r"block-causal \(blocks of \d+\): weighing options is for models"):
        pipes["tiny-sdar"].choose("a", ["x", "y"])
    with pytest.raises(InputError, match="logit shift 1 says nothing of a text's first token; put one before"):
        pipes["tiny-dream"].choose("[MASK] b", ["x", "y"])
