"""Texts before which an answer ends, found while the answer still grows."""

from __future__ import annotations

import attrs
from attrs import validators

from esdllm.errors import InputError

__all__ = ["StopStrings"]


def _texts(_: object, __: object, value: tuple[str, ...]) -> None:
    if not all(isinstance(each, str) and each for each in value):
        raise InputError(f"stop = {list(value)!r:.80}; give texts that are not empty")


@attrs.frozen
class StopStrings:
    """Where a text ends: before that of the texts which is complete first, of those complete at one place before the longest.

    Whether one is complete does not depend on what follows, so a text that grows ends where the whole text ends.
    """

    texts: tuple[str, ...] = attrs.field(default=(), validator=[validators.instance_of(tuple), _texts])

    def cut(self, text: str) -> int | None:
        """Return where a text ends; None if none of them is in it."""
        found = [(at + len(stop), at) for stop in self.texts if (at := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    def certain(self, text: str) -> int:
        """Return how much of the beginning of a text without any of them stands, however it goes on."""
        held = (n for stop in self.texts for n in range(1, len(stop)) if text.endswith(stop[:n]))
        return len(text) - max(held, default=0)
