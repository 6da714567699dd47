"""What a shell completes: presets, models, components, setting keys, files' profiles. Each yields values and what they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping

import attrs

from esdllm.cli.offered import Offered, cached_models, offered, written
from esdllm.config import SECTIONS, DecodeConfig
from esdllm.config.project import current_file, read_project
from esdllm.errors import EsdllmError

__all__ = [
    "completing",
    "contenders",
    "fixed",
    "kinds",
    "models",
    "names",
    "profiles",
    "published",
    "settings",
    "take_apart",
]

Completer = Callable[[str], list[tuple[str, str]]]
_WIDEST = 60  # characters of a description
_BEFORE = "_ESDLLM_COMPLETED_BEFORE"
"""Variable with what stands before the word, where a shell splits it."""


def completing(found: Callable[[str], Iterable[tuple[str, str]]]) -> Completer:
    """Return a completer from what yields candidates for a beginning: only those that begin so, and none where it fails."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        before = os.environ.get(_BEFORE, "")
        try:
            return [
                (value.removeprefix(before), _in_a_line(told))
                for value, told in found(before + incomplete)
                if value.startswith(before + incomplete)
            ]
        except (EsdllmError, OSError):  # a shell has no place for an error
            return []

    return complete


def _in_a_line(told: str) -> str:
    """Return a description that a shell shows in one line, without what typer would read as markup."""
    plain = told.replace("[", "(").replace("]", ")")
    return plain if len(plain) <= _WIDEST else f"{plain[: _WIDEST - 1]}…"


def names(kind: str) -> Completer:
    """Return the completer of the names of a kind."""
    return completing(lambda _: offered()[kind].items())


def fixed(*values: str) -> Completer:
    """Return the completer of a few words."""
    return completing(lambda _: [(value, "") for value in values])


@completing
def kinds(incomplete: str) -> Iterator[tuple[str, str]]:
    """Yield the kinds of component."""
    yield from ((kind, "") for kind in offered() if kind not in ("shipped", "published", "options"))


@completing
def models(incomplete: str) -> Iterator[tuple[str, str]]:
    """Yield models: shipped, in the hub's cache, published."""
    found = offered()
    yield from found["shipped"].items()
    here = list(cached_models())
    yield from ((name, "in the hub's cache") for name in here)
    yield from ((name, family) for name, family in found["published"].items() if name not in here)


@completing
def published(incomplete: str) -> Iterator[tuple[str, str]]:
    """Yield published checkpoints by their hub ids and by the ends of those."""
    for name, family in offered()["published"].items():
        yield name, family
        yield name.rpartition("/")[2], family


@completing
def profiles(incomplete: str) -> Iterator[tuple[str, str]]:
    """Yield the profiles of the project's file."""
    if file := current_file():
        yield from ((name, file.name) for name in read_project(file).profiles)


def _settings(incomplete: str) -> Iterator[tuple[str, str]]:
    """Yield `KEY=` and `KEY=VALUE`, for `--set`."""
    found, (key, equals, _) = offered(), incomplete.partition("=")
    known = _keys(found)
    if not equals:
        alike = [name for name in known if name.startswith(incomplete)]
        for name in alike:
            yield f"{name}=", known[name][0]
            if len(alike) == 1 and known[name][1]:  # two candidates, behind which a shell sets no space
                yield f"{name}={known[name][1]}", "its default"
    elif kind := _kind_of(key):
        yield from ((f"{key}={name}", summary) for name, summary in found[kind].items())
    elif key in known:
        default = known[key][1]
        values = ("true", "false") if default in ("true", "false") else (default,) if default else ()
        yield from ((f"{key}={value}", known[key][0]) for value in values)


settings = completing(_settings)


@completing
def contenders(incomplete: str) -> Iterator[tuple[str, str]]:
    """Yield what `esdllm bench` compares: presets, `bare`, and settings behind them."""
    yield from {**offered()["preset"], "bare": "the loop without a framework"}.items()
    yield from _settings(incomplete)


def _kind_of(key: str) -> str:
    """Return the kind whose names are a setting's values; empty if they are none."""
    section = key.removesuffix(".name")
    return section if section in (*SECTIONS, "preset") else ""


def _keys(found: Offered) -> Mapping[str, tuple[str, str]]:
    """Return what each setting is, and its default."""
    run = {
        field.name: (field.metadata.get("help", ""), written(field.default))
        for field in attrs.fields(DecodeConfig)
        if field.name != "observers"
    }
    options = {
        key: (told, default) for key, (told, default) in found["options"].items() if key.partition(".")[0] in SECTIONS
    }
    return {"preset": ("named configuration to start from", ""), **run, **options}


def take_apart(environment: MutableMapping[str, str]) -> None:
    """Mend what bash gives to complete, which takes KEY=VALUE for three words: VALUE stays, KEY= is noted."""
    words, at = environment.get("COMP_WORDS", "").split("\n"), environment.get("COMP_CWORD", "")
    if not at.isdecimal() or not 0 < int(at) < len(words):
        return
    before, current = words[: int(at)], words[int(at)]
    if current == "=":
        before, current = [*before, "="], ""
    if before[-1] != "=" or len(before) < 3:
        return
    key = before[-2]
    before = before[:-1] if key.startswith("-") else before[:-2]
    noted = {} if key.startswith("-") else {_BEFORE: f"{key}="}
    environment.update(COMP_WORDS="\n".join([*before, current]), COMP_CWORD=str(len(before)), **noted)
