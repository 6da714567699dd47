"""What a policy shows of what is not decided, and where a schedule ends blocks: the runtime's side, and what it refuses."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from esdllm import (
    BlockView,
    Catalogue,
    ComponentConfig,
    ConfigError,
    EndView,
    Engine,
    Model,
    PluginError,
    UnmaskingView,
)
from esdllm.plan import Block
from esdllm.testing.conformance.rules.steps import given_view
from esdllm_policies.ending import AdaBlocks, GrowingBlocks
from esdllm_policies.leaping import DcLeapUnmasking
from esdllm_policies.parallel import FactorUnmasking

CATALOGUE = Catalogue.load()
LENGTH = 6


@attrs.frozen
class Showing:
    """One position a step from the left; of the others it shows what it is told to."""

    token: int = 7

    def counts(self, masked: int, blocks: int) -> None:
        return

    def select(self, view: UnmaskingView) -> Tensor:
        return view.eligible & (view.eligible.cumsum(1) == 1)

    def draft(self, view: UnmaskingView) -> Tensor:
        return torch.full_like(view.tokens, self.token).masked_fill(view.columns % 2 == 0, -1)


def engine(model: Model, mode: str = "vanilla", **put: Any) -> Engine:
    settings = {"gen_length": LENGTH, "block_length": LENGTH, "early_stop": False, "delay_eos": False}
    made = Engine.build(model, CATALOGUE.configure(mode, settings=settings), CATALOGUE)
    made.components = attrs.evolve(made.components, **put)
    return made


def inputs(made: Engine, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return what the model is given at every step over the canvas."""
    given: list[list[int]] = []
    embed = type(made.model.adapter).embed

    def noting(adapter: Any, tokens: Tensor) -> Tensor:
        given.append(tokens[0].tolist())
        return embed(adapter, tokens)

    monkeypatch.setattr(type(made.model.adapter), "embed", noting)
    made.generate([[1, 2, 3]])
    return given


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_a_draft_stands_in_the_input_until_its_position_is_decided_and_never_in_the_answer(
    family: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = request.getfixturevalue(family)
    shift, mask = model.spec.logit_shift, model.spec.mask_id
    shown = engine(model, unmasking=Showing(7))
    given = inputs(shown, monkeypatch)
    first = len(given[0]) - LENGTH
    assert given[0][first:] == [mask] * LENGTH
    for number, row in enumerate(given[1:], 1):
        left = range(first + number, first + LENGTH)
        assert [row[column] for column in left] == [7 if (column - shift) % 2 else mask for column in left]
    assert len(given) == LENGTH
    assert mask not in shown.generate([[1, 2, 3]]).tokens


def test_under_guidance_both_branches_see_the_drafts(llada: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"gen_length": 4, "block_length": 4, "early_stop": False, "cfg_scale": 1.0}
    made = Engine.build(llada, CATALOGUE.configure("vanilla", settings=settings), CATALOGUE)
    made.components = attrs.evolve(made.components, unmasking=Showing(7))
    seen: list[Tensor] = []
    embed = type(llada.adapter).embed
    monkeypatch.setattr(type(llada.adapter), "embed", lambda self, x: (seen.append(x.clone()), embed(self, x))[1])
    made.generate([[1, 2, 3]])
    assert all(torch.equal(x[0, -3:], x[1, -3:]) for x in seen[1:])
    assert any((x[1, -3:] == 7).any() for x in seen[1:])


@pytest.mark.parametrize(("drafted", "message"), [(-2, r"drafts \[?-2"), (10**6, "drafts"), (0.5, "float")], ids=str)
def test_drafts_that_are_no_tokens_are_found_before_the_first_run(drafted: Any, message: str, llada: Model) -> None:
    class Wrong(Showing):
        def draft(self, view: UnmaskingView) -> Tensor:
            return torch.full(view.tokens.shape, drafted)

    from esdllm.runtime.rehearsal import rehearse

    made = engine(llada)
    with pytest.raises(PluginError, match=message):
        rehearse(attrs.evolve(made.components, unmasking=Wrong()), llada.adapter)


def test_a_leap_ends_at_the_leader_and_shows_what_is_sure_behind_it() -> None:
    logits = torch.full((1, 8, 5), -30.0).scatter(2, torch.tensor([[[1], [2], [3], [1], [2], [3], [1], [2]]]), 5.0)
    logits[0, 1, 4] = 6.0  # unsure
    masks = torch.ones(1, 8, dtype=torch.bool)
    policy = DcLeapUnmasking(threshold=0.9, draft_threshold=0.9, window=2)
    view = given_view(logits, masks, masks)
    view = view._replace(memory=torch.zeros(1, 8, 1))
    view = view._replace(memory=policy.remember(view))
    assert policy.select(view).tolist() == [[True] + [False] * 7]
    assert policy.draft(view).tolist() == [[-1, -1, -1, 1, -1, -1, -1, -1]]  # place 4 lay beyond the window


class Ends:
    """Blocks whose end lies before what is undecided, which would decide nothing."""

    reach = 0

    def next_block(self, start: int, end: int, block_length: int) -> Block:
        return Block(start, end)

    def starts(self, view: BlockView) -> Tensor:
        return view.first

    def ends(self, view: EndView) -> Tensor:
        return view.begins


def test_a_block_always_holds_its_first_undecided_position(llada: Model) -> None:
    found = engine(llada, blocks=Ends()).generate([[1, 2, 3], [4, 5, 6, 7]])
    assert found.forwards == LENGTH
    assert found.committed == 2 * LENGTH


def told(**over: Any) -> EndView:
    columns = torch.arange(4, 12).unsqueeze(0)
    given = {
        "first": torch.tensor([4]),
        "begins": torch.tensor([4]),
        "stops": torch.tensor([20]),
        "ends": torch.tensor([0]),
        "committed": torch.tensor([0]),
        "columns": columns,
        "tokens": torch.tensor([[0, 9, 0, 8, 9, 0, 9, 0]]),
        "confidence": torch.tensor([[0.9, 0.4, 0.9, 0.5, 0.3, 0.9, 0.95, 0.9]]),
        "length": 5,
    }
    return EndView(**{**given, **over})


@pytest.mark.parametrize(
    ("over", "delimiters", "share", "end"),
    [
        ({}, (9,), 0.25, 6),  # within the next four
        ({}, (8, 9), 0.25, 8),  # the surer of two
        ({}, (9,), 0.5, 11),  # one farther off that is surer
        ({}, (7,), 0.5, 9),  # none: block_length
        ({"ends": torch.tensor([8])}, (9,), 0.25, 8),  # the block goes on
        ({"ends": torch.tensor([4])}, (9,), 0.25, 6),  # and is decided
        ({"stops": torch.tensor([7])}, (7,), 1.0, 7),  # what is left is less
        ({"stops": torch.tensor([8])}, (9,), 0.25, 8),  # only the first is near: no delimiter
    ],
    ids=str,
)
def test_a_block_ends_with_the_surest_delimiter_near_by(
    over: dict[str, Any], delimiters: tuple[int, ...], share: float, end: int
) -> None:
    assert AdaBlocks(delimiters, 0.3, share).ends(told(**over)).tolist() == [end]


def test_an_unsure_delimiter_ends_no_block() -> None:
    assert AdaBlocks((9,), 0.45).ends(told()).tolist() == [9]


def test_a_block_grows_by_what_is_committed_up_to_its_limit_and_the_answer_s_end() -> None:
    later = {"first": torch.tensor([6]), "committed": torch.tensor([6])}
    assert GrowingBlocks().ends(told(**later)).tolist() == [15]
    assert GrowingBlocks(limit=7).ends(told(**later)).tolist() == [13]
    assert GrowingBlocks().ends(told(committed=torch.tensor([15]))).tolist() == [20]


@pytest.mark.parametrize("wrong", [[-1], [1.5], ["a"]], ids=str)
def test_delimiters_that_are_no_token_ids_are_refused(wrong: list[Any]) -> None:
    with pytest.raises(ConfigError, match="delimiters"):
        CATALOGUE.build("blocks", ComponentConfig("adablock", {"delimiters": wrong}))


def test_the_last_mask_goes_with_all_its_others_where_that_is_asked_for() -> None:
    logits = torch.zeros(1, 4, 3)
    logits[0, :3, 0] = 20.0
    masks = torch.ones(1, 4, dtype=torch.bool)
    view = given_view(logits, masks, masks)
    assert FactorUnmasking().select(view).tolist() == [[True, True, True, False]]
    assert FactorUnmasking(with_last=True).select(view).tolist() == [[True] * 4]
    logits[0, 2, 0] = 0.0
    assert FactorUnmasking(with_last=True).select(given_view(logits, masks, masks)).tolist() == [
        [True, True, False, False]
    ]
