"""Whole runs against a table of logits: what each forward is given, and how the run ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from esdllm.checkpoints.loading import Model
from esdllm.errors import EsdllmError
from esdllm.runtime.engine import Engine
from esdllm.testing.conformance.case import Ground
from esdllm.testing.conformance.result import first_difference
from esdllm.testing.conformance.rules.components import Recorded, decoding
from esdllm.views import ModelSpec, Projection

__all__ = ["run_table"]

_PROMPT = 4  # positions, the same in every case


def run_table(ground: Ground, recorded: Recorded, tensors: Path, case: Recorded) -> str | None:
    """Return what differs from the forwards of a run, or from its end; None if nothing does."""
    with safe_open(tensors, "pt") as file:
        table = [file.get_tensor(f"{case['id']}.logits.{number}") for number in range(len(case["ids"]))]
    mask, prompts = recorded["mask_token"], [row[:_PROMPT] for row in case["ids"][0]]
    model = _Table(table, mask, recorded["eos_token"])
    try:
        config = ground.configured("vanilla", decoding(recorded["rule"], case["settings"]))
        found = Engine.build(Model(model), config, ground.catalogue).generate(prompts).tokens
    except EsdllmError as error:
        return f"{type(error).__name__}: {error}"
    for number, (given, expected) in enumerate(zip(model.given, case["ids"], strict=False)):
        if given != expected:
            return f"forward {number}: {first_difference(torch.tensor(given), torch.tensor(expected))}"
    out = torch.tensor(case["out"]["ids"] if isinstance(case["out"], dict) else case["out"])
    left = out == mask  # where a loop that an end of text stops leaves masks, which here are decided
    if not torch.equal(found.masked_fill(left, mask), out):
        return first_difference(found, out)
    if len(model.given) != len(case["ids"]) and not left.any():
        return f"equal tokens, but {len(model.given)} forwards where {len(case['ids'])} are expected"
    return None


class _Table:
    """A model of one layer whose k-th forward over a whole canvas gives the k-th logits of a table, whatever it is asked."""

    def __init__(self, table: Sequence[Tensor], mask: int, eos: int) -> None:
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.spec = ModelSpec("table", 1, 1, 1, 1, 1, table[0].shape[-1], 4096, mask, eos)
        self.given: list[list[list[int]]] = []
        self._table = table

    def embed(self, tokens: Tensor) -> Tensor:
        """Note what is given, and return where each position stands."""
        self.given.append(tokens.tolist())
        return torch.arange(tokens.shape[1]).expand(len(tokens), -1).unsqueeze(-1).float()

    def encode(self, positions: Tensor) -> Any:
        """Return nothing."""
        return

    def project(self, layer: int, hidden: Tensor, places: Any, readers: Tensor | None = None) -> Projection:
        """Return zeros, of which nothing is read."""
        nothing = torch.zeros(*hidden.shape[:2], 1, 1)
        return Projection(nothing if readers is None else nothing[:, readers], nothing, nothing)

    def mix(self, layer: int, hidden: Tensor, attended: Tensor) -> Tensor:
        """Return what came in."""
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return this forward's logits; behind the table's end its last."""
        logits = self._table[min(len(self.given), len(self._table)) - 1]
        places = hidden.long().expand(-1, -1, logits.shape[-1])
        return logits.gather(1, places)
