"""What the laws are drawn from: small random models, settings of every mode, prompts of any lengths.

The models compute in float64. Two ways to compute the same thing then differ by rounding that no arg-max can see.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple
from unittest.mock import patch

import attrs
import torch
from hypothesis import event
from hypothesis import strategies as st
from torch import Tensor

from esdllm import Catalogue, Engine, Model, ModelSpec, StepRecord
from esdllm.checkpoints.loading import random_model
from esdllm_models.decoder import Layer, Transformer
from esdllm_models.linear import Dense, Linear

CATALOGUE = Catalogue.load()
VOCAB, MASK, EOS = 48, 47, 46
SITES = ("hidden", "query", "key", "value")

Settings = dict[str, Any]

# ------------------------------------------------------------------------------------------------------------ models


class Shape(NamedTuple):
    """Says which random model; short to print where a law fails."""

    family: str
    n_layers: int
    heads: int
    kv_heads: int
    head_dim: int
    seed: int


@cache
def model_of(shape: Shape) -> Model:
    """Return a random model in float64."""
    common = {
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "vocab_size": VOCAB,
        "mask_token_id": MASK,
        "eos_token_id": EOS,
    }
    llada = {
        "model_type": "llada",
        "d_model": shape.heads * shape.head_dim,
        "n_layers": shape.n_layers,
        "n_heads": shape.heads,
        "n_kv_heads": shape.kv_heads,
        "mlp_hidden_size": 24,
        "max_sequence_length": 128,
    }
    dream = {
        "model_type": "Dream",
        "hidden_size": shape.heads * shape.head_dim,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": 24,
        "max_position_embeddings": 128,
    }
    config = {**common, **(llada if shape.family == "llada" else dream)}
    return Model(in_double(random_model(config, "cpu", catalogue=CATALOGUE, seed=shape.seed).adapter))


def in_double(model: Any) -> Transformer:
    """Return a transformer with its weights in float64."""

    def turned(x: Any) -> Any:
        if x is None or isinstance(x, Tensor):
            return x if x is None else x.double()
        if isinstance(x, tuple):
            return type(x)(*map(turned, x))
        assert isinstance(x, Dense)
        return Dense(x.weight.double(), None if x.bias is None else x.bias.double())

    assert isinstance(model, Transformer)
    layers: tuple[Layer, ...] = tuple(map(turned, model.layers))
    head: Linear = turned(model.head)
    return attrs.evolve(model, embedding=turned(model.embedding), norm=turned(model.norm), head=head, layers=layers)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Draw a model of either family: up to 4 layers, and up to 4 heads that share keys or do not."""
    family, kv_heads = draw(st.sampled_from(["llada", "dream"])), draw(st.integers(1, 2))
    heads = kv_heads * draw(st.integers(1, 2))
    event(f"family: {family}")
    return Shape(
        family, draw(st.integers(1, 4)), heads, kv_heads, draw(st.sampled_from([4, 8])), draw(st.integers(0, 2))
    )


# ---------------------------------------------------------------------------------------------------------- settings

SKIPS: Mapping[str, st.SearchStrategy[Settings]] = {
    "none": st.just({"name": "none"}),
    "by-depth": st.fixed_dictionaries(
        {
            "name": st.just("by-depth"),
            "keep": st.sampled_from(
                [
                    [[0, 1], [0.125, 0.5], [0.25, 0.25]],
                    [[0, 1], [0.5, 0.3]],
                    [[0, 0.75], [0.4, 0.5], [0.75, 0.2]],
                ]
            ),
        }
    ),
    "decay": st.fixed_dictionaries(
        {"name": st.just("decay"), "last": st.floats(0.1, 0.9), "shape": st.sampled_from(["linear", "cosine"])}
    ),
    "adaptive": st.fixed_dictionaries({"name": st.just("adaptive"), "per_commit": st.sampled_from([1.0, 2.0, 4.0])}),
}
GROWING: st.SearchStrategy[Settings] = st.fixed_dictionaries(
    {
        "name": st.just("by-depth"),
        "keep": st.sampled_from([[[0, 1], [0.25, 0.4], [0.75, 1]], [[0, 0.5], [0.4, 0.75], [0.75, 0.6]]]),
    }
)
"""schedules under which dropped positions come back"""
KEEPS_ALL = st.sampled_from(
    [
        {"name": "by-depth", "keep": [[0, 1]]},
        {"name": "by-depth", "keep": [[0, 1], [0.5, 1]]},
        {"name": "decay", "first": 1.0, "last": 1.0},
        {"name": "budget", "budget": 1.0},
    ]
)
"""skip schedules whose every keep ratio is 1"""

IMPORTANCE = st.one_of(
    st.fixed_dictionaries(
        {"name": st.just("hybrid"), "alpha": st.sampled_from([0.0, 0.3, 0.5, 1.0]), "site": st.sampled_from(SITES)}
    ),
    st.fixed_dictionaries(
        {
            "name": st.just("entropy"),
            "prefer": st.sampled_from(["sure", "unsure"]),
            "of": st.sampled_from(["candidate", "distribution", "margin"]),
            "site": st.sampled_from(SITES),
        }
    ),
    st.fixed_dictionaries({"name": st.just("random"), "raised": st.booleans(), "site": st.sampled_from(SITES)}),
    st.fixed_dictionaries(
        {"name": st.just("average"), "decay": st.sampled_from([0.0, 0.5, 0.9]), "site": st.sampled_from(SITES)}
    ),
)

