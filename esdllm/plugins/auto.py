"""`attention = "auto"`: the first attention backend that can serve, and why not the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from esdllm.config import ComponentConfig
from esdllm.errors import ConfigError, UnavailableError
from esdllm.interfaces import AttentionBackend
from esdllm.plugins.capabilities import attention_problems
from esdllm.plugins.members import has
from esdllm.views import KeyValue, ModelSpec

if TYPE_CHECKING:
    from esdllm.plugins.catalogue import Catalogue

__all__ = ["AUTO", "AttentionChoice", "AutoAttention", "at_defaults", "choose_attention"]

AUTO = "auto"
"""The name that no backend may have: where it stands, one is chosen."""


@attrs.frozen
class AutoAttention:
    """The first backend that can serve, in the order of their ranks."""

    @property
    def rank(self) -> None:
        """It is not among those to choose from."""
        return

    def problems(self, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[str]:
        """Return that nothing is chosen yet."""
        return ["no backend is chosen yet; Components.serving chooses one"]

    def attend(self, queries: Tensor, read: KeyValue) -> Tensor:
        """Never called: `Components.serving` puts the backend chosen in its place."""
        raise NotImplementedError("no attention backend is chosen yet; Components.serving chooses one")


@attrs.frozen
class AttentionChoice:
    """What `auto` chose."""

    name: str
    """the backend that serves"""
    backend: AttentionBackend = attrs.field(repr=False)
    """itself"""
    others: Mapping[str, tuple[str, ...]]
    """the others by name, in the order in which they come, and why each was not taken"""

    def lines(self) -> list[str]:
        """Return the choice as text, the others one per line."""
        return [f"auto: {self.name}", *(f"not {name}: {'; '.join(why)}" for name, why in self.others.items())]


def choose_attention(
    catalogue: Catalogue, spec: ModelSpec, device: torch.device, dtype: torch.dtype
) -> AttentionChoice:
    """Return the first backend that can serve a model: lowest rank first, equal ranks by name, each at its defaults.

    Raises:
        UnavailableError: none can; gives all reasons of all.
    """
    chosen: tuple[str, AttentionBackend] | None = None
    others: dict[str, tuple[str, ...]] = {}
    ranked, left_out = _candidates(catalogue)
    for name, backend in ranked:
        problems = attention_problems(backend, spec, device, dtype)
        if problems:
            others[name] = tuple(problems)
        elif chosen is None:
            chosen = name, backend
        else:
            others[name] = (f"{chosen[0]} comes first",)
    if chosen is None:
        raise UnavailableError(f"attention '{AUTO}': no backend can serve here: {_reasons({**others, **left_out})}")
    return AttentionChoice(*chosen, {**others, **left_out})


def at_defaults(catalogue: Catalogue) -> dict[str, AttentionBackend | str]:
    """Return each backend at its defaults, by name; of one with an option that has none, the error's text."""
    return {name: _at_defaults(catalogue, name) for name in catalogue.names("attention")}


def _at_defaults(catalogue: Catalogue, name: str) -> AttentionBackend | str:
    try:
        backend: AttentionBackend = catalogue.build("attention", ComponentConfig(name))
    except ConfigError as error:
        return str(error)
    return backend


def _candidates(catalogue: Catalogue) -> tuple[list[tuple[str, AttentionBackend]], dict[str, tuple[str, ...]]]:
    """Return the backends in their order, and why the others do not take part."""
    ranked: list[tuple[int, str, AttentionBackend]] = []
    left_out: dict[str, tuple[str, ...]] = {}
    for name, backend in at_defaults(catalogue).items():
        if isinstance(backend, str):
            left_out[name] = (backend,)
            continue
        rank = backend.rank if has(backend, "rank") else None  # a plugin made before there were ranks has none
        if rank is None:
            left_out[name] = ("it serves by name only",)
        else:
            ranked.append((rank, name, backend))
    return [(name, backend) for _, name, backend in sorted(ranked, key=lambda one: one[:2])], left_out


def _reasons(others: Mapping[str, Iterable[str]]) -> str:
    return " | ".join(f"{name}: {'; '.join(why)}" for name, why in others.items()) or "there is none"
