"""Problems to measure quality on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from esdllm.views import Problem

__all__ = ["Suite"]


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
