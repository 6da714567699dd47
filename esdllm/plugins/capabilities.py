"""What components can do beyond the least of their kind, resolved once: nothing asks a component for an attribute later."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, get_args

import attrs
import torch

from esdllm.errors import PluginError
from esdllm.interfaces import (
    AttentionBackend,
    BlockAttention,
    BlockCounts,
    BlockSchedule,
    Cache,
    CacheStore,
    ClosingCache,
    DraftingPolicy,
    EditingPolicy,
    EndingBlocks,
    ImportanceScorer,
    LayeredRefresh,
    LearningRefresh,
    LendingCache,
    ModelAdapter,
    ModelFamily,
    MovingBlocks,
    OfferingFamily,
    OffsetCache,
    PruningBlocks,
    RefreshPolicy,
    RememberingPolicy,
    RememberingScorer,
    ReturningSkip,
    RevokingPolicy,
    SignalScorer,
    SkipSchedule,
    SlottedCache,
    SpreadAdapter,
    StepObserver,
    Suite,
    TokenSampler,
    UnmaskingPolicy,
)
from esdllm.planning.planners import StepCounts
from esdllm.plugins.members import Interface, has, member_fault, members
from esdllm.views import ModelSpec, Signal

__all__ = [
    "INTERFACES",
    "Capabilities",
    "attention_problems",
    "called",
    "check_members",
    "closing",
    "devices_of",
    "lending",
    "offset",
    "slotted",
]

INTERFACES: Mapping[str, Interface] = {
    "importance": Interface(ImportanceScorer, (RememberingScorer, SignalScorer)),
    "skip": Interface(SkipSchedule, (ReturningSkip,)),
    "refresh": Interface(RefreshPolicy, (LearningRefresh, LayeredRefresh)),
    "blocks": Interface(BlockSchedule, (PruningBlocks, MovingBlocks, EndingBlocks)),
    "sampler": Interface(TokenSampler),
    "unmasking": Interface(
        UnmaskingPolicy, (BlockCounts, RememberingPolicy, RevokingPolicy, EditingPolicy, DraftingPolicy)
    ),
    "attention": Interface(
        AttentionBackend, (BlockAttention,), apart=frozenset({"rank"})
    ),  # a plugin made before there were ranks has none
    "cache": Interface(CacheStore),
    "model": Interface(
        ModelFamily,
        (OfferingFamily,),
        apart=frozenset(members(OfferingFamily).keys() - members(ModelFamily).keys()),
        options=False,
    ),
    "observers": Interface(StepObserver),
    "suite": Interface(Suite),
}
"""What is known of each kind of component."""

_CACHE = Interface(Cache, (ClosingCache, LendingCache, OffsetCache, SlottedCache), options=False)
_ADAPTER = Interface(ModelAdapter, (SpreadAdapter,))


def check_members(kind: str, component: object, who: str, plugin: str = "") -> None:
    """Refuse a component that lacks a member of its kind, has half of a protocol, or one member nearly named like another.

    `kind` is one of `INTERFACES`; of others nothing is known. `who` is what to call the component, `plugin` whose it is.

    Raises:
        PluginError: names the member, and the one that is right.
    """
    if kind in INTERFACES:
        _check(component, INTERFACES[kind], who, plugin)


def _check(component: object, interface: Interface, who: str, plugin: str = "") -> None:
    if fault := member_fault(component, interface):
        raise PluginError(f"{who} {fault}", plugin)


def _can(component: object, protocol: type, base: type) -> Any:
    """Return a component that has the members which a protocol adds to its base; None if it has not, or if there is none."""
    if component is None:
        return None
    added = members(protocol).keys() - members(base).keys()
    return component if all(has(component, name) for name in added) else None


@attrs.frozen(eq=False)
class Capabilities:
    """What the components of a run can do beyond the least of their kinds; None and 0 for what they cannot."""

    learning: LearningRefresh | None
    """the refresh policy, if it learns from drift"""
    pruning: PruningBlocks | None
    """the block schedule, if it hides most of what lies right of the block"""
    moving: MovingBlocks | None
    """the block schedule, if it places each row's block by itself"""
    ending: EndingBlocks | None
    """the block schedule, if it tells at each step where blocks end"""
    remembering: RememberingPolicy | None
    """the unmasking policy, if it remembers"""
    revoking: RevokingPolicy | None
    """the unmasking policy, if it takes decisions back"""
    editing: EditingPolicy | None
    """the unmasking policy, if it replaces what it has decided"""
    drafting: DraftingPolicy | None
    """the unmasking policy, if it shows tokens that are not decided"""
    by_block: BlockCounts | None
    """the unmasking policy, if it may go by a block's length"""
    memory: int
    """M, the floats that the unmasking policy remembers of each position"""
    revisions: int
    """how often the unmasking policy may put a position back"""
    edits: int | None
    """how many steps of a block without masks may still replace tokens; None if none ever does"""
    reach: int
    """how many positions before its block the window of a block that moves begins"""
    score_memory: int = 0
    """M, the floats that the scorer remembers of each position at each layer"""
    signals: frozenset[Signal] = frozenset()
    """what the scorer reads of a position's last logits beyond confidence"""
    layered: LayeredRefresh | None = None
    """the refresh policy, if its refreshes may begin at a layer"""
    returning: ReturningSkip | None = None
    """the skip schedule, if it lets positions back in"""

    @property
    def scoring(self) -> tuple[object, ...]:
        """What of these the canvas holds for the scorer."""
        return self.score_memory, self.signals

    @classmethod
    def of(
        cls,
        refresh: RefreshPolicy,
        blocks: BlockSchedule,
        unmasking: UnmaskingPolicy,
        importance: ImportanceScorer | None = None,
        skip: SkipSchedule | None = None,
    ) -> Capabilities:
        """Return what components can do.

        Raises:
            PluginError: a member is misspelt, missing, no whole number or no method; names it.
        """
        given = {"refresh": refresh, "blocks": blocks, "unmasking": unmasking, "importance": importance, "skip": skip}
        for kind, component in given.items():
            if component is not None:
                check_members(kind, component, called(kind, component))
        moving = _can(blocks, MovingBlocks, BlockSchedule)
        remembering = _can(unmasking, RememberingPolicy, UnmaskingPolicy)
        revoking = _can(unmasking, RevokingPolicy, UnmaskingPolicy)
        editing = _can(unmasking, EditingPolicy, UnmaskingPolicy)
        return cls(
            learning=_can(refresh, LearningRefresh, RefreshPolicy),
            layered=_can(refresh, LayeredRefresh, RefreshPolicy),
            returning=_can(skip, ReturningSkip, SkipSchedule),
            pruning=_can(blocks, PruningBlocks, BlockSchedule),
            moving=moving,
            ending=None if moving is None else _can(blocks, EndingBlocks, MovingBlocks),
            remembering=remembering,
            revoking=revoking,
            editing=editing,
            drafting=_can(unmasking, DraftingPolicy, UnmaskingPolicy),
            by_block=_can(unmasking, BlockCounts, StepCounts),
            memory=_count("unmasking", "memory", remembering),
            revisions=_count("unmasking", "revisions", revoking),
            edits=None if editing is None else _count("unmasking", "editing_steps", editing),
            reach=_count("blocks", "reach", moving),
            score_memory=_count("importance", "memory", _can(importance, RememberingScorer, ImportanceScorer)),
            signals=_signals(_can(importance, SignalScorer, ImportanceScorer)),
        )


