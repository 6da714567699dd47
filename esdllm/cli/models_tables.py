"""What `esdllm models` tells, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from rich.console import Console
from rich.filesize import decimal
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from esdllm.checkpoints.families import families, model_types
from esdllm.checkpoints.on_disk import OnDisk
from esdllm.checkpoints.published import KnownCheckpoint, known_checkpoints
from esdllm.measure.cards import Card
from esdllm.plan import BlockCausal
from esdllm.plugins.catalogue import Catalogue, Entry
from esdllm.plugins.offers import Offers

__all__ = ["Overview", "print_card", "print_overview"]

_INDENT = (0, 0, 0, 2)
_ANY = 10_000  # columns


@attrs.frozen
class Overview:
    """The families, the public checkpoints that they know of, and what is on this disk."""

    families: Mapping[str, tuple[Entry, tuple[str, ...], Offers]]
    """by name: the entry, the `model_type`s that its configs say, what it offers beside"""
    known: Mapping[str, KnownCheckpoint]
    here: Sequence[OnDisk]

    @classmethod
    def of(cls, catalogue: Catalogue, here: Sequence[OnDisk]) -> Overview:
        """Return what the families on offer tell, beside what is here."""
        told = {
            name: (catalogue.entry("model", name), model_types(name, family), Offers.of(family))
            for name, family in families(catalogue).items()
        }
        return cls(told, known_checkpoints(catalogue), here)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "families": [
                {
                    "name": name,
                    "summary": entry.summary,
                    "model_types": list(types),
                    "verified": offers.verified,
                    "ships": list(offers.checkpoints),
                    "geometries": list(offers.geometries),
                    "package": entry.origin.distribution,
                }
                for name, (entry, types, offers) in self.families.items()
            ],
            "checkpoints": [
                {
                    "name": one.name,
                    "family": one.family,
                    "told": one.told,
                    **attrs.asdict(one.published),
                    "on_disk": next((here.size for here in self.here if here.name == one.name), None),
                }
                for one in self.known.values()
            ],
            "on_disk": [{**attrs.asdict(one), "folder": str(one.folder)} for one in self.here],
        }


def print_overview(overview: Overview, console: Console) -> None:
    """Print the families with their public checkpoints, and then what is on this disk."""
    sizes = {one.name: one.size for one in overview.here}
    for name, (entry, _, offers) in overview.families.items():
        console.print(Text(name, style="bold"))
        console.print(Padding(entry.summary, _INDENT))
        rows: list[tuple[Text, ...]] = [
            (Text(f"  {shipped}", style="cyan"), Text(), Text(), Text("ships"), Text())
            for shipped in offers.checkpoints
        ]
        rows += [_row(one, sizes.get(one.name)) for one in overview.known.values() if one.family == name]
        _print_rows(rows, console)
        if offers.verified:
            console.print(Padding(Text(f"verified: {offers.verified}", style="bright_black"), _INDENT))
        console.print()
    _print_here(overview.here, console)


def _row(one: KnownCheckpoint, size: int | None) -> tuple[Text, ...]:
    """Return a public checkpoint's row: its id, parameters, attention, licence, and what of it is here."""
    known = one.published
    active = f", {known.active:g}B active" if known.active else ""
    here = Text(decimal(size) if size else "", style="green")
    return (
        Text(f"  {one.name}", style="cyan"),
        Text(f"{known.parameters:g}B{active}"),
        Text(known.attention),
        Text(known.licence),
        here,
    )


def _print_rows(rows: Sequence[tuple[Text, ...]], console: Console) -> None:
    """Print rows as a table; where it is wider than the console, each as its name and a line below."""
    table = Table.grid(padding=(0, 2), pad_edge=False)
    for column in zip(*rows, strict=True):
        if any(column):
            table.add_column(no_wrap=True)
    for row in rows:
        table.add_row(*(cell for cell, column in zip(row, zip(*rows, strict=True), strict=True) if any(column)))
    if console.measure(table, options=console.options.update(max_width=_ANY)).maximum <= console.width:
        if rows:
            console.print(table)
        return
    for name, *facts in rows:
        console.print(name, soft_wrap=True)
        console.print(Padding(Text(", ").join(filter(None, facts)), (0, 0, 0, 4)))


def _print_here(here: Sequence[OnDisk], console: Console) -> None:
    console.print(Text("On this disk", style="bold"))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(overflow="fold", ratio=1)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for one in here:
        state = one.family or "say which family"
        table.add_row(
            Text(f"  {one.name}", style="cyan"),
            Text(state if one.complete else f"{state}, in part", style="" if one.family and one.complete else "yellow"),
            decimal(one.size),
        )
    console.print(table if here else Text("  none; `esdllm models pull NAME` fetches one", style="bright_black"))


def print_card(card: Card, console: Console) -> None:
    """Print what a model is, what it takes of memory, and the presets that suit."""
    console.print(Text.assemble((card.name, "bold"), f"  {card.spec.family}"))
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, value in _facts(card):
        table.add_row(f"  {name}", Text(value))
    console.print(table)

    console.print()
    console.print(Text.assemble(("Memory", "bold"), f"  {card.batch} x {card.length} canvas on {card.device}"))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column()
    for _ in range(4):
        table.add_column(justify="right", no_wrap=True)
    table.add_row(
        *(Text(word, style="bright_black") for word in ("  held as", "weights", "step", "cache", "together", "fits"))
    )
    for one in card.held:
        verdict = Text("yes", style="green") if one.here else Text("; ".join(one.problems) or "no", style="yellow")
        sizes = (one.fit.weights, one.fit.work, one.fit.cache.device, one.fit.device())
        table.add_row(f"  {one.quantize or one.dtype}", *map(decimal, sizes), verdict)
    console.print(table)

    console.print()
    console.print(Text("Presets that suit", style="bold"))
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, summary in card.presets:
        table.add_row(Text(f"  {name}", style="cyan"), Text(summary))
    console.print(table)


def _facts(card: Card) -> list[tuple[str, str]]:
    """Return what is told of a model's config, name by name."""
    spec, known = card.spec, card.known and card.known.published
    heads = f"{spec.n_heads} heads of {spec.head_dim}, {spec.n_kv_heads} of them for keys and values"
    facts = [
        ("layers", f"{spec.n_layers} of {spec.hidden} features; {heads}"),
        ("attention", _attention(spec.attention)),
        (
            "vocabulary",
            f"{spec.vocab}; mask {spec.mask_id}, end of text {', '.join(map(str, (spec.eos_id, *spec.stop_ids)))}",
        ),
        ("context", str(spec.context)),
        ("logit shift", str(spec.logit_shift)),
    ]
    if known:
        facts.append(("published", f"{known.parameters:g}B parameters; licence: {known.licence or 'see its card'}"))
    if card.ships:
        facts.append(("weights", "ship with a plugin; the tests decode with them"))
    if card.verified:
        facts.append(("verified of its family" if card.ships else "verified", card.verified))
    return facts


def _attention(attention: BlockCausal | None) -> str:
    """Return which positions a position sees, in a sentence's part."""
    if attention is None:
        return "every position sees every other"
    where = "the first token" if attention.grid == "start" else "the prompt's end"
    return f"a position sees its block of {attention.size} and those before it; blocks are counted from {where}"
