"""Our own Triton kernels, run by Triton's interpreter on the CPU, give what torch's operators give."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import CASES
from torch import Tensor

from esdllm import CacheShape, CacheWrite, Catalogue, Engine, Phase, SampleView, load_model
from esdllm.runtime.samples import importance_view
from esdllm_backends.cache import dense
from esdllm_backends.cache.lines import write_lines
from esdllm_models.elementwise import PLAIN, Rotation
from esdllm_models.fused import Fused
from esdllm_policies import fused as head
from esdllm_policies import gpus, sampling
from esdllm_policies.importance import HybridScorer

FUSED = Fused()
DTYPES = (torch.float32, torch.float16)
"""bfloat16 is one of numpy's no more than of its interpreter's"""


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(found: Tensor, expected: Tensor) -> None:
    """A last digit of the dtype at most."""
    torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(expected.dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "window", "heads", "dim"), [(1, 1, 1, 2), (2, 5, 3, 8), (3, 4, 17, 12), (2, 3, 16, 64)]
)
def test_rotation(rows: int, window: int, heads: int, dim: int, dtype: torch.dtype) -> None:
    joint = drawn(rows, window, heads + 2, dim, dtype=dtype)
    x = joint[:, :, :heads]  # a part of a joint projection, as the model passes it
    angles = drawn(rows, window, 1, dim // 2, seed=1) * 100
    places = Rotation(angles.cos(), angles.sin())
    found = FUSED.rotate(x, places)
    assert found.is_contiguous()
    close(found, PLAIN.rotate(x, places))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [1, 7, 64, 600, 1024])
def test_sum_and_norm(features: int, dtype: torch.dtype) -> None:
    x, y = (drawn(2, 3, features, dtype=dtype, seed=seed) for seed in (0, 1))
    weight = drawn(features, dtype=dtype, seed=2)
    kept = x.clone()
    (both, normed), expected = FUSED.add_norm(x, y, weight, 1e-5), PLAIN.add_norm(x, y, weight, 1e-5)
    assert torch.equal(both, expected[0])
    assert torch.equal(x, kept)
    torch.testing.assert_close(normed, expected[1], rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [1, 5, 64, 1500])
def test_gate(features: int, dtype: torch.dtype) -> None:
    joint = 4 * drawn(2, 3, 2 * features, dtype=dtype)
    torch.testing.assert_close(FUSED.gate(joint), PLAIN.gate(joint), rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize(("rows", "heads", "dim"), [(1, 1, 4), (2, 3, 8), (3, 4, 12)])
def test_lines_are_written_where_index_copy_writes_them(rows: int, heads: int, dim: int) -> None:
    shape = CacheShape(rows, 9, 1, heads, dim, 4, (), torch.float32, torch.device("cpu"))
    plain, fused = dense.DenseStore().allocate(shape), dense.DenseStore().allocate(shape)
    fused._write_lines = write_lines  # type: ignore[attr-defined]
    order = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(row))[:5] for row in range(rows)])
    for positions in (order, torch.arange(2, 6).expand(rows, -1)):
        count = positions.shape[1]
        keys = drawn(rows, count, heads, dim)
        values = drawn(rows, count, heads + 2, dim, seed=1)[:, :, 1:-1]  # a part of a joint projection
        write = CacheWrite(0, positions, keys, keys, values, None, positions, Phase.ALL, None)
        found, expected = fused.update(write), plain.update(write)
        assert torch.equal(found.keys, expected.keys)
        assert torch.equal(found.values, expected.values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("vocab", "size"), [(1, 16), (7, 16), (16, 16), (100, 16), (1000, 256), (9000, 8192)])
def test_the_most_probable_token_and_its_probability(
    vocab: int, size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vocabulary in one slice or several, the last of which may be short; without a mask's logit, as in a step."""
    monkeypatch.setattr(head, "_SLICE", size)
    logits = 4 * drawn(2, 3, vocab, dtype=dtype)
    logits[..., -1] = -math.inf if vocab > 1 else 0
    tokens, probability = head.most_probable(logits)
    assert torch.equal(tokens, logits.max(-1).indices)
    expected = logits.double().softmax(-1).amax(-1)
    torch.testing.assert_close(probability.double(), expected, rtol=3e-6, atol=0)


def test_probabilities_near_one_keep_their_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_SLICE", 16)
    logits = torch.zeros(1, 4, 40)
    logits[0, :, 20] = torch.tensor([12.0, 13.0, 14.0, 15.0])
    probability = head.most_probable(logits)[1]
    torch.testing.assert_close(probability.double(), logits.double().softmax(-1).amax(-1), rtol=2e-7, atol=0)
    assert (probability.diff() > 0).all()


def test_of_equal_logits_the_first_token_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_SLICE", 16)
    logits = torch.zeros(1, 3, 40)
    logits[0, 1, :9], logits[0, 2, :33] = -1, -math.inf
    tokens, probability = head.most_probable(logits)
    assert tokens.tolist() == [[0, 9, 33]]
    torch.testing.assert_close(probability, logits.softmax(-1).amax(-1))


