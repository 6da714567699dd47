"""What `esdllm doctor` tells, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from esdllm.checkpoints.dtypes import bfloat16_is_slow
from esdllm.cli.shared import SLOW_BFLOAT16
from esdllm.config.project import DISABLE_VARIABLE
from esdllm.errors import installing
from esdllm.machine import Fit, Machine
from esdllm.measure.doctor import BrokenPlugin, Package, Serving
from esdllm.plugins.loader import disabled_names
from esdllm.views import ComputeChoice, ModelSpec

__all__ = ["Place", "Visit", "place_as_dict", "print_place", "print_visit", "visit_as_dict"]


@attrs.frozen
class Place:
    """What was found of the machine and what is installed on it."""

    machine: Machine
    packages: Sequence[Package]
    broken: Sequence[BrokenPlugin]
    commands: Sequence[BrokenPlugin] = ()
    """plugins whose commands, all or one, are left out"""


@attrs.frozen
class Visit:
    """What was found of a model and a configuration at a place."""

    place: Place
    model: str
    spec: ModelSpec
    device: torch.device
    dtype: torch.dtype
    attention: Sequence[Serving]
    chosen: str
    """the attention backend that the configuration names, or that `auto` chooses"""
    store: str
    """its cache store"""
    fits: Sequence[Fit]
    batch: int
    length: int
    """columns of the canvas"""
    quantize: str | None
    """how linear layers' weights are held; None if as they are"""
    compute: str | None
    """the kernel of linear layers in full, named or chosen; None where there is no choice"""
    choice: ComputeChoice | None
    """how that was chosen; None where it was named"""
    problems: tuple[str, ...]
    """why they cannot be held or multiplied so here; empty if they can"""

    def fit(self, fit: Fit) -> bool:
        """Return whether a store's run fits in what is free."""
        return fit.fits(self.place.machine.device(self.device), self.place.machine.devices[0])

    def hints(self) -> list[str]:
        """Return what would make it faster here."""
        return [SLOW_BFLOAT16] if bfloat16_is_slow(self.device, self.dtype) else []

    def healthy(self) -> bool:
        """Return whether the configuration can run here, and no plugin is broken nor a command left out."""
        return self.runs() and not self.place.broken and not self.place.commands

    def runs(self) -> bool:
        """Return whether the configuration can run here."""
        serves = any(found.name == self.chosen and not found.problems for found in self.attention)
        return serves and not self.problems and any(fit.store == self.store and self.fit(fit) for fit in self.fits)


def place_as_dict(place: Place) -> dict[str, Any]:
    """Return a place as JSON has it."""
    return {
        "machine": attrs.asdict(place.machine),
        "packages": [attrs.asdict(package) for package in place.packages],
        "broken_plugins": [attrs.asdict(plugin) for plugin in place.broken],
        "commands_left_out": [attrs.asdict(plugin) for plugin in place.commands],
    }


def visit_as_dict(visit: Visit) -> dict[str, Any]:
    """Return a visit as JSON has it, but for its place."""
    return {
        "model": {"name": visit.model, **attrs.asdict(visit.spec)},
        "device": str(visit.device),
        "dtype": str(visit.dtype).removeprefix("torch."),
        "attention": [attrs.asdict(found) for found in visit.attention],
        "weights": {
            "quantize": visit.quantize,
            "compute": visit.compute,
            "problems": visit.problems,
            "choice": None if visit.choice is None else attrs.asdict(visit.choice),
        },
        "chosen": {"attention": visit.chosen, "cache": visit.store},
        "batch": visit.batch,
        "length": visit.length,
        "memory": [
            {**attrs.asdict(fit), "device": fit.device(), "host": fit.host(), "fits": visit.fit(fit)}
            for fit in visit.fits
        ],
        "hints": visit.hints(),
        "healthy": visit.healthy(),
    }


def print_place(place: Place, console: Console) -> None:
    """Print the machine, what is installed on it, and what of that is broken."""
    machine = place.machine
    _heading(console, "Machine", f"Python {machine.python_version}, torch {machine.torch_version}")
    table = Table.grid(padding=(0, 2, 0, 0))
    for device in machine.devices:
        told = f"{machine.cores} cores, torch uses {machine.threads} threads; " if device.name == "cpu" else ""
        room = f"{told}{decimal(device.free)} free of {decimal(device.memory)}"
        table.add_row(f"  {device.name}", Text(device.kind), Text(room))
    if len(machine.devices) == 1:
        table.add_row("  cuda", Text("none", style="bright_black"), Text("torch sees no GPU", style="bright_black"))
    console.print(table)

    console.print()
    _heading(console, "Optional packages")
    table = Table.grid(padding=(0, 2, 0, 0))
    for package in place.packages:
        state = Text(package.version) if package.version else Text(installing(package.extra), style="yellow")
        table.add_row(f"  {package.name}", state, Text(package.purpose, style="bright_black"))
    console.print(table)

    if place.broken:
        console.print()
        _print_broken(place.broken, console)
    if place.commands:
        console.print()
        _heading(console, "Commands left out", "all else that these plugins offer serves")
        _print_reasons(place.commands, console)


