"""Rules that look at what is decided again, and those that owe a block so many: whole runs against the rule, plainly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from helpers import MASK, offers
from numpy.typing import NDArray
from runs import Build, Watch, prompts

from esdllm import Catalogue, ConfigError, Engine, Model
from esdllm.measure.tracing import trace
from esdllm.runtime.plain import full_logits

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Rule = Callable[[Floats, Bools, Bools, int], tuple[Bools, bool]]
"""by confidence, masks, what candidates differ from what is decided, and step: the positions that get their candidate, and
whether the block is done"""


def decode(model: Model, prompt: list[int], rule: Callable[[], Rule], gen_length: int = 24, block: int = 8) -> Any:
    """Return the canvas and how many steps it took: every position at every step, one row, NumPy."""
    tokens, steps = np.array(prompt + [MASK] * gen_length), 0
    for start in range(len(prompt), len(tokens), block):
        here, of_block, done, step = slice(start, start + block), rule(), False, 0
        while not done:
            with torch.inference_mode():
                logits = full_logits(model.adapter, torch.tensor(tokens)[None])[0, here].numpy().astype(np.float64)
            odds = np.exp(logits - logits.max(1, keepdims=True))
            odds /= odds.sum(1, keepdims=True)
            odds[:, MASK] = 0
            candidates, masked = odds.argmax(1), tokens[here] == MASK
            chosen, done = of_block(odds.max(1), masked, ~masked & (candidates != tokens[here]), step)
            tokens[here] = np.where(chosen, candidates, tokens[here])
            steps, step = steps + 1, step + 1
    return tokens.tolist(), steps


def best(confidence: Floats, among: Bools, number: int) -> Bools:
    """Return the `number` most confident among some."""
    order = np.argsort(-np.where(among, confidence, -1), kind="stable")[: min(number, among.sum())]
    return np.isin(np.arange(len(confidence)), order)


def owing(threshold: float, steps: int, block: int = 8) -> Callable[[], Rule]:
    """Return SDAR's dynamic rule: the confident, or the quota's best."""

    def rule(confidence: Floats, masked: Bools, other: Bools, step: int) -> tuple[Bools, bool]:
        quota = block // steps + (step < block % steps)
        sure = masked & (confidence > threshold)
        chosen = sure if sure.sum() >= quota else best(confidence, masked, quota)
        return chosen, bool((chosen == masked).all())

    return lambda: rule


def editing(threshold: float, editing_threshold: float, most: int, least: int = 1) -> Callable[[], Rule]:
    """Return LLaDA2.1's rule: a block goes on until a step without masks replaces nothing, or for `most` such steps."""

    def begin() -> Rule:
        free = 0

        def rule(confidence: Floats, masked: Bools, other: Bools, step: int) -> tuple[Bools, bool]:
            nonlocal free
            free += not masked.any()
            sure = masked & (confidence > threshold)
            edits = other & (confidence > editing_threshold)
            chosen = (sure if sure.sum() >= least else best(confidence, masked, least)) | edits
            left = (masked & ~chosen).any()
            return chosen, not left and (most == 0 or (not masked.any() and (not edits.any() or free >= most)))

        return rule

    return begin


EDITS = {"name": "editing", "threshold": 0.3, "editing_threshold": 0.2}


@pytest.mark.parametrize(
    ("unmasking", "rule"),
    [
        ({"name": "threshold", "threshold": 0.35, "steps_per_block": 4}, owing(0.35, 4)),
        ({"name": "threshold", "threshold": 0.2, "steps_per_block": 3}, owing(0.2, 3)),
        ({"name": "threshold", "threshold": 1.0, "steps_per_block": 5}, owing(1.0, 5)),
        (EDITS, editing(0.3, 0.2, 16)),
        ({**EDITS, "editing_steps": 1}, editing(0.3, 0.2, 1)),
        ({**EDITS, "editing_steps": 0}, editing(0.3, 0.2, 0)),
        ({**EDITS, "least": 3}, editing(0.3, 0.2, 16, least=3)),
        ({**EDITS, "threshold": 1.0, "editing_threshold": 0.0, "editing_steps": 3}, editing(1.0, 0.0, 3)),
    ],
)
def test_a_run_is_the_rule_written_plainly(unmasking: dict[str, Any], rule: Callable[[], Rule], build: Build) -> None:
    engine = build("llada-0", "vanilla", unmasking=unmasking, delay_eos=False)
    for prompt in prompts(2, seed=3).tolist():
        result = engine.generate([prompt])
        assert (result.tokens[0].tolist(), result.forwards) == decode(engine.model, prompt, rule)


