"""What plugins receive and return.

Views are NamedTuples, so that they can grow without breaking a plugin, and so that a compiled step can make them.

Shapes: B prompts, R rows of the model's batch (B, or 2 B under guidance), N positions, L canvas, K keys, H heads,
G key-value heads, D head dimension, C hidden, V vocabulary, F features of a scored tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import attrs
import torch
from torch import Tensor

from esdllm.plan import Block, Moment, Phase, StepPlan

__all__ = [
    "BlockView",
    "CacheShape",
    "CacheWrite",
    "Candidates",
    "ImportanceView",
    "KeyValue",
    "Memory",
    "Message",
    "ModelSpec",
    "Preset",
    "Problem",
    "Projection",
    "SampleView",
    "Site",
    "StepRecord",
    "UnmaskingView",
]

Site = Literal["hidden", "query", "key", "value"]
"""The tensor whose variation is scored: a layer's output, or its query, key or value after RoPE."""

Message = Mapping[Literal["role", "content"], str]
"""One turn of a conversation."""


class ImportanceView(NamedTuple):
    """What a scorer may read of the positions still alive in a layer."""

    layer: int
    """number of the layer, from 0"""
    x: Tensor
    """(R, N, F) the tensor at the scorer's site"""
    last: Tensor
    """(R, N, F) the same when the position last survived this layer; `x` itself if the scorer keeps no history"""
    confidence: Tensor
    """(R, N) float32, of the last time the position had logits; 0 outside the masked positions of the block"""
    undecided: Tensor
    """(R, N) bool, masked positions of the block"""
    committed: Tensor
    """(R, N) bool, committed at the last step, or put back"""
    positions: Tensor
    """(R, N) int64, in no particular order, counted from the row's first real token, so that padding changes nothing"""
    seeds: Tensor
    """(R,) int64, one a row"""
    step: Tensor
    """() int64"""


class SampleView(NamedTuple):
    """What a sampler may read."""

    logits: Tensor
    """(B, N, V) float32"""
    seeds: Tensor
    """(B,) int64, one a row"""
    step: Tensor
    """() int64"""
    positions: Tensor
    """(B, N) int64, positions counted from the row's first real token, so that padding changes nothing"""


class Candidates(NamedTuple):
    """What to put at each position, and how sure the model is of it."""

    tokens: Tensor
    """(B, N) int64"""
    confidence: Tensor
    """(B, N) float32, the token's probability under the unperturbed logits"""


class BlockView(NamedTuple):
    """What a schedule of moving blocks may read, in computed positions."""

    first: Tensor
    """(B,) int64, each row's first undecided position; L if it has none"""
    undecided: Tensor
    """(B, L) bool"""
    begin: int
    """the first position that any row had to decide"""
    stop: int
    """one beyond the last"""
    length: int
    """M, positions of a block"""


class UnmaskingView(NamedTuple):
    """What an unmasking policy may read; every tensor is (B, N, ...), ascending in position, where not said otherwise."""

    logits: Tensor
    """(B, N, V) float32"""
    tokens: Tensor
    """int64, the candidates"""
    confidence: Tensor
    """float32, of the candidates"""
    eligible: Tensor
    """bool, positions that may be committed now"""
    positions: Tensor
    """int64, counted from the row's first real token"""
    previous_tokens: Tensor
    """int64, the candidates when the position last had logits; -1 if never"""
    previous_confidence: Tensor
    """float32, their confidence; 0 if never"""
    quota: Tensor
    """(B,) int64, the planned number; meaningless where `counts` returned None"""
    step: Tensor
    """() int64"""
    seeds: Tensor
    """(B,) int64"""
    columns: Tensor
    """int64, the same positions counted with padding: indices into `undecided`"""
    undecided: Tensor
    """(B, L) bool, every masked position of the canvas, those without logits too"""
    memory: Tensor | None = None
    """(B, N, M) float32, what the policy remembers of each position; None if it remembers nothing"""
    held: Tensor | None = None
    """int64, the tokens that stand there now, the mask's id where undecided; None unless the policy may revoke"""
    revocable: Tensor | None = None
    """bool, decided in this run, in the block, and not yet put back as often as may be; None unless the policy may revoke"""


@attrs.frozen
class ModelSpec:
    """What the runtime knows of a model before its weights are read."""

    family: str
    """name of the model family"""
    n_layers: int
    """transformer layers"""
    hidden: int
    """C, features of a position between layers"""
    n_heads: int
    """H, query heads"""
    n_kv_heads: int
    """G, key and value heads"""
    head_dim: int
    """D, features of a head"""
    vocab: int
    """V, rows of the embedding and of the logits"""
    context: int
    """positions that the model was made for"""
    mask_id: int
    """id of the mask token"""
    eos_id: int
    """id of the end-of-text token, which pads too"""
    logit_shift: int = 0
    """s: logits at position i predict the token at i + s"""
    intermediate: int = 0
    """features inside the feed-forward, which predictions of memory read; 0 if not told"""
    remembers_forbidden: bool = False
    """whether importance goes on reading the confidence of an end-of-text that `delay_eos` forbids (ES-dLLM's code for
    Dream) or counts it as 0 (for LLaDA)"""


