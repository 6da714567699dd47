"""What lm-evaluation-harness asks for, in our words: model arguments as settings, generation arguments as a wish."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import attrs

from esdllm.config import DEFAULT_PRESET, SECTIONS, ComponentConfig, DecodeConfig, base_preset, merge, read_toml
from esdllm.errors import ConfigError, known
from esdllm.plugins.catalogue import Catalogue

__all__ = ["Decoding", "Wish", "before_any", "seeds_of", "settings_of", "strings", "whole"]

_log = logging.getLogger(__name__)

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("temperature", "top_p", "top_k")


def whole(name: str, value: Any) -> int:
    """Return a model argument as a number from 1; lm-eval passes some of them as text.

    Raises:
        ConfigError: it is none; says so of `auto` too.
    """
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if type(value) is not int or value < 1:
        raise ConfigError(f"{name} = {value!r}: give a whole number from 1")
    return value


def strings(name: str, value: Any) -> tuple[str, ...]:
    """Return one text, a list of texts, or None as texts.

    Raises:
        ConfigError: something else.
    """
    found = () if value is None else (value,) if isinstance(value, str) else value
    if not isinstance(found, Sequence) or any(not isinstance(text, str) for text in found):
        raise ConfigError(f"{name} = {value!r}: give a text or a list of texts")
    return tuple(text for text in found if text)


def settings_of(arguments: Mapping[str, Any], others: Iterable[str]) -> dict[str, Any]:
    """Return the settings that `setting=value` and `section.option=value` arguments make.

    Raises:
        ConfigError: an argument is no setting; names the nearest of the settings and of `others`.
    """
    found: dict[str, Any] = {}
    fields = [field.name for field in attrs.fields(DecodeConfig)]
    for key, value in arguments.items():
        section, dot, option = key.partition(".")
        if dot and section in SECTIONS and option:
            found.setdefault(section, {})[option] = value
        elif dot:
            raise ConfigError(f"unknown model argument '{key}'; {known(section, SECTIONS)}")
        elif key not in fields:
            raise ConfigError(f"unknown model argument '{key}'; {known(key, [*fields, *others, 'section.option'])}")
        elif key in SECTIONS:
            found.setdefault(key, {})["name"] = value
        else:
            found[key] = value
    return found


class Wish(NamedTuple):
    """What one request asks of decoding; None and nothing where it leaves the choice to the configuration."""

    gen_length: int | None
    sampling: tuple[tuple[str, float], ...]
    """options of the sampler"""
    until: tuple[str, ...]
    """texts that end the answer"""

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Wish:
        """Return the wish of a request's generation arguments; others than these are ignored with one warning each.

        A temperature counts unless `do_sample` is false; `do_sample` alone asks for temperature 1, as in transformers.

        Raises:
            ConfigError: a length or a stop text of the wrong kind.
        """
        given = {name: value for name, value in arguments.items() if value is not None}
        length = next((given[name] for name in _LENGTHS if name in given), None)
        sample = given.get("do_sample")
        options = {name: given[name] for name in _SAMPLING if name in given}
        if sample and "temperature" not in options:
            options["temperature"] = 1.0
        if sample is False or not options.get("temperature"):
            options = {}
        for name in given.keys() - {*_LENGTHS, *_SAMPLING, "do_sample", "until"}:
            _warn_once(f"the generation argument {name} = {given[name]!r} means nothing to esdllm and is ignored")
        return cls(
            None if length is None else whole("max_gen_toks", length),
            tuple(options.items()),
            strings("until", given.get("until")),
        )


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        _log.warning(message)


def before_any(text: str, until: Iterable[str]) -> str:
    """Return a text up to the first of the texts that end it."""
    return text[: min((found for found in map(text.find, until) if found >= 0), default=len(text))]


@attrs.frozen
class Decoding:
    """The configuration, and whether it speaks on what a request may ask for: what is configured goes before that."""

    config: DecodeConfig
    fixed_length: bool
    """whether a preset, file or argument gives gen_length"""

    @classmethod
    def of(
        cls, catalogue: Catalogue, preset: str | None, file: Path | str | None, settings: Mapping[str, Any]
    ) -> Decoding:
        """Return the decoding of a preset (es-dllm where none is named), a TOML file over it, and settings over both.

        Raises:
            ConfigError: an unknown preset or setting, or a value out of range.
        """
        read = read_toml(file) if file else {}
        base = base_preset(preset, [read], DEFAULT_PRESET)
        below = catalogue.configure(base, settings=read)
        given = {*(catalogue.preset(base).settings if base else ()), *read, *settings}
        return cls(DecodeConfig.from_dict(merge(below.to_dict(), settings)), "gen_length" in given)

    def granted(self, wish: Wish) -> DecodeConfig:
        """Return the configuration of a request: what a preset, file or argument gives, then the wish, then defaults."""
        config, sampler = self.config, self.config.sampler
        if wish.gen_length and not self.fixed_length:
            config = attrs.evolve(config, gen_length=wish.gen_length)
        elif wish.gen_length and wish.gen_length != config.gen_length:
            _warn_once(
                f"the task asks for {wish.gen_length} tokens; the configuration's gen_length = {config.gen_length} stands "
                "(another: gen_length=N among the model arguments)"
            )
        options = {**dict(wish.sampling), **sampler.options}
        return attrs.evolve(config, sampler=ComponentConfig(sampler.name, options))


def seeds_of(requests: Sequence[Hashable], seed: int) -> list[int]:
    """Return a seed for every request: the one given, and the next one each time that a request is repeated."""
    seen: Counter[Hashable] = Counter()
    seeds = []
    for request in requests:
        seeds.append(seed + seen[request])
        seen[request] += 1
    return seeds