def test_where_logits_are_no_numbers_the_probability_is_none_and_the_token_one_of_the_vocabulary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(head, "_SLICE", 16)
    logits = torch.zeros(1, 4, 40)
    logits[0, 0, 39], logits[0, 1], logits[0, 2, 3] = math.nan, math.nan, math.inf
    tokens, probability = head.most_probable(logits)
    assert probability.isnan().tolist() == [[True, True, True, False]]
    assert ((tokens >= 0) & (tokens < 40)).all()


def test_logits_that_do_not_lie_together_are_read_as_they_are() -> None:
    logits = drawn(2, 40, 3).transpose(1, 2)
    assert torch.equal(head.most_probable(logits)[0], logits.max(-1).indices)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("rows", "window", "features"), [(1, 1, 4), (2, 2, 7), (2, 5, 64), (3, 33, 600), (2, 64, 16)])
def test_the_published_importance(
    rows: int, window: int, features: int, alpha: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows whose largest variation exceeds 1 and rows where it does not; confidences of 0; none, some, all just committed."""
    monkeypatch.setattr(gpus, "_runs_triton", lambda device: True)
    x, last = (drawn(rows, window, features, dtype=dtype, seed=seed) for seed in (0, 1))
    last[0] = x[0] + last[0] / 10
    confidence = drawn(rows, window, seed=2).sigmoid() * (drawn(rows, window, seed=3) > 0)
    committed = drawn(rows, window, seed=4) > torch.tensor([3.0, 0.0, -3.0])[:rows, None]
    view = importance_view(rows=rows, window=window, features=features)._replace(
        x=x, last=last, confidence=confidence, committed=committed
    )
    found = HybridScorer(alpha=alpha, fused=True).score(view)
    torch.testing.assert_close(found, HybridScorer(alpha=alpha).score(view), rtol=3e-6, atol=3e-6)


def test_of_equal_confidences_the_first_two_are_raised_and_none_of_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_runs_triton", lambda device: True)
    view = importance_view(rows=4, window=5, features=8)
    view = view._replace(
        last=view.x,
        committed=torch.zeros_like(view.committed),
        confidence=torch.tensor([[0.5] * 5, [0, 0.5, 0, 0, 0], [0] * 5, [0, 0.1, 0.9, 0.1, 0.1]]),
    )
    raised = HybridScorer(fused=True).score(view) >= 2
    assert raised.int().tolist() == [[1, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0] * 5, [0, 1, 1, 0, 0]]


@pytest.mark.parametrize("site", ["hidden", "query", "value"])
@pytest.mark.parametrize("name", ["llada-0", "dream-0"])
def test_a_run_that_scores_by_our_kernels_gives_the_tokens_of_one_that_does_not(
    name: str, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "_runs_triton", lambda device: True)
    model, catalogue, found = load_model(CASES / name), Catalogue.load(), []
    for fused in (True, False):
        settings = {"gen_length": 16, "block_length": 8, "importance": {"name": "hybrid", "site": site, "fused": fused}}
        engine = Engine.build(model, catalogue.configure("es-dllm", settings=settings), catalogue)
        found.append(engine.generate([[*range(20, 32)], [*range(40, 47)]]).tokens)
    assert torch.equal(*found)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("name", ["llada-0", "dream-0"])
def test_a_run_that_reads_the_logits_by_one_kernel_gives_the_tokens_of_one_that_does_not(
    name: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "_runs_triton", lambda device: True)
    model, catalogue, found = load_model(CASES / name), Catalogue.load(), []
    for fused in (True, False):
        sampler = {"name": "gumbel", "temperature": temperature, "fused": fused}
        config = catalogue.configure("es-dllm", settings={"gen_length": 8, "block_length": 8, "sampler": sampler})
        found.append(Engine.build(model, config, catalogue).generate(torch.arange(20, 32).repeat(2, 1)).tokens)
    assert torch.equal(*found)


def test_a_compiled_sampler_calls_one_operator_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_runs_triton", lambda device: True)
    torch._dynamo.reset()
    view = SampleView(
        drawn(2, 3, 40), torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3)
    )
    sampler = sampling.GumbelSampler(fused=True)
    compiled = torch.compile(sampler.sample, fullgraph=True, dynamic=False, backend="eager")
    for found, expected in zip(compiled(view), sampler.sample(view), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["llada-0", "dream-0"])
def test_a_run_with_the_kernels_gives_the_tokens_of_one_without(name: str) -> None:
    model, catalogue = load_model(CASES / name), Catalogue.load()
    config = catalogue.configure("es-dllm", settings={"gen_length": 8, "block_length": 8, "early_stop": False})
    prompts = torch.arange(20, 32).repeat(2, 1)
    expected = Engine.build(model, config, catalogue).generate(prompts).tokens
    model.adapter.elementwise = FUSED  # type: ignore[attr-defined]
    assert torch.equal(Engine.build(model, config, catalogue).generate(prompts).tokens, expected)
