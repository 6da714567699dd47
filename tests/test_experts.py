"""Experts: the router's choice, and both ways to compute what was chosen, held to loops over every row and expert."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples, pairwise
from torch import Tensor

from esdllm_models.elementwise import PLAIN
from esdllm_models.feedforward import Experts, Mlp, Router, Routing
from esdllm_models.grouped import Stacked
from esdllm_models.linear import Dense
from esdllm_models.linear.kernels import kernel

HIDDEN, INSIDE = 32, 64


def drawn(seed: int, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=dtype) / size[-1] ** 0.5


def experts_of(
    routing: Routing,
    count: int = 16,
    quantize: str | None = None,
    shared: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Experts:
    """Return experts whose weights are drawn; the router's are large, so that it decides."""
    router = Router(routing, 4 * drawn(0, count, HIDDEN), drawn(1, count) if routing.bias != "none" else None)
    gate_up, down = drawn(2, count, 2 * INSIDE, HIDDEN, dtype=dtype), drawn(3, count, HIDDEN, INSIDE, dtype=dtype)
    beside = Mlp(Dense(drawn(4, 2 * INSIDE, HIDDEN, dtype=dtype)), Dense(drawn(5, HIDDEN, INSIDE, dtype=dtype)))
    return Experts(router, Stacked.of(gate_up, quantize), Stacked.of(down, quantize), beside if shared else None)


def by_hand(routing: Routing, router: Router, row: Tensor) -> dict[int, float]:
    """Return the weight of each expert that a row (C,) goes through, by Python's own numbers."""
    raw = [float(x) for x in (router.weight.double() @ row.double())]
    total = sum(torch.tensor(raw).double().exp().tolist())
    score = [float(torch.tensor(x).double().exp()) / total for x in raw]
    if routing.score == "sigmoid":
        score = [1 / (1 + float(torch.tensor(-x).double().exp())) for x in raw]
    bias = [0.0] * len(raw) if router.bias is None else router.bias.tolist()
    rank = [one + more for one, more in zip(score, bias, strict=True)]
    size = len(rank) // routing.groups
    groups = [range(g * size, (g + 1) * size) for g in range(routing.groups)]
    best = sorted(groups, key=lambda group: -sum(sorted((rank[e] for e in group), reverse=True)[:2]))
    allowed = [e for group in best[: routing.open_groups] for e in group]
    chosen = sorted(allowed, key=lambda e: -rank[e])[: routing.chosen]
    weight = {e: (rank if routing.bias == "score" else score)[e] for e in chosen}
    total = sum(weight.values()) if routing.normed else 1.0
    return {e: w / total * routing.scaling for e, w in weight.items()}


def one_expert(experts: Experts, number: int, row: Tensor) -> Tensor:
    """Return what one expert makes of a row (C,), as a single linear layer of the same kind computes it."""

    def linear(stacked: Stacked) -> Any:
        return kernel(stacked.kind).layer(stacked.outputs, *(weight[number] for weight in stacked.weights))

    first, second = linear(experts.gate_up)(row[None]).chunk(2, -1)
    return linear(experts.down)(torch.nn.functional.silu(first) * second)[0]


ROUTINGS = [
    Routing(2),
    Routing(1, normed=True),
    Routing(4, normed=True),
    Routing(16),
    Routing(4, bias="score"),
    Routing(4, bias="score", normed=True, scaling=0.5),
    Routing(4, "sigmoid", normed=True, scaling=2.5, bias="choice", groups=4, open_groups=2),
    Routing(2, "sigmoid", bias="choice", groups=8, open_groups=1),
    Routing(3, "sigmoid", groups=16, open_groups=3),  # of one expert each
    Routing(4, "softmax", normed=True, groups=2, open_groups=2),
    Routing(8, "sigmoid", normed=True, groups=4, open_groups=2),  # all of the open groups
]


