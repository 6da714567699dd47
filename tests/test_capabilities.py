"""Capabilities: what a component can do is resolved once, and a member that is misspelt, half there or wrong is named."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch
from helpers import offers
from hypothesis import given
from hypothesis import strategies as st

import esdllm
from esdllm import Catalogue, ComponentConfig, KeyValue, ModelSpec, PluginError
from esdllm.plugins.capabilities import INTERFACES, Capabilities, closing, devices_of
from esdllm.plugins.catalogue import KINDS
from esdllm.plugins.members import members, near
from esdllm.plugins.offers import Offers
from esdllm.testing import check_block_schedule, check_refresh_policy, check_unmasking_policy
from esdllm_backends.cache.dense import DenseCache, DenseStore
from esdllm_models.families.llada import LladaFamily
from esdllm_policies.blocks import FixedBlocks, SlidingBlocks
from esdllm_policies.editing import EditingUnmasking
from esdllm_policies.importance import ConfidenceScorer
from esdllm_policies.refreshing import DriftRefresh, DualCacheRefresh
from esdllm_policies.revoking import WinoUnmasking
from esdllm_policies.schedules import TimeScheduleUnmasking
from esdllm_policies.skipping import NoSkip
from esdllm_policies.unmasking import ThresholdUnmasking

ROOT = Path(__file__).parent.parent
CATALOGUE = Catalogue.load()


@attrs.frozen
class Bidirectional:
    """An attention backend that was made before there were block-causal models."""

    @property
    def rank(self) -> None: ...

    def problems(self, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[str]:
        return []

    def attend(self, queries: torch.Tensor, read: KeyValue) -> torch.Tensor:
        return queries


LEAST: Mapping[str, type] = {
    "attention": Bidirectional,
    "refresh": DualCacheRefresh,
    "skip": NoSkip,
    "blocks": FixedBlocks,
    "importance": ConfidenceScorer,
    "unmasking": TimeScheduleUnmasking,
    "cache": DenseStore,
    "model": LladaFamily,
}
"""a right component of each kind that has extensions, and none of them but the families'"""


def method(*parameters: str) -> Callable[..., Any]:
    made: Callable[..., Any] = eval(f"lambda self, {', '.join(parameters)}: None")
    return made


def value(given: Any) -> property:
    return property(lambda self: given)


def made(base: type, **given: Any) -> Any:
    """Return a component of a subclass that has some members more."""
    return attrs.frozen(type("Made", (base,), given))()


def built(kind: str, component: type, name: str = "bad") -> Any:
    plugins = {"made-up": offers(KINDS[kind], {name: component})}
    return Catalogue.load(plugins).build(kind, ComponentConfig(name))


MISSPELT = {
    "attention": {"block_causal": ("block_casual", "blocks_causal")},
    "refresh": {
        "learn": ("lern", "leran"),
        "learned": ("lerned", "leanred"),
        "from_layers": ("from_layer", "form_layers"),
    },
    "skip": {"returning": ("retruning", "returns")},
    "blocks": {
        "suffix": ("sufix", "suffixes"),
        "starts": ("start", "strats"),
        "reach": ("reech", "raech"),
        "ends": ("end", "edns"),
    },
    "importance": {
        "memory": ("memmory", "memroy"),
        "remember": ("remeber", "remembers"),
        "signals": ("signal", "singals"),
    },
    "unmasking": {
        "memory": ("memmory", "memroy"),
        "remember": ("remeber", "remembers"),
        "revisions": ("revision", "revisons"),
        "revoke": ("revok", "revokes"),
        "draft": ("drafts", "darft"),
        "edit": ("edits", "edti"),
        "editing_steps": ("editing_step", "edting_steps"),
        "block_counts": ("block_count", "blockcounts"),
    },
}


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [(kind, right, wrong) for kind, names in MISSPELT.items() for right, pair in names.items() for wrong in pair],
)
def test_a_member_that_is_nearly_the_name_of_a_known_one_is_an_error_that_names_it(
    kind: str, right: str, wrong: str
) -> None:
    bad = type(made(LEAST[kind], **{wrong: value(1)}))
    with pytest.raises(PluginError) as caught:
        built(kind, bad)
    said = str(caught.value)
    assert said.startswith(f"{kind} 'bad' of plugin 'made-up' ")
    assert f"member '{wrong}'" in said
    assert f"name it '{right}'" in said
    assert caught.value.plugin == "made-up"  # so that the command says what leaves it out