def test_a_token_is_replaced_only_where_it_may_be_and_never_the_prompts(build: Build) -> None:
    watch = Watch()
    rows = prompts(2)
    result = build("llada-0", "vanilla", unmasking=EDITS, delay_eos=False).generate(rows, observers=[watch])
    replaced = 0
    steps = zip(watch.tokens, watch.tokens[1:], watch.records, watch.edited, strict=False)
    for before, after, record, edited in steps:
        block = torch.zeros_like(edited)
        block[:, record.block.start : record.block.stop] = True
        assert not (edited & ~block).any()
        assert torch.equal((before != after) & (before != MASK), edited)
        replaced += int(edited.sum())
    assert replaced > 0
    assert torch.equal(result.tokens[:, :12], rows)
    assert result.committed == 48


def test_a_trace_has_what_was_replaced(build: Build) -> None:
    watch = Watch()
    engine = build("llada-0", "vanilla", unmasking=EDITS, delay_eos=False)
    found = trace(engine, prompts(1).tolist()[0])
    engine.generate(prompts(1), observers=[watch])
    assert any(edited.any() for edited in watch.edited)
    for steps, tokens in enumerate(watch.tokens):
        assert found.canvas(steps).tolist() == tokens[0].tolist()


def test_a_row_that_edits_is_the_row_alone_whenever_others_end_their_block(build: Build) -> None:
    engine = build("llada-0", "vanilla", unmasking={**EDITS, "editing_steps": 2}, delay_eos=False)
    rows = [prompts(1, length, seed=length)[0].tolist() for length in (9, 4, 12)]
    together = engine.generate(rows)
    for number, row in enumerate(rows):
        alone = engine.generate([row]).tokens[0].tolist()
        assert together.tokens[number].tolist()[-len(alone) :] == alone


REVISING: tuple[dict[str, Any], ...] = (
    EDITS,
    {"name": "p2", "steps_per_block": 6},
    {"name": "wino", "threshold": 0.3, "verify": 0.5},
)


@pytest.mark.parametrize("unmasking", REVISING, ids=lambda unmasking: str(unmasking["name"]))
def test_an_end_of_the_answer_that_may_be_revised_stops_no_block(unmasking: dict[str, Any], build: Build) -> None:
    """Every token ends the answer here, so a run that looked within a block would end after a step or two."""
    engine = build("llada-0", "vanilla", unmasking=unmasking, delay_eos=False, early_stop=True, check_every=1)
    spec = attrs.evolve(engine.model.spec, stop_ids=tuple(range(250)))
    adapter = type(
        "Adapter", (), {"__getattr__": lambda self, name: getattr(engine.model.adapter, name), "spec": spec}
    )()
    watch = Watch()
    found = Engine.build(Model(adapter), engine.config).generate(prompts(1), observers=[watch])
    whole = engine.generate(prompts(1))
    assert {record.moment.block for record in watch.records} == {0}
    assert (watch.tokens[-1][0, 12:20] != MASK).all()
    assert found.tokens[0, 12] == whole.tokens[0, 12]


@attrs.frozen
class Planned:
    """An editing policy that plans all the same."""

    editing_steps: int = 1

    def counts(self, masked: int, blocks: int) -> tuple[int, ...]:
        return (1,) * masked

    def select(self, view: Any) -> Any:
        return view.eligible

    def edit(self, view: Any) -> Any:
        return view.editable


def test_a_policy_that_edits_cannot_plan_its_counts(llada: Model) -> None:
    catalogue = Catalogue.load({"p": offers("esdllm_unmasking_policies", {"planned": Planned})})
    config = catalogue.configure("vanilla", settings={"unmasking": "planned"})
    with pytest.raises(ConfigError, match="may replace what it has decided, so the steps of a block cannot be planned"):
        Engine.build(llada, config, catalogue)
