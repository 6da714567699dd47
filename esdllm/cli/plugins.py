"""`esdllm plugins`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import attrs
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from esdllm.cli.options.plugins import PluginsListOptions
from esdllm.cli.shared import print_json, shown, stderr, stdout
from esdllm.config import ComponentConfig
from esdllm.config.project import DISABLE_VARIABLE
from esdllm.errors import ConfigError, known
from esdllm.plugins.catalogue import KINDS, Catalogue, Entry
from esdllm.plugins.loader import Origin
from esdllm.plugins.offers import Offers


@attrs.frozen(kw_only=True)
class PluginsList(PluginsListOptions):
    """Reads the catalogue, and prints it."""

    def run(self) -> None:
        """Print what is asked for."""
        if self.kind is not None and self.kind not in KINDS:
            raise ConfigError(f"unknown kind '{self.kind}'; {known(self.kind, KINDS)}")
        catalogue = Catalogue.load()
        entries = [entry for entry in catalogue.entries() if self.kind in (None, entry.kind)]
        if self.as_json:
            print_json([_as_dict(entry) for entry in entries])
        else:
            for name in KINDS if self.kind is None else [self.kind]:
                _print_kind(
                    name,
                    [entry for entry in entries if entry.kind == name],
                    catalogue,
                    stdout(),
                    fold=self.kind is None,
                )
        if catalogue.blocked:
            stderr().print(f"left out by {DISABLE_VARIABLE}: {', '.join(catalogue.blocked)}", style="dim")


def _as_dict(entry: Entry) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "name": entry.name,
        "summary": entry.summary,
        "options": [
            {
                "name": option.name,
                "default": None if option.default is attrs.NOTHING else option.default,
                "required": option.default is attrs.NOTHING,
                "help": option.help,
            }
            for option in entry.options
        ],
        "plugin": entry.origin.plugin,
        "package": entry.origin.distribution,
        "version": entry.origin.version,
    }


def _print_kind(kind: str, entries: Sequence[Entry], catalogue: Catalogue, console: Console, fold: bool) -> None:
    console.print(Text(kind, style="bold"), Text(f"  {KINDS[kind]}", style="bright_black"), sep="")
    if not entries:
        console.print(Padding("none installed", (0, 0, 0, 2), expand=False), style="bright_black")
    by_origin = sorted(entries, key=lambda entry: (entry.origin.distribution, entry.origin.plugin))
    for origin, offered in groupby(by_origin, key=lambda entry: entry.origin):
        console.print(Padding(_from(origin), (0, 0, 0, 2), expand=False))
        console.print(Padding(_table(list(offered), catalogue, fold), (0, 0, 0, 2)))
    console.print()


def _from(origin: Origin) -> Text:
    return Text(f"{origin.plugin}, {origin.distribution} {origin.version}".rstrip(), style="bright_black")


def _table(entries: Sequence[Entry], catalogue: Catalogue, fold: bool) -> Table:
    """Return names, summaries and options; where `fold`, the names with a slash as one row each beginning."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    folded = Counter(entry.name.split("/")[0] for entry in entries if fold and "/" in entry.name)
    for entry in entries:
        if fold and "/" in entry.name:
            continue
        table.add_row(Text(entry.name, style="cyan"), Text(entry.summary))
        if entry.kind == "model":
            family = catalogue.build("model", ComponentConfig(entry.name))
            if shipped := Offers.of(family).checkpoints:
                table.add_row("  ships", Text(", ".join(shipped)))
        for option in entry.options:
            told = Text.assemble(f"= {shown(option.default)}  ", (option.help, "bright_black"))
            table.add_row(f"  {option.name}", told)
    for beginning, number in folded.items():
        table.add_row(
            Text(f"{beginning}/...", style="cyan"), Text(f"{number} more; `esdllm plugins preset` lists them")
        )
    return table
