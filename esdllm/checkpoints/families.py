"""The families on offer: which implements a config.json, and the checkpoints and geometries that they bring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from esdllm.config import ComponentConfig
from esdllm.errors import CheckpointError, known
from esdllm.interfaces import ModelFamily
from esdllm.plugins.capabilities import Offers
from esdllm.plugins.catalogue import Catalogue
from esdllm.plugins.elsewhere import offer

__all__ = ["families", "family_of", "geometries", "shipped_checkpoints"]


def families(catalogue: Catalogue) -> dict[str, ModelFamily]:
    """Return the families on offer, by the `model_type` that each implements."""
    return {name: catalogue.build("model", ComponentConfig(name)) for name in catalogue.names("model")}


def geometries(catalogue: Catalogue) -> dict[str, Mapping[str, Any]]:
    """Return the config.json of well-known checkpoints, by the name that `random_model` takes."""
    return _offered(catalogue, lambda offers: offers.geometries)


def shipped_checkpoints(catalogue: Catalogue) -> dict[str, Path]:
    """Return the folders of the checkpoints that ship with plugins, by the name that `load_model` takes."""
    return _offered(catalogue, lambda offers: offers.checkpoints)


def _offered(catalogue: Catalogue, chosen: Callable[[Offers], Mapping[str, Any]]) -> dict[str, Any]:
    """Return what all families offer by name, of one of their offers."""
    return {name: one for family in families(catalogue).values() for name, one in chosen(Offers.of(family)).items()}


def family_of(source: str | Path, config: Mapping[str, Any], catalogue: Catalogue) -> ModelFamily:
    """Return the family that implements a config.json.

    Raises:
        CheckpointError: none on offer does.
    """
    found, name = families(catalogue), str(config.get("model_type"))
    if name not in found:
        hint = offer("model", name) or f"{known(name, found)}. A plugin adds one with the hook esdllm_model_adapters"
        raise CheckpointError(f"{source}: the model_type '{name}' is not implemented; {hint}")
    return found[name]
