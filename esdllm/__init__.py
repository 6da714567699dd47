"""esdllm: fast decoding of diffusion language models by early skipping, with every decision a plugin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version as _version
from pathlib import Path
from typing import Any

from esdllm.catalogue import Catalogue
from esdllm.config import DEFAULT_PRESET, ComponentConfig, DecodeConfig
from esdllm.engine import Engine
from esdllm.errors import (
    CheckpointError,
    ConfigError,
    EsdllmError,
    InputError,
    NumericsError,
    PluginError,
    UnavailableError,
)
from esdllm.hookspecs import hookimpl
from esdllm.interfaces import (
    AttentionBackend,
    BlockSchedule,
    Cache,
    CacheStore,
    ImportanceScorer,
    ModelAdapter,
    ModelFamily,
    RefreshPolicy,
    RememberingPolicy,
    SkipSchedule,
    StepObserver,
    Suite,
    TextCodec,
    TokenSampler,
    UnmaskingPolicy,
)
from esdllm.loading import Model, describe_model, from_module, load_model
from esdllm.noise import gumbel, uniform
from esdllm.placing import LoadPlan
from esdllm.plan import Block, Moment, Phase, Scope, StepPlan, Window
from esdllm.records import Generation
from esdllm.views import (
    CacheShape,
    CacheWrite,
    Candidates,
    ImportanceView,
    KeyValue,
    Memory,
    Message,
    ModelSpec,
    Preset,
    Problem,
    Projection,
    SampleView,
    Site,
    StepRecord,
    UnmaskingView,
)

__version__ = _version("esdllm")

__all__ = [
    "AttentionBackend",
    "Block",
    "BlockSchedule",
    "Cache",
    "CacheShape",
    "CacheStore",
    "CacheWrite",
    "Candidates",
    "Catalogue",
    "CheckpointError",
    "ComponentConfig",
    "ConfigError",
    "DecodeConfig",
    "Engine",
    "EsdllmError",
    "Generation",
    "ImportanceScorer",
    "ImportanceView",
    "InputError",
    "KeyValue",
    "LoadPlan",
    "Memory",
    "Message",
    "Model",
    "ModelAdapter",
    "ModelFamily",
    "ModelSpec",
    "Moment",
    "NumericsError",
    "Phase",
    "PluginError",
    "Preset",
    "Problem",
    "Projection",
    "RefreshPolicy",
    "RememberingPolicy",
    "SampleView",
    "Scope",
    "Site",
    "SkipSchedule",
    "StepObserver",
    "StepPlan",
    "StepRecord",
    "Suite",
    "TextCodec",
    "TokenSampler",
    "UnavailableError",
    "UnmaskingPolicy",
    "UnmaskingView",
    "Window",
    "configure",
    "describe_model",
    "from_module",
    "gumbel",
    "hookimpl",
    "load_model",
    "uniform",
]


def configure(
    preset: str | None = None,
    file: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    sets: Iterable[str] = (),
) -> DecodeConfig:
    """Return a configuration from the installed plugins' presets, later arguments over earlier; see `Catalogue.configure`.

    The preset is `preset`, else what the file, settings or sets name, else "es-dllm" unless they give every section.

    Raises:
        ConfigError: an unknown preset, setting or section, or a value out of range.
    """
    return Catalogue.load().configure(preset, file, settings, sets, default=DEFAULT_PRESET)
