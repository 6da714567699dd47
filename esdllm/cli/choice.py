"""What a command's options choose: a configuration, over the project's file and the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs

from esdllm.cli.shared import stderr
from esdllm.config import DEFAULT_PRESET, DecodeConfig, base_preset, parse_set
from esdllm.config.layers import SettingsLayer, Settled, file_layer
from esdllm.config.project import PRESET_VARIABLE, Project, current_project, environment_layers, environment_sets
from esdllm.errors import ConfigError, brief
from esdllm.plugins.catalogue import Catalogue

__all__ = ["Choice", "Configured", "fixed_sets", "tell_found"]


_OF_SAMPLER = ("temperature", "top_p", "top_k")
_OF_OPTIONS = ("gen_length", "block_length", *_OF_SAMPLER)
"""Settings that are options of their own, in the commands whose class has the field."""


def _own_settings(asked: Any) -> dict[str, Any]:
    fields = attrs.fields_dict(type(asked))
    return {name: getattr(asked, name) for name in _OF_OPTIONS if name in fields}


def _setting(name: str, value: Any) -> dict[str, Any]:
    return {"sampler": {name: value}} if name in _OF_SAMPLER else {name: value}


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _listed(values: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(values or ())


class Configured(Protocol):
    """What a command is asked whose options choose a configuration."""

    @property
    def preset(self) -> str | None:
        """of `--preset`"""

    @property
    def profile(self) -> str | None:
        """of `--profile`"""

    @property
    def config(self) -> Path | None:
        """of `--config`"""

    @property
    def sets(self) -> Sequence[str] | None:
        """of `--set`"""


@attrs.frozen
class Choice:
    """What decides the configuration of a command; settings that are None were not given.

    Lowest first: the preset, `suited`, the project's file, its profile, the file of --config, the environment, `settings`,
    `sets`. Everything is read once, for a pipe gives its settings once.
    """

    preset: str | None
    file: Path | None
    sets: tuple[str, ...] = attrs.field(converter=_listed)
    settings: Mapping[str, Any] = attrs.field(converter=_given)
    default: str = DEFAULT_PRESET
    """the preset where nothing names one"""
    profile: str | None = None
    suited: Mapping[str, Any] = attrs.field(factory=dict)
    """what suits the problems at hand"""
    project: Project = attrs.field(init=False)
    layers: tuple[SettingsLayer, ...] = attrs.field(init=False)

    @classmethod
    def of(
        cls,
        asked: Configured,
        *,
        default: str = DEFAULT_PRESET,
        suited: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Choice:
        """Return the choice of a command's options; `settings` are those of options that only some commands have."""
        given = {**_own_settings(asked), **settings}
        return cls(asked.preset, asked.config, asked.sets, given, default, asked.profile, suited or {})

    @project.default
    def _find_project(self) -> Project:
        return current_project(self.profile)

    def __attrs_post_init__(self) -> None:
        if self.preset and " " in self.preset.strip():
            raise ConfigError(
                f"--preset {brief(self.preset)} reads like a prompt, which stands without an option; `esdllm plugins preset` "
                "lists the presets"
            )

    @layers.default
    def _read(self) -> tuple[SettingsLayer, ...]:
        named, flags = os.environ.get(PRESET_VARIABLE, "").strip(), self.settings.items()
        return (
            SettingsLayer("what suits the suite", self.suited),
            *self.project.layers,
            *([file_layer(self.file)] if self.file else []),
            *([SettingsLayer(PRESET_VARIABLE, {"preset": named})] if named else []),
            *environment_layers(),
            *(SettingsLayer(f"--{name.replace('_', '-')}", _setting(name, value)) for name, value in flags),
            *(SettingsLayer("--set", parse_set(text)) for text in self.sets),
            *([SettingsLayer("--preset", {"preset": self.preset})] if self.preset else []),
        )

    def base(self) -> str | None:
        """Return the preset to start from; None if the layers say all."""
        return base_preset(None, [layer.settings for layer in self.layers], self.default)

    def label(self) -> str:
        """Return a few words on where the configuration comes from."""
        names = {"preset": self.base(), "profile": self.profile, "config": self.file.name if self.file else None}
        return ", ".join(f"{what} {name}" for what, name in names.items() if name)

    def settled(self, catalogue: Catalogue) -> Settled:
        """Return what comes out, with the origin of each value.

        Raises:
            ConfigError: an unknown preset or setting, a value out of range, or a component that cannot be built.
        """
        settled = catalogue.settle(self.layers, default=self.default)
        settled.config()
        for problem in settled.component_problems(catalogue.build):
            raise ConfigError(problem)
        return settled

    def config(self, catalogue: Catalogue) -> DecodeConfig:
        """Return the configuration, with a word on standard error where it is not of the command line alone.

        All components were built by then, so a wrong option is found before weights are read.

        Raises:
            ConfigError: as `settled`.
        """
        settled = self.settled(catalogue)
        tell_found(self.project, [layer for layer in self.layers if layer.place.startswith("ESDLLM_")], settled)
        return settled.config()


def tell_found(project: Project, environment: Sequence[SettingsLayer], settled: Settled | None = None) -> None:
    """Say on standard error which settings nobody wrote on the command line: the project's file, the environment."""
    places = [*([project.label()] if project.path else []), *(layer.place for layer in environment)]
    if places:
        stderr().print(f"settings from {', '.join(places)}", style="dim", soft_wrap=True, markup=False)
    if settled and settled.aside:
        names = ", ".join(dict.fromkeys(name for _, name in settled.aside))
        who = f"preset {settled.preset}" if settled.preset else "another file"
        stderr().print(
            f"{who} chooses the components; the project's {names} are left aside",
            style="dim",
            soft_wrap=True,
            markup=False,
        )


def fixed_sets(asked: Any) -> list[str]:
    """Return what the environment sets, and what options of a command's own set, as `--set` would."""
    own = {name: value for name, value in _own_settings(asked).items() if value is not None}
    return [
        *environment_sets().values(),
        *(f"{'sampler.' if name in _OF_SAMPLER else ''}{name}={value}" for name, value in own.items()),
    ]