def test_every_member_of_every_extension_is_misspelt_above() -> None:
    for kind, interface in INTERFACES.items():
        added = {name for one in interface.extensions for name in members(one)} - members(interface.base).keys()
        assert kind == "model" or added == MISSPELT.get(kind, {}).keys()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("unpacks", "unpack"),
        ("unpacks", "unpacked"),
    ],
)
def test_what_a_family_offers_under_nearly_the_right_name_is_told(right: str, wrong: str) -> None:
    with pytest.raises(PluginError, match=f"member '{wrong}'.*'{right}' of OfferingFamily"):
        Offers.of(made(LladaFamily, **{wrong: True}))


class Plain:
    """A family that offers nothing."""

    def spec(self, config: Any) -> Any: ...

    def load(self, folder: Any, config: Any, plan: Any) -> Any: ...

    def weight_bytes(self, config: Any, plan: Any) -> Any: ...

    def from_module(self, module: Any, config: Any) -> Any: ...

    def codec(self, source: Any, spec: Any) -> Any: ...


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("checkpoints", "checkpoint"),
        ("geometries", "geometry"),
        ("quantizations", "quantisations"),
        ("spreads", "spread"),
        ("draws", "draw"),
        ("merges", "merge"),
        ("problems", "problem"),
        ("problems", "prolbems"),
    ],
)
@pytest.mark.parametrize("field", [False, True], ids=["member", "field"])
def test_a_family_has_no_options_so_a_field_of_it_is_a_member_too(right: str, wrong: str, field: bool) -> None:
    given = {wrong: attrs.field(default=True), "__annotations__": {wrong: bool}} if field else {wrong: True}
    with pytest.raises(PluginError, match=f"'{wrong}'.*name it '{right}'"):
        Offers.of(made(Plain, **given))


def test_a_family_that_offers_nothing_is_right() -> None:
    offers = Offers.of(Plain())  # type: ignore[arg-type]
    assert (offers.checkpoints, offers.geometries, offers.spreads, offers.problems({}, None)) == ({}, {}, False, ())  # type: ignore[arg-type]


HALVES = [
    ("refresh", {"learn": method("moment", "drift")}, "lacks 'learned' of LearningRefresh, and has 'learn'"),
    ("refresh", {"learned": value(())}, "lacks 'learn(moment, drift)' of LearningRefresh, and has 'learned'"),
    ("blocks", {"starts": method("view")}, "lacks 'reach' of MovingBlocks, and has 'starts'"),
    ("blocks", {"reach": value(3)}, "lacks 'starts(view)' of MovingBlocks, and has 'reach'"),
    ("importance", {"memory": value(1)}, "lacks 'remember(view)' of RememberingScorer, and has 'memory'"),
    ("importance", {"remember": method("view")}, "lacks 'memory' of RememberingScorer, and has 'remember'"),
    ("blocks", {"ends": method("view")}, "lacks 'reach', 'starts(view)' of EndingBlocks, and has 'ends'"),
    ("unmasking", {"memory": value(1)}, "lacks 'remember(view)' of RememberingPolicy, and has 'memory'"),
    ("unmasking", {"remember": method("view")}, "lacks 'memory' of RememberingPolicy, and has 'remember'"),
    ("unmasking", {"revoke": method("view")}, "lacks 'revisions' of RevokingPolicy, and has 'revoke'"),
    ("unmasking", {"revisions": value(1)}, "lacks 'revoke(view)' of RevokingPolicy, and has 'revisions'"),
    ("unmasking", {"edit": method("view")}, "lacks 'editing_steps' of EditingPolicy, and has 'edit'"),
    ("unmasking", {"editing_steps": value(1)}, "lacks 'edit(view)' of EditingPolicy, and has 'editing_steps'"),
]


@pytest.mark.parametrize(("kind", "given", "message"), HALVES)
def test_half_of_a_protocol_is_an_error_that_names_the_other_half(
    kind: str, given: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(PluginError) as caught:
        built(kind, type(made(LEAST[kind], **given)))
    assert message in str(caught.value)


def test_a_misspelt_option_beside_the_other_half_is_named() -> None:
    given = {"revision": attrs.field(default=1), "__annotations__": {"revision": int}, "revoke": method("view")}
    with pytest.raises(PluginError, match=r"lacks 'revisions' .*its field 'revision' is nearly 'revisions'"):
        built("unmasking", type(made(ThresholdUnmasking, **given)))


@pytest.mark.parametrize("kind", sorted(INTERFACES))
def test_a_component_that_names_its_protocol_has_all_of_it(kind: str) -> None:
    protocol = INTERFACES[kind].base
    with pytest.raises(PluginError, match=rf"^{kind} 'bad' of .* lacks .* of {protocol.__name__}$") as caught:
        built(kind, type(made(protocol)))
    assert all(f"'{name}" in str(caught.value) for name in members(protocol) if name not in INTERFACES[kind].apart)


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("skip", "keep_counts", "keep_count"),
        ("skip", "keep_counts", "keepCounts"),
        ("importance", "score", "scores"),
        ("importance", "keeps_history", "keep_history"),
        ("sampler", "sample", "samlpe"),
        ("observers", "end", "ends"),
        ("suite", "correct", "corect"),
        ("cache", "persistent", "persistant"),
        ("attention", "rank", "rnak"),
        ("attention", "attend", "atend"),
        ("model", "weight_bytes", "weights_bytes"),
    ],
)
def test_a_misspelt_member_that_every_component_of_a_kind_has_is_named(kind: str, right: str, wrong: str) -> None:
    with pytest.raises(PluginError, match=f"member '{wrong}'.* nearly '{right}' of "):
        built(kind, type(made(object, **{wrong: value(1)})))


