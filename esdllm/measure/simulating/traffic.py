"""What is asked of machines that are simulated: requests as far as their times and lengths go."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from esdllm.errors import InputError
from esdllm.measure.benchmarking.serving import Lengths

__all__ = ["Demand", "WantedLengths", "asked"]


class WantedLengths(NamedTuple):
    """What a request asks for."""

    prompt: int
    """tokens"""
    answer: int
    """tokens"""


class Demand(NamedTuple):
    """A request that comes."""

    number: int
    at: float
    """seconds"""
    prompt: int
    """tokens"""
    answer: int
    """tokens"""


def asked(count: int, prompts: Lengths, answers: Lengths, seed: int = 0, multiple: int = 16) -> list[WantedLengths]:
    """Return what so many requests ask for, the same for the same seed.

    Lengths are rounded up to a multiple, for each pair of lengths is planned once, unless a distribution has one length alone.

    Raises:
        InputError: there is to be no request, or `multiple` is below 1.
    """
    if count < 1 or multiple < 1:
        raise InputError(f"{count} requests of lengths that are multiples of {multiple}; give at least 1 of both")
    chance = Random(f"asked {seed}")
    return [WantedLengths(_drawn(prompts, chance, multiple), _drawn(answers, chance, multiple)) for _ in range(count)]


def _drawn(lengths: Lengths, chance: Random, multiple: int) -> int:
    length = lengths.draw(chance)
    return length if lengths.low == lengths.high else min(-(-length // multiple) * multiple, lengths.high)
