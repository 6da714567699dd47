"""The simulator: traffic as it is asked for, steps as they would be made, seconds that add up."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import Build
from sampling import examples

from esdllm import Catalogue, Engine, ModelSpec
from esdllm.errors import InputError, UnavailableError
from esdllm.measure.benchmarking.serving import Lengths, Load, percentiles
from esdllm.measure.cost import Cost, Costing, Roofline
from esdllm.measure.simulating import (
    Courses,
    Measured,
    Pricing,
    Served,
    Simulated,
    Simulation,
    SlotReplica,
    StaticReplica,
    StepSeconds,
    TimeLimits,
    WantedLengths,
    asked,
    fitted,
    measured_steps,
)
from esdllm.plan import Layout
from esdllm.runtime.seats import row_planner
from esdllm.serving.scheduler import OldestFirst, Policy, RefreshesTogether, Scheduler, Upcoming, WidestFirst

SHORT = {"gen_length": 16, "block_length": 8}
SECOND = StepSeconds(Roofline(float("inf")), step=1.0)
"""every step takes a second"""
ASKED = Lengths(1, 24)


@pytest.fixture(scope="module")
def engine(build: Build) -> Engine:
    return build("llada-0", "es-dllm", **SHORT)


@pytest.fixture(scope="module")
def courses(engine: Engine) -> Courses:
    return Courses(engine.components, engine.model.spec)


def pricing(engine: Engine, time: StepSeconds = SECOND) -> Pricing:
    return Pricing.of(engine.components, engine.model.spec, 4, 1000, time)


def replica(
    engine: Engine, courses: Courses, slots: int, max_queue: int = 1000, policy: Policy | None = None
) -> SlotReplica:
    scheduler = Scheduler(slots=slots, max_queue=max_queue, policy=policy or RefreshesTogether())
    return SlotReplica(scheduler, courses, pricing(engine))


class Listed:
    """Requests at times that are told."""

    concurrency = None

    def __init__(self, *times: float) -> None:
        self._times = list(times)

    def arrivals(self, count: int, seed: int) -> list[float]:
        return self._times


NONE = TimeLimits()


def traffic(
    load: Any, prompts: Lengths, answers: Lengths, count: int, limits: TimeLimits = NONE, seed: int = 0
) -> Simulation:
    """Return a simulation of requests whose lengths are multiples of 8."""
    return Simulation(load, asked(count, prompts, answers, seed, 8), limits, seed)


# --------------------------------------------------------------------------------------------------------------- traffic


def test_what_is_asked_for_is_drawn_by_a_seed_in_few_lengths() -> None:
    found = asked(200, Lengths(5, 40), Lengths(7, 7), seed=3, multiple=16)
    assert {one.prompt for one in found} == {16, 32, 40}
    assert {one.answer for one in found} == {7}
    assert found == asked(200, Lengths(5, 40), Lengths(7, 7), seed=3, multiple=16)
    assert found != asked(200, Lengths(5, 40), Lengths(7, 7), seed=4, multiple=16)
    assert {one.prompt for one in asked(400, Lengths(5, 9), Lengths(1, 1), multiple=1)} == {5, 6, 7, 8, 9}


@pytest.mark.parametrize(("count", "multiple"), [(0, 16), (-1, 16), (5, 0)])
def test_no_requests_and_no_multiple_are_refused(count: int, multiple: int) -> None:
    with pytest.raises(InputError, match="give at least 1 of both"):
        asked(count, ASKED, ASKED, multiple=multiple)


# --------------------------------------------------------------------------------------------------------------- courses


@pytest.mark.parametrize("preset", ["vanilla", "prefix-cache", "dual-cache", "es-dllm"])
@pytest.mark.parametrize(("prompt", "answer"), [(8, 8), (12, 20), (5, 33)])
def test_a_row_makes_the_steps_that_are_forecast(build: Build, preset: str, prompt: int, answer: int) -> None:
    engine = build("dream-0", preset, **SHORT)
    spec, components = engine.model.spec, engine.components
    course = Courses(components, spec).of(prompt, answer)
    layout = Layout.of(prompt, answer, spec.logit_shift)
    alone, made = engine.planner(layout).forecast(), row_planner(components, layout, spec.n_layers, components.behind)
    steps = made.forecast()
    assert course.plans == tuple(step.plan for step in steps)
    assert [coming.refreshes for coming in course.upcoming] == [step.scope.refresh for step in steps]
    assert [step.unfilled().plan for step in steps] == [step.plan for step in alone]


@pytest.mark.parametrize("rate", [1.0, 2.0, 3.0])
def test_where_logits_decide_so_many_are_committed_on_average(build: Build, rate: float) -> None:
    engine = build("llada-0", "es-dllm-parallel", gen_length=16, block_length=32)
    courses = Courses(engine.components, engine.model.spec, rate, kinds=20)
    lengths = [len(courses.of(8, 256, number).plans) for number in range(40)]
    assert courses.adaptive
    assert 256 / mean(lengths) == pytest.approx(rate, rel=0.12)  # a block's last step has fewer left
    assert lengths[:20] == lengths[20:]
    assert (len(set(lengths)) > 1) is (rate > 1)


class Driven:
    """Slots that are driven by a scheduler, as a session does it, without a clock."""

    def __init__(self, engine: Engine, asked: Sequence[WantedLengths], policy: Policy, count: int) -> None:
        self.groups: list[tuple[int, ...]] = []
        scheduler, slots = Scheduler(slots=count, max_queue=99, policy=policy), engine.slots(count, 64)
        for number, one in enumerate(asked):
            scheduler.offer(number, columns=one.prompt + one.answer, now=0.0)
        varied = {
            n: engine.components.varied({"gen_length": n}, Catalogue.load()) for n in {one.answer for one in asked}
        }
        upcoming: dict[int, Upcoming] = {}
        while scheduler.waiting or scheduler.running:
            for number in scheduler.admissions(upcoming, 0.0):
                one = asked[number]
                prompt = torch.randint(0, 250, (one.prompt,), generator=torch.Generator().manual_seed(number)).tolist()
                slot = slots.admit([prompt], components=varied[one.answer])
                scheduler.admitted(number, slot)
                upcoming[slot] = self._next(slots, slot)
            group = scheduler.choose(upcoming)
            slots.step(group)
            self.groups.append(group)
            scheduler.stepped(group)
            done = set(slots.finished())
            for slot in group:
                if slot in done:
                    slots.take(slot)
                    scheduler.released(slot)
                    del upcoming[slot]
                else:
                    upcoming[slot] = self._next(slots, slot)
        slots.close()

    @staticmethod
    def _next(slots: Any, slot: int) -> Upcoming:
        seat = slots._seats[slot]
        return Upcoming(seat.form, seat.refreshes, seat.shares)


class Noting(SlotReplica):
    """A replica that keeps whose steps were made."""

    def end(self, now: float) -> list[Served]:
        self.groups = [*getattr(self, "groups", []), self._group]
        return super().end(now)


@pytest.mark.parametrize("preset", ["dual-cache", "es-dllm"])
@pytest.mark.parametrize("policy", [OldestFirst(), WidestFirst(3), RefreshesTogether(2)])
def test_the_steps_that_are_simulated_are_those_that_slots_make(build: Build, preset: str, policy: Policy) -> None:
    engine = build("llada-shallow", preset, **SHORT)
    courses = Courses(engine.components, engine.model.spec)
    simulation = traffic(Listed(*[0.0] * 12), ASKED, ASKED, 12)
    made = Noting(Scheduler(slots=3, max_queue=99, policy=policy), courses, pricing(engine))
    simulation.run("", [made], 3)
    assert made.groups == Driven(engine, simulation.asked, policy, 3).groups


# ----------------------------------------------------------------------------------------------------------------- times


def test_a_step_takes_what_its_cost_says(engine: Engine) -> None:
    spec: ModelSpec = engine.model.spec
    (plan, *_) = Courses(engine.components, spec).of(8, 16).plans
    roofline, weights = Roofline(2.0, 3.0), 10**6
    cost = Costing.of(engine.components, spec, 3, 40, 4, weights).step(plan)
    for adds in (False, True):
        time = StepSeconds(roofline, step=0.25, row=0.5, adds=adds)
        parts = (cost.flops / 2e9, cost.bytes / 3e9)
        expected = 0.25 + 3 * 0.5 + (sum(parts) if adds else max(parts))
        assert Pricing.of(engine.components, spec, 4, weights, time).seconds(plan, 3, 40) == pytest.approx(expected)


def test_under_guidance_a_row_costs_two(build: Build) -> None:
    guided = build("llada-0", "es-dllm", cfg_scale=1.0)
    (plan, *_) = Courses(guided.components, guided.model.spec).of(8, 16).plans
    time = StepSeconds(Roofline(1.0))
    one = Pricing.of(guided.components, guided.model.spec, 4, 0, time).seconds(plan, 1, 24)
    plain = build("llada-0", "es-dllm")
    assert one == pytest.approx(Pricing.of(plain.components, plain.model.spec, 4, 0, time).seconds(plan, 2, 24))


@given(
    numbers=st.tuples(*[st.sampled_from([0.0, 0.5, 2.0, 7.0])] * 4).filter(any), chance=st.integers(0, 99).map(Random)
)
@examples(60)
def test_times_that_were_measured_are_found_again(numbers: tuple[float, ...], chance: Random) -> None:
    step, row, flop, byte = numbers
    measured = []
    for _ in range(30):
        rows, flops, moved = chance.randint(1, 8), chance.randint(1, 10**10), chance.randint(1, 10**10)
        seconds = step + row * rows + flop * flops / 1e9 + byte * moved / 1e9
        measured.append(Measured(Cost(flops, 0, 0, moved, 0, 0), rows, seconds))
    time = fitted(measured)
    for one in measured:
        assert time.seconds(one.cost, one.rows) == pytest.approx(one.seconds, rel=1e-6)
    assert min(time.step, time.row) >= 0


def test_too_few_measurements_are_refused() -> None:
    with pytest.raises(InputError, match="3 steps were measured; four numbers are fitted"):
        fitted([Measured(Cost(1, 0, 0, 1, 0, 0), 1, 1.0)] * 3)


# ------------------------------------------------------------------------------------------------------------ simulation


def test_one_slot_answers_one_after_the_other(engine: Engine, courses: Courses) -> None:
    simulation = traffic(Listed(0.0, 1.0, 100.0), Lengths(8, 8), ASKED, 3)
    found = simulation.run("", [replica(engine, courses, 1)], 1)
    steps = [len(courses.of(8, simulation.asked[number].answer).plans) for number in range(3)]
    first, second = accumulate(steps[:2])
    assert second < 100
    assert found.latency == percentiles([first, second - 1.0, steps[2]])
    assert found.seconds == 100 + steps[2]
    assert (found.width, found.steps, found.good) == (1.0, sum(steps), 3)
    assert found.first == percentiles([1.0, first, 1.0])


def test_rows_that_come_together_and_are_alike_share_every_step(engine: Engine, courses: Courses) -> None:
    found = traffic(Listed(*[0.0] * 4), Lengths(8, 8), Lengths(16, 16), 4).run("", [replica(engine, courses, 4)], 4)
    assert (found.width, found.steps) == (4.0, len(courses.of(8, 16).plans))
    assert found.queued == percentiles([0.0])


def test_a_batch_waits_for_its_longest_and_so_does_who_comes_later(engine: Engine, courses: Courses) -> None:
    simulation = traffic(Listed(0.0, 0.0, 1.0), Lengths(8, 8), ASKED, 3)
    answers = [simulation.asked[number].answer for number in range(3)]
    lengths = [len(courses.of(8, answer).plans) for answer in answers]
    found = simulation.run("", [StaticReplica(2, 10, courses, pricing(engine))], 2)
    longest = max(lengths[:2])
    assert found.first == found.latency == percentiles([longest, longest, longest + lengths[2] - 1.0])
    assert found.steps == longest + lengths[2]
    assert found.busy == sum(lengths[:2]) / (2 * longest)


def test_nobody_is_lost(engine: Engine, courses: Courses) -> None:
    for arrivals, queue, limits in (
        (Load(rate=0.2), 3, TimeLimits()),
        (Load(rate=0.3, burst=6), 2, TimeLimits(timeout=60)),
        (Load(rate=0.5), 50, TimeLimits(timeout=20)),
    ):
        replicas = [replica(engine, courses, 2, queue) for _ in range(2)]
        found = traffic(arrivals, ASKED, ASKED, 200, limits).run("", replicas, 2)
        answered = found.tokens and found.good  # no limit on what is of use
        assert found.requests == 200
        assert answered + found.refused + found.late == 200
        assert found.refused + found.late > 0
        assert all(one.load == 0 for one in replicas)


def test_people_ask_again_when_they_are_answered_refused_or_given_up(engine: Engine, courses: Courses) -> None:
    for people, queue, limits in ((3, 5, TimeLimits()), (9, 1, TimeLimits()), (6, 9, TimeLimits(timeout=30))):
        found = traffic(Load(concurrency=people), ASKED, ASKED, 60, limits).run(
            "", [replica(engine, courses, 2, queue)], 2
        )
        assert found.requests == 60
        assert found.good + found.late == 60  # who is refused comes again
        assert (found.refused > 0) is (people == 9)
        assert (found.late > 0) is (limits.timeout is not None)


def test_what_is_of_use_is_in_time(engine: Engine, courses: Courses) -> None:
    def good(limits: TimeLimits) -> int:
        return traffic(Load(rate=0.1), ASKED, ASKED, 100, limits).run("", [replica(engine, courses, 4)], 4).good

    assert good(TimeLimits()) == good(TimeLimits(first=1e9, latency=1e9)) == 100
    assert 0 < good(TimeLimits(latency=40)) < 100
    assert 0 < good(TimeLimits(first=5)) < 100


def test_the_same_seed_is_the_same_traffic_whoever_serves_it(engine: Engine, courses: Courses) -> None:
    def run(seed: int, policy: Policy) -> Simulated:
        simulation = traffic(Load(rate=0.2), ASKED, ASKED, 50, seed=seed)
        return simulation.run("", [replica(engine, courses, 3, policy=policy)], 3)

    assert run(0, OldestFirst()) == run(0, OldestFirst())
    assert run(0, OldestFirst()).tokens == run(0, WidestFirst()).tokens
    assert run(0, OldestFirst()) != run(1, OldestFirst())


def test_requests_go_where_fewest_are(engine: Engine, courses: Courses) -> None:
    replicas = [replica(engine, courses, 2) for _ in range(8)]
    traffic(Listed(*[0.0] * 16), Lengths(8, 8), Lengths(16, 16), 16).run("", replicas, 2)
    assert {one.work.rows for one in replicas} == {2 * len(courses.of(8, 16).plans)}


def test_under_backlog_refilled_slots_are_busier_and_faster_than_static_batches(
    engine: Engine, courses: Courses
) -> None:
    simulation = traffic(Listed(*[0.0] * 100), Lengths(8, 8), Lengths(1, 64), 100)
    refilled = simulation.run("", [replica(engine, courses, 4)], 4)
    static = simulation.run("", [StaticReplica(4, 1000, courses, pricing(engine))], 4)
    assert refilled.busy > 0.99 > 0.8 > static.busy
    assert refilled.tokens == static.tokens


def test_traffic_needs_requests_and_machines(engine: Engine, courses: Courses) -> None:
    with pytest.raises(InputError, match="0 requests before 1 replicas; give at least one of each"):
        Simulation(Load(rate=1.0), []).run("", [replica(engine, courses, 1)], 1)
    with pytest.raises(InputError, match="5 requests before 0 replicas"):
        traffic(Load(rate=1.0), ASKED, ASKED, 5).run("", [], 1)


def test_a_family_without_a_feed_forward_has_no_price(engine: Engine) -> None:
    spec = attrs.evolve(engine.model.spec, intermediate=0)
    with pytest.raises(UnavailableError, match="does not tell"):
        Pricing.of(engine.components, spec, 4, 0, SECOND)


def test_every_step_is_measured_of_as_many_rows_as_are_asked_for(build: Build) -> None:
    engine = build("llada-shallow", "es-dllm", **SHORT)
    courses, counted = Courses(engine.components, engine.model.spec), pricing(engine)
    found = measured_steps(engine, counted, (8, 12), (1, 3), repeats=1)
    expected = []
    for length in (8, 12):
        course = courses.of(length, 16)
        for rows in (1, 3):
            expected += [(counted.cost(plan, rows, course.columns), rows) for plan in course.plans]
    assert [(one.cost, one.rows) for one in found] == expected
    assert min(one.seconds for one in found) > 0
    assert fitted(found).seconds(found[0].cost, 1) > 0


@pytest.mark.slow
def test_the_benchmark_of_the_simulator_prints_both_numbers(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    script = Path(__file__).parent.parent / "benchmarks" / "simulated.py"
    small = "tiny,layers=2,hidden=32,heads=2,kv_heads=2,intermediate=32,vocab=300"
    few = ["--requests", "4", "--slots", "2", "--prompt-tokens", "8:16", "--answer-tokens", "8:16", "--rate", "20"]
    monkeypatch.setattr(sys, "argv", [str(script), "--geometry", small, *few])
    threads = torch.get_num_threads()
    runpy.run_path(str(script), run_name="__main__")
    torch.set_num_threads(threads)
    told = capsys.readouterr().out
    assert told.count("tokens per second") == 6  # three loads, in slots and in batches
    assert told.count("rows per step") == 3
