"""Contenders: configurations by name, to be measured against each other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from esdllm.config import DEFAULT_PRESET, DecodeConfig, parse_set
from esdllm.config.layers import SettingsLayer, file_layer
from esdllm.config.project import Project
from esdllm.errors import ConfigError, InputError
from esdllm.plugins.catalogue import Catalogue

__all__ = ["Contender", "check_names"]

_BETWEEN = re.compile(r"(?<![\s,{\[])\s+(?=[\w.-]+\s*=)")
"""white space before a `key=`, unless it is inside a list or an inline table"""


@attrs.frozen
class Contender:
    """A configuration and what it is called in tables."""

    name: str
    """as it was asked for: a preset and its settings, or a file"""
    config: DecodeConfig
    """what it decodes with"""

    @classmethod
    def of(
        cls,
        text: str,
        catalogue: Catalogue,
        settings: Mapping[str, Any] | None = None,
        sets: Sequence[str] = (),
        project: Project | None = None,
    ) -> Contender:
        """Return the contender of `preset key=value ...` or `file.toml key=value ...`.

        `settings` are what a suite suggests, `sets` what all contenders are given. Later goes over earlier: the preset,
        `settings`, the run-wide settings of `project`, the file, `sets`, its own `key=value`s, which are in its name.

        Raises:
            ConfigError: an unknown preset or setting, a value out of range, or a preset named by a setting.
        """
        first, *own = _BETWEEN.split(text.strip())
        if not first:
            raise ConfigError("a contender has no name; give a preset or a TOML file, and key=value after it")
        _refuse_preset(*sets, *own)
        file = first.endswith(".toml")
        layers = [SettingsLayer("", settings or {}), *(project.layers if project else ())]
        layers += [file_layer(Path(first).expanduser())] if file else []
        layers += [SettingsLayer("", parse_set(one)) for one in (*sets, *own)]
        name = Path(first).stem if file else first
        settled = catalogue.settle(layers, None if file else first, DEFAULT_PRESET)
        return cls(" ".join([name, *own]), settled.config())

    @classmethod
    def of_profile(
        cls, project: Project, catalogue: Catalogue, settings: Mapping[str, Any] | None = None, sets: Sequence[str] = ()
    ) -> Contender:
        """Return the contender of a project's profile, with the profile's name; the rest as `of`.

        Raises:
            ConfigError: an unknown preset or setting, a value out of range, or a preset named by a setting.
        """
        _refuse_preset(*sets)
        layers = [
            SettingsLayer("", settings or {}),
            *project.layers,
            *(SettingsLayer("", parse_set(one)) for one in sets),
        ]
        return cls(str(project.profile), catalogue.settle(layers, default=DEFAULT_PRESET).config())


def _refuse_preset(*sets: str) -> None:
    for one in sets:
        if "preset" in parse_set(one):
            raise ConfigError(f"'{one}' where contenders are compared; a contender's preset is its first word")


def check_names(contenders: Sequence[Contender]) -> None:
    """Return if each contender has a name of its own.

    Raises:
        InputError: two have the same.
    """
    names = [contender.name for contender in contenders]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"two contenders are named '{name}'; leave one out, rename a file, or set something in which they differ"
            )
