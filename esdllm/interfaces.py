"""What plugins implement.

Three kinds, by what they may touch. *Planners* (skip schedules, refresh policies, block schedules) take and return host
integers. *Kernels* (importance scorers, token samplers, unmasking policies, attention backends, model adapters) are pure
functions of tensors: no device read, no branch on a tensor's value, output shapes known from input shapes. *Caches* alone
keep state. Observers stand outside the step and may do as they like.

Shapes are those of `esdllm.views`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from esdllm.placing import LoadPlan
from esdllm.plan import Block, Moment, Phase, Scope
from esdllm.views import (
    CacheShape,
    CacheWrite,
    Candidates,
    ImportanceView,
    KeyValue,
    Memory,
    Message,
    ModelSpec,
    Problem,
    Projection,
    SampleView,
    Site,
    StepRecord,
    UnmaskingView,
)

__all__ = [
    "AttentionBackend",
    "BlockSchedule",
    "Cache",
    "CacheStore",
    "ImportanceScorer",
    "ModelAdapter",
    "ModelFamily",
    "RefreshPolicy",
    "RememberingPolicy",
    "SkipSchedule",
    "StepObserver",
    "Suite",
    "TextCodec",
    "TokenSampler",
    "UnmaskingPolicy",
]


class SkipSchedule(Protocol):
    """How many positions each layer hands on when a step skips."""

    def keep_counts(self, n_layers: int, window: int, committed: int, block: int) -> tuple[int, ...]:
        """Return one count a layer, never growing, in [1, window].

        `committed` is the number of positions committed at the last step (largest over the rows), `block` the number
        of positions in the block.
        """
        ...


class RefreshPolicy(Protocol):
    """Which positions a step computes, and when skipping pauses so that the caches become fresh."""

    def scope(self, moment: Moment) -> Scope:
        """Return the window of the step at `moment` and whether it is a refresh."""
        ...


class BlockSchedule(Protocol):
    """Cuts the positions to decide into blocks."""

    def next_block(self, start: int, end: int, block_length: int) -> Block:
        """Return the block that follows when everything before `start` is decided; `end` bounds it."""
        ...


class ImportanceScorer(Protocol):
    """Which positions matter most to the layers that follow."""

    @property
    def site(self) -> Site:
        """Where positions are scored and dropped."""
        ...

    @property
    def keeps_history(self) -> bool:
        """Whether `view.last` is read; if not, nothing is remembered and no memory is taken."""
        ...

    def score(self, view: ImportanceView) -> Tensor:
        """Return (R, N) float32, higher survives. The leftmost masked position always survives, whatever its score."""
        ...


class TokenSampler(Protocol):
    """Which token to put at a position. Where to put one is the unmasking policy's decision."""

    def sample(self, view: SampleView) -> Candidates:
        """Return a candidate for every position."""
        ...


class UnmaskingPolicy(Protocol):
    """How many positions to commit at a step, and which."""

    def counts(self, masked: int, blocks: int) -> tuple[int, ...] | None:
        """Return the most positions that each step of a block with `masked` masks commits, of `blocks` blocks in all.

        Together they suffice for the masks. A step commits fewer only where fewer are eligible; what that leaves over
        is committed after the plan's end, at its last rate. None if the number depends on the logits: the runtime then
        asks the device after every step whether a mask is left. Host integers only.
        """
        ...

    def select(self, view: UnmaskingView) -> Tensor:
        """Return (B, N) bool, a subset of `view.eligible`."""
        ...


class RememberingPolicy(UnmaskingPolicy, Protocol):
    """An unmasking policy that goes by what earlier steps showed. The numbers it remembers are kept by the runtime."""

    @property
    def memory(self) -> int:
        """M, the floats remembered of each position; all 0 at first."""
        ...

    def remember(self, view: UnmaskingView) -> Tensor:
        """Return (B, N, M) float32: `view.memory`, left when each position last had logits, with this step added.

        Called once a step, before `select`, whose view carries what was returned.
        """
        ...


