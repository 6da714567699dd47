"""What plugins implement.

Three kinds, by what they may touch. *Planners* (skip schedules, refresh policies, block schedules) take and return host
integers. *Kernels* (importance scorers, token samplers, unmasking policies, attention backends, model adapters) are pure
functions of tensors: no device read, no branch on a tensor's value, output shapes known from input shapes. *Caches* alone
keep state. Observers stand outside the step and may do as they like.

Most components implement one protocol. A protocol that extends another adds what is looked for once, when a component is
built: one without those members costs nothing. A component that has some of the members has all, and a member that is nearly
named like one of its kind's is an error. Naming a protocol as a base class is welcome, and never needed.
"""

from esdllm.interfaces.families import ModelFamily, OfferingFamily, TextCodec
from esdllm.interfaces.kernels import (
    AttentionBackend,
    BlockAttention,
    DraftingPolicy,
    EditingPolicy,
    EndingBlocks,
    ImportanceScorer,
    ModelAdapter,
    MovingBlocks,
    RememberingPolicy,
    RememberingScorer,
    RevokingPolicy,
    SignalScorer,
    SpreadAdapter,
    TokenSampler,
    UnmaskingPolicy,
)
from esdllm.interfaces.observers import StepObserver
from esdllm.interfaces.stores import Cache, CacheStore, ClosingCache, LendingCache, OffsetCache, SlottedCache
from esdllm.interfaces.suites import Suite
from esdllm.planning.planners import (
    BlockCounts,
    BlockSchedule,
    LayeredRefresh,
    LearningRefresh,
    PruningBlocks,
    RefreshPolicy,
    ReturningSkip,
    SkipSchedule,
)

__all__ = [
    "AttentionBackend",
    "BlockAttention",
    "BlockCounts",
    "BlockSchedule",
    "Cache",
    "CacheStore",
    "ClosingCache",
    "DraftingPolicy",
    "EditingPolicy",
    "EndingBlocks",
    "ImportanceScorer",
    "LayeredRefresh",
    "LearningRefresh",
    "LendingCache",
    "ModelAdapter",
    "ModelFamily",
    "MovingBlocks",
    "OfferingFamily",
    "OffsetCache",
    "PruningBlocks",
    "RefreshPolicy",
    "RememberingPolicy",
    "RememberingScorer",
    "ReturningSkip",
    "RevokingPolicy",
    "SignalScorer",
    "SkipSchedule",
    "SlottedCache",
    "SpreadAdapter",
    "StepObserver",
    "Suite",
    "TextCodec",
    "TokenSampler",
    "UnmaskingPolicy",
]
