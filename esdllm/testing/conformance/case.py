"""A recorded case, and what all cases of a run share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from esdllm.checkpoints.loading import Model, load_model
from esdllm.config import DecodeConfig
from esdllm.plugins.catalogue import Catalogue

__all__ = ["LOGITS", "Case", "Ground"]

LOGITS = "logits"
"""The mode that recorded logits are counted under."""


@attrs.frozen(eq=False)
class Case:
    """A recorded case, which can be run."""

    name: str
    model: str
    """folder of the checkpoint"""
    mode: str
    """what is done with it: how it is decoded, or that its logits are compared"""
    run: Callable[[], str | None]
    """gives what differs, or None; or why it was not run (`NotRun`)"""


@attrs.define(eq=False)
class Ground:
    """What all cases of a run share; of the models the last one is kept."""

    catalogue: Catalogue
    device: str = "cpu"
    overrides: Mapping[str, Any] = attrs.field(factory=dict)
    """settings over those of every case"""
    sets: Sequence[str] = ()
    """the same as `section.option=value`"""
    _loaded: tuple[Path, str | None, Model] | None = None

    def load(self, folder: Path, family: str | None = None) -> Model:
        """Return a checkpoint's model."""
        if self._loaded is None or self._loaded[:2] != (folder, family):
            self._loaded = None  # its memory is free before the next one's is taken
            model = load_model(folder, device=self.device, catalogue=self.catalogue, family=family)
            self._loaded = folder, family, model
        return self._loaded[2]

    def configured(self, preset: str, settings: Mapping[str, Any]) -> DecodeConfig:
        """Return the configuration of a case's settings over a preset, and what goes over those of every case over it."""
        merged = self.catalogue.configure(preset, settings=settings).to_dict()
        return self.catalogue.configure(None, settings={**merged, **self.overrides}, sets=self.sets)
