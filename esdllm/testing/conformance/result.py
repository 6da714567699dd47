"""What recorded cases gave."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from torch import Tensor

__all__ = ["Conformance", "NotRun", "first_difference", "worst_difference"]

_TOLERANCE = 1e-4  # of logits; two implementations of one model differ by less than a third of it


class NotRun(str):
    """Why a case was not run, in the place of what differs."""

    __slots__ = ()


@attrs.frozen
class Conformance:
    """What a folder's cases gave."""

    cases: Mapping[str, str | None]
    """for every case's name None, or what differs, or why it was not run (`NotRun`)"""

    @property
    def failures(self) -> dict[str, str]:
        """The cases that differ."""
        return {name: text for name, text in self.cases.items() if text is not None and not isinstance(text, NotRun)}

    @property
    def not_run(self) -> dict[str, str]:
        """The cases that could not be run, and why."""
        return {name: text for name, text in self.cases.items() if isinstance(text, NotRun)}

    def __str__(self) -> str:
        failed, left = len(self.failures), len(self.not_run)
        passed = f"{len(self.cases) - failed - left} passed, {failed} failed"
        return f"{passed}, {left} not run" if left else passed


def worst_difference(found: Tensor, expected: Tensor) -> str | None:
    """Return by how much logits of one shape differ; None where that is little enough."""
    if found.shape != expected.shape:
        return f"the logits are {tuple(found.shape)}, where {tuple(expected.shape)} are expected"
    worst = float((found - expected).abs().max())
    return None if worst <= _TOLERANCE else f"logits differ by up to {worst:.3g}, where {_TOLERANCE:g} is allowed"


def first_difference(found: Tensor, expected: Tensor) -> str:
    """Return where two canvases that are not equal first differ."""
    if found.shape != expected.shape:
        return f"the canvas is {tuple(found.shape)}, where {tuple(expected.shape)} is expected"
    row, column = (found != expected).nonzero()[0].tolist()
    return f"row {row}, column {column}: token {found[row, column]}, where {expected[row, column]} is expected"
