"""Progress where no terminal can redraw it: a line at once, then every half a minute, none at the end."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from esdllm.cli import progress
from esdllm.cli.progress import CountingBar, Pace, left


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def lines(
    clock: Clock, seconds: float, *, at_once: bool = True, terminal: bool = False, dumb: bool = False
) -> list[str]:
    """What is printed while two things are counted to 5, each count after so many seconds."""
    console = Console(
        file=io.StringIO(), force_terminal=terminal, width=40, _environ={"TERM": "dumb" if dumb else "xterm"}
    )
    with CountingBar(console, at_once) as bar:
        tasks = [bar.add_task(f"[{name}]", total=5) for name in "ab"]
        for _ in range(5):
            for task in tasks:
                clock.now += seconds
                bar.advance(task)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_short_run_is_one_line_at_its_beginning(clock: Clock) -> None:
    assert lines(clock, 1.0) == ["[a]: 1 of 5, [b]: 0 of 5"]


def test_a_run_that_need_not_speak_at_once_says_nothing_if_it_is_short(clock: Clock) -> None:
    assert lines(clock, 1.0, at_once=False) == []


def test_a_long_run_is_told_every_half_a_minute_with_what_is_left_by_what_was_done(clock: Clock) -> None:
    assert lines(clock, 12.0) == [
        "[a]: 1 of 5, [b]: 0 of 5",
        "[a]: 2 of 5, [b]: 2 of 5, about 1 min left",
        "[a]: 4 of 5, [b]: 3 of 5, about 36 s left",
    ]


def test_slow_counts_are_a_line_each_but_the_last(clock: Clock) -> None:
    told = lines(clock, 600.0)
    assert len(told) == 9
    assert told[-1] == "[a]: 5 of 5, [b]: 4 of 5, about 10 min left"


def test_a_terminal_that_cannot_redraw_is_told_in_lines_too(clock: Clock) -> None:
    assert lines(clock, 1.0, terminal=True, dumb=True) == ["[a]: 1 of 5, [b]: 0 of 5"]


def test_a_terminal_shows_a_bar_and_no_line(clock: Clock) -> None:
    assert not any("1 of 5, [b]" in line for line in lines(clock, 600.0, terminal=True))


def test_a_count_may_be_unknown_or_none(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with CountingBar(console) as bar:
        bar.advance(bar.add_task("nothing", total=0), 0)
        bar.advance(bar.add_task("unknown", total=None))
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_a_pace_counts_from_what_was_printed(clock: Clock) -> None:
    pace = Pace()
    assert pace.due()
    clock.now += Pace.seconds - 1
    assert not pace.due()
    clock.now += 1
    assert pace.due()
    assert not pace.due()


@pytest.mark.parametrize(
    ("gone", "before", "share", "told"),
    [
        (10, 0.0, 0.5, ", about 10 s left"),
        (300, 0.25, 0.5, ", about 10 min left"),
        (10, 0.5, 0.5, ""),
        (0, 0.0, 0.0, ""),
    ],
)
def test_what_is_left_goes_by_what_this_run_did(
    clock: Clock, gone: float, before: float, share: float, told: str
) -> None:
    assert left(clock.now - gone, before, share) == told
