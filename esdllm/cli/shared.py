"""What the commands share: their options, the configuration and model that these choose, the consoles."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import attrs
import torch
import typer
from rich.console import Console
from rich.markup import escape

from esdllm.checkpoints.dtypes import bfloat16_is_slow
from esdllm.checkpoints.loading import Model, load_model, shipped_checkpoints
from esdllm.config import DEFAULT_MODEL, DEFAULT_PRESET, DecodeConfig, base_preset, parse_set
from esdllm.config.layers import Layer, Settled, file_layer
from esdllm.config.project import (
    MODEL_VARIABLE,
    PRESET_VARIABLE,
    PROFILE_VARIABLE,
    PROJECT_FILE,
    Project,
    current_project,
    environment_layers,
    environment_sets,
)
from esdllm.errors import CheckpointError, ConfigError, InputError
from esdllm.plugins.catalogue import Catalogue

ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        envvar=MODEL_VARIABLE,
        help="Checkpoint folder, hub id, or shipped name [the shipped tiny one].",
    ),
]
PresetName = Annotated[
    str | None,
    typer.Option("--preset", "-p", metavar="NAME", help=f"Named configuration to start from [{DEFAULT_PRESET}]."),
]
ProfileName = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME",
        envvar=PROFILE_VARIABLE,
        help=f"Profile of the project's {PROJECT_FILE}, over the file.",
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="TOML over the preset and the project's file.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="One setting, such as importance.alpha=0.7, unmasking=threshold or gen_length=64; goes over --config; "
        "repeatable.",
    ),
]
GenLength = Annotated[
    int | None, typer.Option("--gen-length", metavar="N", help="Tokens to generate [the preset's, else 256].")
]
BlockLength = Annotated[
    int | None, typer.Option("--block-length", metavar="N", help="Tokens decoded together [the preset's, else 64].")
]
Device = Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1 [the GPU, if any].")]
Dtype = Annotated[str | None, typer.Option(metavar="NAME", help="float32, bfloat16, float16 [the model's].")]
Quantize = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="Hold linear layers' weights in fewer bits: int8, int8-weight-only, int4-weight-only [as they are].",
    ),
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Seed of the sampler's noise [0].")]
ChatTemplate = Annotated[bool | None, typer.Option("--chat/--no-chat", help="Use the chat template [if there is one].")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _listed(values: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(values or ())


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
    layers: tuple[Layer, ...] = attrs.field(init=False)

    @project.default
    def _find_project(self) -> Project:
        return current_project(self.profile)

    @layers.default
    def _read(self) -> tuple[Layer, ...]:
        named, flags = os.environ.get(PRESET_VARIABLE, "").strip(), self.settings.items()
        return (
            Layer("what suits the suite", self.suited),
            *self.project.layers,
            *([file_layer(self.file)] if self.file else []),
            *([Layer(PRESET_VARIABLE, {"preset": named})] if named else []),
            *environment_layers(),
            *(Layer(f"--{name.replace('_', '-')}", {name: value}) for name, value in flags),
            *(Layer("--set", parse_set(text)) for text in self.sets),
            *([Layer("--preset", {"preset": self.preset})] if self.preset else []),
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


def tell_found(project: Project, environment: Sequence[Layer], settled: Settled | None = None) -> None:
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


def default_model(catalogue: Catalogue) -> str:
    """Return the name of the default checkpoint, or of the first that ships with a plugin.

    Raises:
        CheckpointError: none does.
    """
    shipped = shipped_checkpoints(catalogue)
    if not shipped:
        raise CheckpointError("no plugin ships a checkpoint; name one with --model, say GSAI-ML/LLaDA-8B-Instruct")
    return DEFAULT_MODEL if DEFAULT_MODEL in shipped else next(iter(shipped))


def load(name: str, device: str | None, dtype: str | None, catalogue: Catalogue, quantize: str | None = None) -> Model:
    """Return a model, with a word on standard error while it is read, and where its dtype is slow; see `load_model`."""
    with stderr().status(f"loading {escape(name)}"):
        model = load_model(name, device, dtype, catalogue, quantize=quantize)
    hint_dtype(model.adapter.device, model.adapter.dtype)
    return model


SLOW_BFLOAT16 = (
    "bfloat16 is several times slower than float32 on this processor; --dtype float32 is faster, in twice the memory"
)


def hint_dtype(device: torch.device, dtype: torch.dtype) -> None:
    """Say on standard error if a dtype is slow on a device."""
    if bfloat16_is_slow(device, dtype):
        stderr().print(f"hint: {SLOW_BFLOAT16}", style="yellow", soft_wrap=True)


def fixed_sets(gen_length: int | None, block_length: int | None) -> list[str]:
    """Return what the environment and the two lengths set, as `--set` would."""
    lengths = {"gen_length": gen_length, "block_length": block_length}
    return [*environment_sets().values(), *(f"{key}={value}" for key, value in _given(lengths).items())]


def check_writable(path: Path | None) -> None:
    """Return if a file can be written, which long work should know before it begins; its folder is made.

    Raises:
        InputError: it cannot.
    """
    if path is None or (path.exists() and not path.is_file() and not path.is_dir()):
        return  # a pipe is opened once
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        path.open("ab").close()
        if new:
            path.unlink()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name another file") from error


def stdout() -> Console:
    """Return the console of results."""
    return Console(highlight=False)


def stderr() -> Console:
    """Return the console of everything else."""
    return Console(stderr=True, highlight=False)


def print_json(value: Any, indent: int | None = 2) -> None:
    """Print a value as JSON on standard output."""
    typer.echo(json.dumps(value, indent=indent, ensure_ascii=False, default=str))


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number and its noun: 1 forward, 2 forwards."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def shown(value: Any) -> str:
    """Return an option's value as one would write it in TOML."""
    if value is attrs.NOTHING:
        return "(required)"
    return "none" if value is None else json.dumps(value, ensure_ascii=False, default=str)
