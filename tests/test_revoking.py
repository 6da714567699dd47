"""Decisions taken back."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
import torch
from helpers import CASES, offers
from runs import MODELS, Build, Watch, prompts
from torch import Tensor

from esdllm import Catalogue, ConfigError, Engine, Model, UnmaskingView, load_model
from esdllm.runtime.plain import full_logits


def wino(**options: Any) -> dict[str, Any]:
    return {"unmasking": {"name": "wino", **options}}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", ["vanilla", "dual-cache", "es-dllm"])
def test_a_token_changes_only_where_it_is_put_back(name: str, mode: str, build: Build) -> None:
    watch = Watch()
    build(name, mode, **wino(threshold=0.4, verify=0.5)).generate(prompts(2), observers=[watch])
    steps = zip(watch.tokens, watch.tokens[1:], watch.committed, watch.revoked, strict=False)
    for before, after, committed, revoked in steps:
        assert torch.equal(before[~committed & ~revoked], after[~committed & ~revoked])
        assert (before[committed] == 254).all()
        assert (after[revoked] == 254).all()
        assert not (committed & revoked).any()
        assert (before[revoked] != 254).all()
    assert any(revoked.any() for revoked in watch.revoked)


@pytest.mark.parametrize("revisions", [1, 3])
def test_a_position_is_put_back_no_more_often_than_allowed_and_every_mask_is_decided(
    revisions: int, build: Build
) -> None:
    """Nothing is ever believed, so everything is put back as often as may be, but for what ends a block."""
    watch = Watch()
    engine = build("llada-0", "vanilla", **wino(threshold=0.3, verify=1.0, revisions=revisions))
    result = engine.generate(prompts(2), observers=[watch])
    times = sum(revoked.int() for revoked in watch.revoked)
    assert isinstance(times, Tensor)
    assert int(times.max()) == revisions
    assert result.committed == 48
    assert result.forwards <= 24 * (1 + revisions)


def test_the_prompt_is_never_put_back(build: Build) -> None:
    canvas = prompts(1, 24)
    canvas[0, 4:20:2] = 254
    given_ = canvas != 254
    engine = build("llada-0", "vanilla", **wino(threshold=0.0, verify=1.0), block_length=24)
    result = engine.generate(canvas, infill=True)
    assert torch.equal(result.tokens[given_], canvas[given_])


def test_without_anything_to_put_back_it_is_the_threshold(build: Build) -> None:
    never = build("llada-0", "es-dllm", **wino(threshold=0.3, verify=0.0)).generate(prompts(2))
    plain = build("llada-0", "es-dllm-parallel", unmasking={"threshold": 0.3}).generate(prompts(2))
    assert torch.equal(never.tokens, plain.tokens)


def test_a_row_of_a_batch_is_the_row_alone(build: Build) -> None:
    """Vanilla decoding: no window, and so no row's cache, depends on another row."""
    engine = build("llada-0", "vanilla", **wino(threshold=0.2, verify=0.6), blocks="own")
    rows = [row.tolist() for row in prompts(3, seed=2)]
    batch = engine.generate(rows)
    assert [engine.generate([row]).answers[0] for row in rows] == batch.answers


def test_a_whole_step_reads_nothing_from_the_device(catalogue: Catalogue, build: Build) -> None:
    """On the meta device: the first step passes, and the planner's question after it raises."""
    shape_only = load_model(CASES / "llada-0", device="meta", catalogue=catalogue)
    watch = Watch()
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        build(shape_only, "dual-cache", **wino()).generate(prompts(), observers=[watch])
    assert len(watch.records) == 1


@attrs.frozen
class Planned:
    """Says how many to commit, and yet takes some back."""

    revisions: int = 1

    def counts(self, masked: int, blocks: int) -> tuple[int, ...]:
        """Return one per step."""
        return (1,) * masked

    def select(self, view: UnmaskingView) -> Tensor:
        """Return everything."""
        return view.eligible

    def revoke(self, view: UnmaskingView) -> Tensor:
        """Return nothing."""
        return torch.zeros_like(view.eligible)


def test_a_policy_that_revokes_cannot_plan_its_counts(llada: Model) -> None:
    catalogue = Catalogue.load({"p": offers("esdllm_unmasking_policies", {"planned": Planned})})
    with pytest.raises(ConfigError, match="may take decisions back, so the steps of a block cannot be planned"):
        Engine.build(llada, catalogue.configure("es-dllm", settings={"unmasking": "planned"}), catalogue)


def test_p2_is_its_rule_written_plainly(build: Build) -> None:
    """Open-dLLM's loop in NumPy: of all n answer positions the floor of n (1 - (i + 1) / S) least confident are masks."""
    for steps in (1, 4, 7, 24, 40):
        engine = build("llada-0", "vanilla", unmasking={"name": "p2", "steps_per_block": steps}, block_length=24)
        engine = Engine.build(engine.model, attrs.evolve(engine.config, delay_eos=False))
        for prompt in prompts(2, seed=5).tolist():
            tokens = np.array(prompt + [254] * 24)
            for step in range(steps):
                with torch.inference_mode():
                    logits = full_logits(engine.model.adapter, torch.tensor(tokens)[None])[0, 12:].double().numpy()
                odds = np.exp(logits - logits.max(1, keepdims=True))
                odds /= odds.sum(1, keepdims=True)
                odds[:, 254] = 0
                number = int(np.floor(np.float32(24) * np.float32(1 - (step + 1) / steps)))
                least = np.isin(np.arange(24), odds.max(1).argsort(kind="stable")[:number])
                kept = np.where(tokens[12:] == 254, odds.argmax(1), tokens[12:])
                tokens[12:] = np.where(least, 254, kept)
            result = engine.generate([prompt])
            assert result.tokens[0].tolist() == tokens.tolist()
            assert result.forwards == next(
                i for i in range(1, steps + 1) if 24 * (steps - i) < steps
            )  # no mask is left
