"""A mkdocs hook: writes the tables of settings, components and presets from the code, so that they cannot go stale.

A page says where a table goes with a line such as `<!-- table: presets -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from esdllm import Catalogue, DecodeConfig
from esdllm.checkpoints.families import families, model_types
from esdllm.config import SECTIONS
from esdllm.plugins.catalogue import KINDS, Entry
from esdllm.plugins.offers import Offers

_MARK = re.compile(r"^<!-- table: ([a-z-]+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page's Markdown with every table written out."""
    return _MARK.sub(lambda mark: TABLES[mark[1]](), markdown)


def settings() -> str:
    """Return the run-wide settings."""
    rows = [
        (f"`{field.name}`", f"`{_toml(field.default)}`", field.metadata["help"])
        for field in attrs.fields(DecodeConfig)
        if field.name not in (*SECTIONS, "observers")
    ]
    return _table(("setting", "default", "what it is"), rows)


def sections() -> str:
    """Return the sections, which name one component each, and the observers, which name any number."""
    fields = [field for field in attrs.fields(DecodeConfig) if field.name in (*SECTIONS, "observers")]
    hooks = [f"[`{KINDS[field.name]}`](hooks.md#{KINDS[field.name]})" for field in fields]
    rows = [(f"`{field.name}`", field.metadata["help"], hook) for field, hook in zip(fields, hooks, strict=True)]
    return _table(("section", "what it decides", "hook that offers components"), rows)


def components() -> str:
    """Return the components of every section, each with its options."""
    catalogue = Catalogue.load()
    parts = []
    for section in SECTIONS:
        parts.append(f"### `{section}`")
        for name in catalogue.names(section):
            entry = catalogue.entry(section, name)
            parts.append(f"**`{name}`**: {entry.summary}")
            if entry.options:
                parts.append(_table(("option", "default", "what it is"), [_option(option) for option in entry.options]))
    return "\n\n".join(parts)


def presets() -> str:
    """Return the decoding modes: the presets without a model and a task in their name; each has a parallel twin."""
    modes = [entry for entry in _presets() if "/" not in entry.name and not entry.name.endswith("-parallel")]
    return _table(("preset", "what it is"), [_preset(entry) for entry in modes])


def published_presets() -> str:
    """Return ES-dLLM's published settings by model and task."""
    rows = []
    for entry in _presets():
        if entry.name.startswith("es-dllm/"):
            chosen: Mapping[str, Any] = entry.factory.settings
            refresh = chosen["refresh"]
            lengths = f"{chosen['gen_length']} / {chosen['block_length']}"
            rows.append((f"`{entry.name}`", f"{refresh['prompt_refresh']} / {refresh['block_refresh']}", lengths))
    return _table(("preset", "prompt_refresh / block_refresh", "gen_length / block_length"), rows)


def family_presets() -> str:
    """Return the procedures that families are published with."""
    entries = [entry for entry in _presets() if "/" in entry.name and not entry.name.startswith("es-dllm/")]
    return _table(("preset", "what it is"), [_preset(entry) for entry in entries])


def model_families() -> str:
    """Return the families with their public checkpoints, and what was verified of them."""
    catalogue, rows = Catalogue.load(), []
    for name, family in families(catalogue).items():
        offers = Offers.of(family)
        kinds = {one.attention for one in offers.published.values()}
        known = "<br>".join(
            f"{hub_id} ({one.parameters:g}B, {one.licence})" for hub_id, one in offers.published.items()
        )
        types = ", ".join(f"`{one}`" for one in model_types(name, family))
        rows.append((f"`{name}`", types, " or ".join(sorted(kinds)), known, offers.verified))
    return _table(("family", "`model_type`", "a position sees", "public checkpoints (size, licence)", "verified"), rows)


TABLES: Mapping[str, Callable[[], str]] = {
    "settings": settings,
    "sections": sections,
    "components": components,
    "presets": presets,
    "published-presets": published_presets,
    "family-presets": family_presets,
    "model-families": model_families,
}


def _presets() -> list[Entry]:
    catalogue = Catalogue.load()
    return [catalogue.entry("preset", name) for name in catalogue.names("preset")]


def _preset(entry: Entry) -> tuple[str, str]:
    return f"`{entry.name}`", entry.summary


def _option(option: Any) -> tuple[str, str, str]:
    default = "must be given" if option.default is attrs.NOTHING else f"`{_toml(option.default)}`"
    return f"`{option.name}`", default, option.help


def _toml(value: Any) -> str:
    """Return a default as one writes it in TOML; None, which TOML lacks, as not given."""
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key} = {_toml(item)}' for key, item in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), ["---"] * len(list(head)), *map(list, rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
