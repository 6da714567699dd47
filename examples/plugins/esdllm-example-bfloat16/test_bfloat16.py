"""Run with `pytest` where the package and esdllm are installed."""

import pytest
import torch
from esdllm_example_bfloat16 import Bfloat16Store

import esdllm
from esdllm.testing import check_cache_store

UNIT = 2.0**-8
"""How far bfloat16 rounds at most, as a share of the number: 8 significant bits."""


def test_it_keeps_the_laws_of_a_cache_store_within_bfloat16_s_rounding() -> None:
    check_cache_store(Bfloat16Store(), tolerance=UNIT)


def test_it_is_lossy() -> None:
    with pytest.raises(AssertionError, match="off by"):
        check_cache_store(Bfloat16Store(), tolerance=0.0)


def test_a_model_that_computes_in_16_bits_is_refused() -> None:
    model = esdllm.load_model("tiny-llada", device="cpu", dtype="bfloat16")
    engine = esdllm.Engine.build(model, esdllm.configure("es-dllm", sets=["cache=bfloat16", "gen_length=16"]))
    with pytest.raises(esdllm.UnavailableError, match=r"no less than the model's torch\.bfloat16; use cache = 'dense'"):
        engine.generate("Who are you?", chat=True)


def test_it_decodes_and_says_what_it_takes() -> None:
    model = esdllm.load_model("tiny-llada", device="cpu", dtype="float32")
    engine = esdllm.Engine.build(model, esdllm.configure("es-dllm", sets=["cache=bfloat16", "gen_length=16"]))
    assert engine.generate("Who are you?", chat=True).committed > 0
    assert all(keys.dtype is torch.bfloat16 for keys in engine.cache.keys)
