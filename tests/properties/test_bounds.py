"""The bounds of `esdllm.testing.bounds` and `esdllm.testing.bounds.stack`: never exceeded, and gone with the drift."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from drawing import Shape, model_of, shapes
from hypothesis import event, example, given
from hypothesis import strategies as st
from sampling import examples
from torch import Tensor

from esdllm import InputError, KeyValue
from esdllm.runtime.plain import layers, plain_attention
from esdllm.testing.bounds.attention import (
    attention_bound,
    attention_drift,
    norm_bound,
    norm_jacobian,
    norm_remainder,
    spectral_bound,
    tilted_mass,
    total_variation,
    weight_range,
)
from esdllm.testing.bounds.stack import (
    Attended,
    LayerWeights,
    Path,
    StackWeights,
    feed_forward,
    through_layer,
    to_logits,
)

SLACK = 1e-9  # relative, for float64's rounding
scales = st.floats(-7, 2).map(lambda power: 10**power)
"""drifts from 1e-7 to 100"""
draws = st.integers(0, 2**31).map(lambda seed: torch.Generator().manual_seed(seed))


def normal(draw: torch.Generator, *size: int) -> Tensor:
    return torch.randn(*size, generator=draw, dtype=torch.float64)


def within(draw: torch.Generator, limits: Tensor, dim: int) -> Tensor:
    """Return vectors (..., dim) no longer than limits (...): half of them as long."""
    x = normal(draw, *limits.shape, dim)
    share = torch.rand(limits.shape, generator=draw, dtype=torch.float64).mul(2).clamp(max=1)
    return x / x.norm(dim=-1, keepdim=True) * (limits * share)[..., None]


# ------------------------------------------------------------------------------------------------- softmax by itself


@given(draw=draws, keys=st.integers(2, 7), delta=scales, spread=st.floats(0, 10))
@example(
    draw=torch.Generator().manual_seed(59854907), keys=5, delta=1.0, spread=8.5625
)  # S's weights add up to 1 + 2e-16
@examples(200)
def test_the_total_variation_is_never_exceeded_and_so_are_the_set_s_mass_and_every_weight_s_range(
    draw: torch.Generator, keys: int, delta: float, spread: float
) -> None:
    logits, moved = spread * normal(draw, keys), torch.rand(keys, generator=draw) < 0.6
    p, drift = logits.softmax(0), delta * moved.double()
    signs = torch.tensor(list(product([-1.0, 0.0, 1.0], repeat=keys)), dtype=torch.float64)
    q = (logits + signs * drift).softmax(-1)
    mass, size = p[moved].sum(), torch.tensor(delta, dtype=torch.float64)
    far, most = (p - q).abs().sum(-1).amax() / 2, weight_range(p, drift)
    event(f"S holds {'nothing' if mass == 0 else 'all' if moved.all() else 'a part'}")
    assert far <= total_variation(mass, size) * (1 + 1e-6) + 1e-15
    assert far <= most.variation * (1 + 1e-6) + 1e-15
    assert (q[:, moved].sum(-1) <= tilted_mass(mass, size) + 1e-15).all()
    assert (q <= most.highest + 1e-15).all()
    assert (p - q <= most.loss + 1e-15).all()


@given(delta=scales)
@examples(30)
def test_the_total_variation_of_a_set_that_holds_all_is_the_hyperbolic_tangent_of_half_the_drift(delta: float) -> None:
    drift = torch.tensor(delta, dtype=torch.float64)
    assert total_variation(torch.ones(()), drift).item() == pytest.approx((drift / 2).tanh().item(), rel=1e-9)


@given(draw=draws, delta=st.floats(0.01, 5))
@examples(50)
def test_the_total_variation_is_reached_where_mass_can_be_split_finely(draw: torch.Generator, delta: float) -> None:
    """4096 equal keys, of which some move: the best of the splits into those that go up and those that go down."""
    keys, moving = 4096, int(torch.randint(1, 4097, (), generator=draw))
    up = torch.arange(moving + 1, dtype=torch.float64)
    size = torch.tensor(delta, dtype=torch.float64)
    total = up * size.exp() + (moving - up) * (-size).exp() + keys - moving
    gained, lost = up * size.exp() / total - up / keys, (moving - up) / keys - (moving - up) * (-size).exp() / total
    found = torch.maximum(gained, lost).amax().item()
    assert found == pytest.approx(total_variation(torch.tensor(moving / keys), size).item(), rel=1e-3, abs=1e-4)


# ------------------------------------------------------------------------------------------------------- attention


class Head:
    """One head with a run's and an exact pass's queries, keys and values, the keys of a set stale."""

    def __init__(self, draw: torch.Generator, size: float, query_drift: float = 0.0) -> None:
        keys, dim = int(torch.randint(1, 9, (), generator=draw)), int(torch.randint(1, 6, (), generator=draw))
        self.stale = torch.rand(keys, generator=draw) < 0.5
        self.scale = dim**-0.5
        self.query, self.keys, self.values = 3 * normal(draw, dim), 2 * normal(draw, keys, dim), normal(draw, keys, dim)
        self.key_drift = size * self.stale * torch.rand(keys, generator=draw, dtype=torch.float64)
        self.value_drift = size * self.stale * torch.rand(keys, generator=draw, dtype=torch.float64)
        self.query_drift = torch.tensor(query_drift, dtype=torch.float64)
        self.exact_query = self.query + within(draw, self.query_drift, dim)
        self.exact_keys = self.keys + within(draw, self.key_drift, dim)
        self.exact_values = self.values + within(draw, self.value_drift, dim)
        self.weights = (self.scale * self.keys @ self.query).softmax(0)
        self.output = self.weights @ self.values
        self.diameter = torch.cdist(self.values, self.values).amax()

    def exact(self) -> Tensor:
        return (self.scale * self.exact_keys @ self.exact_query).softmax(0) @ self.exact_values

    def found(self) -> Any:
        key_part = self.scale * (self.query.norm() + self.query_drift) * self.key_drift
        away = (self.keys - self.weights @ self.keys).norm(dim=1)
        distance = (self.values - self.output).norm(dim=1)
        query_part = self.scale * self.query_drift * away
        return attention_drift(self.weights, distance, self.diameter, self.value_drift, key_part, query_part)


@given(draw=draws, size=scales)
@examples(300)
def test_attention_over_stale_keys_and_values_is_never_further_off_than_the_bound(
    draw: torch.Generator, size: float
) -> None:
    head = Head(draw, size)
    bound = attention_bound(
        head.weights[head.stale].sum(),
        head.key_drift.amax(),
        head.value_drift.amax(),
        head.query.norm(),
        head.diameter,
        head.scale,
    )
    off = (head.exact() - head.output).norm()
    event(f"stale: {'none' if not head.stale.any() else 'all' if head.stale.all() else 'some'}")
    assert off <= bound * (1 + SLACK) + 1e-14
    assert off <= head.found().whole * (1 + SLACK) + 1e-14


@given(draw=draws, size=scales, query_drift=scales)
@examples(300)
def test_attention_with_a_query_that_is_off_too_is_within_the_bound_and_near_its_linear_part(
    draw: torch.Generator, size: float, query_drift: float
) -> None:
    head = Head(draw, size, query_drift)
    off, found = head.exact() - head.output, head.found()
    moved = head.scale * (head.keys - head.weights @ head.keys) @ (head.exact_query - head.query)
    linear = (head.weights * moved) @ (head.values - head.output)
    assert off.norm() <= found.whole * (1 + SLACK) + 1e-14
    assert (off - linear).norm() <= found.rest * (1 + SLACK) + 1e-14


@given(draw=draws)
@examples(50)
def test_the_bounds_on_attention_go_to_zero_with_the_drift_and_as_fast(draw: torch.Generator) -> None:
    seed, found = draw.initial_seed(), []
    for size in (0.0, 1e-9, 1e-6, 1e-3):
        head = Head(torch.Generator().manual_seed(seed), size)
        mass, largest = head.weights[head.stale].sum(), [x.amax() for x in (head.key_drift, head.value_drift)]
        bound = attention_bound(mass, *largest, head.query.norm(), head.diameter, head.scale)
        found.append(torch.stack([bound, head.found().whole]))
        assert (found[-1] <= 100 * size).all()
    assert (found[0] == 0).all()
    assert (found[1] * 999 <= found[2] * (1 + 1e-3)).all()


# --------------------------------------------------------------------------------------------- norms and matrices


@given(draw=draws, size=st.integers(1, 9), length=scales, drift=scales, eps=st.sampled_from([1e-6, 1e-5, 1e-2]))
@examples(200)
def test_an_rms_norm_moves_no_further_than_its_bound_and_its_remainder(
    draw: torch.Generator, size: int, length: float, drift: float, eps: float
) -> None:
    x, limit = length * normal(draw, size), torch.tensor(drift, dtype=torch.float64)
    error = within(draw, limit, size)
    before, after = (v / (v.square().mean() + eps).sqrt() for v in (x, x + error))
    assert (after - before).norm() <= norm_bound(x, limit, eps) * (1 + SLACK) + 1e-14
    off = (after - before - norm_jacobian(x, eps) @ error).norm()
    assert off <= norm_remainder(x, limit, eps) * (1 + SLACK) + 1e-14 * (1 + drift / eps**0.5)


@given(draw=draws, rows=st.integers(1, 20), columns=st.integers(1, 20))
@examples(50)
def test_the_spectral_bound_is_at_least_the_norm_and_little_more(
    draw: torch.Generator, rows: int, columns: int
) -> None:
    x = normal(draw, 3, rows, columns)
    norm, bound = torch.linalg.matrix_norm(x, ord=2), spectral_bound(x)
    assert (norm <= bound * (1 + SLACK)).all()
    assert (bound <= norm * min(rows, columns) ** (1 / 32) * (1 + SLACK)).all()


@given(draw=draws, size=st.integers(1, 3), inner=st.integers(1, 4), width=st.floats(0.1, 4), drift=scales)
@examples(200)
def test_a_feed_forward_is_no_further_from_its_linear_part_than_the_remainder(
    draw: torch.Generator, size: int, inner: int, width: float, drift: float
) -> None:
    gate, up, down = width * normal(draw, inner, size), width * normal(draw, inner, size), normal(draw, size, inner)
    weights = LayerWeights(normal(draw, 1, 2, size), normal(draw, 1, size, 2), gate, up, down)
    unit, limit = normal(draw, 5, size), torch.full((5,), drift, dtype=torch.float64)
    error = within(draw, limit, size)
    found, after = feed_forward(weights, unit, limit), feed_forward(weights, unit + error, limit).made
    off = (after - found.made - torch.einsum("nij,nj->ni", found.jacobian, error)).norm(dim=1)
    assert (off <= found.rest * (1 + SLACK) + 1e-13 * (1 + after.norm(dim=1))).all()


# --------------------------------------------------------------------------------------------------- a whole step


def one_step(shape: Shape, draw: torch.Generator, size: float, mass: float = 0.5) -> tuple[Tensor, Tensor]:
    """Return what some positions' logits (N, V) are off where a share of keys and values is stale, and the bound."""
    adapter: Any = model_of(shape).adapter
    stack, spec = StackWeights.of(adapter), adapter.spec
    length = 8
    tokens = torch.randint(0, spec.vocab, (1, length), generator=draw)
    chosen = torch.tensor([1, 4, 6])
    stale = torch.rand(length, generator=draw) < mass
    with torch.inference_mode():
        hidden, places = adapter.embed(tokens[:, chosen]), adapter.encode(chosen[None])
        path, exact = Path.exact(hidden[0]), hidden
        for layer, full in enumerate(layers(adapter, adapter.embed(tokens), torch.arange(length)[None])):
            exact, made = full
            lengths = size * stale[:, None] * torch.rand(length, spec.n_kv_heads, generator=draw, dtype=torch.float64)
            keys, values = (x[0] + within(draw, lengths, spec.head_dim) for x in (made.keys, made.values))
            off = [(x - y[0]).norm(dim=-1) for x, y in ((keys, made.keys), (values, made.values))]
            queries = adapter.project(layer, hidden, places).queries
            path = through_layer(
                stack.layers[layer], Attended(hidden[0], chosen, queries[0], keys, values, *off), path, stack
            )
            hidden = adapter.mix(layer, hidden, plain_attention(queries, KeyValue(keys[None], values[None])))
        moved = (adapter.logits(hidden) - adapter.logits(exact[:, chosen]))[0].abs()
    return moved, to_logits(stack, hidden[0], path)


