"""First-party policies: what to skip, when to refresh, what to put where. One module a hook, several for unmasking."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from esdllm import (
    BlockSchedule,
    ImportanceScorer,
    Preset,
    RefreshPolicy,
    SkipSchedule,
    TokenSampler,
    UnmaskingPolicy,
    hookimpl,
)
from esdllm_policies.averaging import AverageScorer
from esdllm_policies.blocks import FixedBlocks, OwnBlocks, PrunedBlocks, SlidingBlocks
from esdllm_policies.budgets import CaiUnmasking
from esdllm_policies.editing import EditingUnmasking
from esdllm_policies.ending import AdaBlocks, GrowingBlocks
from esdllm_policies.importance import (
    ConfidenceScorer,
    EntropyScorer,
    HybridScorer,
    MixScorer,
    RandomScorer,
    VariationScorer,
)
from esdllm_policies.leaping import DcLeapUnmasking
from esdllm_policies.neighbours import HierarchicalRemaskUnmasking, HierarchicalUnmasking, LocalLeapUnmasking
from esdllm_policies.parallel import (
    CreditUnmasking,
    EntropyBoundUnmasking,
    FactorUnmasking,
    KlassUnmasking,
    LongestPrefixUnmasking,
    ProphetUnmasking,
)
from esdllm_policies.presets import PRESETS
from esdllm_policies.profile import FrechetProfileUnmasking
from esdllm_policies.refreshing import (
    DelayedRefresh,
    DriftRefresh,
    DualCacheRefresh,
    EveryStepRefresh,
    OnCommitRefresh,
    PartialRefresh,
    PeriodicRefresh,
    PrefixCacheRefresh,
    SubBlockCacheRefresh,
)
from esdllm_policies.revoking import P2Unmasking, RemdmUnmasking, WinoUnmasking
from esdllm_policies.sampling import GumbelSampler
from esdllm_policies.schedules import LinearScheduleUnmasking, LowestEntropyUnmasking, TimeScheduleUnmasking
from esdllm_policies.skipping import AdaptiveSkip, BudgetSkip, DecaySkip, DepthSkip, NoSkip
from esdllm_policies.unmasking import ThresholdUnmasking, TopKUnmasking


@hookimpl
def esdllm_importance_scorers() -> Mapping[str, Callable[..., ImportanceScorer]]:
    """Offer the importance scorers."""
    return {
        "hybrid": HybridScorer,
        "confidence": ConfidenceScorer,
        "variation": VariationScorer,
        "random": RandomScorer,
        "entropy": EntropyScorer,
        "mix": MixScorer,
        "average": AverageScorer,
    }


@hookimpl
def esdllm_skip_schedules() -> Mapping[str, Callable[..., SkipSchedule]]:
    """Offer the skip schedules."""
    return {
        "none": NoSkip,
        "by-depth": DepthSkip,
        "decay": DecaySkip,
        "budget": BudgetSkip,
        "adaptive": AdaptiveSkip,
    }


@hookimpl
def esdllm_refresh_policies() -> Mapping[str, Callable[..., RefreshPolicy]]:
    """Offer the refresh policies."""
    return {
        "every-step": EveryStepRefresh,
        "prefix-cache": PrefixCacheRefresh,
        "dual-cache": DualCacheRefresh,
        "periodic": PeriodicRefresh,
        "on-commit": OnCommitRefresh,
        "drift": DriftRefresh,
        "partial": PartialRefresh,
        "delayed": DelayedRefresh,
        "sub-block-cache": SubBlockCacheRefresh,
    }


@hookimpl
def esdllm_block_schedules() -> Mapping[str, Callable[..., BlockSchedule]]:
    """Offer the block schedules."""
    return {
        "fixed": FixedBlocks,
        "sliding": SlidingBlocks,
        "growing": GrowingBlocks,
        "own": OwnBlocks,
        "adablock": AdaBlocks,
        "pruned": PrunedBlocks,
    }


@hookimpl
def esdllm_token_samplers() -> Mapping[str, Callable[..., TokenSampler]]:
    """Offer the token samplers."""
    return {"gumbel": GumbelSampler}


@hookimpl
def esdllm_unmasking_policies() -> Mapping[str, Callable[..., UnmaskingPolicy]]:
    """Offer the unmasking policies."""
    return {
        "top-k": TopKUnmasking,
        "threshold": ThresholdUnmasking,
        "time-schedule": TimeScheduleUnmasking,
        "linear-schedule": LinearScheduleUnmasking,
        "lowest-entropy": LowestEntropyUnmasking,
        "factor": FactorUnmasking,
        "entropy-bound": EntropyBoundUnmasking,
        "klass": KlassUnmasking,
        "credit": CreditUnmasking,
        "longest-prefix": LongestPrefixUnmasking,
        "wino": WinoUnmasking,
        "p2": P2Unmasking,
        "editing": EditingUnmasking,
        "prophet": ProphetUnmasking,
        "cai": CaiUnmasking,
        "frechet-profile": FrechetProfileUnmasking,
        "local-leap": LocalLeapUnmasking,
        "hierarchical": HierarchicalUnmasking,
        "dc-leap": DcLeapUnmasking,
        "remdm": RemdmUnmasking,
        "hierarchical-remask": HierarchicalRemaskUnmasking,
    }


@hookimpl
def esdllm_presets() -> Mapping[str, Preset]:
    """Offer the presets."""
    return PRESETS
