"""The components of a configuration, built and checked against each other, the model and the machine."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from esdllm.canvas import Canvas
from esdllm.catalogue import Catalogue
from esdllm.config import SECTIONS, DecodeConfig
from esdllm.errors import UnavailableError
from esdllm.forward import Parts
from esdllm.interfaces import (
    AttentionBackend,
    BlockSchedule,
    Cache,
    CacheStore,
    ImportanceScorer,
    ModelAdapter,
    RefreshPolicy,
    SkipSchedule,
    StepObserver,
    TokenSampler,
    UnmaskingPolicy,
)
from esdllm.plan import Layout
from esdllm.schedule import Planner, Planners
from esdllm.views import CacheShape, ModelSpec

__all__ = ["Components"]


@attrs.frozen(eq=False)
class Components:
    """One component a section, in the order of the sections."""

    blocks: BlockSchedule
    refresh: RefreshPolicy
    skip: SkipSchedule
    importance: ImportanceScorer
    sampler: TokenSampler
    unmasking: UnmaskingPolicy
    cache: CacheStore
    attention: AttentionBackend
    observers: tuple[StepObserver, ...]
    config: DecodeConfig

    @classmethod
    def resolve(cls, config: DecodeConfig, catalogue: Catalogue) -> Components:
        """Return the components that a configuration names.

        Raises:
            ConfigError: an unknown name or option, or a value out of range.
        """
        named: dict[str, Any] = {section: catalogue.build(section, getattr(config, section)) for section in SECTIONS}
        observers = tuple(catalogue.build("observers", item) for item in config.observers)
        return cls(**named, observers=observers, config=config)

    def planner(self, canvas: Layout, n_layers: int, early_stop: bool = False) -> Planner:
        """Return the planner of a run over a canvas."""
        return Planner(
            Planners(self.skip, self.refresh, self.blocks, self.unmasking, self.cache),
            canvas,
            n_layers,
            block_length=self.config.block_length,
            delay_eos=self.config.delay_eos,
            early_stop=early_stop,
            check_every=self.config.check_every,
        )

    def parts(self, model: ModelAdapter, cache: Cache) -> Parts:
        """Return what a step calls."""
        scale, delay = self.config.cfg_scale, self.config.delay_eos
        return Parts(model, cache, self.attention, self.importance, self.sampler, self.unmasking, scale, delay)

    def cache_shape(self, model: ModelAdapter, canvas: Canvas, planner: Planner) -> CacheShape:
        """Return what the store is to hold for a run."""
        spec, site = model.spec, self.importance.site
        remembers = self.importance.keeps_history and site in ("hidden", "query")
        return CacheShape(
            rows=canvas.tokens.shape[0] * canvas.branches,
            length=canvas.tokens.shape[1],
            n_layers=spec.n_layers,
            n_kv_heads=spec.n_kv_heads,
            head_dim=spec.head_dim,
            features=spec.hidden if site == "hidden" else spec.n_heads * spec.head_dim,
            remembered=planner.skip_layers() if remembers else (),
            dtype=model.dtype,
            device=model.device,
        )

    def check_attention(self, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> None:
        """Refuse an attention backend that cannot serve the model here.

        Raises:
            UnavailableError: all its reasons.
        """
        _refuse("attention", self.config.attention.name, self.attention.problems(spec, device, dtype))

    def check_store(self, shape: CacheShape) -> None:
        """Refuse a cache store that cannot hold a run.

        Raises:
            UnavailableError: all its reasons.
        """
        _refuse("cache", self.config.cache.name, self.cache.problems(shape))


def _refuse(kind: str, name: str, problems: list[str]) -> None:
    if problems:
        raise UnavailableError(f"{kind} '{name}' cannot serve here: {'; '.join(problems)}")