WRONG = [
    ("refresh", {"learned": value(()), "learn": value(True)}, "'learn' = True where a method is needed"),
    ("refresh", {"learned": value(()), "learn": None}, "'learn' = None where a method is needed"),
    ("refresh", {"learned": value(()), "learn": method("moment")}, "is called as learn(moment, drift)"),
    ("refresh", {"learned": value(()), "learn": method("a", "b", "c")}, "is called as learn(moment, drift)"),
    ("refresh", {"learned": method(), "learn": method("a", "b")}, "'learned' as a method where a value is needed"),
    ("unmasking", {"revisions": method(), "revoke": method("view")}, "'revisions' as a method where a value is needed"),
    ("unmasking", {"block_counts": method("length")}, "is called as block_counts(length, blocks)"),
    ("unmasking", {"counts": method("masked")}, "is called as counts(masked, blocks)"),
    ("blocks", {"suffix": (1, 2)}, "'suffix' = (1, 2) where a method is needed"),
    ("blocks", {"suffix": staticmethod(lambda block: ())}, "is called as suffix(block, length)"),
]


@pytest.mark.parametrize(("kind", "given", "message"), WRONG)
def test_a_member_of_the_wrong_kind_is_named(kind: str, given: Mapping[str, Any], message: str) -> None:
    with pytest.raises(PluginError) as caught:
        built(kind, type(made(LEAST[kind], **given)))
    assert message in str(caught.value)


@pytest.mark.parametrize("number", [-1, 1.0, "2", None, True])
def test_a_number_that_is_none_is_named(number: Any) -> None:
    policy = made(ThresholdUnmasking, revisions=value(number), revoke=method("view"))
    with pytest.raises(PluginError, match=r"'revisions' = .*; give a whole number that is not negative"):
        Capabilities.of(DualCacheRefresh(), FixedBlocks(), policy)


def test_other_ways_to_write_a_right_member_are_right() -> None:
    policy = made(ThresholdUnmasking, revisions=2, revoke=staticmethod(lambda view, more=None: None))
    store = made(DenseStore, phase=lambda self, *given, **more: esdllm.Phase.ALL)
    assert Capabilities.of(DualCacheRefresh(), FixedBlocks(), policy).revisions == 2
    assert built("cache", type(store)) is not None


class Said(ThresholdUnmasking, esdllm.RevokingPolicy):
    """A policy that names its protocol, and forgets a member of it."""

    revisions: ClassVar[int] = 1  # type: ignore[misc]


def test_a_protocol_that_is_named_as_a_base_class_gives_no_member() -> None:
    with pytest.raises(PluginError, match=r"lacks 'revoke\(view\)' of RevokingPolicy"):
        Capabilities.of(DualCacheRefresh(), FixedBlocks(), Said())

    class Whole(Said):
        def revoke(self, view: Any) -> Any: ...

    assert Capabilities.of(DualCacheRefresh(), FixedBlocks(), Whole()).revisions == 1


def test_a_run_can_do_what_its_components_have_members_for() -> None:
    least = Capabilities.of(DualCacheRefresh(), FixedBlocks(), TimeScheduleUnmasking())
    assert set(attrs.astuple(least, recurse=False)) == {None, 0, frozenset()}
    refresh, blocks, unmasking = DriftRefresh(), SlidingBlocks(reach=5), WinoUnmasking(revisions=3)
    most = Capabilities.of(refresh, blocks, unmasking)
    assert (most.learning, most.moving, most.revoking) == (refresh, blocks, unmasking)
    assert (most.pruning, most.remembering, most.reach, most.revisions, most.memory) == (None, None, 5, 3, 0)
    threshold, editing = ThresholdUnmasking(), EditingUnmasking(editing_steps=4)
    assert Capabilities.of(refresh, blocks, threshold).by_block is threshold
    assert (Capabilities.of(refresh, blocks, editing).editing, most.editing) == (editing, None)
    assert (Capabilities.of(refresh, blocks, editing).edits, most.edits) == (4, None)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        most.reach = 6  # type: ignore[misc]