@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
def test_a_row_goes_through_the_experts_that_its_scores_say(routing: Routing) -> None:
    experts = experts_of(routing)
    rows = drawn(7, 9, HIDDEN) * HIDDEN**0.5
    chosen, weights = experts.router(rows)
    for row, own, weigh in zip(rows, chosen.tolist(), weights.tolist(), strict=True):
        expected = by_hand(routing, experts.router, row)
        assert dict(zip(own, weigh, strict=True)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
def test_both_ways_give_the_weighted_sum_of_a_loop(routing: Routing, shared: bool) -> None:
    experts = experts_of(routing, shared=shared)
    x = drawn(8, 3, 7, HIDDEN) * HIDDEN**0.5
    rows = x.flatten(0, 1)
    chosen, weights = experts.router(rows)
    expected = torch.stack(
        [sum(w * one_expert(experts, e, row) for e, w in by_hand(routing, experts.router, row).items()) for row in rows]
    )
    for way in (experts._sorted, experts._all):
        torch.testing.assert_close(way(rows, chosen, weights, PLAIN.gate), expected, atol=1e-5, rtol=1e-4)
    if experts.shared is not None:
        expected = expected + experts.shared.down(PLAIN.gate(experts.shared.gate_up(rows)))
    torch.testing.assert_close(experts(x, PLAIN.gate).flatten(0, 1), expected, atol=1e-5, rtol=1e-4)


@given(rows=st.integers(1, 40), count=st.integers(1, 9), data=st.data())
@examples(60)
def test_both_ways_agree_however_rows_fall(rows: int, count: int, data: st.DataObject) -> None:
    """Also where an expert has all rows, or none."""
    each = data.draw(st.integers(1, count))
    order = [data.draw(st.permutations(range(count)))[:each] for _ in range(rows)]
    experts, x = experts_of(Routing(each), count, dtype=torch.float64), drawn(9, rows, HIDDEN, dtype=torch.float64)
    chosen, weights = torch.tensor(order), drawn(10, rows, each, dtype=torch.float64)
    one, other = (way(x, chosen, weights, PLAIN.gate) for way in (experts._sorted, experts._all))
    torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
    by_row = torch.cat(
        [experts._sorted(x[n : n + 1], chosen[n : n + 1], weights[n : n + 1], PLAIN.gate) for n in range(rows)]
    )
    torch.testing.assert_close(one, by_row, atol=1e-12, rtol=1e-12)


KINDS = [
    ("int8", torch.float32),
    ("int8-weight-only", torch.float32),
    ("int4-weight-only", torch.bfloat16),
]


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
def test_quantised_experts_compute_as_single_layers_do(kind: str, dtype: torch.dtype) -> None:
    routing = Routing(3, normed=True)
    experts, whole = experts_of(routing, quantize=kind, dtype=dtype), experts_of(routing, dtype=dtype)
    rows = (drawn(8, 21, HIDDEN) * HIDDEN**0.5).to(dtype)
    chosen, weights = experts.router(rows)
    sums = [
        sum(w * one_expert(experts, e, row).float() for e, w in zip(own, weigh, strict=True))
        for row, own, weigh in zip(rows, chosen.tolist(), weights.tolist(), strict=True)
    ]
    expected = torch.stack(sums)
    tolerance = 0.03 if dtype == torch.bfloat16 else 1e-4
    for way in (experts._sorted, experts._all):
        torch.testing.assert_close(
            way(rows, chosen, weights, PLAIN.gate).float(), expected, atol=tolerance, rtol=tolerance
        )
    near = whole._sorted(rows, chosen, weights, PLAIN.gate).float()
    assert 1e-4 < (expected - near).norm() / near.norm() < 0.2


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
def test_what_quantised_experts_take_is_told(kind: str, dtype: torch.dtype) -> None:
    weight = drawn(1, 5, 40, 64, dtype=dtype)  # neither a multiple of 16 nor of 32
    held = sum(part.nbytes for part in Stacked.of(weight, kind).weights)
    assert held == 5 * kernel(kind).part(40, 64, dtype.itemsize)
    assert held < weight.nbytes


@pytest.mark.parametrize("rows", [1, 300, 5000])
def test_rows_decide_which_way_is_taken(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    experts = experts_of(Routing(2))
    taken: list[str] = []
    for name in ("_sorted", "_all"):
        original = getattr(Experts, name)
        monkeypatch.setattr(
            Experts, name, lambda *given, name=name, original=original: (taken.append(name), original(*given))[1]
        )
    found = experts(drawn(1, 1, rows, HIDDEN), PLAIN.gate)
    assert found.shape == (1, rows, HIDDEN)
    assert set(taken) == {"_all" if rows == 1 else "_sorted"}


def test_many_rows_that_cannot_be_sorted_are_computed_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    experts, x = experts_of(Routing(2)), drawn(1, 1, 600, HIDDEN)
    sorted_way = experts(x, PLAIN.gate)
    monkeypatch.setattr(Experts, "sorts", lambda self, rows: False)
    torch.testing.assert_close(experts(x, PLAIN.gate), sorted_way, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("rows", "kind"), [(2, None), (2, "int8-weight-only"), (400, None), (400, "int8-weight-only")])
def test_shapes_follow_from_shapes_on_a_device_without_numbers(rows: int, kind: str | None) -> None:
    experts = experts_of(Routing(2, normed=True), quantize=kind)

    def to_meta(stacked: Stacked) -> Stacked:
        return Stacked(stacked.kind, tuple(weight.to("meta") for weight in stacked.weights), stacked.outputs)

    there = Experts(
        Router(experts.router.routing, experts.router.weight.to("meta"), None),
        to_meta(experts.gate_up),
        to_meta(experts.down),
    )
    found = there(torch.empty(1, rows, HIDDEN, device="meta"), PLAIN.gate)
    assert found.is_meta
    assert found.shape == (1, rows, HIDDEN)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "kind", "backend"),
    pairwise(
        [
            (rows, kind, backend)
            for rows in (2, 400)
            for kind in (None, "int8-weight-only")
            for backend in ("aot_eager", "inductor")
        ]
    ),
)
def test_experts_compile_whole(rows: int, kind: str | None, backend: str) -> None:
    experts = experts_of(Routing(2, "sigmoid", normed=True, groups=4, open_groups=2), quantize=kind, shared=True)
    x = drawn(1, 1, rows, HIDDEN)
    torch.compiler.reset()
    with torch.inference_mode():
        found = torch.compile(lambda x: experts(x, PLAIN.gate), fullgraph=True, dynamic=False, backend=backend)(x)
        torch.testing.assert_close(found, experts(x, PLAIN.gate), atol=1e-5, rtol=1e-4)


def test_bfloat16_is_chosen_and_added_in_float32() -> None:
    experts = experts_of(Routing(8, normed=True), dtype=torch.bfloat16)
    exact = experts_of(Routing(8, normed=True))
    x = drawn(4, 1, 300, HIDDEN).bfloat16()
    chosen, weights = experts.router(x[0])
    again, same = exact.router(x[0].float())
    assert chosen.sort().values.equal(again.sort().values)
    torch.testing.assert_close(weights.sum(-1), same.sum(-1))
    made = experts(x, PLAIN.gate)
    assert made.dtype == torch.bfloat16
    assert (made.float() - exact(x.float(), PLAIN.gate)).norm() < 0.02 * made.float().norm()