class Projection(NamedTuple):
    """Queries (R, M, H, D), keys and values (R, N, G, D), after RoPE."""

    queries: Tensor
    """(R, M, H, D), of the positions that attend"""
    keys: Tensor
    """(R, N, G, D)"""
    values: Tensor
    """(R, N, G, D)"""


@attrs.frozen
class CacheShape:
    """What a cache store is asked to hold."""

    rows: int
    """R"""
    length: int
    """L, columns of the canvas"""
    n_layers: int
    """transformer layers"""
    n_kv_heads: int
    """G"""
    head_dim: int
    """D"""
    features: int
    """F of the remembered tensors"""
    remembered: tuple[int, ...]
    """layers at which the scored tensor is remembered; none for the key and value sites, which are cached anyway"""
    dtype: torch.dtype
    """of keys, values and remembered tensors"""
    device: torch.device
    """where to allocate"""
    compiled: bool = False
    """whether the cache is called inside a compiled step, where only tensor operations can be"""


@attrs.frozen
class Memory:
    """What a cache takes at most, in bytes: what it holds, and the whole layers that a call copies for attention to read.

    Not counted is what grows with the positions that a call writes: it is of the step's size, as activations are.
    """

    device: int
    """where the model computes"""
    host: int = 0
    """in the host's memory, beside `device`; where the model computes on the host, the two add up"""
    disk: int = 0
    """in files"""


class CacheWrite(NamedTuple):
    """One layer's keys and values of the positions alive."""

    layer: int
    """number of the layer, from 0"""
    positions: Tensor
    """(R, N) int64; a position that occurs twice comes with equal rows"""
    queries: Tensor
    """(R, M, H, D)"""
    keys: Tensor
    """(R, N, G, D)"""
    values: Tensor
    """(R, N, G, D)"""
    bias: Tensor | None
    """(R, L) 0 at tokens, -inf at padding and at what is pruned; None if all is read"""
    block: Tensor
    """(R, M) int64, the block's positions"""
    phase: Phase
    """what the store does beside writing"""
    padding: tuple[int, ...] | None = None
    """R host integers, the columns at the head of each row that are padding, and all that `bias` hides; None if it hides
    nothing, or more"""


class KeyValue(NamedTuple):
    """What attention reads: keys and values (R, K, G, D), and which of them it leaves out."""

    keys: Tensor
    """(R, K, G, D)"""
    values: Tensor
    """(R, K, G, D)"""
    bias: Tensor | None = None
    """(R, K), of the queries' dtype, added to the logits of each key: 0 or -inf; None if all keys are read"""
    padding: tuple[int, ...] | None = None
    """R host integers, the first keys of each row, which alone are left out; None where `bias` says more, or nothing"""


@attrs.frozen
class Preset:
    """A named configuration: one line on what it is, and the settings it makes."""

    summary: str
    """one line, as `esdllm plugins` prints it"""
    settings: Mapping[str, Any]
    """what `DecodeConfig.from_dict` takes; at least a component for every section"""


@attrs.frozen
class Problem:
    """A question with one right answer."""

    prompt: str
    """what the model is asked"""
    answer: str
    """what it should say"""
    task: str = "all"
    """kind of problem, for which a score is given by itself"""
    split: str = ""
    """"tune" for problems that settings may be chosen by, "test" for those that scores are taken on; empty if not said"""


class StepRecord(NamedTuple):
    """What an observer gets after each step. Tensors are live: copy what must outlast the call."""

    moment: Moment
    """when the step happened"""
    block: Block
    """the block being decoded, in computed positions"""
    plan: StepPlan
    """what the step computed"""
    tokens: Tensor
    """(B, L) int64"""
    committed: Tensor
    """(B, L) bool, columns whose token was committed at this step"""
    confidence: Tensor
    """(B, L) float32, by computed position"""
    revoked: Tensor | None = None
    """(B, L) bool, columns that became masks again at this step; None if the policy never revokes"""
    padding: tuple[int, ...] | None = None
    """for every row, the columns of padding at its head; None if nothing is padded"""
    guess: Tensor | None = None
    """(B, L) int64, by column: the candidate when its position last had logits; -1 if never"""
    computed: Tensor | None = None
    """(B, L) bool, columns whose token had logits at this step; None if the run does not tell"""
