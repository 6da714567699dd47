"""A greedy run of a family, as it was recorded and as the public API makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from esdllm.errors import EsdllmError
from esdllm.runtime.engine import Engine
from esdllm.testing.conformance.case import Ground
from esdllm.testing.conformance.result import NotRun
from esdllm.views import ModelSpec, StepRecord

__all__ = ["Greedy", "run_greedy"]


@attrs.frozen(eq=False)
class Greedy:
    """A recorded run, as a reader of its form gives it."""

    family: str
    """of the checkpoint, as `load_model` takes it, such as sdar,block_size=4"""
    preset: str
    """of the family's published procedure"""
    settings: Mapping[str, Any]
    """over the preset"""
    prompts: Sequence[Sequence[int]]
    """of every row; with `infill` the canvas, with masks in one piece"""
    expected: Sequence[Sequence[int]]
    """what follows each prompt; what is decoded behind it is not compared"""
    steps: Sequence[Sequence[int]] | None = None
    """of one row, the positions that each step fills, counted from the row's first token; None where it is not recorded"""
    forwards: int | None = None
    """forward passes; None where they are not recorded, or not counted as here"""
    infill: bool = False
    """whether masks of the prompts are filled in"""


def run_greedy(ground: Ground, folder: Path, greedy: Greedy | NotRun) -> str | None:
    """Return what differs between a recorded run and the same one here; None if nothing does."""
    if isinstance(greedy, NotRun):
        return greedy
    for kind, name in (("model", greedy.family.partition(",")[0]), ("preset", greedy.preset)):
        if name not in ground.catalogue.names(kind):
            return NotRun(f"no plugin here offers the {kind} '{name}'")
    try:
        model = ground.load(folder, greedy.family)
        engine = Engine.build(model, ground.configured(greedy.preset, greedy.settings), ground.catalogue)
        seen = _Filled([len(prompt) for prompt in greedy.prompts])
        prompts = [list(prompt) for prompt in greedy.prompts]
        result = engine.generate(prompts, infill=greedy.infill, observers=[seen])
    except EsdllmError as error:
        return f"{type(error).__name__}: {error}"
    return _difference(greedy, seen, result.tokens, result.forwards)


def _difference(greedy: Greedy, seen: _Filled, tokens: Tensor, forwards: int) -> str | None:
    for row, (expected, found) in enumerate(zip(greedy.expected, seen.generated(tokens), strict=True)):
        if found[: len(expected)] != list(expected):
            at = next(at for at, wanted in enumerate(expected) if found[at : at + 1] != [wanted])
            if seen.saturated[row]:
                return NotRun(_SATURATED)
            token = found[at] if at < len(found) else "none"
            return f"row {row}, token {at} behind the prompt: {token}, where {expected[at]} is expected"
    if greedy.steps is not None:
        wanted = [sorted(step) for step in greedy.steps]
        if seen.steps[: len(wanted)] != wanted:
            pairs = enumerate(zip(seen.steps, wanted, strict=False))
            at, (has, one) = next(
                ((at, pair) for at, pair in pairs if pair[0] != pair[1]), (len(seen.steps), ("no", "a"))
            )
            return f"equal tokens, but step {at} fills {has} position, where {one} is expected"
    if greedy.forwards is not None and forwards != greedy.forwards:
        return f"equal tokens, but {forwards} forwards where {greedy.forwards} are expected"
    return None


_SATURATED = (
    "several positions of a row have confidence 1 in float32, of which a step commits some: there torch.topk chooses among "
    "them, in no order that it promises, and here the leftmost come first"
)


class _Filled:
    """Notes where the rows lie in the canvas, and which positions of the first row each step fills."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths, self._columns, self._mask = lengths, 0, 0
        self._first: list[int] = []
        self._last: list[int] = []
        self.steps: list[list[int]] = []
        self.saturated: list[bool] = []

    def start(self, tokens: Tensor, spec: ModelSpec) -> None:
        """Note where the masks of every row begin and end."""
        masks = [(row == spec.mask_id).nonzero()[:, 0].tolist() for row in tokens]
        self._first, self._last = [row[0] for row in masks], [row[-1] for row in masks]
        self._columns, self._mask = tokens.shape[1], spec.mask_id
        self.saturated = [False] * len(tokens)

    def step(self, record: StepRecord) -> None:
        """Note what was filled."""
        left, columns = record.tokens == self._mask, torch.arange(self._columns, device=record.tokens.device)
        assert record.guess_confidence is not None
        sure = (record.guess_confidence == 1) & (columns >= record.block.start) & (columns < record.block.stop)
        tied = (sure & left).any(1) & (sure & record.committed).any(1)
        self.saturated = [was or now for was, now in zip(self.saturated, tied.tolist(), strict=True)]
        filled = record.committed[0].nonzero()[:, 0].tolist()
        if filled:
            begin = self._first[0] - self._lengths[0]
            self.steps.append([column - begin for column in filled])

    def end(self) -> None:
        """Nothing is left to do."""

    def generated(self, tokens: Tensor) -> list[list[int]]:
        """Return what was decoded in every row, of the result's tokens, which the canvas may have had padding before."""
        room = self._columns - tokens.shape[1]
        spans = zip(tokens.tolist(), self._first, self._last, strict=True)
        return [row[first - room : last + 1 - room] for row, first, last in spans]
