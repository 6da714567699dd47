"""The configuration of a decoding run, and its ways in and out: dict, TOML, `section.option=value`.

A configuration is a few run-wide settings and one component a section. It names components and holds their options; only a
catalogue can say whether a name exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import tomli_w
from attrs import validators

from esdllm.config.options import converter
from esdllm.errors import ConfigError, known
from esdllm.keywords import hinting
from esdllm.parsing import TOMLDecodeError, parse_toml

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_PRESET",
    "SECTIONS",
    "ComponentConfig",
    "DecodeConfig",
    "base_preset",
    "check_setting",
    "merge",
    "parse_set",
    "read_toml",
]


def _listed(value: Any) -> Any:
    """Return a value with its tuples as lists, as TOML has them: what is set alike is equal."""
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value


@attrs.frozen
class ComponentConfig:
    """A component by name, and the options that differ from its defaults."""

    name: str
    """as `esdllm plugins` lists it"""
    options: Mapping[str, Any] = attrs.field(factory=dict, converter=_listed)
    """option names and values; tuples become lists"""

    @classmethod
    def of(cls, value: Any) -> ComponentConfig:
        """Return the component of a name, or of a mapping with a `name` and options beside it."""
        if isinstance(value, ComponentConfig):
            return value
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise ConfigError(
                f'a component is a name or a table with a name, such as {{name = "top-k"}}, not {value!r}'
            )
        return cls(value["name"], {key: item for key, item in value.items() if key != "name"})

    def to_dict(self) -> dict[str, Any]:
        """Return the inverse of `of`."""
        return {"name": self.name, **self.options}


def _component(help: str) -> Any:
    return attrs.field(converter=ComponentConfig.of, metadata={"help": help})


def _setting(default: Any, help: str, *validator: Any) -> Any:
    return attrs.field(default=default, validator=list(validator), metadata={"help": help})


def _observers(value: Iterable[Any]) -> tuple[ComponentConfig, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"observers = {value!r}: give a list of names or tables")
    return tuple(ComponentConfig.of(item) for item in value)


@hinting
@attrs.frozen(kw_only=True)
class DecodeConfig:
    """Everything that decides how a model decodes. Immutable; equal when all settings are."""

    blocks: ComponentConfig = _component("how the answer is cut into blocks")
    refresh: ComponentConfig = _component("which positions each step computes")
    skip: ComponentConfig = _component("how many positions each layer hands on")
    importance: ComponentConfig = _component("which positions go on")
    sampler: ComponentConfig = _component("which token to put at a position")
    unmasking: ComponentConfig = _component("which positions to commit")
    cache: ComponentConfig = _component("where keys and values live")
    attention: ComponentConfig = _component("which kernel attends; auto takes the first that can serve")
    observers: tuple[ComponentConfig, ...] = attrs.field(
        default=(), converter=_observers, metadata={"help": "who watches the steps"}
    )
    gen_length: int = _setting(256, "tokens to generate", validators.ge(1))
    block_length: int = _setting(64, "tokens decoded together; need not divide gen_length", validators.ge(1))
    seed: int = _setting(0, "seed of every row's noise, unless generate is given others", validators.ge(0))
    cfg_scale: float = _setting(0.0, "strength of classifier-free guidance; 0 is none", validators.ge(0.0))
    delay_eos: bool = _setting(True, "commit an end-of-text only where the position before is decided")
    early_stop: bool = _setting(True, "stop when every row is decided up to an end-of-text")
    check_every: int = _setting(
        8, "steps between two looks at whether to stop early, where nothing else asks the device", validators.ge(1)
    )
    compile: bool = _setting(False, "compile one step a distinct plan with torch.compile")
    compile_backend: str = _setting(
        "inductor", "what compiles it: a backend of torch.compile, such as inductor or aot_eager"
    )
    cuda_graphs: bool = _setting(True, "on a GPU, record the step of each plan as a CUDA graph, compiled or not")
    canvas_multiple: int = _setting(
        32,
        "columns of which a canvas' length is a multiple, where steps are compiled or recorded, so that prompts share them; "
        "padding on the left fills it up; 1 for none",
        validators.ge(1),
    )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> DecodeConfig:
        """Return the configuration of a complete mapping.

        Raises:
            ConfigError: an unknown key, a missing section, or a value out of range.
        """
        fields = {field.name: field for field in attrs.fields(cls)}
        for key in settings:
            if key not in fields:
                raise ConfigError(f"unknown setting '{key}'; {known(key, fields)}")
        for name in SECTIONS:
            if name not in settings:
                raise ConfigError(f"no {name} is chosen: start from a preset, or give {name} = {{name = ...}}")
        try:
            values = {
                key: value if key in SECTIONS or key == "observers" else _plain(fields[key], value)
                for key, value in settings.items()
            }
            return cls(**values)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and scalars; `from_dict` gives an equal configuration."""
        found: dict[str, Any] = {}
        for field in attrs.fields(type(self)):
            value = getattr(self, field.name)
            if field.name in SECTIONS:
                value = value.to_dict()
            elif field.name == "observers":
                value = [item.to_dict() for item in value]
            found[field.name] = value
        return found

    def to_toml(self) -> str:
        """Return the configuration as TOML, run-wide settings first; `read_toml` reads it back.

        Raises:
            ConfigError: an option is something that TOML cannot write, such as None.
        """
        plain = self.to_dict()
        ordered = sorted(plain, key=lambda name: name in SECTIONS or name == "observers")
        try:
            return tomli_w.dumps({name: plain[name] for name in ordered})
        except TypeError as error:
            raise ConfigError(f"the configuration cannot be written as TOML: {error}; leave that option out") from error


