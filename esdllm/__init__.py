"""esdllm: fast decoding of diffusion language models by early skipping, with every decision a plugin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version as _version
from pathlib import Path
from typing import Any

from esdllm.checkpoints.loading import Model, describe_model, from_module, load_model
from esdllm.config import DEFAULT_PRESET, ComponentConfig, DecodeConfig
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
    EditingPolicy,
    ImportanceScorer,
    LearningRefresh,
    LendingCache,
    ModelAdapter,
    ModelFamily,
    MovingBlocks,
    OfferingFamily,
    PruningBlocks,
    RefreshPolicy,
    RememberingPolicy,
    RevokingPolicy,
    SkipSchedule,
    SlottedCache,
    SpreadAdapter,
    StepObserver,
    Suite,
    TextCodec,
    TokenSampler,
    UnmaskingPolicy,
)
from esdllm.keywords import hinting
from esdllm.plan import Block, BlockCausal, Drift, Moment, Phase, Scope, StepPlan, Window
from esdllm.plugins.catalogue import Catalogue
from esdllm.processor import logits_at_once, multiplies_bfloat16, runs_triton
from esdllm.runtime.engine import Engine
from esdllm.runtime.noise import gumbel, uniform
from esdllm.runtime.records import Generation
from esdllm.runtime.slots import Slots
from esdllm.runtime.variation import relative_variation
from esdllm.use.answers import Answer, Answers, Infilled
from esdllm.use.frames import Frame
from esdllm.use.pipeline import Pipeline
from esdllm.use.streaming import Stream, StreamEvent
from esdllm.views import (
    BlockView,
    CacheShape,
    CacheWrite,
    Candidates,
    ExpertLayers,
    ImportanceView,
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
    Site,
    StepRecord,
    UnmaskingView,
)

__version__ = _version("esdllm")

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
    "ClosingCache",
    "ComponentConfig",
    "ConfigError",
    "DecodeConfig",
    "Drift",
    "EditingPolicy",
    "Engine",
    "EsdllmError",
    "ExpertLayers",
    "Frame",
    "Generation",
    "ImportanceScorer",
    "ImportanceView",
    "Infilled",
    "InputError",
    "KeyValue",
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
    "RevokingPolicy",
    "SampleView",
    "Scope",
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


@hinting
def configure(
    preset: str | None = None,
    file: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    sets: Iterable[str] = (),
    project: Project | None = None,
) -> DecodeConfig:
    """Return a configuration from the installed plugins' presets, later arguments over earlier; see `Catalogue.configure`.

    The preset is `preset`, else what the file, settings or sets name, else "es-dllm" unless they give every section. Nothing
    is read but `file`: neither the environment nor esdllm.toml, unless `project` brings it (`find_project`), which goes
    under the file.

    Raises:
        ConfigError: an unknown preset, setting or section, or a value out of range.
    """
    return Catalogue.load().configure(preset, file, settings, sets, default=DEFAULT_PRESET, project=project)
