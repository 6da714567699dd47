"""What steps take here: rows in slots are decoded, step by step, so many at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from time import perf_counter

import torch

from esdllm.measure.benchmarking.serving import Lengths, drawn
from esdllm.measure.simulating.pricing import Measured, Pricing
from esdllm.runtime.engine import Engine
from esdllm.runtime.slots import Slots

__all__ = ["measured_steps"]


def measured_steps(
    engine: Engine, pricing: Pricing, lengths: Sequence[int], rows: Sequence[int], repeats: int = 3
) -> list[Measured]:
    """Return every step of decoding so many rows at once, for each number of `rows` and prompts of each of the `lengths`.

    A step's time is all that passes until the next one begins, so planning counts; answers are `gen_length` tokens. All is done
    `repeats` times after once that is not measured, and a step takes the median.
    """
    found: list[Measured] = []
    for length in lengths:
        for number in rows:
            slots = engine.slots(number, length + engine.config.gen_length)
            times = [list(_steps(engine, pricing, slots, length, number)) for _ in range(repeats + 1)][1:]
            slots.close()
            found += [
                same[0]._replace(seconds=median(one.seconds for one in same)) for same in zip(*times, strict=True)
            ]
    return found


def _steps(engine: Engine, pricing: Pricing, slots: Slots, length: int, rows: int) -> Iterator[Measured]:
    spec = engine.model.spec
    for wanted in drawn(rows, Lengths(length, length), Lengths(1, 1), spec.vocab, 0, spec.mask_id):
        slots.admit([wanted.prompt], components=None)
    while True:
        began = perf_counter()
        groups = slots.groups()
        if not groups:
            break
        seat = slots.seat(groups[0][0])
        if seat.next is None:
            raise AssertionError("a row of a group has a step to make")
        cost = pricing.cost(seat.next.plan, len(groups[0]), seat.length)
        slots.step(groups[0])
        if engine.model.adapter.device.type == "cuda":
            torch.cuda.synchronize(engine.model.adapter.device)
        yield Measured(cost, len(groups[0]), perf_counter() - began)
    for slot in slots.finished():
        slots.release(slot)
