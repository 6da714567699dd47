"""Loading the model that a command is asked for: what is fetched is told before, and what cannot fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from rich.filesize import decimal
from rich.markup import escape

from esdllm.checkpoints.loading import (
    Model,
    Weights,
    describe_weights,
    load_model,
    resolve_device,
    shipped_checkpoints,
)
from esdllm.checkpoints.on_disk import cached_whole
from esdllm.checkpoints.pulling import Download, hub_folder
from esdllm.cli.shared import default_model, hint_dtype, stderr
from esdllm.errors import EsdllmError, UnavailableError
from esdllm.machine import Machine
from esdllm.plugins.catalogue import Catalogue

__all__ = ["Loading", "load", "load_asked", "make_ready"]


class Loading(Protocol):
    """What a command is asked that loads a model."""

    @property
    def model(self) -> str | None:
        """of `--model`"""

    @property
    def family(self) -> str | None:
        """of `--family`"""

    @property
    def device(self) -> str | None:
        """of `--device`"""

    @property
    def dtype(self) -> str | None:
        """of `--dtype`"""

    @property
    def quantize(self) -> str | None:
        """of `--quantize`"""

    @property
    def compute(self) -> str | None:
        """of `--compute`"""


def load(name: str, asked: Loading, catalogue: Catalogue) -> Model:
    """Return a model, with a word on standard error while it is read, and where its dtype is slow; see `load_model`."""
    make_ready(name, asked, catalogue)
    with stderr().status(f"loading {escape(name)}"):
        model = load_model(
            name,
            asked.device,
            asked.dtype,
            catalogue,
            quantize=asked.quantize,
            compute=asked.compute,
            family=asked.family,
        )
    hint_dtype(model.adapter.device, model.adapter.dtype)
    return model


def load_asked(asked: Loading, catalogue: Catalogue) -> tuple[str, Model]:
    """Return the name and the model that a command is asked for, the default one where it is asked for none; see `load`."""
    name = asked.model or default_model(catalogue)
    return name, load(name, asked, catalogue)


def make_ready(name: str, asked: Loading, catalogue: Catalogue) -> None:
    """Refuse a model that this machine has no memory for, then fetch one from the hub that is not here, with progress.

    What is wrong with a name is left to the load, which says it.

    Raises:
        UnavailableError: its weights alone are larger than the device's memory, or than what is free on the disk.
    """
    where = resolve_device(asked.device)
    if name in shipped_checkpoints(catalogue) or where.type == "meta":
        return
    try:
        held: Any = {"compute": asked.compute, "family": asked.family, "measure": False}
        weights = describe_weights(name, asked.dtype, asked.quantize, catalogue, where, **held)
    except EsdllmError:
        return
    _check_memory(name, weights, where, asked.quantize)
    if Path(name).expanduser().exists() or cached_whole(name):
        return
    try:
        download = Download.of(name, catalogue)
    except EsdllmError:
        return
    download.check_room()
    size = f"{decimal(download.size)}, {decimal(download.missing)} of it to fetch into {hub_folder()}"
    stderr().print(f"{name}: {size}", style="dim", soft_wrap=True, markup=False)
    download.run(catalogue)


def _check_memory(name: str, weights: Weights, where: torch.device, quantize: str | None) -> None:
    device = Machine.here().device(where)
    size, told = decimal(weights.bytes), f"`esdllm doctor -m {name}` says what fits"
    if weights.bytes > device.memory:
        held = quantize or str(weights.full_dtype).removeprefix("torch.")
        less = "a smaller model" if quantize else "--quantize int8 or int4-weight-only, or a smaller model"
        raise UnavailableError(
            f"'{name}' takes {size} for its weights in {held}, and {device.name} has {decimal(device.memory)} in all; try "
            f"{less}; {told}"
        )
    if weights.bytes > device.free:
        free = f"{size} of weights, and {decimal(device.free)} are free on {device.name}, so it may not fit"
        stderr().print(f"hint: {free}; {told}", style="yellow", soft_wrap=True, markup=False)
