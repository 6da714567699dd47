"""The catalogue: every component by kind and name, with its origin; and how one is built from a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import cattrs
from cattrs.errors import ForbiddenExtraKeysError

from esdllm.config import ComponentConfig, DecodeConfig, parse_set
from esdllm.config.layers import SettingsLayer, Settled, file_layer, settle
from esdllm.config.options import converter, inner_fields
from esdllm.config.project import DISABLE_VARIABLE, Project
from esdllm.errors import ConfigError, PluginError, brief, known
from esdllm.hookspecs import PROJECT
from esdllm.keywords import hinting
from esdllm.plugins.auto import AUTO, AutoAttention
from esdllm.plugins.capabilities import check_members
from esdllm.plugins.elsewhere import offer
from esdllm.plugins.loader import Origin, Plugins, blaming, load_plugins
from esdllm.views import Preset

__all__ = ["KINDS", "Catalogue", "Entry", "Option"]

KINDS: Mapping[str, str] = {
    "importance": "esdllm_importance_scorers",
    "skip": "esdllm_skip_schedules",
    "refresh": "esdllm_refresh_policies",
    "blocks": "esdllm_block_schedules",
    "sampler": "esdllm_token_samplers",
    "unmasking": "esdllm_unmasking_policies",
    "attention": "esdllm_attention_backends",
    "cache": "esdllm_cache_stores",
    "model": "esdllm_model_adapters",
    "preset": "esdllm_presets",
    "observers": "esdllm_step_observers",
    "suite": "esdllm_suites",
}
"""Kind, which is also the configuration's section, and the hook that offers it."""

_RESERVED: Mapping[tuple[str, str], type] = {("attention", AUTO): AutoAttention}
"""Names that no plugin may offer: they stand for a choice among those on offer."""


@attrs.frozen
class Option:
    """One option of a component."""

    name: str
    default: Any
    help: str
    tune: Any = None
    """the values that `esdllm tune` tries, or a function that chooses one; None if it leaves the option alone"""


@attrs.frozen
class Entry:
    """One component on offer."""

    kind: str
    name: str
    factory: Any
    origin: Origin

    @property
    def summary(self) -> str:
        """One line on what it is."""
        if isinstance(self.factory, Preset):
            return self.factory.summary
        return (self.factory.__doc__ or "").strip().split("\n")[0]

    @property
    def options(self) -> tuple[Option, ...]:
        """Its options with their defaults."""
        if isinstance(self.factory, Preset) or not attrs.has(self.factory):
            return ()
        return tuple(
            Option(field.name, _default(field), field.metadata.get("help", ""), field.metadata.get("tune"))
            for field in attrs.fields(self.factory)
        )


def _default(field: attrs.Attribute[Any]) -> Any:
    """Return a field's default, made if it has a factory; NOTHING if it must be given."""
    maker = getattr(field.default, "factory", None)
    return maker() if maker else field.default


