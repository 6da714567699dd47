"""esdllm: fast decoding of diffusion language models by early skipping, with every decision a plugin.

Each public name is imported when it is first used, so `import esdllm` alone imports neither torch nor a plugin.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esdllm.checkpoints.loading import Model, describe_model, from_module, load_model
    from esdllm.config import ComponentConfig, DecodeConfig
    from esdllm.config.options import option
    from esdllm.config.project import Project, find_project
    from esdllm.errors import (
        CheckpointError,
        ConfigError,
        EsdllmError,
        InputError,
        NumericsError,
        PluginError,
        TokenizerError,
        UnavailableError,
    )
    from esdllm.hookspecs import INTERFACE, hookimpl
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
        TextCodec,
        TokenSampler,
        UnmaskingPolicy,
    )
    from esdllm.plan import Block, BlockCausal, Drift, Moment, Phase, Scope, StepPlan, Window
    from esdllm.plugins.catalogue import Catalogue
    from esdllm.plugins.configuring import configure
    from esdllm.processor import logits_at_once, multiplies_bfloat16, runs_triton
    from esdllm.runtime.engine import Engine
    from esdllm.runtime.noise import gumbel, uniform
    from esdllm.runtime.records import Generation
    from esdllm.runtime.slots import Slots
    from esdllm.runtime.variation import relative_variation
    from esdllm.use.answers import Answer, Answers, Infilled
    from esdllm.use.choosing import Chosen, Score
    from esdllm.use.editing import Edited
    from esdllm.use.frames import Frame
    from esdllm.use.pipeline import Pipeline
    from esdllm.use.streaming import Stream, StreamEvent
    from esdllm.views import (
        BlockView,
        CacheShape,
        CacheWrite,
        Candidates,
        ComputeChoice,
        EndView,
        ExpertLayers,
        ImportanceView,
        KernelTime,
        KeyValue,
        LoadPlan,
        Memory,
        Message,
        ModelSpec,
        Preset,
        Problem,
        Projection,
        Published,
        SampleView,
        Signal,
        Site,
        StepRecord,
        UnmaskingView,
    )

__version__: str

__all__ = [
    "INTERFACE",
    "Answer",
    "Answers",
    "AttentionBackend",
    "Block",
    "BlockAttention",
    "BlockCausal",
    "BlockCounts",
    "BlockSchedule",
    "BlockView",
    "Cache",
    "CacheShape",
    "CacheStore",
    "CacheWrite",
    "Candidates",
    "Catalogue",
    "CheckpointError",
    "Chosen",
    "ClosingCache",
    "ComponentConfig",
    "ComputeChoice",
    "ConfigError",
    "DecodeConfig",
    "DraftingPolicy",
    "Drift",
    "Edited",
    "EditingPolicy",
    "EndView",
    "EndingBlocks",
    "Engine",
    "EsdllmError",
    "ExpertLayers",
    "Frame",
    "Generation",
    "ImportanceScorer",
    "ImportanceView",
    "Infilled",
    "InputError",
    "KernelTime",
    "KeyValue",
    "LayeredRefresh",
    "LearningRefresh",
    "LendingCache",
    "LoadPlan",
    "Memory",
    "Message",
    "Model",
    "ModelAdapter",
    "ModelFamily",
    "ModelSpec",
    "Moment",
    "MovingBlocks",
    "NumericsError",
    "OfferingFamily",
    "OffsetCache",
    "Phase",
    "Pipeline",
    "PluginError",
    "Preset",
    "Problem",
    "Project",
    "Projection",
    "PruningBlocks",
    "Published",
    "RefreshPolicy",
    "RememberingPolicy",
    "RememberingScorer",
    "ReturningSkip",
    "RevokingPolicy",
    "SampleView",
    "Scope",
    "Score",
    "Signal",
    "SignalScorer",
    "Site",
    "SkipSchedule",
    "Slots",
    "SlottedCache",
    "SpreadAdapter",
    "StepObserver",
    "StepPlan",
    "StepRecord",
    "Stream",
    "StreamEvent",
    "Suite",
    "TextCodec",
    "TokenSampler",
    "TokenizerError",
    "UnavailableError",
    "UnmaskingPolicy",
    "UnmaskingView",
    "Window",
    "configure",
    "describe_model",
    "find_project",
    "from_module",
    "gumbel",
    "hookimpl",
    "load_model",
    "logits_at_once",
    "multiplies_bfloat16",
    "option",
    "relative_variation",
    "runs_triton",
    "uniform",
]

_HOMES = {
    "checkpoints.loading": "Model describe_model from_module load_model",
    "config": "ComponentConfig DecodeConfig",
    "config.options": "option",
    "config.project": "Project find_project",
    "errors": "CheckpointError ConfigError EsdllmError InputError NumericsError PluginError TokenizerError "
    "UnavailableError",
    "hookspecs": "INTERFACE hookimpl",
    "interfaces": "AttentionBackend BlockAttention BlockCounts BlockSchedule Cache CacheStore ClosingCache "
    "DraftingPolicy EditingPolicy EndingBlocks ImportanceScorer LayeredRefresh LearningRefresh LendingCache ModelAdapter "
    "ModelFamily MovingBlocks OfferingFamily OffsetCache PruningBlocks RefreshPolicy RememberingPolicy RememberingScorer "
    "ReturningSkip RevokingPolicy "
    "SignalScorer SkipSchedule SlottedCache SpreadAdapter StepObserver Suite TextCodec TokenSampler UnmaskingPolicy",
    "plan": "Block BlockCausal Drift Moment Phase Scope StepPlan Window",
    "plugins.catalogue": "Catalogue",
    "plugins.configuring": "configure",
    "processor": "logits_at_once multiplies_bfloat16 runs_triton",
    "runtime.engine": "Engine",
    "runtime.noise": "gumbel uniform",
    "runtime.records": "Generation",
    "runtime.slots": "Slots",
    "runtime.variation": "relative_variation",
    "use.answers": "Answer Answers Infilled",
    "use.choosing": "Chosen Score",
    "use.editing": "Edited",
    "use.frames": "Frame",
    "use.pipeline": "Pipeline",
    "use.streaming": "Stream StreamEvent",
    "views": "BlockView CacheShape CacheWrite Candidates ComputeChoice EndView ExpertLayers ImportanceView KernelTime "
    "KeyValue LoadPlan Memory Message ModelSpec Preset Problem Projection Published SampleView Signal Site StepRecord "
    "UnmaskingView",
}
"""Public names by the module that each is from."""
_MODULES = {name: f"esdllm.{module}" for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        found: Any = version("esdllm")
    elif name in _MODULES:
        found = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module 'esdllm' has no attribute '{name}'", name=name, obj=sys.modules[__name__])
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return list(__all__)
