"""What loading gives: a model, and what weights would be once loaded."""

from __future__ import annotations

import attrs
import torch

from esdllm.interfaces import ModelAdapter, TextCodec
from esdllm.keywords import hinting
from esdllm.views import ComputeChoice, ModelSpec

__all__ = ["Model", "Weights"]


@hinting
@attrs.frozen(eq=False, repr=False)
class Model:
    """A loaded model and what turns text into its tokens."""

    adapter: ModelAdapter
    codec: TextCodec | None = None
    """None where only token ids go in and out"""
    codec_error: str = ""
    """why there is no codec, if the checkpoint should have had one"""
    quantize: str | None = None
    """how the weights of linear layers are held; None if as they are"""
    compute: str | None = None
    """the kernel of linear layers, named or chosen; None where the family has no choice, or the weights are in fewer bits"""

    @property
    def spec(self) -> ModelSpec:
        """The model's geometry and special ids."""
        return self.adapter.spec

    def chats(self, told: bool | None = None) -> bool:
        """Return whether text goes through the chat template: as told, or where the checkpoint brings one."""
        return (self.codec is not None and self.codec.has_chat) if told is None else told

    def __repr__(self) -> str:
        spec, codec = self.spec, "text" if self.codec else "token ids alone"
        held = f"{self.adapter.dtype} on {self.adapter.device}"
        return f"Model({spec.family}, {spec.n_layers} layers of {spec.hidden}, {held}, {codec})"

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        own = self.codec.stop_ids if self.codec else ()
        return tuple(dict.fromkeys((self.spec.eos_id, *self.spec.stop_ids, *own)))


@attrs.frozen
class Weights:
    """What a checkpoint's weights would be once loaded."""

    spec: ModelSpec
    """the model's geometry and special ids"""
    dtype: torch.dtype
    """of the hidden states"""
    bytes: int
    """what they would take, on all devices together"""
    problems: tuple[str, ...] = ()
    """why they cannot be held so on the device; empty if they can"""
    compute: str | None = None
    """the kernel of linear layers, named or chosen; None as in `Model`"""
    choice: ComputeChoice | None = None
    """how that was chosen; None where it was named, or there is no choice"""
    full_dtype: torch.dtype = torch.float32
    """of the weights that are in full, which under some kernels is not that of the hidden states"""