def called(kind: str, component: object) -> str:
    """Return what to call a component in a sentence that knows no name of it."""
    return f"{kind} {type(component).__module__}.{type(component).__qualname__}"


def _count(kind: str, name: str, component: object | None) -> int:
    """Return a member that is a whole number; 0 where there is no component."""
    value = 0 if component is None else getattr(component, name)
    if type(value) is not int or value < 0:
        raise PluginError(
            f"{called(kind, component)} has '{name}' = {value!r:.80}; give a whole number that is not negative"
        )
    return value


def _signals(scorer: SignalScorer | None) -> frozenset[Signal]:
    """Return what a scorer reads of logits; nothing where there is none that does."""
    value: Any = () if scorer is None else scorer.signals
    known = get_args(Signal)
    if isinstance(value, str) or not isinstance(value, Collection) or not set(value) <= set(known):
        raise PluginError(
            f"{called('importance', scorer)} has 'signals' = {value!r:.80}; give a tuple of any of "
            f"{', '.join(map(repr, known))}"
        )
    return frozenset(value)


def attention_problems(
    backend: AttentionBackend, spec: ModelSpec, device: torch.device, dtype: torch.dtype
) -> list[str]:
    """Return why a backend cannot serve a model: its own reasons, and that it knows nothing of the model's attention."""
    found = backend.problems(spec, device, dtype)
    blocks = _can(backend, BlockAttention, AttentionBackend)
    if spec.attention is None or (blocks is not None and blocks.block_causal is True):
        return found
    return [
        *found,
        f"the model's attention is block-causal (blocks of {spec.attention.size}), and this backend does not say that it serves "
        "that: a backend that leaves out what KeyValue.query_blocks and key_blocks say has block_causal = True; choose such a "
        'one, or attention = "auto"',
    ]


def closing(cache: Cache) -> ClosingCache | None:
    """Return a cache that holds more than memory and is to be closed; None if it is memory alone.

    Raises:
        PluginError: a member is misspelt, missing or no method; names it.
    """
    found: ClosingCache | None = _extended("cache", cache, _CACHE, ClosingCache)
    return found


def lending(cache: Cache) -> LendingCache | None:
    """Return a cache in whose memory others find room; None if none does.

    Raises:
        PluginError: a member is misspelt, missing or no method; names it.
    """
    found: LendingCache | None = _extended("cache", cache, _CACHE, LendingCache)
    return found


def offset(cache: Cache) -> OffsetCache | None:
    """Return a cache that goes by where its rows begin; None if it does not. Its members were looked at when it was made."""
    found: OffsetCache | None = _can(cache, OffsetCache, Cache)
    return found


def slotted(cache: Cache) -> SlottedCache | None:
    """Return a cache whose rows are slots; None if it knows only all of them.

    Raises:
        PluginError: a member is misspelt, missing or no method; names it.
    """
    found: SlottedCache | None = _extended("cache", cache, _CACHE, SlottedCache)
    return found


def devices_of(model: ModelAdapter) -> int:
    """Return how many devices a model computes on.

    Raises:
        PluginError: a member is misspelt, missing or no method; names it.
    """
    spread: SpreadAdapter | None = _extended("model", model, _ADAPTER, SpreadAdapter)
    return 1 if spread is None else len(spread.devices)


def _extended(kind: str, made: object, interface: Interface, protocol: type) -> Any:
    """Return what a component made, such as a cache, if it implements one more protocol; None if not."""
    _check(made, interface, called(kind, made))
    return _can(made, protocol, interface.base)