def _print_broken(broken: Sequence[BrokenPlugin], console: Console) -> None:
    _heading(console, "Broken plugins", "every other command refuses to work; what follows is without them")
    _print_reasons(broken, console)
    names = ",".join(dict.fromkeys([*disabled_names(), *(plugin.name for plugin in broken)]))
    console.print(Text(f"  {DISABLE_VARIABLE}={names} leaves them out"), soft_wrap=True)


def _print_reasons(plugins: Sequence[BrokenPlugin], console: Console) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    for plugin in plugins:
        table.add_row(Text("  ") + Text(plugin.name, style="cyan"), Text(plugin.reason, style="yellow"))
    console.print(table)


def print_visit(visit: Visit, console: Console) -> None:
    """Print what can serve the model, and what it would take of the memory."""
    dtype = str(visit.dtype).removeprefix("torch.")
    console.print()
    _heading(console, "Attention backends", f"for {visit.model} on {visit.device} in {dtype}")
    table = Table.grid(padding=(0, 2, 0, 0))
    for found in visit.attention:
        name = Text(f"{found.name} *" if found.name == visit.chosen else found.name, style="cyan")
        table.add_row(Text("  ") + name, _verdict(not found.problems, "serves", "; ".join(found.problems)))
    console.print(table)

    if visit.choice is not None:
        console.print()
        _heading(console, "Kernels", f"of linear layers; * marks what is chosen: {visit.choice.reason}")
        console.print(_kernels(visit.choice))
    elif named := visit.quantize or visit.compute:
        console.print()
        heading = ("Quantisation", "of the weights") if visit.quantize else ("Compute", "of linear layers")
        _heading(console, heading[0], f"{heading[1]} on {visit.device}")
        verdict = _verdict(not visit.problems, "serves", "; ".join(visit.problems))
        console.print(Text("  ") + Text(named, style="cyan"), verdict, sep="  ")

    console.print()
    _heading(
        console, "Memory", f"{visit.batch} x {visit.length} canvas, largest step; * marks what the configuration names"
    )
    console.print(_memory(visit))
    for fit in visit.fits:
        if fit.problems:
            console.print(Text(f"  {fit.store}: {'; '.join(fit.problems)}", style="yellow"))
    for hint in visit.hints():
        console.print(f"hint: {hint}", style="yellow", soft_wrap=True)
    if not visit.runs():
        console.print("The configuration cannot run here, or would not fit in the memory that is free.", style="yellow")


def _heading(console: Console, title: str, told: str = "") -> None:
    console.print(Text(title, style="bold"), Text(f"  {told}", style="bright_black"), sep="", soft_wrap=True)


def _verdict(good: bool, praise: str, reasons: str) -> Text:
    return Text(praise, style="green") if good else Text(reasons, style="yellow")


def _kernels(choice: ComputeChoice) -> Table:
    """Return what serves, and what all linear layers take in a step with few positions and in one with many."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for one in choice.kernels:
        name = Text(f"{one.name} *" if one.name == choice.compute else one.name, style="cyan")
        times = [f"{1e3 * seconds:.3g} ms" for seconds in (one.few, one.many) if seconds is not None]
        praise = ", ".join(["serves", *times])
        table.add_row(Text("  ") + name, _verdict(not one.problems, praise, "; ".join(one.problems)))
    return table


def _memory(visit: Visit) -> Table:
    """Return what each store would take."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bright_black", padding=(0, 1, 0, 0))
    table.add_column("  cache store", no_wrap=True)
    for header in ("weights", "step", "cache", f"on {visit.device}", "host", "disk"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("fits", no_wrap=True)
    for fit in visit.fits:
        name = Text(f"{fit.store} *" if fit.store == visit.store else fit.store, style="cyan")
        sizes = (fit.weights, fit.work, fit.cache.device, fit.device(), fit.cache.host, fit.cache.disk)
        verdict = _verdict(visit.fit(fit), "yes", "-" if fit.problems else "no")
        table.add_row(Text("  ") + name, *(decimal(size) if size else "-" for size in sizes), verdict)
    return table
