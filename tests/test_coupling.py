"""Which components let rows meet: whatever a row's answer could come to depend on is named, and nothing else."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples
from torch import Tensor

from esdllm import (
    BlockView,
    CacheShape,
    CacheWrite,
    Candidates,
    Catalogue,
    ImportanceView,
    KeyValue,
    Moment,
    SampleView,
    Scope,
    UnmaskingView,
    Window,
)
from esdllm.errors import ConfigError, PluginError, UnavailableError
from esdllm.runtime.components import Components
from esdllm.serving.coupling import check_uncoupled, coupled
from esdllm_backends.attention.eager import EagerAttention
from esdllm_backends.cache.dense import DenseCache, DenseStore
from esdllm_policies.blocks import OwnBlocks
from esdllm_policies.importance import ConfidenceScorer
from esdllm_policies.refreshing import DualCacheRefresh
from esdllm_policies.sampling import GumbelSampler
from esdllm_policies.unmasking import TopKUnmasking

CATALOGUE = Catalogue.load()
KINDS = ("importance", "sampler", "unmasking", "blocks", "refresh", "skip", "cache", "attention")


def components(**over: Any) -> Components:
    """Return those of es-dllm, but for some."""
    return attrs.evolve(Components.resolve(CATALOGUE.configure("es-dllm"), CATALOGUE), **over)


@given(named=st.fixed_dictionaries({}, optional={kind: st.sampled_from(CATALOGUE.names(kind)) for kind in KINDS}))
@examples(60)
def test_no_component_of_our_own_couples_rows_in_slots(named: dict[str, str]) -> None:
    try:
        found = Components.resolve(CATALOGUE.configure("es-dllm", settings=named), CATALOGUE)
    except (ConfigError, UnavailableError):  # one that has to be told something, or what contradicts itself
        return
    assert coupled(found, CATALOGUE) == []


class BatchScorer(ConfidenceScorer):
    """Scores in shares of the batch's highest."""

    def score(self, view: ImportanceView) -> Tensor:
        found = super().score(view)
        return found / found.max().clamp(min=1e-6)


class BatchSampler(GumbelSampler):
    """Divides confidence by the batch's mean."""

    def sample(self, view: SampleView) -> Candidates:
        found = super().sample(view)
        return found._replace(confidence=found.confidence * found.confidence.mean())


class FirstRowUnmasking(TopKUnmasking):
    """Selects in the first row alone, if it has anything to select."""

    def select(self, view: UnmaskingView) -> Tensor:
        chosen = super().select(view)
        first = torch.arange(chosen.shape[0]).unsqueeze(1) == 0
        return torch.where(chosen[0].any(), chosen & first, chosen)


class LockstepBlocks(OwnBlocks):
    """Begins all rows' blocks where the slowest row's begins."""

    def starts(self, view: BlockView) -> Tensor:
        return super().starts(view).min().expand(view.first.shape)


class MixingAttention(EagerAttention):
    """Adds a little of the rows' mean."""

    def attend(self, queries: Tensor, read: KeyValue) -> Tensor:
        found = super().attend(queries, read)
        return found + 0.01 * found.mean(0, keepdim=True)


class CountingRefresh:
    """Refreshes whenever it was asked ten times, whoever asked."""

    asked = 0

    def scope(self, moment: Moment) -> Scope:
        self.asked += 1
        return Scope(Window.CANVAS, True) if self.asked % 10 == 0 else DualCacheRefresh().scope(moment)


class NeighbourlyCache(DenseCache):
    """Shows the mean of all rows' values."""

    def update(self, write: CacheWrite) -> KeyValue:
        read = super().update(write)
        return read._replace(values=read.values + read.values.mean(0, keepdim=True))


class ForgetfulCache(DenseCache):
    """Forgets all slots where one is to be forgotten."""

    whole: DenseCache | None = None

    def slots(self, rows: Any, length: int) -> DenseCache:
        found = super().slots(rows, length)
        found.whole = self
        return found

    def reset(self) -> None:
        super().reset()
        if self.whole is not None:
            self.whole.reset()


def storing(made: type[DenseCache]) -> DenseStore:
    """Return a store whose caches are of a class."""

    class Store(DenseStore):
        def allocate(self, shape: CacheShape) -> DenseCache:
            return made(shape)

    return Store()


@pytest.mark.parametrize(
    ("section", "component", "message"),
    [
        (
            "importance",
            BatchScorer(),
            "its scores: a row alone is not the row in its batch",
        ),
        ("sampler", BatchSampler(), r"its candidates: a row alone is not the row in its batch.*; choose another$"),
        ("unmasking", FirstRowUnmasking(), "what it selects: a row alone is not the row in its batch"),
        ("blocks", LockstepBlocks(), "where its blocks begin: a row alone is not the row in its batch"),
        ("attention", MixingAttention(), "its attention: a row alone is not the row in its batch"),
        ("refresh", CountingRefresh(), "it answered Scope.* when it was asked about others in between"),
        (
            "cache",
            storing(NeighbourlyCache),
            "its cache: a row is read otherwise at layer 0 if another is written in the same step",
        ),
        ("cache", storing(ForgetfulCache), "its cache: keys of slots beside which others were written"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_a_component_that_lets_rows_meet_is_named(section: str, component: Any, message: str) -> None:
    found = coupled(components(**{section: component}, third_party=frozenset({section})), CATALOGUE)
    assert len(found) == 1
    assert found[0].startswith(f"{section} '")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(found[0])


def test_every_component_at_fault_is_named() -> None:
    found = coupled(components(importance=BatchScorer(), sampler=BatchSampler(), blocks=LockstepBlocks()), CATALOGUE)
    assert [said.split()[0] for said in found] == ["importance", "sampler", "blocks"]


def test_the_setting_that_would_do_is_told() -> None:
    config = CATALOGUE.configure("es-dllm", settings={"importance": "entropy", "unmasking": "klass"})
    found = attrs.evolve(Components.resolve(config, CATALOGUE), importance=BatchScorer(), unmasking=FirstRowUnmasking())
    usual = CATALOGUE.configure("es-dllm")
    assert [said.split("; ")[-1] for said in coupled(found)] == [
        f'choose another, such as importance = "{usual.importance.name}"',
        f'choose another, such as unmasking = "{usual.unmasking.name}"',
    ]


class RaisingScorer(ConfidenceScorer):
    """Cannot do three rows."""

    def score(self, view: ImportanceView) -> Tensor:
        raise RuntimeError(f"{len(view.x)} rows")


def test_a_component_that_raises_when_it_is_tried_is_named() -> None:
    with pytest.raises(PluginError, match=r"importance .*RaisingScorer\) failed when rows were tried.*3 rows"):
        coupled(components(importance=RaisingScorer()))


def test_a_session_that_would_couple_rows_is_refused_with_every_reason() -> None:
    check_uncoupled(components(), CATALOGUE)
    both = components(importance=BatchScorer(), sampler=BatchSampler())
    with pytest.raises(ConfigError) as refused:
        check_uncoupled(both, CATALOGUE)
    assert str(refused.value) == "; ".join(coupled(both, CATALOGUE))
    assert str(refused.value).count("couples rows") == 2
