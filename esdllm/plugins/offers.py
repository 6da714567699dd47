"""What model families offer beyond loading, resolved once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from esdllm.interfaces import ModelFamily
from esdllm.plugins.capabilities import called, check_members
from esdllm.plugins.members import has
from esdllm.views import ComputeChoice, LoadPlan, Published

__all__ = ["Offers"]


@attrs.frozen(eq=False)
class Offers:
    """What a model family offers beyond loading: see `OfferingFamily`. What it has no member for is empty, or no."""

    model_types: Collection[str] = ()
    claims: Callable[[Mapping[str, Any]], bool] | None = None
    checkpoints: Mapping[str, Path] = attrs.field(factory=dict)
    geometries: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    published: Mapping[str, Published] = attrs.field(factory=dict)
    verified: str = ""
    suits: Collection[str] = ()
    quantizations: Collection[str] = ()
    computes: Collection[str] = ()
    choose_compute: Callable[[Mapping[str, Any], LoadPlan, bool], ComputeChoice] | None = None
    hidden_dtype: Callable[[LoadPlan], torch.dtype] = lambda plan: plan.dtype
    spreads: bool = False
    draws: bool = False
    merges: bool = False
    unpacks: bool = False
    problems: Callable[[Mapping[str, Any], LoadPlan], Collection[str]] = lambda config, plan: ()

    @classmethod
    def of(cls, family: ModelFamily) -> Offers:
        """Return what a family offers.

        Raises:
            PluginError: a member is misspelt, missing or no method; names it.
        """
        check_members("model", family, called("model", family))
        return cls.told_by(family)

    @classmethod
    def told_by(cls, family: ModelFamily) -> Offers:
        """Return what a family offers whose members were looked at when the catalogue built it."""
        names = [field.name for field in attrs.fields(cls) if has(family, field.name)]
        return cls(**{name: getattr(family, name) for name in names})
