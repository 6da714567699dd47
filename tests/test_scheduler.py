"""The scheduler: who is admitted, whose step is made, and for how long anybody waits, whatever comes."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sampling import examples

from esdllm.errors import InputError, QueueFullError
from esdllm.serving.scheduler import (
    Admission,
    Alike,
    AtRefreshes,
    InOrder,
    OldestFirst,
    Policy,
    RefreshesTogether,
    Scheduler,
    Upcoming,
    WidestFirst,
)

PATIENCE = st.integers(0, 7)
POLICIES = st.one_of(st.just(OldestFirst()), st.builds(WidestFirst, PATIENCE), st.builds(RefreshesTogether, PATIENCE))
ADMISSIONS = st.one_of(
    st.just(InOrder()), st.builds(AtRefreshes, st.integers(0, 3)), st.builds(Alike, st.integers(0, 3))
)
RANDOM = st.integers(0, 2**32).map(Random)
"""what happens when; of a seed, for what hypothesis draws bit by bit is too tame"""


def running(forms: str, policy: Policy, refreshing: str = "") -> tuple[Scheduler, dict[int, Upcoming]]:
    """Return a scheduler whose slots hold rows of these forms, and what comes next in each."""
    scheduler = Scheduler(slots=len(forms), max_queue=0, policy=policy)
    for slot in range(len(forms)):
        scheduler.offer(slot, columns=8, now=0.0)
        scheduler.admitted(slot, slot)
    return scheduler, {slot: Upcoming(form, form in refreshing) for slot, form in enumerate(forms)}


def steps(scheduler: Scheduler, upcoming: dict[int, Upcoming], count: int) -> list[tuple[int, ...]]:
    """Make steps whose rows keep their forms, and return whose each was."""
    made = []
    for _ in range(count):
        made.append(scheduler.choose(upcoming))
        scheduler.stepped(made[-1])
    return made


def test_whoever_has_waited_longest_goes_with_all_that_can_go_with_it() -> None:
    assert steps(*running("abcb", OldestFirst()), 6) == [(0,), (1, 3), (2,)] * 2


def test_most_rows_go_together_until_one_runs_out_of_patience() -> None:
    assert steps(*running("abb", WidestFirst(2)), 6) == [(1, 2), (1, 2), (0,)] * 2
    assert steps(*running("abb", WidestFirst(0)), 4) == [(0,), (1, 2)] * 2


def test_of_groups_as_wide_the_one_with_the_oldest_row_goes() -> None:
    assert steps(*running("abba", WidestFirst(9)), 3) == [(0, 3), (1, 2), (0, 3)]


def test_of_rows_that_waited_as_long_the_one_that_was_admitted_first_goes() -> None:
    scheduler = Scheduler(slots=3, max_queue=0, policy=OldestFirst())
    for number, slot in enumerate((1, 2, 0)):
        scheduler.offer(number, columns=8, now=0.0)
        scheduler.admitted(number, slot)
    assert steps(scheduler, {slot: Upcoming(slot, False) for slot in range(3)}, 3) == [(1,), (2,), (0,)]


def test_nobody_steps_where_nobody_has_a_step() -> None:
    scheduler, _ = running("ab", OldestFirst())
    assert scheduler.choose({}) == ()


@pytest.mark.parametrize("slots", range(1, 7))
def test_rows_of_as_many_forms_as_slots_wait_for_each_other_and_no_longer(slots: int) -> None:
    scheduler, upcoming = running("abcdef"[:slots], OldestFirst())
    made = steps(scheduler, upcoming, 3 * slots)
    assert made == [(slot,) for slot in range(slots)] * 3
    assert OldestFirst().bound(slots) == slots - 1


@pytest.mark.parametrize("slots", range(3, 7))
@pytest.mark.parametrize("patience", range(2, 9))
def test_two_that_go_together_keep_the_last_waiting_for_as_long_as_the_bound_says(slots: int, patience: int) -> None:
    policy = WidestFirst(patience)
    scheduler, upcoming = running("aa" + "bcde"[: slots - 2], policy)
    made = steps(scheduler, upcoming, policy.bound(slots) + 1)
    assert made.index((slots - 1,)) == policy.bound(slots) == patience + slots - 3


def test_refreshes_wait_for_each_other_until_one_runs_out_of_patience() -> None:
    assert steps(*running("abr", RefreshesTogether(4), "r"), 6) == [(0,), (1,), (0,), (1,), (2,), (0,)]
    assert steps(*running("rsr", RefreshesTogether(4), "rs"), 5) == [*[(0, 2)] * 4, (1,)]
    assert steps(*running("ar", RefreshesTogether(0), "r"), 4) == [(0,), (1,)] * 2


def test_who_has_refreshed_waits_for_who_is_about_to_and_then_they_go_together() -> None:
    scheduler, upcoming = running("rs", RefreshesTogether(9), "rs")
    made = []
    for _ in range(4):
        made += steps(scheduler, upcoming, 1)
        for slot in made[-1]:
            upcoming[slot] = Upcoming("b", False)
    assert made == [(0,), (1,), (0, 1), (0, 1)]


def test_a_row_that_refreshes_waits_for_who_is_behind_and_not_for_who_is_ahead() -> None:
    scheduler, _ = running("rab", RefreshesTogether(9))
    refreshing, calm = Upcoming("r", True), Upcoming("a", False)
    for slots in ((1, 2), (1,), (1,)):  # 1 and 2 refresh, then 1 goes on
        assert scheduler.choose({slot: Upcoming("r", slots == (1, 2)) for slot in slots}) == slots
        scheduler.stepped(slots)
    assert scheduler.choose({0: refreshing, 1: calm}) == (0,)  # which has waited for three steps, and 1 refreshed since
    assert scheduler.choose({1: calm, 2: refreshing}) == (1,)  # which has waited for two, and 1 refreshed before


def test_a_refresh_that_few_can_share_waits_for_nobody_behind() -> None:
    scheduler, _ = running("abc", RefreshesTogether(9))
    lonely, shared, calm = Upcoming("r", True, False), Upcoming("s", True), Upcoming("a", False)
    assert scheduler.choose({0: calm, 1: shared, 2: lonely}) == (2,)
    assert scheduler.choose({0: calm, 1: shared}) == (0,)
    assert scheduler.choose({0: lonely, 2: lonely, 1: calm}) == (0, 2)


def test_a_refresh_that_was_not_made_is_none() -> None:
    scheduler, upcoming = running("rsb", RefreshesTogether(9), "rs")
    del upcoming[2]
    assert steps(scheduler, upcoming, 1) == [(0,)]
    assert scheduler.choose({1: Upcoming("a", False), 2: Upcoming("r", True)}) == (1,)


@pytest.mark.parametrize("slots", range(2, 7))
@pytest.mark.parametrize("patience", range(1, 9))
def test_a_row_that_never_refreshes_keeps_others_waiting_for_as_long_as_the_bound_says(
    slots: int, patience: int
) -> None:
    policy = RefreshesTogether(patience)
    scheduler, upcoming = running("a" + "rstuv"[: slots - 1], policy, "rstuv")
    made = steps(scheduler, upcoming, policy.bound(slots) + 1)
    assert made.index((slots - 1,)) == policy.bound(slots) == patience + slots - 2


@given(
    policy=POLICIES,
    slots=st.integers(1, 6),
    kinds=st.integers(1, 6),
    turnover=st.sampled_from([0.0, 0.1, 0.5]),
    whim=st.sampled_from([0.0, 0.3]),
    chance=RANDOM,
)
@examples(300)
def test_no_row_waits_for_more_steps_of_others_than_its_policy_says(
    policy: Policy, slots: int, kinds: int, turnover: float, whim: float, chance: Random
) -> None:
    scheduler = Scheduler(slots=slots, max_queue=0, policy=policy)
    seen: dict[int, int] = {}
    forms: dict[int, int] = {}
    number = 0
    for _ in range(60):
        for slot in set(range(slots)) - seen.keys():
            scheduler.offer(number, columns=8, now=0.0)
            scheduler.admitted(number, slot)
            seen[slot], forms[slot], number = 0, chance.randrange(kinds), number + 1
        made = scheduler.choose({slot: Upcoming(forms[slot], chance.random() < 0.5) for slot in seen})
        assert len({forms[slot] for slot in made}) == 1
        scheduler.stepped(made)
        for slot in list(seen):
            seen[slot] = 0 if slot in made else seen[slot] + 1
            assert seen[slot] <= policy.bound(slots)
            if slot in made or chance.random() < whim:
                forms[slot] = chance.randrange(kinds)
            if slot in made and chance.random() < turnover:
                scheduler.released(slot)
                del seen[slot]


def test_who_waits_is_admitted_in_the_order_of_arrival() -> None:
    scheduler = Scheduler(slots=2, max_queue=3)
    for number in (5, 3, 9, 1):
        scheduler.offer(number, columns=8, now=0.0)
    assert scheduler.admissions({}, 0.0) == [5, 3]
    scheduler.admitted(5, 1)
    assert (scheduler.waiting, scheduler.running, scheduler.free) == (3, 1, 1)
    assert scheduler.admissions({1: Upcoming("a", True)}, 0.0) == [3]
    assert scheduler.admissions({1: Upcoming("a", True)}, 0.0) == [3]  # it waits until it is admitted


def test_a_slot_stays_free_until_a_row_is_about_to_refresh_or_so_many_steps_were_made() -> None:
    scheduler = Scheduler(slots=2, max_queue=3, admission=AtRefreshes(2))
    for number in range(3):
        scheduler.offer(number, columns=8, now=0.0)
    assert scheduler.admissions({}, 0.0) == [0, 1]  # nobody is there
    scheduler.admitted(0, 0)
    skipping, refreshing = {0: Upcoming("a", False)}, {0: Upcoming("a", True)}
    assert scheduler.admissions(refreshing, 0.0) == [1]
    for _ in range(2):
        assert scheduler.admissions(skipping, 0.0) == []
        scheduler.stepped((0,))
    assert scheduler.admissions(skipping, 0.0) == [1]


def test_whose_canvas_is_as_long_as_another_goes_first_and_nobody_is_overtaken_more_often_than_told() -> None:
    scheduler = Scheduler(slots=3, max_queue=9, admission=Alike(2))
    for number, columns in enumerate((8, 9, 7, 8, 9, 8, 8, 7)):
        scheduler.offer(number, columns=columns, now=0.0)
    assert scheduler.admissions({}, 0.0) == [0, 3, 5]  # after which 1 and 2 were overtaken twice
    for slot, number in enumerate((0, 3, 5)):
        scheduler.admitted(number, slot)
    scheduler.released(1)
    scheduler.released(2)
    assert scheduler.admissions({0: Upcoming("a", False)}, 0.0) == [1, 2]


def test_whoever_is_overtaken_by_those_admitted_at_once_is_due_among_them() -> None:
    scheduler = Scheduler(slots=4, max_queue=9, admission=Alike(1))
    for number, columns in enumerate((8, 9, 8, 8, 8)):
        scheduler.offer(number, columns=columns, now=0.0)
    assert scheduler.admissions({}, 0.0) == [0, 2, 1, 3]


@given(
    slots=st.integers(1, 4),
    overtaking=st.integers(0, 4),
    lengths=st.lists(st.integers(1, 4), max_size=40),
    chance=RANDOM,
)
@examples(200)
def test_nobody_is_overtaken_by_more_than_told(slots: int, overtaking: int, lengths: list[int], chance: Random) -> None:
    scheduler = Scheduler(slots=slots, max_queue=len(lengths), admission=Alike(overtaking))
    seats: dict[int, int] = {}
    come, gone = 0, []
    while come < len(lengths) or scheduler.waiting:
        if come < len(lengths) and chance.random() < 0.7:
            scheduler.offer(come, columns=lengths[come], now=0.0)
            come += 1
        for number in scheduler.admissions({slot: Upcoming("a", False) for slot in seats}, 0.0):
            slot = min(set(range(slots)) - seats.keys())
            scheduler.admitted(number, slot)
            seats[slot] = number
            gone.append(number)
        if seats and chance.random() < 0.8:
            scheduler.released(slot := chance.choice(sorted(seats)))
            del seats[slot]
    for number in range(len(lengths)):
        assert sum(other > number for other in gone[: gone.index(number)]) <= overtaking


@pytest.mark.parametrize("max_queue", [0, 1, 3])
def test_as_many_may_wait_as_told_beyond_those_for_whom_a_slot_is_free(max_queue: int) -> None:
    scheduler = Scheduler(slots=2, max_queue=max_queue)
    for number in range(2 + max_queue):
        scheduler.offer(number, columns=8, now=0.0)
    with pytest.raises(QueueFullError, match=f"{2 + max_queue} requests wait, and no more than {max_queue} may"):
        scheduler.offer(99, columns=8, now=0.0)
    assert scheduler.cancel(1)
    scheduler.offer(99, columns=8, now=0.0)


def test_whoever_is_refused_is_told_when_there_should_be_room() -> None:
    scheduler = Scheduler(slots=2, max_queue=0)

    def refusal(number: int) -> float:
        with pytest.raises(QueueFullError) as raised:
            scheduler.offer(number, columns=8, now=14.0)
        return raised.value.retry_after

    for number in range(2):
        scheduler.offer(number, columns=8, now=10.0)
        scheduler.admitted(number, number)
    assert refusal(2) == 1.0  # nothing is known
    scheduler.released(0)  # after 4 seconds: two slots give one each 2 seconds
    scheduler.offer(3, columns=8, now=14.0)
    scheduler.admitted(3, 0)
    assert [refusal(number) for number in (4, 5, 6)] == [2.0, 4.0, 6.0]


def test_a_deadline_ends_what_waits_and_is_told_of_what_runs() -> None:
    scheduler = Scheduler(slots=1, max_queue=3)
    for number, deadline in enumerate((5.0, 4.0, None, 6.0)):
        scheduler.offer(number, columns=8, now=0.0, deadline=deadline)
    scheduler.admitted(0, 0)
    assert scheduler.expired(3.9) == []
    assert scheduler.expired(4.0) == [1]
    assert scheduler.expired(6.0) == [3, 0]
    assert scheduler.expired(6.0) == [0]  # until its slot is released
    scheduler.released(0)
    assert scheduler.expired(9.0) == []
    assert scheduler.admissions({}, 9.0) == [2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots = 0; give a whole number of at least 1"),
        ({"slots": True}, "slots = True; give a whole number"),
        ({"max_queue": -1}, "max_queue = -1; give a whole number of at least 0"),
        ({"max_queue": 2.0}, "max_queue = 2.0; give a whole number"),
    ],
)
def test_a_count_that_cannot_be_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Scheduler(**{"slots": 1, "max_queue": 0, **options})


def test_what_contradicts_itself_is_refused_and_changes_nothing() -> None:
    scheduler, upcoming = running("a", OldestFirst())
    with pytest.raises(InputError, match="the number 0 is here already"):
        scheduler.offer(0, columns=8, now=0.0)
    with pytest.raises(InputError, match=r"request 0 cannot take slot 1: waiting are \[\], taken are \[0\] of 1"):
        scheduler.admitted(0, 1)
    wider = Scheduler(slots=1, max_queue=1)
    for number in range(2):
        wider.offer(number, columns=8, now=0.0)
    wider.admitted(0, 5)
    for slot in (5, 6):
        with pytest.raises(
            InputError, match=rf"request 1 cannot take slot {slot}: waiting are \[1\], taken are \[5\] of 1"
        ):
            wider.admitted(1, slot)
    for told in (
        lambda: scheduler.released(3),
        lambda: scheduler.stepped((0, 3)),
        lambda: scheduler.choose({3: upcoming[0]}),
    ):
        with pytest.raises(InputError, match=r"slot 3 is not taken; taken are \[0\]"):
            told()
    assert not scheduler.cancel(0)
    assert scheduler.choose(upcoming) == (0,)


class Traffic(RuleBasedStateMachine):
    """A scheduler under arbitrary traffic, beside a model of it that is lists and a diary."""

    @initialize(slots=st.integers(1, 5), max_queue=st.integers(0, 4), policy=POLICIES, admission=ADMISSIONS)
    def begin(self, slots: int, max_queue: int, policy: Policy, admission: Admission) -> None:
        self.scheduler = Scheduler(slots=slots, max_queue=max_queue, policy=policy, admission=admission)
        self.admission = admission
        self.slots, self.max_queue, self.policy = slots, max_queue, policy
        self.now, self.count, self.held = 0.0, 0, 0
        self.queue: list[int] = []
        self.deadlines: dict[int, float | None] = {}
        self.seats: dict[int, int] = {}
        self.forms: dict[int, Upcoming] = {}
        self.diary: list[tuple[str, int, tuple[int, ...]]] = []
        """what happened: "admitted", a slot, nothing; or "stepped", -1, the slots"""
        self.admissions: dict[int, int] = {}
        """by slot, the place in the diary of its last one"""
        self.refreshes: list[set[int]] = []
        """of each step, the slots for which it was a refresh"""

    def waited(self, slot: int) -> int:
        """Return the steps since a slot's last admission or own step."""
        seen = 0
        for what, where, made in reversed(self.diary):
            if (what == "admitted" and where == slot) or slot in made:
                return seen
            seen += what == "stepped"
        raise AssertionError("every row was admitted")

    def refreshed(self, slot: int) -> float:
        """Return the steps since a slot's row made a refresh; infinity if it has made none."""
        seen, made = 0, list(self.refreshes)
        for what, where, _ in reversed(self.diary):
            if what == "admitted" and where == slot:
                break
            if what == "stepped":
                if slot in made.pop():
                    return seen
                seen += 1
        return float("inf")

    def first(self) -> int:
        """Return the slot of those with a step whose row has waited longest, of equals the one admitted first."""
        admitted = {where: at for at, (what, where, _) in enumerate(self.diary) if what == "admitted"}
        return sorted(self.forms, key=lambda slot: (-self.waited(slot), admitted[slot]))[0]

    @rule(timeout=st.none() | st.integers(0, 5))
    def offer(self, timeout: int | None) -> None:
        number, deadline = self.count, None if timeout is None else self.now + timeout
        self.count += 1
        full = len(self.queue) == self.max_queue + self.slots - len(self.seats)
        with pytest.raises(QueueFullError) if full else nullcontext():
            self.scheduler.offer(number, columns=8, now=self.now, deadline=deadline)
        if not full:
            self.queue.append(number)
            self.deadlines[number] = deadline

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, self.count))
        assert self.scheduler.cancel(number) is (number in self.queue)
        self.queue = [other for other in self.queue if other != number]

    @rule(passed=st.integers(0, 3))
    def expire(self, passed: int) -> None:
        self.now += passed
        late = {number for number, deadline in self.deadlines.items() if deadline is not None and deadline <= self.now}
        told = self.scheduler.expired(self.now)
        waiting = [number for number in self.queue if number in late]
        assert told[: len(waiting)] == waiting
        assert sorted(told[len(waiting) :]) == sorted(late & set(self.seats.values()))
        self.queue = [number for number in self.queue if number not in late]

    @precondition(lambda self: self.queue and len(self.seats) < self.slots)
    @rule(data=st.data(), passed=st.integers(0, 1))
    def admit(self, data: st.DataObject, passed: int) -> None:
        self.now += passed
        told, free = self.scheduler.admissions(self.forms, self.now), self.slots - len(self.seats)
        if isinstance(self.admission, AtRefreshes) and self.forms and not told:
            assert not any(coming.refreshes for coming in self.forms.values())
            assert self.held <= self.admission.patience
        else:
            assert len(told) == len(set(told)) == min(free, len(self.queue))
            assert set(told) <= set(self.queue)
            assert isinstance(self.admission, Alike) or told == self.queue[:free]
        for number in told[: data.draw(st.integers(min(1, len(told)), len(told)))]:
            slot = data.draw(st.sampled_from(sorted(set(range(self.slots)) - self.seats.keys())))
            self.scheduler.admitted(number, slot)
            self.queue.remove(number)
            self.seats[slot], self.forms[slot] = number, Upcoming(data.draw(st.sampled_from("abc")), True)
            self.admissions[slot] = len(self.diary)
            self.diary.append(("admitted", slot, ()))
            self.held = 0

    @precondition(lambda self: self.seats)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.seats)))
        self.scheduler.released(slot)
        del self.seats[slot]
        self.forms.pop(slot, None)

    @precondition(lambda self: self.forms)
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        made = self.scheduler.choose(self.forms)
        form, first = self.forms[made[0]].form, self.first()
        widths = Counter(coming.form for coming in self.forms.values())
        assert made == tuple(sorted(slot for slot, coming in self.forms.items() if coming.form == form))
        refreshing = [slot for slot, coming in self.forms.items() if coming.refreshes]
        lonely = [
            ((self.waited(slot), -self.admissions[slot]), self.forms[slot].form)
            for slot in refreshing
            if not self.forms[slot].shared
        ]
        begun = max((self.waited(slot) for slot in refreshing), default=0)
        calm = {
            coming.form
            for slot, coming in self.forms.items()
            if not coming.refreshes and not (refreshing and self.refreshed(slot) < begun)
        }
        if isinstance(self.policy, OldestFirst) or self.waited(first) >= self.policy.patience:
            assert first in made
        elif isinstance(self.policy, RefreshesTogether) and lonely:
            assert form == max(lonely, key=lambda coming: coming[0])[1]
        elif isinstance(self.policy, WidestFirst) or not refreshing:
            assert len(made) == max(widths.values())
        else:
            assert form in (calm or {self.forms[slot].form for slot in refreshing})
        self.scheduler.stepped(made)
        self.diary.append(("stepped", -1, made))
        self.refreshes.append({slot for slot in made if self.forms[slot].refreshes})
        self.held = self.held + 1 if self.queue and len(self.seats) < self.slots else 0
        for slot in made:
            del self.forms[slot]
            if data.draw(st.integers(0, 5)):  # else it is finished, and waits for its release
                flags = data.draw(st.sampled_from([(False, True), (True, True), (True, False)]))
                self.forms[slot] = Upcoming(data.draw(st.sampled_from("abc")), *flags)

    @invariant()
    def as_many_wait_and_run_as_in_the_model(self) -> None:
        if hasattr(self, "scheduler"):
            assert self.scheduler.waiting == len(self.queue)
            assert self.scheduler.running == len(self.seats)
            assert self.scheduler.free == self.slots - len(self.seats)

    @invariant()
    def no_row_waits_beyond_the_bound(self) -> None:
        if hasattr(self, "scheduler"):
            assert all(self.waited(slot) <= self.policy.bound(self.slots) for slot in self.forms)


TestTraffic = Traffic.TestCase
TestTraffic.settings = examples(40)