FIXED = st.fixed_dictionaries(
    {
        "name": st.just("top-k"),
        "tokens_per_step": st.integers(1, 3),
        "order": st.sampled_from(["confidence", "margin", "entropy", "random"]),
    }
)
ADAPTIVE = st.sampled_from(
    [
        {"name": "threshold", "threshold": 0.15},
        {"name": "factor", "factor": 3.0},
        {"name": "entropy-bound", "gamma": 6.0},
        {"name": "klass", "threshold": 0.1, "divergence": 2.0, "history": 1},
        {"name": "credit", "threshold": 0.2},
        {"name": "longest-prefix", "threshold": 0.12},
    ]
)
"""policies that the logits decide, so that they commit several positions at some steps"""

PERIODIC = st.fixed_dictionaries(
    {"name": st.just("periodic"), "prompt_refresh": st.integers(1, 12), "block_refresh": st.integers(1, 8)}
)
PARTIAL = st.fixed_dictionaries(
    {
        "name": st.just("partial"),
        "prompt_refresh": st.integers(1, 12),
        "block_refresh": st.integers(1, 8),
        "full": st.integers(1, 3),
    }
)
REFRESHES = (
    PERIODIC | PARTIAL | st.sampled_from([{"name": "dual-cache"}, {"name": "prefix-cache"}, {"name": "every-step"}])
)


@st.composite
def lengths(draw: st.DrawFn, **over: Any) -> Settings:
    """Draw what every mode takes; `over` fixes some of it."""
    return {
        "gen_length": draw(st.integers(1, 12)),
        "block_length": draw(st.integers(1, 8)),
        "delay_eos": draw(st.booleans()),
        "early_stop": False,
        "attention": draw(st.sampled_from(["sdpa", "eager"])),
        "sampler": {"name": "gumbel", "temperature": draw(st.sampled_from([0.0, 0.0, 0.8]))},
        **over,
    }


@st.composite
def policies(draw: st.DrawFn) -> Settings:
    """Draw settings of any mode: what is skipped, refreshed, scored and committed."""
    name, scale = draw(st.sampled_from(sorted(SKIPS))), draw(st.sampled_from([0.0, 0.0, 0.0, 1.5]))
    event(f"skip: {name}")
    event(f"guided: {scale > 0}")
    skips = SKIPS[name] | GROWING if name == "by-depth" else SKIPS[name]
    found, skip, importance = draw(lengths()), draw(skips), draw(IMPORTANCE)
    ratios = [ratio for _, ratio in skip.get("keep", ())]
    if ratios != sorted(
        ratios, reverse=True
    ):  # positions come back with hidden states, which take the place of queries
        event("positions come back")
        importance["site"] = {"query": "key"}.get(importance["site"], importance["site"])
    return {
        **found,
        "cfg_scale": scale,
        "skip": skip,
        "importance": importance,
        "refresh": draw(REFRESHES),
        "unmasking": draw(FIXED | ADAPTIVE),
    }


@st.composite
def rows_apart(draw: st.DrawFn) -> Settings:
    """Draw settings under which no row's plan depends on another's.

    The runtime plans a batch as one: a keep count follows the row that committed most, and a block's first step without a
    prompt refresh begins at the leftmost commit of any row. So where something is skipped, one token per step is committed
    and each block begins with a prompt refresh.
    """
    found = draw(policies())
    if found["skip"]["name"] == "none" and "prompt_refresh" not in found["refresh"]:
        event("rows apart: nothing skipped")
        return found
    event("rows apart: one token per step")
    found["unmasking"] = {**draw(FIXED), "tokens_per_step": 1}
    if "prompt_refresh" in found["refresh"]:
        divisors = [n for n in range(1, found["block_length"] + 1) if found["block_length"] % n == 0]
        found["refresh"]["prompt_refresh"] = draw(st.sampled_from(divisors))
    return found


def engine_of(model: Model | Shape, settings: Settings, preset: str = "es-dllm") -> Engine:
    """Return an engine of a preset with settings over it."""
    model = model_of(model) if isinstance(model, Shape) else model
    return Engine.build(model, CATALOGUE.configure(preset, settings=settings), CATALOGUE)


# ----------------------------------------------------------------------------------------------------------- prompts

token_ids = st.integers(0, EOS - 1)
rows = st.lists(st.lists(token_ids, min_size=2, max_size=6), min_size=1, max_size=3)
"""prompts of different lengths, so that some are padded"""


# ------------------------------------------------------------------------------------------------------------ watching


@contextmanager
def watching_ties() -> Iterator[list[int]]:
    """Give a list that is not empty once a layer has dropped a position whose score equals that of one it kept.

    Which of the two goes on is up to `torch.topk` then: the one exception to what padding and other rows change.
    """
    found: list[int] = []
    topk = Tensor.topk

    def watched(x: Tensor, k: int, dim: int = -1, **named: Any) -> Any:
        if sys._getframe(1).f_code.co_name == "_survivors":
            best = x.sort(dim=dim, descending=True).values
            if bool((best.select(dim, k - 1) == best.select(dim, k)).any()):
                found.append(k)
        return topk(x, k, dim=dim, **named)

    with patch.object(Tensor, "topk", watched):
        yield found


class Watch:
    """Keeps a copy of every step's tokens and commits."""

    def __init__(self) -> None:
        self.tokens: list[Tensor] = []
        self.committed: list[Tensor] = []
        self.records: list[StepRecord] = []

    def start(self, tokens: Tensor, spec: ModelSpec) -> None:
        self.tokens.append(tokens.clone())

    def step(self, record: StepRecord) -> None:
        self.tokens.append(record.tokens.clone())
        self.committed.append(record.committed.clone())
        self.records.append(record)

    def end(self) -> None: ...


def commits(watch: Watch) -> Tensor:
    """Return (steps, B), how many positions each step committed in each row."""
    return torch.stack([step.sum(1) for step in watch.committed])
