"""How a family is to load a model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import attrs
import torch

from esdllm.errors import UnavailableError

__all__ = ["ComputeChoice", "KernelTime", "LoadPlan"]


@attrs.frozen
class KernelTime:
    """A kernel of linear layers, and how fast it is here with a model's weights."""

    name: str
    """as `compute` takes it"""
    problems: tuple[str, ...] = ()
    """why it is not to be chosen; empty if it can be"""
    few: float | None = None
    """seconds that all linear layers take in a step of few positions, where that was measured"""
    many: float | None = None
    """seconds that they take in a step of many positions; None too where few were slow enough to tell"""


@attrs.frozen
class ComputeChoice:
    """The kernel of linear layers that a family chooses where none is named, and why."""

    compute: str | None
    """as `compute` takes it; None for the family's own on each of several devices"""
    reason: str
    """in a few words: by rule, or measured, and where that is kept"""
    kernels: tuple[KernelTime, ...] = ()
    """all that could be named"""


@attrs.frozen
class LoadPlan:
    """How a family is to load a model. What it does not offer is refused before it is asked, so that more may be added."""

    dtype: torch.dtype
    """of the weights that are not quantised, and of the hidden states"""
    device: torch.device
    """where the embedding lies, and all that the runtime holds: hidden states between layers, cache, logits"""
    layers: tuple[torch.device, ...] = ()
    """where each layer's weights lie; empty if all lie on `device`"""
    head: torch.device | None = None
    """where the final norm and the head lie; None if on `device`"""
    quantize: str | None = None
    """how the weights of linear layers are held, by the family's own name; None if as they are"""
    seed: int | None = None
    """draw random weights from this seed instead of reading the folder's; None to read them"""
    lora: Path | None = None
    """the folder of a LoRA adapter that is merged into the weights as they are read; None for none"""
    compute: str | None = None
    """the kernel that multiplies by linear layers' weights, by the family's own name; None for its default, if it has one"""

    def layer(self, number: int) -> torch.device:
        """Return where a layer's weights lie."""
        return self.layers[number] if self.layers else self.device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All devices that weights lie on, `device` first."""
        return tuple(dict.fromkeys((self.device, *self.layers, self.head or self.device)))

    def only(
        self,
        family: str,
        quantize: Collection[str] = (),
        spread: bool = False,
        random: bool = False,
        merge: bool = False,
        compute: Collection[str] = (),
    ) -> None:
        """Return if a family that offers no more than this can follow the plan; `load_model` asks.

        Raises:
            UnavailableError: the plan asks for a quantisation or kernel that is not listed, or for both at once, for several
                devices, random weights, or an adapter.
        """
        if self.quantize is not None and self.quantize not in quantize:
            which = f"known: {', '.join(quantize)}" if quantize else "none is"
            raise UnavailableError(f"the quantisation '{self.quantize}' is not available for {family}; {which}")
        if self.compute is not None and self.compute not in compute:
            which = f"known: {', '.join(compute)}" if compute else "none is"
            raise UnavailableError(f"the compute '{self.compute}' is not available for {family}; {which}")
        if self.compute is not None and self.quantize is not None:
            raise UnavailableError(
                f"compute '{self.compute}' is for weights in full, and quantize '{self.quantize}' has a kernel of its own; "
                "leave one out"
            )
        if len(self.devices) > 1 and not spread:
            raise UnavailableError(f"{family} cannot be spread over devices: {', '.join(map(str, self.devices))}")
        if self.seed is not None and not random:
            raise UnavailableError(f"{family} makes no random weights; load a checkpoint")
        if self.lora is not None and not merge:
            raise UnavailableError(
                f"{family} merges no LoRA adapters; merge {self.lora} with PEFT's merge_and_unload(), and save the model"
            )
