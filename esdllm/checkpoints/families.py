"""The families on offer: which implements a config.json, and the checkpoints and geometries that they bring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import attrs

from esdllm.checkpoints.told import OVER, Told
from esdllm.config import ComponentConfig
from esdllm.config.project import DISABLE_VARIABLE
from esdllm.errors import CheckpointError, PluginError, brief, known
from esdllm.interfaces import ModelFamily
from esdllm.plugins.catalogue import Catalogue
from esdllm.plugins.elsewhere import offer
from esdllm.plugins.loader import blaming
from esdllm.plugins.offers import Offers

__all__ = ["UnreadError", "families", "family_of", "geometries", "model_types", "recognised", "shipped_checkpoints"]

FAMILY = "esdllm_family"
"""the key under which a geometry says whose it is, where its `model_type` does not tell"""

_BUILT: WeakKeyDictionary[Catalogue, dict[str, ModelFamily]] = WeakKeyDictionary()


class UnreadError(CheckpointError):
    """No family on offer reads a config.json of this `model_type`."""


def families(catalogue: Catalogue) -> dict[str, ModelFamily]:
    """Return the families on offer, by name; a catalogue's are built once."""
    if catalogue not in _BUILT:
        _BUILT[catalogue] = {name: catalogue.build("model", ComponentConfig(name)) for name in catalogue.names("model")}
    return dict(_BUILT[catalogue])


def model_types(name: str, family: ModelFamily) -> tuple[str, ...]:
    """Return the `model_type`s that the configs of a family say: its name, unless it says more.

    Raises:
        PluginError: it gives a text, where several belong.
    """
    told = Offers.told_by(family).model_types
    if isinstance(told, str):
        raise PluginError(f"model '{name}' has model_types = '{told}'; give a tuple: model_types = ('{told}',)")
    return tuple(told) if told else (name,)


def geometries(catalogue: Catalogue) -> dict[str, Mapping[str, Any]]:
    """Return the config.json of well-known checkpoints, by the name that `random_model` takes; each says which family's it is."""
    return {
        geometry: {**config, FAMILY: name}
        for name, family in families(catalogue).items()
        for geometry, config in Offers.told_by(family).geometries.items()
    }


def shipped_checkpoints(catalogue: Catalogue) -> dict[str, Path]:
    """Return the folders of the checkpoints that ship with plugins, by the name that `load_model` takes."""
    return {
        name: one for family in families(catalogue).values() for name, one in Offers.told_by(family).checkpoints.items()
    }


def family_of(
    source: str | Path, config: Mapping[str, Any], catalogue: Catalogue, told: Told | None = None
) -> ModelFamily:
    """Return the family that implements a config.json: the one that a user told, or else that which the config tells.

    A geometry says it by name (`FAMILY`). Else that is the one family that claims the config, whatever `model_type` it says;
    else the one without a `claims` whose `model_types` have it.

    Raises:
        CheckpointError: none on offer does, several do, or one does only where the user says so; names them. Or the family
            that was told reads other configs, or did not follow what was told beside.
    """
    told = told or Told()
    if not told.family and isinstance(said := config.get(FAMILY), str):
        told = attrs.evolve(told, family=said)
    if not told.family:
        return families(catalogue)[recognised(source, config, catalogue)]
    family = _told(source, config, catalogue, told)
    if told.over:
        told.check(family.spec(config))
    return family


def _told(source: str | Path, config: Mapping[str, Any], catalogue: Catalogue, told: Told) -> ModelFamily:
    """Return the family that was told; refuse it where the config says that it is another's."""
    name, found, said = told.family, families(catalogue), config.get("model_type")
    if name not in found:
        hint = offer("model", name) or known(name, found)
        raise CheckpointError(f"no family '{name}'; {hint}")
    reads = model_types(name, found[name])
    others = [other for other, family in found.items() if said in model_types(other, family)]
    if said not in reads and others:
        raise CheckpointError(
            f"{source}: the family '{name}' reads the model_type {_either(reads)}, and this one says '{said}', which "
            f"{_either(others)} reads"
        )
    built: ModelFamily = catalogue.build("model", ComponentConfig(name, dict(told.options)), beside=OVER)
    return built


def recognised(source: str | Path, config: Mapping[str, Any], catalogue: Catalogue) -> str:
    """Return the name of the family that a config tells.

    Raises:
        CheckpointError: none on offer, or several; see `family_of`. An UnreadError, where none reads such a `model_type`.
    """
    found, said = families(catalogue), config.get("model_type")
    readers = [name for name, family in found.items() if said in model_types(name, family)]
    claims = {name: Offers.told_by(family).claims for name, family in found.items()}
    sure = [name for name, claim in claims.items() if claim is not None and _claimed(name, claim, config, catalogue)]
    chosen = sure or [name for name in readers if claims[name] is None]
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise CheckpointError(
            f"{source}: {_listed(chosen)} all read this config.json (model_type {brief(said)}), which does not tell them "
            f"apart; {_say(chosen)}, or leave out a plugin with {DISABLE_VARIABLE}"
        )
    if readers:
        raise CheckpointError(
            f"{source}: a config.json of the model_type '{said}' does not tell that the model decodes by diffusion; if "
            f"it does, {_say(readers)}"
        )
    if said is None:
        raise CheckpointError(f"{source} has no model_type; {_say(found)}")
    types = {one for name, family in found.items() for one in model_types(name, family)}
    hint = (
        offer("model", str(said)) or f"{known(str(said), types)}. A plugin adds one with the hook esdllm_model_adapters"
    )
    raise UnreadError(f"{source}: the model_type '{said}' is not implemented; {hint}")


def _claimed(
    name: str, claims: Callable[[Mapping[str, Any]], bool], config: Mapping[str, Any], catalogue: Catalogue
) -> bool:
    origin = catalogue.entry("model", name).origin
    with blaming(origin.plugin, f"model '{name}' of {origin} cannot say whether a config.json is its own"):
        return bool(claims(config))


def _say(names: Iterable[str]) -> str:
    """Return how a user says which family it is."""
    first, *others = sorted(names)
    return f"say so with family='{first}' (--family {first})" + (f", or {_either(others)}" if others else "")


def _either(names: Iterable[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _listed(names: Iterable[str]) -> str:
    return " and ".join(f"'{name}'" for name in sorted(names))
