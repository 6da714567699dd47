"""What tuning may change: the options for which their components say which values are worth trying.

A component's field says so in its metadata: `"tune": (0.0, 0.5, 1.0)`, or a function of `choose` that returns a value, for
an option that is more than a number.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import attrs

from esdllm.config import SECTIONS, DecodeConfig, merge, parse_set
from esdllm.errors import ConfigError
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.components import Components

__all__ = ["Choose", "Dimension", "Space"]

Choose = Callable[[str, Sequence[Any]], Any]
"""Takes a name and values, and returns one of them."""

_ASKED = ("gen_length", "seed")
"""settings that say what is asked of decoding, for the reference too; searched, they would compare unlike things"""


@attrs.frozen
class Dimension:
    """One setting, `section.option`, `section` or `setting`, and what it may be."""

    key: str
    """as `--set` takes it"""
    tune: Sequence[Any] | Callable[[Choose], Any]
    """values, or a function that chooses one"""

    @classmethod
    def parse(cls, text: str) -> Dimension:
        """Return the dimension of `section.option=value,value,...`; values are TOML, bare words are strings.

        Raises:
            ConfigError: no equals sign, an empty or unreadable value, or fewer than two different ones.
        """
        key, _, values = text.partition("=")
        found = _values(values)
        if not key.strip() or len(found) < 2:
            raise ConfigError(
                f"cannot search '{text}'; write section.option=value,value with two different values or more, a text that "
                "holds a comma in quotes"
            )
        return cls(key.strip(), found)

    def choose(self, choose: Choose) -> Any:
        """Return one of its values."""
        if callable(self.tune):
            return self.tune(lambda name, values: choose(f"{self.key}: {name}", values))
        return choose(self.key, self.tune)

    def setting(self, value: Any) -> dict[str, Any]:
        """Return a value of it as settings over a base."""
        section, dot, option = self.key.partition(".")
        if section in SECTIONS:
            return {section: {option if dot else "name": value}}
        return {self.key: value}


def _values(text: str) -> tuple[Any, ...]:
    """Return the different values of a list without brackets, in their order; nothing if one cannot be read."""
    found = parse_set(f"values=[{text}]")["values"]
    if isinstance(found, str):  # no TOML: there are bare words
        words = [word.strip() for word in text.split(",")]
        if any(not word or set(word) & set("[]{}\"'") for word in words):
            return ()
        found = [parse_set(f"value={word}")["value"] for word in words]
    return tuple({repr(value): value for value in found}.values())


@attrs.frozen
class Space:
    """The dimensions of a search, over a base configuration."""

    dimensions: tuple[Dimension, ...]

    @classmethod
    def of(
        cls, base: DecodeConfig, catalogue: Catalogue, fixed: Collection[str] = (), searched: Sequence[str] = ()
    ) -> Space:
        """Return the options of the base's components that can be tuned and are not `fixed`, by key, and those asked for.

        `searched` are texts as `Dimension.parse` takes them; each replaces what the component says. Where a section's
        component is searched, the options of the base's are not.

        Raises:
            ConfigError: a text that is none, a value that the base refuses, a setting that the reference has to share or that
                is fixed, or nothing to search.
        """
        asked = {one.key: one for one in map(Dimension.parse, searched)}
        found: dict[str, Dimension] = {}
        for section in SECTIONS:
            for option in catalogue.entry(section, getattr(base, section).name).options:
                key = f"{section}.{option.name}"
                if option.tune is not None and key not in fixed and section not in asked:
                    found[key] = Dimension(key, option.tune)
        for dimension in asked.values():
            _check(dimension, asked, fixed)
        found.update(asked)
        if not found:
            raise ConfigError("nothing to search: every option that can be tuned is set; name some with --search")
        for dimension in found.values():
            for value in () if callable(dimension.tune) else dimension.tune:
                over = merge(base.to_dict(), dimension.setting(value))
                Components.resolve(DecodeConfig.from_dict(over), catalogue)
        return cls(tuple(found.values()))

    def settings(self, choose: Choose) -> dict[str, Any]:
        """Return one point of the space."""
        found: dict[str, Any] = {}
        for dimension in self.dimensions:
            for key, value in dimension.setting(dimension.choose(choose)).items():
                found[key] = {**found.get(key, {}), **value} if key in SECTIONS else value
        return found

    def choices(self) -> list[list[Any]]:
        """Return every name that is chosen for and the values to choose from, where the first is always taken."""
        found: list[list[Any]] = []

        def note(name: str, values: Sequence[Any]) -> Any:
            found.append([name, list(values)])
            return values[0]

        self.settings(note)
        return found


def _check(dimension: Dimension, asked: Mapping[str, Dimension], fixed: Collection[str]) -> None:
    key, section = dimension.key, dimension.key.partition(".")[0]
    if key in _ASKED:
        raise ConfigError(f"{key} cannot be searched: the reference decodes with the same one; set it with -s {key}=N")
    if key in fixed or (key in SECTIONS and any(one.startswith(f"{key}.") for one in fixed)):
        raise ConfigError(f"{key} is set and searched too; leave out one of them")
    if section != key and section in asked:
        raise ConfigError(f"{section} and its option {key} are searched at once; search one, and set the other with -s")
