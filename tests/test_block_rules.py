"""Published rules over block-causal models, where no run was recorded: against the rule written plainly, in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_editing import Rule, best, editing, owing
from test_schedules import linear_schedule

from esdllm import Catalogue, Engine, Model, load_model
from esdllm.runtime.plain import full_logits

FOLDER = Path(__file__).parent / "conformance-families"
CATALOGUE = Catalogue.load()
PROMPTS = ([30, 31, 32], [40, 41, 42, 43, 44, 45], [50 + n for n in range(11)])


def decode(model: Model, prompt: list[int], length: int, size: int, before: int, begin: Callable[[int], Rule]) -> Any:
    """Return the canvas and the steps it took: every position at every step, blocks of `size`, the first `before` shorter."""
    mask, tokens, steps = model.spec.mask_id, np.array(prompt), 0
    while len(tokens) < length:
        number = (len(tokens) + before) // size
        start, stop = max(0, number * size - before), min(length, (number + 1) * size - before)
        block = np.append(tokens[start:], [mask] * (stop - len(tokens)))
        given, done, step = block != mask, False, 0
        rule = begin(int((~given).sum()))
        numbers = torch.arange(stop)[None].add(before) // size
        while not done:
            canvas = torch.tensor(np.append(tokens[:start], block))[None]
            with torch.inference_mode():
                logits = full_logits(model.adapter, canvas, blocks=numbers)[0, start:].double().numpy()
            odds = np.exp(logits - logits.max(1, keepdims=True))
            odds /= odds.sum(1, keepdims=True)
            odds[:, mask] = 0
            candidates, masked = odds.argmax(1), block == mask
            chosen, done = rule(odds.max(1), masked, ~given & ~masked & (candidates != block), step)
            block, step, steps = np.where(chosen, candidates, block), step + 1, steps + 1
        tokens = np.append(tokens[:start], block)
    return tokens.tolist(), steps


def counted(counts: Callable[[int], tuple[int, ...]]) -> Callable[[int], Rule]:
    """Return the rule that commits so many of the best, by the block's masks, and ends with them."""

    def begin(masks: int) -> Rule:
        def rule(confidence: Any, masked: Any, other: Any, step: int) -> Any:
            chosen = best(confidence, masked, counts(masks)[step])
            return chosen, bool((chosen == masked).all())

        return rule

    return begin


def whole(steps: int, size: int) -> tuple[int, ...]:
    """Return what each step of a whole block commits, its size spread over the steps."""
    return tuple(size // steps + (step < size % steps) for step in range(steps))


def even(steps: int) -> Callable[[int], tuple[int, ...]]:
    return lambda masks: whole(min(masks, steps), masks)


@pytest.mark.parametrize(("size", "steps"), [(2, 1), (3, 2), (5, 3), (8, 3), (8, 7)])
def test_sdar_owes_a_share_of_the_block_whatever_of_it_is_known(size: int, steps: int) -> None:
    model = load_model(FOLDER / "sdar-0", "cpu", family=f"sdar,block_size={size}")
    shared = {"gen_length": 9, "early_stop": False}
    static = {**shared, "unmasking": {"steps_per_block": steps, "spread": "block"}}
    dynamic = {**shared, "unmasking": {"steps_per_block": steps, "threshold": 0.25}}
    for prompt in PROMPTS:
        length = -(-(len(prompt) + 9) // size) * size
        for preset, settings, begin in (
            ("sdar/static", static, counted(lambda masks: whole(steps, size))),
            ("sdar/dynamic", dynamic, lambda masks: owing(0.25, steps, size)()),
        ):
            engine = Engine.build(model, CATALOGUE.configure(preset, settings=settings), CATALOGUE)
            result = engine.generate([prompt])
            assert (result.tokens[0].tolist(), result.forwards) == decode(model, prompt, length, size, 0, begin)


@pytest.mark.parametrize(("size", "most", "least"), [(3, 16, 1), (8, 2, 1), (5, 0, 2), (16, 1, 3)])
def test_llada2_edits_what_it_decided_and_never_the_prompt(size: int, most: int, least: int) -> None:
    model = load_model(FOLDER / "llada2_moe-0", "cpu", family=f"llada2_moe,block_size={size},mask_token_id=158")
    options = {"threshold": 0.4, "editing_threshold": 0.15, "editing_steps": most, "least": least}
    settings = {"gen_length": 9, "early_stop": False, "unmasking": options}
    engine = Engine.build(model, CATALOGUE.configure("llada2/2.1", settings=settings), CATALOGUE)
    for prompt in PROMPTS:
        length = -(-(len(prompt) + 9) // size) * size
        result = engine.generate([prompt])
        plain = decode(model, prompt, length, size, 0, lambda masks: editing(0.4, 0.15, most, least)())
        assert (result.tokens[0].tolist(), result.forwards) == plain


@pytest.mark.parametrize(("size", "steps"), [(3, 7), (4, 2), (8, 21)])
def test_a_bd3lm_run_and_stable_diffcoders_go_by_the_masks_of_their_blocks(size: int, steps: int) -> None:
    bd3lm = load_model(FOLDER / "a2d-qwen3-0", "cpu", family=f"a2d-qwen3-bd3lm,block_size={size},mask_token_id=158")
    coder = load_model(FOLDER / "stable_diffcoder-0", "cpu", family=f"stable-diffcoder,block_size={size}")
    shared: dict[str, Any] = {"gen_length": 10, "early_stop": False, "block_length": size}
    each = -(-steps // -(-10 // size))
    for prompt in PROMPTS:
        for model, preset, unmasking, before, counts in (
            (bd3lm, "a2d/bd3lm", {"steps": steps}, -len(prompt) % size, lambda masks: linear_schedule(masks, each)),
            (coder, "stable-diffcoder/static", {"steps_per_block": steps}, 0, even(steps)),
        ):
            settings = {**shared, "unmasking": unmasking}
            engine = Engine.build(model, CATALOGUE.configure(preset, settings=settings), CATALOGUE)
            tokens, forwards = decode(model, prompt, len(prompt) + 10, size, before, counted(counts))
            result = engine.generate([prompt])
            assert (result.tokens[0].tolist()[-len(tokens) :], result.forwards) == (tokens, forwards)