class Catalogue:
    """All components that the loaded plugins offer."""

    def __init__(self, plugins: Plugins) -> None:
        self.blocked = plugins.blocked
        self._entries: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
        for kind, hook in KINDS.items():
            for origin, offered in plugins.offers(hook):
                with blaming(origin.plugin, f"what {hook} of {origin} returned cannot be read"):
                    for name, factory in offered.items():
                        self._add(Entry(kind, name, factory, origin))

    @classmethod
    def load(cls, extra: Mapping[str, object] | None = None, **options: Any) -> Catalogue:
        """Return the catalogue of the installed plugins and `extra`; options as `load_plugins`."""
        return cls(load_plugins(extra, **options))

    def _add(self, entry: Entry) -> None:
        if not isinstance(entry.name, str):
            raise PluginError(f"{entry.origin} offers {entry.kind} {brief(entry.name)}; a name is a text")
        if (entry.kind, entry.name) in _RESERVED:
            raise PluginError(
                f"{entry.origin} offers {entry.kind} '{entry.name}': the name is reserved for the choice among those on "
                "offer; rename it"
            )
        other = self._entries[entry.kind].get(entry.name)
        if other is not None:
            raise PluginError(
                f"two components of kind {entry.kind} are named '{entry.name}': one from {other.origin}, one from "
                f"{entry.origin}; rename one, or leave out a plugin with {DISABLE_VARIABLE}",
                (other if entry.origin.distribution == PROJECT else entry).origin.plugin,
            )
        preset = entry.kind == "preset"
        if not (
            isinstance(entry.factory, Preset)
            if preset
            else isinstance(entry.factory, type) and attrs.has(entry.factory)
        ):
            what = "an esdllm.Preset" if preset else "a frozen attrs class"
            raise PluginError(f"{entry.kind} '{entry.name}' of {entry.origin} is {brief(entry.factory)}; offer {what}")
        self._entries[entry.kind][entry.name] = entry

    def names(self, kind: str) -> list[str]:
        """Return the names on offer of a kind, sorted."""
        return sorted(self._entries[kind])

    def entries(self) -> list[Entry]:
        """Return all entries, by kind in the order of `KINDS`, then by name."""
        return [self._entries[kind][name] for kind in KINDS for name in self.names(kind)]

    def entry(self, kind: str, name: str) -> Entry:
        """Return one entry.

        Raises:
            ConfigError: nothing of that kind has that name.
        """
        try:
            if (kind, name) in _RESERVED:
                return Entry(kind, name, _RESERVED[kind, name], Origin("core", "esdllm"))
            return self._entries[kind][name]
        except (KeyError, TypeError):  # TypeError: a list or table where a name belongs
            names = [*self._entries[kind], *(word for section, word in _RESERVED if section == kind)]
            hint = offer(kind, str(name)) or self._left_out(names) or known(str(name), names)
            raise ConfigError(f"unknown {kind} '{name}'; {hint}") from None

    def _left_out(self, names: Iterable[str]) -> str:
        """Return that a plugin which was left out may offer what is sought, where one was; no other name is suggested then."""
        if not self.blocked:
            return ""
        listed = ", ".join(sorted(names)) or "none"
        return f"{DISABLE_VARIABLE} leaves out {', '.join(self.blocked)}, which may offer it; known without: {listed}"

    def build(self, kind: str, component: ComponentConfig, beside: Iterable[str] = ()) -> Any:
        """Return the component that `component` names, built from its options; `beside` is what else could be said there.

        Raises:
            ConfigError: unknown name, unknown option, or a value that the option refuses.
            PluginError: a member of the component is misspelt, missing or of the wrong kind; names it.
        """
        return self._build(self.entry(kind, component.name), component.options, kind, beside)

    def _build(self, entry: Entry, options: Mapping[str, Any], where: str, beside: Iterable[str] = ()) -> Any:
        """Return the component of an entry; `where` is its place in the configuration, `beside` what else a table may say."""
        inner = {
            field.name: self._inner(field, value, f"{where}.{field.name}")
            for field in inner_fields(entry.factory)
            if (value := options.get(field.name, _default(field))) is not attrs.NOTHING
            and (field.name in options or not attrs.has(type(value)))  # a default may be built already
        }
        try:
            made = structure(entry.factory, {**options, **inner})
        except _UnknownOptionError as error:
            raise ConfigError(self._unknown_option(entry, error.option, where, beside)) from None
        except ConfigError as error:
            raise ConfigError(f"{where} '{entry.name}': {error}") from error
        check_members(entry.kind, made, f"{entry.kind} '{entry.name}' of {entry.origin}", entry.origin.plugin)
        return made

    def _inner(self, field: attrs.Attribute[Any], value: Any, where: str) -> Any:
        """Return what a field of components holds, built: one component, or a tuple of parts."""
        if "kind" in field.metadata:
            return self._nested(field.metadata["kind"], _chosen(value, where), where)
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} = {value!r}: give a list of names or tables")
        part = field.metadata["part"]
        return tuple(self._part(part, item, f"{where}[{number}]") for number, item in enumerate(value))

    def _part(self, part: type, value: Any, where: str) -> Any:
        """Return a part from its flat table."""
        holders = inner_fields(part)
        if len(holders) != 1 or "kind" not in holders[0].metadata:
            raise PluginError(f"{where}: {part.__name__} must have one field whose metadata has a 'kind'")
        holder = holders[0]
        names = {field.name for field in attrs.fields(part)} - {holder.name}
        chosen = _chosen(value, where)
        own = {name: option for name, option in chosen.options.items() if name in names}
        rest = {name: option for name, option in chosen.options.items() if name not in names}
        component = self._nested(holder.metadata["kind"], ComponentConfig(chosen.name, rest), where, names)
        try:
            return structure(part, {**own, holder.name: component})
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error

    def _nested(self, kind: str, component: ComponentConfig, where: str, beside: Iterable[str] = ()) -> Any:
        if kind not in KINDS:
            raise PluginError(f"{where} is declared to hold a component of the kind '{kind}'; {known(kind, KINDS)}")
        try:
            entry = self.entry(kind, component.name)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        return self._build(entry, component.options, where, beside)

    def _unknown_option(self, entry: Entry, option: str, where: str, beside: Iterable[str]) -> str:
        own = [o.name for o in entry.options]
        others = [e.name for e in self._entries[entry.kind].values() if option in [o.name for o in e.options]]
        hint = f"; it is an option of {entry.kind} '{others[0]}': set {where}.name = \"{others[0]}\"" if others else ""
        return f"{where} '{entry.name}' has no option '{option}'{hint}; {known(option, [*own, *beside])}"

    def preset(self, name: str) -> Preset:
        """Return a preset by name."""
        preset: Preset = self.entry("preset", name).factory
        return preset

    @hinting
    def configure(
        self,
        preset: str | None = None,
        file: Path | str | None = None,
        settings: Mapping[str, Any] | None = None,
        sets: Iterable[str] = (),
        default: str | None = None,
        project: Project | None = None,
    ) -> DecodeConfig:
        """Return what comes out of a preset, project, TOML file, mapping and `section.option=value`s, later over earlier.

        A file, mapping or set may name its base with `preset = "..."`; the argument `preset` goes before it. Where none
        is named and the sections are not all given, `default` is the base. What a project says of components is left aside
        where something above it names a preset; see `settle`.

        Raises:
            ConfigError: an unknown preset, setting or section, or a value out of range.
        """
        layers = [*(project.layers if project else ()), *([file_layer(file)] if file else ())]
        layers += [SettingsLayer("", settings or {}), *(SettingsLayer("", parse_set(text)) for text in sets)]
        return self.settle(layers, preset, default).config()

    def settle(self, layers: Sequence[SettingsLayer], preset: str | None = None, default: str | None = None) -> Settled:
        """Return what comes out of layers, with origins and problems; see `esdllm.config.layers.settle`."""
        return settle(layers, preset, default, lambda name: self.preset(name).settings)


def _chosen(value: Any, where: str) -> ComponentConfig:
    try:
        return ComponentConfig.of(value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


class _UnknownOptionError(Exception):
    def __init__(self, option: str) -> None:
        self.option = option


def structure(factory: type, options: Mapping[str, Any]) -> Any:
    """Return `factory` built from `options`, checked for types and unknown keys."""
    try:
        return converter.structure(dict(options), factory)
    except cattrs.BaseValidationError as group:
        raise _first_problem(group) from group


def _first_problem(group: cattrs.BaseValidationError, field: str = "") -> Exception:
    """Return the first of cattrs' collected errors, those within the option `field`, as one sentence."""
    for error in group.exceptions:
        if isinstance(error, ForbiddenExtraKeysError):
            return _UnknownOptionError(min(map(str, error.extra_fields)))
    error = group.exceptions[0]
    notes = " ".join(getattr(error, "__notes__", ()))
    field = field or (notes.rsplit("attribute ", 1)[-1] if "attribute " in notes else "")
    if isinstance(error, cattrs.BaseValidationError):
        return _first_problem(error, field)
    if isinstance(error, KeyError):
        return ConfigError(f"option {error} must be given")
    return ConfigError(f"option '{field}': {error}" if field else str(error))
