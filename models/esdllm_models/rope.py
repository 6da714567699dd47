"""Rotary position embedding (Su et al., arXiv 2104.09864), and the ways in which checkpoints stretch it to longer texts.

A pair of features of a head is turned by an angle that grows with the position; each pair has a frequency of its own. Where a
checkpoint was made for longer texts than it was trained on first, the slow pairs are slowed down further.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor

from esdllm import CheckpointError
from esdllm.checkpoints.reading import factor, need, neutral, refuse, size
from esdllm.errors import brief

__all__ = ["KINDS", "Interpolated", "Llama3", "QueryScaling", "Rope", "Stretch", "Yarn", "rope_of"]


class Stretch(Protocol):
    """A way to stretch RoPE."""

    @property
    def attention_factor(self) -> float:
        """What cosine and sine are multiplied with, and so queries and keys."""
        ...

    def stretched(self, frequencies: Tensor, rope: Rope) -> Tensor:
        """Return RoPE's frequencies (D' / 2,) float32, slowed down."""
        ...


@attrs.frozen
class QueryScaling:
    """Queries that grow with the logarithm of their position, as in Llama 4 and Ministral 3."""

    beta: float
    original: int
    """positions up to which they do not"""

    def factors(self, positions: Tensor) -> Tensor:
        """Return what the queries of positions (...) are multiplied with, (...) float32."""
        return 1 + self.beta * torch.log1p((positions / self.original).floor().float())


@attrs.frozen
class Rope:
    """How a model turns queries and keys."""

    theta: float
    """the base of the frequencies"""
    dim: int
    """D', features of a head that are turned, its first ones; the others are left as they are"""
    stretch: Stretch | None = None
    queries: QueryScaling | None = None
    """how queries are scaled by their position; None if they are not"""

    @property
    def attention_factor(self) -> float:
        """What cosine and sine are multiplied with."""
        return 1.0 if self.stretch is None else self.stretch.attention_factor

    def frequencies(self, device: torch.device | None = None) -> Tensor:
        """Return the angle by which each pair of features turns a position, (D' / 2,) float32 radians."""
        powers = torch.arange(0, self.dim, 2, dtype=torch.float32, device=device) / self.dim
        plain: Tensor = self.theta**-powers
        return plain if self.stretch is None else self.stretch.stretched(plain, self)


@attrs.frozen
class Interpolated:
    """All pairs are slowed down alike (Chen et al., arXiv 2306.15595)."""

    factor: float
    attention_factor = 1.0

    def stretched(self, frequencies: Tensor, rope: Rope) -> Tensor:
        """Return the frequencies over the factor."""
        return frequencies / self.factor


@attrs.frozen
class Llama3:
    """Slow pairs are slowed down, quick ones are not, and between them there is a ramp over the wavelength, as in Llama 3.1."""

    factor: float
    low: float
    """turns within the original length, below which a pair is slow"""
    high: float
    """turns from which it is quick"""
    original: int
    """positions of the texts that were trained on first"""
    attention_factor = 1.0

    def stretched(self, frequencies: Tensor, rope: Rope) -> Tensor:
        """Return the frequencies, the slow ones over the factor."""
        turns = self.original * frequencies / (2 * math.pi)
        quick = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return quick * frequencies + (1 - quick) * frequencies / self.factor


@attrs.frozen
class Yarn:
    """Slow pairs are slowed down, quick ones are not, with a ramp over the pairs between them (Peng et al., arXiv 2309.00071)."""

    factor: float
    original: int
    """positions of the texts that were trained on first"""
    fast: float = 32.0
    """turns within the original length, above which a pair is quick"""
    slow: float = 1.0
    """turns below which it is slow"""
    attention_factor: float = 1.0
    truncate: bool = True
    """whether the ramp begins and ends at whole pairs"""

    def stretched(self, frequencies: Tensor, rope: Rope) -> Tensor:
        """Return the frequencies, the slow ones over the factor."""
        first, last = (self._pair(turns, rope) for turns in (self.fast, self.slow))
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, rope.dim - 1)
        last += 0.001 if first == last else 0  # a step in place of a ramp
        pairs = torch.arange(len(frequencies), dtype=torch.float32, device=frequencies.device)
        slow = ((pairs - first) / (last - first)).clamp(0, 1)
        return slow * frequencies / self.factor + (1 - slow) * frequencies

    def _pair(self, turns: float, rope: Rope) -> float:
        """Return the pair, counted from the quickest, that makes so many turns within the original length."""
        return rope.dim * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))


