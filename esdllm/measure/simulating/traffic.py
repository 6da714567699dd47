"""Who asks when, and for how much: arrivals by rate, in bursts, by people who wait for their answers, or all at once."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import NamedTuple, Protocol

import attrs

from esdllm.errors import InputError

__all__ = ["Arrivals", "Bursts", "ClosedLoop", "Demand", "Lengths", "Poisson"]


class Demand(NamedTuple):
    """A request, as far as its time and its lengths go."""

    number: int
    at: float
    """seconds"""
    prompt: int
    """tokens"""
    answer: int
    """tokens"""


@attrs.frozen
class Lengths:
    """Whole numbers from `least` to `most`, each multiple of `multiple` as likely as any other."""

    least: int
    most: int
    multiple: int = 16

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """Return the lengths that a text tells: "64", "16:256" or "16:256:8", the last number the multiple.

        Raises:
            InputError: it tells none.
        """
        parts = text.split(":")
        numbers = [int(part) for part in parts if part.isdecimal()]
        if len(numbers) == len(parts) <= 3:
            found = cls(numbers[0], numbers[min(1, len(numbers) - 1)], numbers[2] if len(numbers) == 3 else 16)
            if found.least > 0 and found.multiple > 0 and found.values:
                return found
        raise InputError(f"lengths {text!r}; give a number, or least:most, or least:most:multiple, such as 16:256:16")

    @property
    def values(self) -> tuple[int, ...]:
        """All lengths there are, ascending."""
        if self.least == self.most:
            return (self.least,)
        return tuple(range(-(-self.least // self.multiple) * self.multiple, self.most + 1, self.multiple))

    def draw(self, chance: Random) -> int:
        """Return one of them."""
        return chance.choice(self.values)


class Arrivals(Protocol):
    """When requests come. A frozen attrs class, whose fields say how many."""

    def times(self, chance: Random) -> Iterator[float]:
        """Yield the seconds at which requests come, never falling; those that come when others are done are not among them."""
        ...

    @property
    def again(self) -> bool:
        """Whether whoever is done asks again at once."""
        ...


@attrs.frozen
class Poisson:
    """So many requests a second on average, each at a time of its own."""

    rate: float
    again = False

    def times(self, chance: Random) -> Iterator[float]:
        """Yield times whose distances are exponential."""
        now = 0.0
        while True:
            now += chance.expovariate(self.rate)
            yield now


@attrs.frozen
class Bursts:
    """So many requests a second on average, `size` of them at once, at times of their own."""

    rate: float
    size: int
    again = False

    def times(self, chance: Random) -> Iterator[float]:
        """Yield each time `size` times."""
        for at in Poisson(self.rate / self.size).times(chance):
            yield from [at] * self.size


@attrs.frozen
class ClosedLoop:
    """So many people, each of whom asks again when the answer is there."""

    people: int
    again = True

    def times(self, chance: Random) -> Iterator[float]:
        """Yield the beginning, for each."""
        yield from [0.0] * self.people
