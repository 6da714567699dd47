"""What readers of recorded runs share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from esdllm.testing.conformance.greedy import Greedy
from esdllm.testing.conformance.result import NotRun

__all__ = ["Reader", "Recorded", "behind", "strict"]

Recorded = Mapping[str, Any]
"""A case of cases.json."""

Reader = Callable[[Recorded, str], Greedy | NotRun]
"""Reads a case; the second argument is what a user tells beside the family's name, such as ",mask_token_id=158"."""


def strict(reader: Reader, *read: str, **fixed: Any) -> Reader:
    """Return a reader of cases whose settings are those that it `read`s, and others at the one value that they have here."""

    def checked(case: Recorded, told: str) -> Greedy | NotRun:
        for name, value in case["settings"].items():
            if name not in read and (name not in fixed or fixed[name] != value):
                return NotRun(f"{name} = {value!r}: no procedure here has this setting")
        return reader(case, told)

    return checked


def behind(sequence: Sequence[int], prompt: Sequence[int], mask: int, stops: Collection[int] = ()) -> list[int]:
    """Return what follows a prompt, up to the masks that are left behind a stop, and up to the first of `stops`."""
    found = list(sequence[len(prompt) :])
    while found and found[-1] == mask:
        found.pop()
    end = next((at for at, token in enumerate(found, 1) if token in stops), len(found))
    return found[:end]
