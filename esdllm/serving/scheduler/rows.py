"""What is known of those who wait for a slot, and of those who wait in one for their step."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

__all__ = ["Queued", "Ready", "Upcoming"]


class Upcoming(NamedTuple):
    """The next step of a row in a slot."""

    form: Hashable
    """rows of equal forms can make their next steps as one"""
    refreshes: bool
    """whether it is a refresh"""
    shared: bool = True
    """whether rows whose canvases are of other lengths could make it too"""


class Ready(NamedTuple):
    """A row in a slot that has a step to make."""

    slot: int
    form: Hashable
    refreshes: bool
    shared: bool
    waited: int
    """steps of others since its last one, or since its admission"""
    admission: int
    """the number of its admission; a smaller one is earlier"""
    columns: int
    """columns of its canvas"""
    refreshed: int | None
    """steps since its last refresh, whoever made them; None if it has made none"""


class Queued(NamedTuple):
    """A request that waits for a slot."""

    number: int
    columns: int
    """columns of the canvas that it will have"""
    deadline: float | None
    """when its time is over; None if never"""
    overtaken: int = 0
    """how many that were offered after it have been admitted before it"""
    held: int = 0
    """steps made while it waited though a slot was free"""