class AttentionBackend(Protocol):
    """Scaled dot-product attention without causality."""

    @property
    def rank(self) -> int | None:
        """Where `attention = "auto"` tries it, lower first; None if it serves by name only.

        One that serves everywhere has 20, so that one with less goes before it where it can serve, and only there.
        """
        ...

    def problems(self, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[str]:
        """Return why this backend cannot serve; empty if it can."""
        ...

    def attend(self, queries: Tensor, read: KeyValue) -> Tensor:
        """Return (R, N, H, D) from queries (R, N, H, D) and what they read: K keys and values of G heads, H a multiple of G."""
        ...


class ModelAdapter(Protocol):
    """A model cut where the runtime needs to reach in: between its layers, and between attention's two halves."""

    @property
    def spec(self) -> ModelSpec:
        """The model's geometry and special ids."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What the hidden states are made of."""
        ...

    def embed(self, tokens: Tensor) -> Tensor:
        """Return hidden states (R, N, C) of tokens (R, N)."""
        ...

    def encode(self, positions: Tensor) -> Any:
        """Return what `project` needs of positions (R, N) int64 counted without padding; computed once a drop."""
        ...

    def project(self, layer: int, hidden: Tensor, places: Any, readers: Tensor | None = None) -> Projection:
        """Return queries, keys and values of hidden (R, N, C) at `places`.

        `readers` (M,) int64 names the positions, by index into N, whose queries are wanted; None for all.
        """
        ...

    def mix(self, layer: int, hidden: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output (R, N, C) from its input and the attention's result (R, N, H, D)."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (R, N, V) of the tokens at `positions + logit_shift`."""
        ...


class Cache(Protocol):
    """The memory of a run. Allocated once, written in place.

    A step goes through the layers in ascending order and calls each layer's methods together; what `update` returned may
    be overwritten at the next layer. A cache that holds more than memory, such as files or threads, may have a method
    `close()` as well: the engine calls it when it drops the cache. It has to bear a second call, and to free all that it
    holds when it is collected unclosed.
    """

    def reset(self) -> None:
        """Forget everything."""
        ...

    def update(self, write: CacheWrite) -> KeyValue:
        """Write the positions' keys and values, and return all that attention reads."""
        ...

    def recall(self, layer: int, site: Site, positions: Tensor) -> Tensor:
        """Return (R, N, F), the tensor at `site` when each position last survived `layer`."""
        ...

    def remember(self, layer: int, positions: Tensor, x: Tensor) -> None:
        """Store x (R, N, F) as what the next comparison at a hidden or query site is made against."""
        ...


class CacheStore(Protocol):
    """Where keys, values and remembered tensors live, and which of them attention reads."""

    @property
    def persistent(self) -> bool:
        """Whether a position that is not computed can still be attended to."""
        ...

    def problems(self, shape: CacheShape) -> list[str]:
        """Return why this store cannot serve; empty if it can."""
        ...

    def phase(self, step_in_block: int) -> Phase:
        """Return what the store does at a step; a SELECT step is always a refresh. Host integers only."""
        ...

    def memory(self, shape: CacheShape) -> Memory:
        """Return what `allocate` would take at most. Allocates nothing, and answers for a shape that has problems too."""
        ...

    def allocate(self, shape: CacheShape) -> Cache:
        """Return an empty cache."""
        ...


class TextCodec(Protocol):
    """Text to tokens and back."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: end of text, end of turn."""
        ...

    @property
    def has_chat(self) -> bool:
        """Whether the checkpoint brings a chat template."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a plain text."""
        ...

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a conversation, up to where the assistant's answer begins."""
        ...

    def decode(self, ids: Sequence[int], keep_special: bool = False) -> str:
        """Return the text of tokens."""
        ...


class ModelFamily(Protocol):
    """How to recognise, describe and load the checkpoints of one `model_type`."""

    @property
    def checkpoints(self) -> Mapping[str, Path]:
        """Checkpoints that ship with the plugin, by the name that `load_model` takes."""
        ...

    def spec(self, config: Mapping[str, Any]) -> ModelSpec:
        """Return the geometry from a config.json; refuse by name what is not implemented."""
        ...

    @property
    def geometries(self) -> Mapping[str, Mapping[str, Any]]:
        """The config.json of well-known checkpoints by a short name, for models of that size with random weights."""
        ...

    def load(self, folder: Path, config: Mapping[str, Any], plan: LoadPlan) -> ModelAdapter:
        """Return the model of a plan with the weights of a checkpoint folder; refuse what the plan asks for in vain.

        Where the plan has a seed, the weights are random and the folder is not read.
        """
        ...

    def weight_bytes(self, config: Mapping[str, Any], plan: LoadPlan) -> int:
        """Return what the weights of a plan take, on all devices together; nothing is read."""
        ...

    def from_module(self, module: Any, config: Mapping[str, Any]) -> ModelAdapter:
        """Return a model that computes with the weights of a loaded torch module, copying none of them."""
        ...

    def codec(self, source: Any, spec: ModelSpec) -> TextCodec:
        """Return the tokenizer and chat template of a checkpoint folder (a Path), or of a tokenizer of transformers."""
        ...


class Suite(Protocol):
    """Problems to measure quality on."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that suit the problems, such as gen_length; what a user gives goes over them."""
        ...

    def problems(self) -> Sequence[Problem]:
        """Return all problems, always the same."""
        ...

    def correct(self, problem: Problem, answer: str) -> bool:
        """Return whether what the model said is right."""
        ...


class StepObserver(Protocol):
    """Watches a run from outside the step. May read the device; costs nothing when absent."""

    def start(self, tokens: Tensor, spec: ModelSpec) -> None:
        """Take the canvas (B, L) before the first step."""
        ...

    def step(self, record: StepRecord) -> None:
        """Take one step's record."""
        ...

    def end(self) -> None:
        """The run is over."""
        ...
