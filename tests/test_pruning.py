"""Pruned suffixes: what lies beyond is neither computed nor attended to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import MODELS, MODES, Build, Watch, prompts

from esdllm import Block, ConfigError
from esdllm_policies.blocks import PrunedBlocks


def pruned(window: int, last: bool = False) -> dict[str, Any]:
    return {"blocks": {"name": "pruned", "window": window, "last": last}}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", MODES)
def test_a_window_over_the_whole_suffix_is_no_pruning(name: str, mode: str, build: Build) -> None:
    rows = [prompts(1, length, seed=length)[0].tolist() for length in (12, 5)]
    every = build(name, mode, **pruned(24, last=True)).generate(rows)
    assert torch.equal(every.tokens, build(name, mode).generate(rows).tokens)


@pytest.mark.parametrize(("name", "shift"), [("llada-0", 0), ("dream-0", 1)])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("beyond", [0, 5])
def test_the_first_block_is_that_of_a_shorter_canvas(
    name: str, shift: int, mode: str, beyond: int, build: Build
) -> None:
    """What is hidden might as well not be there. (A computed position is `shift` before the column that it decides.)"""
    rows = [prompts(1, length, seed=length)[0].tolist() for length in (12, 7)]
    watch, shorter = Watch(), Watch()
    build(name, mode, **pruned(beyond + shift)).generate(rows, observers=[watch])
    build(name, mode, gen_length=8 + beyond).generate(rows, observers=[shorter])
    assert torch.equal(watch.tokens[8][:, 12:20], shorter.tokens[8][:, 12:20])


@pytest.mark.parametrize(("name", "shift"), [("llada-0", 0), ("dream-0", 1)])
@pytest.mark.parametrize("mode", MODES)
def test_a_later_block_is_that_of_a_canvas_that_ends_with_it(name: str, shift: int, mode: str, build: Build) -> None:
    """Given the tokens before it; a block that begins with a refresh of all up to it is a run of its own."""
    watch, again = Watch(), Watch()
    build(name, mode, **pruned(shift)).generate(prompts(), observers=[watch])
    build(name, mode, gen_length=8).generate(watch.tokens[8][:, :20], observers=[again])
    assert torch.equal(again.tokens[-1][:, 20:28], watch.tokens[16][:, 20:28])


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("last", [False, True])
def test_a_row_of_a_batch_is_the_row_alone(mode: str, last: bool, build: Build) -> None:
    engine = build("dream-0", mode, **pruned(3, last))
    rows = [prompts(1, length, seed=length)[0].tolist() for length in (12, 5, 9)]
    batch = engine.generate(rows)
    for number, row in enumerate(rows):
        assert engine.generate([row]).answers[0] == batch.answers[number]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("cache", ["dense", "offloaded", "disk"])
def test_every_store_and_backend_hides_the_same(attention: str, cache: str, build: Build) -> None:
    rows = [prompts(1, length, seed=length)[0].tolist() for length in (12, 5)]
    plain = build("llada-0", "es-dllm", **pruned(3, last=True)).generate(rows)
    other = build("llada-0", "es-dllm", attention=attention, cache=cache, **pruned(3, last=True)).generate(rows)
    assert torch.equal(other.tokens, plain.tokens)


def test_what_is_hidden_is_not_computed(build: Build) -> None:
    watch = Watch()
    build("llada-0", "vanilla", **pruned(3, last=True)).generate(prompts(), observers=[watch])
    assert [record.plan.window for record in watch.records] == [12 + 8 + 4] * 8 + [12 + 16 + 4] * 8 + [36] * 8


def test_guidance_sees_the_same_suffix_in_both_branches(build: Build) -> None:
    every = build("llada-0", "es-dllm", cfg_scale=1.0, **pruned(24)).generate(prompts(2))
    assert torch.equal(every.tokens, build("llada-0", "es-dllm", cfg_scale=1.0).generate(prompts(2)).tokens)


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 50), st.booleans())
def test_the_suffix_is_the_next_positions_and_the_last(stop: int, beyond: int, window: int, last: bool) -> None:
    length = stop + beyond
    found = PrunedBlocks(window=window, last=last).suffix(Block(0, stop), length)
    near = list(range(stop, min(stop + window, length)))
    assert list(found) == sorted({*near, *([length - 1] if last and beyond else [])})


def test_what_cannot_be_combined_says_why(build: Build) -> None:
    with pytest.raises(ConfigError, match='which a pruned suffix has not; choose cache = "dense"'):
        build("llada-0", "es-dllm", cache="sparse", **pruned(3))
    with pytest.raises(ConfigError, match="holds positions beyond what is seen"):
        build("llada-0", "dual-cache", refresh="delayed", **pruned(3))
    with pytest.raises(ConfigError, match="this schedule gives each its own"):
        build("llada-0", "es-dllm", blocks={"name": "pruned", "of": "sliding"})