_ORIGINAL = "original_max_position_embeddings"
_KEYS: Mapping[str, Collection[str]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
    "yarn": ("factor", _ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
}
KINDS = tuple(_KEYS)
"""the values of `rope_type` that are implemented"""


def rope_of(
    config: Mapping[str, Any],
    head_dim: int,
    kinds: Collection[str] = KINDS,
    partial: bool = False,
    scaled: bool = False,
) -> Rope:
    """Return RoPE as a config.json tells it: in `rope_theta` and `rope_scaling`, or in transformers 5's `rope_parameters`.

    The latter goes before. `head_dim` is D. `kinds` of RoPE the family's own code knows, of KINDS; `partial` says whether it
    reads `partial_rotary_factor`, `scaled` whether it reads `llama_4_scaling_beta`.

    Raises:
        CheckpointError: a kind that is not implemented, a key that it does not read, or a value that is out of range.
    """
    told = {key: config[key] for key in ("rope_theta", "partial_rotary_factor") if config.get(key) is not None}
    for key in ("rope_scaling", "rope_parameters"):
        if config.get(key):
            told |= _named(key, config[key], kinds, scaled)
    share = factor(told, "partial_rotary_factor") if "partial_rotary_factor" in told else 1.0
    if not partial:
        refuse({"partial_rotary_factor": share}, {"partial_rotary_factor": (1.0,)})
    dim = int(head_dim * share)
    if not 2 <= dim <= head_dim or dim % 2:
        raise CheckpointError(
            f"config.json: partial_rotary_factor = {share:g} turns {dim} of a head's {head_dim} features; an even number of "
            "them, and at least 2, can be turned"
        )
    return Rope(factor(told, "rope_theta"), dim, _stretch(told, config), _query_scaling(told, config))


def _named(key: str, told: Any, kinds: Collection[str], scaled: bool) -> Mapping[str, Any]:
    """Return what a key says of RoPE, if it says no more than its kind reads."""
    if not isinstance(told, Mapping):
        raise CheckpointError(f"config.json: {key} = {brief(told)}, where an object is needed")
    for name in ("type", "rope_type"):
        refuse({f"{key}: {name}": told.get(name, "default")}, {f"{key}: {name}": tuple(kinds)})
    kind = told.get("rope_type", told.get("type", "default"))
    read = {"type", "rope_type", "rope_theta", "partial_rotary_factor", *_KEYS[kind]}
    read |= {"llama_4_scaling_beta", _ORIGINAL} if scaled else set()
    for name, value in told.items():
        if name not in read and not neutral(value):
            raise CheckpointError(f"config.json: {key}: {name} = {brief(value)} is not implemented")
    return {**{name: value for name, value in told.items() if value is not None}, "rope_type": kind}


def _stretch(told: Mapping[str, Any], config: Mapping[str, Any]) -> Stretch | None:
    kind = told.get("rope_type", "default")
    if kind == "linear":
        return Interpolated(factor(told, "factor"))
    if kind == "llama3":
        low, high = factor(told, "low_freq_factor"), factor(told, "high_freq_factor")
        if low >= high:
            raise CheckpointError(f"config.json: low_freq_factor = {low:g} must be below high_freq_factor = {high:g}")
        return Llama3(factor(told, "factor"), low, high, _original(told, config))
    return _yarn(told, config) if kind == "yarn" else None


def _yarn(told: Mapping[str, Any], config: Mapping[str, Any]) -> Yarn:
    original = _original(told, config)
    ratio = size(config, "max_position_embeddings") / original if told.get("factor") is None else factor(told, "factor")
    if factor(told, "rope_theta") <= 1 or ratio < 1:
        raise CheckpointError(
            f"config.json: yarn needs rope_theta above 1 and a factor of at least 1, not {told['rope_theta']} and {ratio:g}"
        )
    fast, slow = _number(told, "beta_fast", 32.0), _number(told, "beta_slow", 1.0)
    if slow > fast:
        raise CheckpointError(f"config.json: beta_slow = {slow:g} must not be above beta_fast = {fast:g}")
    if told.get("attention_factor") is not None:
        attention = factor(told, "attention_factor")
    elif told.get("mscale") and told.get("mscale_all_dim"):
        attention = _mscale(ratio, factor(told, "mscale")) / _mscale(ratio, factor(told, "mscale_all_dim"))
    else:
        attention = _mscale(ratio)
    truncate = need(told, "truncate", bool) if "truncate" in told else True
    return Yarn(ratio, original, fast, slow, attention, truncate)


def _mscale(ratio: float, weight: float = 1.0) -> float:
    """Return what queries and keys grow by where texts are `ratio` times as long (section 3.4 of the paper)."""
    return 0.1 * weight * math.log(ratio) + 1.0


def _query_scaling(told: Mapping[str, Any], config: Mapping[str, Any]) -> QueryScaling | None:
    if not told.get("llama_4_scaling_beta"):
        return None
    return QueryScaling(factor(told, "llama_4_scaling_beta"), _original(told, config))


def _original(told: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """Return the positions of the texts that were trained on first."""
    return size(told, _ORIGINAL) if told.get(_ORIGINAL) is not None else size(config, "max_position_embeddings")


def _number(told: Mapping[str, Any], key: str, default: float) -> float:
    return factor(told, key) if told.get(key) else default