SECTIONS = ("blocks", "refresh", "skip", "importance", "sampler", "unmasking", "cache", "attention")
"""The sections that name one component each."""


def check_setting(name: str, value: Any) -> None:
    """Return if a run-wide setting, or the observers, can have a value.

    Raises:
        ValueError: it cannot.
    """
    field = getattr(attrs.fields(DecodeConfig), name)
    if name == "observers":
        _observers(value)
    elif field.validator:
        field.validator(None, field, _plain(field, value))
    else:
        _plain(field, value)


def _plain(field: attrs.Attribute[Any], value: Any) -> Any:
    kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")  # cattrs may resolve it
    try:
        return converter.structure(value, {"int": int, "float": float, "bool": bool, "str": str}[kind])
    except ValueError as error:
        raise ConfigError(f"setting '{field.name}': {error}") from error


DEFAULT_PRESET = "es-dllm"
"""Where a configuration starts that names no preset and is not complete."""

DEFAULT_MODEL = "tiny-llada"
"""The checkpoint that commands use where none is named, if a plugin ships it; else the first that ships."""


def base_preset(preset: str | None, layers: Sequence[Mapping[str, Any]], default: str | None) -> str | None:
    """Return the preset to start from: `preset`, else that of the last layer that names one or is complete, else `default`.

    Raises:
        ConfigError: a layer's `preset` is no name.
    """
    for layer in reversed(layers):
        if "preset" in layer:
            if not isinstance(layer["preset"], str):
                raise ConfigError(f"preset = {layer['preset']!r}: give a name")
            return preset or layer["preset"]
        if set(SECTIONS) <= set(layer):
            return preset
    return preset or default


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the settings of `over`: a section that keeps its name keeps its other options."""
    merged = dict(base)
    for key, value in over.items():
        if key not in SECTIONS:
            merged[key] = value
            continue
        old = ComponentConfig.of(merged[key]).to_dict() if key in merged else {}
        new = {"name": value} if isinstance(value, str) else value
        if not isinstance(new, Mapping):
            raise ConfigError(f"{key} = {value!r}: give a name, or a table of options")
        merged[key] = {**(old if new.get("name", old.get("name")) == old.get("name") else {}), **new}
    return merged


def read_toml(path: Path | str) -> dict[str, Any]:
    """Return the settings of a TOML file.

    Raises:
        ConfigError: no such file, or not TOML (with the line).
    """
    try:
        return parse_toml(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def parse_set(text: str) -> dict[str, Any]:
    """Return the settings of one `section.option=value` or `setting=value`; values are TOML, bare words are strings.

    Raises:
        ConfigError: no equals sign, or more than one dot before it.
    """
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys) or len(keys) > 2:
        raise ConfigError(f"cannot read the setting '{text}'; write setting=value or section.option=value")
    try:
        parsed = parse_toml(f"value = {value.strip()}")["value"]
    except TOMLDecodeError:
        parsed = value.strip()
    except ValueError as error:
        raise ConfigError(f"cannot read the setting {path.strip()}: {error}") from error
    return {keys[0]: {keys[1]: parsed} if len(keys) == 2 else parsed}
