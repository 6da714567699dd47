"""What a user says of a model where its config.json does not: which family it is of, and ids or sizes that are missing there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from esdllm.config import parse_set
from esdllm.errors import CheckpointError, ConfigError, brief
from esdllm.views import ModelSpec

__all__ = ["OVER", "Told"]

OVER: Mapping[str, str] = {
    "block_size": "positions of a block of attention",
    "mask_token_id": "id of the mask token",
    "eos_token_id": "id of the end of text",
}
"""Keys that go over the same ones of a config.json, and what they say."""


@attrs.frozen
class Told:
    """What a user says of a model."""

    family: str = ""
    """the family's name; empty where the config.json is to tell"""
    options: Mapping[str, Any] = attrs.field(factory=dict)
    """the family's own options"""
    over: Mapping[str, int] = attrs.field(factory=dict)
    """what goes over the config.json; see `OVER`"""

    @classmethod
    def of(cls, text: str | None) -> Told:
        """Return what `NAME[,KEY=VALUE]...` says, such as `sdar,block_size=8`.

        Raises:
            ConfigError: it does not begin with a name, says something twice, or gives no whole number for a key of `OVER`.
        """
        if text is None:
            return cls()
        if not isinstance(text, str):
            raise ConfigError(f"family = {brief(text)}; give a name, and keys after it: 'sdar,block_size=8'")
        name, *parts = (part.strip() for part in text.split(","))
        if not name or "=" in name:
            raise ConfigError(f"family = {brief(text)} names no family; begin with one, as in sdar,block_size=8")
        told: dict[str, Any] = {}
        for part in parts:
            for key, value in parse_set(part).items():
                if key in told:
                    raise ConfigError(f"family = {brief(text)} says {key} twice; leave one out")
                told[key] = value
        over = {key: _whole(key, told.pop(key)) for key in OVER if key in told}
        return cls(name, told, over)

    def applied(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a config.json with what was told over it."""
        return {**config, **self.over}

    def check(self, spec: ModelSpec) -> None:
        """Refuse a model that did not follow what was told.

        Raises:
            CheckpointError: names what was told, and what the model has.
        """
        block = None if spec.attention is None else spec.attention.size
        found = {"block_size": block, "mask_token_id": spec.mask_id, "eos_token_id": spec.eos_id}
        for key, value in self.over.items():
            if found[key] != value:
                has = "attends to all positions" if found[key] is None else f"has {found[key]}"
                raise CheckpointError(
                    f"{key}={value} was told, the {OVER[key]}, but the family {spec.family} {has}; leave it out"
                )


def _whole(key: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ConfigError(f"family: {key} = {brief(value)}, the {OVER[key]}; give a whole number, as {key}=8")
    return value