def test_no_component_that_is_shipped_is_refused() -> None:
    tried = 0
    for kind in INTERFACES:
        for name in CATALOGUE.names(kind):
            CATALOGUE.build(kind, ComponentConfig(name))
            tried += 1
    assert tried > 40
    assert INTERFACES.keys() == KINDS.keys() - {"preset"}


NAMES = sorted({name for one in INTERFACES.values() for name in one.known})


def _unrelated(name: str) -> bool:
    return all(SequenceMatcher(None, name, known).ratio() < 0.6 for known in NAMES)


@pytest.mark.slow
@given(st.from_regex(r"[a-z][a-z_]{3,14}", fullmatch=True).filter(_unrelated))
def test_a_member_of_any_other_name_is_the_component_s_own(name: str) -> None:
    for kind, base in LEAST.items():
        assert built(kind, type(made(base, **{name: method("anything")}))) is not None


@pytest.mark.parametrize(
    "name", ["clean", "clear", "state", "prefix", "remove", "invoke", "size", "divergence", "history"]
)
def test_a_word_of_its_own_is_no_misprint(name: str) -> None:
    assert near(name, NAMES) in (None, "site")
    for kind, base in LEAST.items():
        built(kind, type(made(base, **{name: value(1)})))


def test_an_option_may_have_any_name_that_makes_no_half_of_a_protocol() -> None:
    for kind, name in (("unmasking", "revision"), ("blocks", "each"), ("refresh", "learns"), ("blocks", "start")):
        given = {name: attrs.field(default=1), "__annotations__": {name: int}}
        assert built(kind, type(made(LEAST[kind], **given))) is not None


def test_a_component_within_another_is_held_to_the_same() -> None:
    bad = type(made(ConfidenceScorer, scores=method("view")))
    assert built("importance", bad) is not None  # it has a score, so this is no misprint of it
    worse = attrs.frozen(type("Worse", (), {"site": "hidden", "keep_history": False, "score": method("view")}))
    plugins = {"made-up": offers(KINDS["importance"], {"worse": worse})}
    with pytest.raises(PluginError, match=r"member 'keep_history'.*name it 'keeps_history'"):
        Catalogue.load(plugins).build("importance", ComponentConfig("mix", {"parts": [{"name": "worse"}]}))


@pytest.mark.parametrize("wrong", ["closes", "cloze"])
def test_a_cache_that_closes_under_another_name_is_named(wrong: str) -> None:
    kept = type("Kept", (DenseCache,), {wrong: lambda self: None})
    cache = object.__new__(kept)
    with pytest.raises(PluginError, match=f"member '{wrong}'.*'close' of ClosingCache"):
        closing(cache)


class _Around:
    """A model around another, which passes on what it does not have."""

    inner: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_a_model_says_on_how_many_devices_it_computes() -> None:
    adapter = esdllm.load_model("tiny-llada", "cpu").adapter
    assert devices_of(adapter) == 1
    spread = made(_Around, inner=adapter, devices=("a", "b"))
    assert devices_of(spread) == 2
    with pytest.raises(PluginError, match=r"member 'device_s'.*'devices' of SpreadAdapter"):
        devices_of(made(_Around, inner=adapter, device_s=()))


@pytest.mark.parametrize(
    ("check", "component"),
    [
        (check_refresh_policy, made(DualCacheRefresh, lern=method("moment", "drift"))),
        (check_block_schedule, made(FixedBlocks, sufix=method("block", "length"))),
        (check_unmasking_policy, made(ThresholdUnmasking, revok=method("view"))),
    ],
)
def test_the_contracts_see_what_the_catalogue_sees(check: Callable[[Any], None], component: Any) -> None:
    with pytest.raises(AssertionError, match=r"has a member '\w+', which esdllm does not know and which is nearly"):
        check(component)


PROBES = {
    ("culprit.py", "errno"): "of any error, whoever raised it",
    ("faults.py", "_fields"): "of a tuple, which has names if it is a view",
    ("allocator.py", "name"): "of the C library",
    ("prompts.py", "tolist"): "of what a user gives as a prompt",
    ("prompts.py", "__index__"): "of what a user gives as a token or a seed",
    ("run.py", "name"): "torch's settings, which differ by its version",
}
"""Attributes that are asked for because what has them is not a component, and why."""


_PROBING = {("hasattr", 2), ("getattr", 3), ("inspect.getattr_static", 3)}


@pytest.mark.parametrize("room", ["runtime", "planning"])
def test_the_runtime_probes_no_component(room: str) -> None:
    found = set()
    for path in sorted((ROOT / "esdllm" / room).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (ast.unparse(node.func), len(node.args)) in _PROBING:
                found.add((path.name, ast.unparse(node.args[1]).strip("'")))
    assert found - PROBES.keys() == set()
