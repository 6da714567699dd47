"""Predictions of memory, held to what a run takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import read_config
from torch.utils._python_dispatch import TorchDispatchMode

from esdllm import Catalogue, Engine, Model, ModelSpec, logits_at_once
from esdllm.checkpoints.loading import geometries, random_model
from esdllm.runtime.footprint import working_bytes
from esdllm.runtime.samples import sample_view
from esdllm.testing.memory import TensorMemory
from esdllm_policies import sampling
from esdllm_policies.sampling import GumbelSampler


class EnoughError(Exception):
    """Raised by an observer that has seen enough."""


class FewSteps:
    """Ends a run after three steps."""

    def __init__(self) -> None:
        self.left = 3

    def start(self, tokens: torch.Tensor, spec: ModelSpec) -> None: ...

    def step(self, record: Any) -> None:
        self.left -= 1
        if not self.left:
            raise EnoughError

    def end(self) -> None: ...


def small(hidden: int, mlp: int, vocab: int, dtype: torch.dtype, catalogue: Catalogue) -> Model:
    """Return a random Dream of two layers."""
    sizes = {"hidden_size": hidden, "intermediate_size": mlp, "vocab_size": vocab, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    return random_model({**read_config("dream-0"), **sizes, **heads}, "cpu", dtype, catalogue)


def measured(model: Model, preset: str, rows: int, prompt: int, block: int, catalogue: Catalogue) -> int:
    """Return the most bytes of tensors in the first steps, without the cache."""
    lengths = {"gen_length": block, "block_length": block}
    config = catalogue.configure(preset, settings={**lengths, "attention": "sdpa"})  # which makes no (N, K) tensor
    engine = Engine.build(model, config, catalogue)
    tokens = torch.randint(10, 200, (rows, prompt))
    for _ in range(2):  # the first time allocates the cache, which the second finds
        with TensorMemory() as memory, pytest.raises(EnoughError):
            engine.generate(tokens, observers=[FewSteps()])
    return memory.peak


@pytest.mark.parametrize("preset", ["vanilla", "dual-cache", "es-dllm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("hidden", "mlp", "vocab"), [(128, 384, 500), (128, 64, 20_000), (256, 1024, 300)])
@pytest.mark.parametrize(("rows", "prompt", "block"), [(2, 64, 16), (1, 256, 64)])
def test_what_a_step_takes_is_predicted_within_6_percent(
    preset: str,
    dtype: torch.dtype,
    hidden: int,
    mlp: int,
    vocab: int,
    rows: int,
    prompt: int,
    block: int,
    catalogue: Catalogue,
) -> None:
    model = small(hidden, mlp, vocab, dtype, catalogue)
    found = measured(model, preset, rows, prompt, block, catalogue)
    predicted = working_bytes(model.spec, rows, prompt + block, block, dtype)
    assert found == pytest.approx(predicted, rel=0.06)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("hidden", "inside", "experts", "chosen"), [(256, 128, 8, 2), (256, 64, 16, 4), (128, 512, 8, 2), (128, 256, 8, 1)]
)
def test_what_a_step_through_experts_takes_is_predicted_within_15_percent(
    dtype: torch.dtype, hidden: int, inside: int, experts: int, chosen: int, catalogue: Catalogue
) -> None:
    sizes = {"hidden_size": hidden, "moe_intermediate_size": inside, "num_experts": experts, "vocab_size": 256}
    sizes |= {"num_experts_per_tok": chosen, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": hidden // 4}
    special = {"num_key_value_heads": 2, "mask_token_id": 254, "eos_token_id": 253}
    geometry = geometries(catalogue)["rnd1-30b"]
    model = random_model({**geometry, **sizes, **special}, "cpu", dtype, catalogue)
    found = measured(model, "vanilla", 2, 200, 32, catalogue)
    assert found == pytest.approx(working_bytes(model.spec, 2, 232, 32, dtype), rel=0.15)


class Widest(TorchDispatchMode):
    """Notes the most numbers of float32 that a tensor is made of."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.float32:
            self.numbers = max(self.numbers, made.numel())
        return made


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
def test_the_sampler_takes_what_is_predicted_of_each_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device(kind)
    at_once = logits_at_once(device)
    assert at_once == (2**25 if kind == "cuda" else 2**20)
    vocab, block = 3 * at_once // 8, 8  # three slices
    monkeypatch.setattr(sampling, "logits_at_once", lambda where: logits_at_once(device))
    raw = torch.empty(1, block, vocab, dtype=torch.bfloat16, device="meta")
    view = sample_view(0, 1, block, 11)._replace(raw=raw)
    with Widest() as seen:
        GumbelSampler().sample(view)
    assert seen.numbers == at_once
    spec = ModelSpec("any", 1, 8, 1, 1, 8, vocab, 64, 0, 1, intermediate=8)
    whole = working_bytes(spec, 1, block, block, torch.bfloat16, device)
    assert whole == 2 * block * vocab + 4 * at_once + 2 * block * 8


def test_a_family_that_does_not_tell_its_feed_forward_gets_no_prediction() -> None:
    assert working_bytes(ModelSpec("any", 2, 8, 2, 2, 4, 50, 64, 0, 1), 1, 10, 5, torch.float32) == 0


def test_memory_is_counted_while_a_tensor_lives_and_views_are_free() -> None:
    with TensorMemory() as memory:
        x = torch.zeros(1000)
        view = x[:10]
        assert (memory.held, memory.peak, memory.largest) == (4000, 4000, 4000)
        y = x + 1
        assert memory.held == 8000
        del x, y
        assert memory.held == 4000  # the view holds it
        del view
    assert (memory.held, memory.peak) == (0, 8000)