@given(shape=shapes(), draw=draws, size=scales)
@examples(150)
def test_no_logit_of_a_step_is_further_off_than_the_bound(shape: Shape, draw: torch.Generator, size: float) -> None:
    moved, bound = one_step(shape, draw, size)
    event(f"the bound is {'below' if bound.amax() < 1 else 'above'} 1")
    assert (moved <= bound * (1 + SLACK) + 1e-6).all()  # RoPE's angles and products are float32


@given(shape=shapes(), seed=st.integers(0, 2**31))
@examples(40)
def test_the_bound_on_a_step_s_logits_goes_to_zero_with_the_drift_and_as_fast(shape: Shape, seed: int) -> None:
    exact, tiny, small = (one_step(shape, torch.Generator().manual_seed(seed), size)[1] for size in (0.0, 1e-12, 1e-11))
    assert (exact == 0).all()
    assert tiny.amax() < 1e-5
    assert (tiny * 9.9 <= small * 1.1).all()
    assert (small <= tiny * 10.1).all()


def test_a_model_without_dense_weights_is_refused_by_what_is_missing() -> None:
    adapter: Any = model_of(Shape("llada", 1, 1, 1, 4, 0)).adapter

    class Hidden:
        spec = adapter.spec

    with pytest.raises(InputError, match=r"no bound for a Hidden: .*'layers'.*bound=False"):
        StackWeights.of(Hidden())
