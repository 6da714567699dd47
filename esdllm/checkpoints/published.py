"""The public checkpoints that families know of, by hub id."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from esdllm.checkpoints.families import families
from esdllm.checkpoints.told import Told
from esdllm.errors import CheckpointError, known
from esdllm.plugins.catalogue import Catalogue
from esdllm.plugins.offers import Offers
from esdllm.views import Published

__all__ = ["KnownCheckpoint", "hub_id", "known_checkpoints", "told_of"]


@attrs.frozen
class KnownCheckpoint:
    """A public checkpoint, and the family that reads it."""

    name: str
    """its hub id"""
    family: str
    published: Published

    @property
    def told(self) -> str:
        """What a user would tell of it."""
        return f"{self.family},{self.published.lacks}" if self.published.lacks else self.family


def known_checkpoints(catalogue: Catalogue) -> Mapping[str, KnownCheckpoint]:
    """Return the public checkpoints that all families on offer know of, by hub id, a family's after the other's."""
    return {
        name: KnownCheckpoint(name, family, published)
        for family, made in families(catalogue).items()
        for name, published in Offers.told_by(made).published.items()
    }


def told_of(family: str | None, name: str, catalogue: Catalogue) -> Told:
    """Return what a user says of a model, or where he says nothing of one by a known hub id, what its family knows.

    Raises:
        ConfigError: what the user says cannot be read.
    """
    if family is None and (found := known_checkpoints(catalogue).get(name)):
        family = found.told
    return Told.of(family)


def hub_id(name: str, catalogue: Catalogue) -> str:
    """Return the hub id that a name stands for: one with a slash is one, another is the end of one that is known.

    Raises:
        CheckpointError: it is the end of none, or of several.
    """
    if name.count("/") == 1 and all(name.split("/")):
        return name
    found = known_checkpoints(catalogue)
    ending = [one for one in found if one.rpartition("/")[2].casefold() == name.casefold()]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise CheckpointError(f"'{name}' may be {' or '.join(ending)}; give the whole hub id")
    ends = {one.rpartition("/")[2]: one for one in found}
    raise CheckpointError(f"no hub id and no known checkpoint '{name}'; {known(name, {*ends, *found})}")
