"""The stages of `gpu.py`: what each is for and how long it may take. What they do is in the modules of this folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Stage(NamedTuple):
    """A stage."""

    module: str
    arguments: Mapping[str, object]
    seconds: float
    """its limit"""


STAGES: Mapping[str, Stage] = {
    "right": Stage("right", {}, 120),
    "fast-8": Stage("fast", {"batch": 8}, 150),
    "fast-1": Stage("fast", {"batch": 1}, 90),
    "where": Stage("where", {"batch": 8}, 90),
    "kernels": Stage("kernels", {}, 90),
    "fast-32": Stage("fast", {"batch": 32}, 150),
    "breadth": Stage("breadth", {}, 90),
}
"""By name, most valuable first."""
