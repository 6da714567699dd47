"""The JSON schema of a configuration file, made from the classes of the components that are installed.

An editor that is given it completes names and options, shows their help, and marks what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from esdllm.config.options import inner_fields
from esdllm.config.settings import SECTIONS, DecodeConfig
from esdllm.plugins.auto import AUTO
from esdllm.plugins.catalogue import Catalogue, Entry
from esdllm.views import Preset

__all__ = ["configuration_schema"]

_DEFINED = (*SECTIONS, "observers")
_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string"}
_BOUNDS = {">=": "minimum", ">": "exclusiveMinimum", "<=": "maximum", "<": "exclusiveMaximum"}


def configuration_schema(catalogue: Catalogue) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a --config file and of esdllm.toml, with what a catalogue offers.

    Ranges come from attrs' own validators; what other validators refuse is valid by the schema.
    """
    settings = {"preset": _presets(catalogue), **{f.name: _setting(f) for f in attrs.fields(DecodeConfig)}}
    entries = {kind: _entries(catalogue, kind) for kind in _DEFINED}
    definitions = {kind: _kind(kind, offered) for kind, offered in entries.items()}
    names = {f"{kind}-name": {"enum": [entry.name for entry in offered]} for kind, offered in entries.items()}
    profiles = {
        "type": "object",
        "additionalProperties": _table(settings),
        "description": "settings over the file's own, by name",
    }
    return {
        "$schema": _DRAFT,
        "title": "esdllm configuration",
        **_table({**settings, "profiles": profiles}),
        "$defs": {**definitions, **names},
    }


def _table(properties: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False, **more}


def _presets(catalogue: Catalogue) -> dict[str, Any]:
    return {"description": "where the settings start", "enum": catalogue.names("preset")}


def _setting(field: attrs.Attribute[Any]) -> dict[str, Any]:
    """Return the schema of a run-wide setting or a section of `DecodeConfig`."""
    about = {"description": field.metadata["help"]}
    if field.name in SECTIONS:
        return {**about, "$ref": f"#/$defs/{field.name}"}
    if field.name == "observers":
        return {**about, "type": "array", "items": {"$ref": "#/$defs/observers"}}
    return {**about, **_option(field, get_type_hints(DecodeConfig)[field.name])}


def _entries(catalogue: Catalogue, kind: str) -> list[Entry]:
    names = [*catalogue.names(kind), *([AUTO] if kind == "attention" else [])]
    return [catalogue.entry(kind, name) for name in names]


def _kind(kind: str, entries: Sequence[Entry]) -> dict[str, Any]:
    """Return the schema of a section: a name, a table with a name and its options, or options of what is chosen already."""
    choices = [{"title": "name", "$ref": f"#/$defs/{kind}-name"}, *map(_component, entries)]
    return {"oneOf": [*choices, _nameless(entries)] if kind in SECTIONS else choices}


def _component(entry: Entry) -> dict[str, Any]:
    """Return the schema of a component's table."""
    name = {"name": {"const": entry.name, "description": entry.summary}}
    missing = [field.name for field in _fields(entry.factory) if field.default is attrs.NOTHING]
    return _table({**name, **_options(entry.factory)}, title=entry.name, required=["name", *missing])


def _nameless(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return the schema of a table without a name: options of any component, for the preset may have chosen it."""
    found: dict[str, list[Any]] = {}
    for entry in entries:
        for name, schema in _options(entry.factory).items():
            if schema not in (known := found.setdefault(name, [])):
                known.append(schema)
    options = {name: one[0] if len(one) == 1 else {"anyOf": one} for name, one in found.items()}
    return _table(options, title="options of the component that the preset chooses")


def _fields(factory: Any) -> Sequence[attrs.Attribute[Any]]:
    return attrs.fields(factory) if attrs.has(factory) and not isinstance(factory, Preset) else ()


def _options(factory: Any) -> dict[str, Any]:
    hints = _hints(factory)
    holders = {field.name for field in inner_fields(factory)}
    return {
        field.name: _holder(field) if field.name in holders else _option(field, hints.get(field.name, Any))
        for field in _fields(factory)
        if field.init
    }


def _hints(factory: Any) -> dict[str, Any]:
    try:
        return get_type_hints(factory)
    except (NameError, TypeError):  # a name imported for type checkers only
        return {}


def _holder(field: attrs.Attribute[Any]) -> dict[str, Any]:
    """Return the schema of an option that holds a component or a list of parts."""
    if "kind" in field.metadata:
        return {**_about(field), **_inside(field.metadata["kind"], "", required=["name"])}
    part = field.metadata["part"]
    (holder,) = inner_fields(part)
    own = {name: schema for name, schema in _options(part).items() if name != holder.name}
    name = _inside(holder.metadata["kind"], "-name")
    about = f"a component's name and options, and beside them {', '.join(own)}"
    table = {"type": "object", "properties": {"name": name, **own}, "required": ["name"], "description": about}
    return {**_about(field), "type": "array", "items": {"anyOf": [{"type": "string", **name}, table]}}


def _inside(kind: str, suffix: str, **more: Any) -> dict[str, Any]:
    """Return a reference to a kind's schema; nothing is said of a kind that is no section."""
    return {"$ref": f"#/$defs/{kind}{suffix}", **more} if kind in _DEFINED else {}


def _option(field: attrs.Attribute[Any], hint: Any) -> dict[str, Any]:
    return {**_about(field), **_type(hint), **_ranges(field.validator)}


def _about(field: attrs.Attribute[Any]) -> dict[str, Any]:
    about = {"description": field.metadata["help"]} if field.metadata.get("help") else {}
    maker = getattr(field.default, "factory", None)
    default = maker() if maker else field.default
    plain = isinstance(default, (bool, int, float, str, list, tuple, dict))
    return {**about, "default": default} if plain else about


def _type(hint: Any) -> dict[str, Any]:
    """Return the schema of a type; nothing is said of one that is not known."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is Union or getattr(origin, "__name__", "") == "UnionType":
        given = [_type(one) for one in arguments if one is not type(None)]
        return given[0] if len(given) == 1 else {"anyOf": given}
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return {
            "type": "array",
            "prefixItems": [_type(one) for one in arguments],
            "minItems": len(arguments),
            "items": False,
        }
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object"}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return {"type": "array", **({"items": _type(arguments[0])} if arguments else {})}
    return {}


def _ranges(validator: Any) -> dict[str, Any]:
    """Return what attrs' validators say of a range; they are told by their attributes, for their classes are private."""
    found: dict[str, Any] = {}
    for inner in getattr(validator, "_validators", ()):
        found |= _ranges(inner)
    if hasattr(validator, "compare_op") and validator.compare_op in _BOUNDS:
        found[_BOUNDS[validator.compare_op]] = validator.bound
    elif hasattr(validator, "validator"):  # optional
        found |= _ranges(validator.validator)
    elif isinstance(getattr(validator, "options", None), (tuple, list)):
        found["enum"] = list(validator.options)
    return found
