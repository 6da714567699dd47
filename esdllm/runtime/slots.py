"""Slots: rows that come and go, each decoded as if it were alone, while steps are shared by those whose next ones are alike.

    slots = engine.slots(count=4, length=256)
    slots.admit("Sort 3 1 2.", chat=True)
    while slots.busy:
        for group in slots.groups():
            slots.step(group)
        print(*(slots.take(slot).text for slot in slots.finished()))

Which group goes first, and who waits, is the caller's decision: no answer depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager

import attrs
import torch
from torch import Tensor

from esdllm.checkpoints.loading import Model
from esdllm.errors import ConfigError, ContextError, InputError
from esdllm.interfaces import Cache
from esdllm.plan import Facts, Step
from esdllm.runtime.beginning import begin
from esdllm.runtime.beside import differences
from esdllm.runtime.components import Components
from esdllm.runtime.culprit import naming_culprits
from esdllm.runtime.gathering import Gathering
from esdllm.runtime.graphs import current
from esdllm.runtime.prompts import Prompts, prepare
from esdllm.runtime.records import Generation
from esdllm.runtime.results import generation
from esdllm.runtime.run import StepFunction
from esdllm.runtime.seats import Seat
from esdllm.runtime.sharing import joined, sent, shared_inputs
from esdllm.runtime.showing import shown
from esdllm.runtime.turns import Turn
from esdllm.views import StepRecord

__all__ = ["Slots"]

_KERNELS = 8
"""sets of kernels that are compiled or recorded for one cache"""


@attrs.define(eq=False, repr=False)
class Slots:
    """Rows of different ages over one canvas and one cache. `Engine.slots` makes it; `close` frees its memory.

    A row's tokens are those that `Engine.generate` makes of it alone, whoever is beside it, in whatever order steps are made:
    its steps follow from its own prompt, seed and commits, and from the configuration.
    """

    model: Model
    components: Components
    step_function: StepFunction
    turn: Turn
    """the engine's: one step is made at a time"""
    count: int
    length: int
    """L, the columns of a slot"""
    _records: bool
    _gathering: Gathering | None
    _stop_ids: Tensor
    _running: Cache | None = attrs.field(default=None, init=False)
    _seats: dict[int, Seat] = attrs.field(factory=dict, init=False)
    _facts: dict[int, Facts] = attrs.field(factory=dict, init=False)
    """what was read since each slot's last step"""
    _known: dict[Hashable, Components] = attrs.field(factory=dict, init=False)
    """whose steps are compiled or recorded"""

    @classmethod
    def build(
        cls, model: Model, components: Components, step_function: StepFunction, turn: Turn, count: int, length: int
    ) -> Slots:
        """Return free slots; see `Engine.slots`."""
        adapter = model.adapter
        if type(count) is not int or count < 1 or type(length) is not int or not 0 < length <= model.spec.context:
            raise InputError(
                f"{count!r} slots of {length!r} columns; give at least one, and columns within the model's context of "
                f"{model.spec.context}"
            )
        if components.observers:
            raise ConfigError("observers watch what `Engine.generate` decodes; slots need a configuration without any")
        forms = step_function.has_forms
        shape = components.slots_shape(model.spec, count, length, forms, adapter.device, adapter.dtype)
        components.check_store(shape)
        with turn, naming_culprits(components, adapter), torch.inference_mode(), current(adapter.device):
            gathering = Gathering.over(model, components, shape, count, forms)
            stop_ids = torch.tensor(model.stop_ids, device=adapter.device)
        records = step_function.records(components.cache, shape)
        return cls(model, components, step_function, turn, count, length, records, gathering, stop_ids)

    def __repr__(self) -> str:
        return f"Slots({len(self._seats)} of {self.count} taken, {self.length} columns each)"

    @property
    def free(self) -> int:
        """How many slots are free."""
        return self.count - len(self._seats)

    @property
    def taken(self) -> list[int]:
        """The slots that are taken."""
        return sorted(self._seats)

    @property
    def busy(self) -> bool:
        """Whether any slot is taken."""
        return bool(self._seats)

    def admit(
        self,
        prompt: Prompts,
        *,
        seed: int | None = None,
        infill: bool = False,
        chat: bool | None = None,
        components: Components | None = None,
        slot: int | None = None,
    ) -> int:
        """Take one prompt into a free slot, and return that slot. The arguments are those of `Engine.generate`, for one row.

        `components` are those of a configuration of its own, such as a longer answer or another temperature; see
        `Components.varied`. `slot` is a free one to take; the first of them if not told.

        Raises:
            InputError: the prompt cannot be decoded, is longer than a slot, or is not a single one; the slot is not free.
            ConfigError: the configuration differs in what all rows have in common; names it.
        """
        free = set(range(self.count)) - self._seats.keys()
        if not free:
            raise InputError(f"all {self.count} slots are taken; take or release one first")
        if (slot := min(free) if slot is None else slot) not in free:
            raise InputError(f"slot {slot!r} is not free; free are {sorted(free)}")
        model, components = self.model, components or self.components
        if told := differences(self.components, components, model.spec.n_layers):
            raise ConfigError(f"rows beside each other cannot differ in {'; '.join(told)}")
        prepared = prepare(model, prompt, None, components.config.gen_length, infill, chat)
        if (number := len(prepared.starts)) != 1:
            raise InputError(f"{number} prompts for one slot; admit them one by one")
        with self._at_work() as gathering:
            began = begin(model, components, prepared, seed, self.step_function.has_forms, infill)
            seat = Seat.of(slot, began, model.spec.n_layers, components, infill, gathering.behind, self._read)
            gathering.check_layers(seat.planner.skip_layers())
            if began.layout.length > gathering.longest:
                raise ContextError(
                    f"the prompt's canvas has {prepared.tokens.shape[1]} columns, and a slot has {self.length}; shorten the "
                    "prompt or gen_length, or make longer slots"
                )
            gathering.place(slot, began.canvas)
        self._seats[slot] = seat
        return slot

    def next(self, slot: int) -> Step | None:
        """Return the next step of a row; None if it is decoded. May ask the device what was decided."""
        seat = self.seat(slot)
        with self._at_work():
            return seat.next

    def groups(self) -> list[tuple[int, ...]]:
        """Return the slots whose next steps can be made as one, group by group. May ask the device what was decided."""
        found: dict[Hashable, list[int]] = {}
        with self._at_work():
            for slot, seat in self._seats.items():
                if seat.next is not None:
                    found.setdefault(seat.form, []).append(slot)
        return [tuple(slots) for slots in found.values()]

    def finished(self) -> list[int]:
        """Return the slots whose rows are decoded. May ask the device what was decided."""
        with self._at_work():
            return [slot for slot, seat in self._seats.items() if seat.next is None]

    def step(self, slots: Iterable[int]) -> None:
        """Make the next step of some slots: all of one of the `groups`, or some of it.

        Raises:
            InputError: their next steps cannot be made as one.
            PluginError: a component failed; names it.
        """
        seats = [self.seat(slot) for slot in sorted(set(slots))]
        with self._at_work() as gathering:
            steps = [step for seat in seats if (step := seat.next) is not None]
            if len(steps) < max(1, len(seats)) or len({seat.form for seat in seats}) > 1:
                slots = [seat.slot for seat in seats]
                raise InputError(f"the slots {slots} have no next step in common; give one of `groups()`")
            function, started = self.step_function, time.perf_counter()
            compiling, function.recording = function.seconds_compiling, self._records
            steps, plan = joined(steps, function.has_forms)
            rows = gathering.gather(seats, steps)
            self._running = rows.cache
            steps += [steps[0]] * rows.spare
            components, known = self._kernels(seats[0].components)
            moving, parts = components.can.moving, components.parts(self.model.adapter, rows.cache)
            inputs = shared_inputs(rows.canvas, steps, moving, parts.model.dtype, function.has_forms)
            function(parts, plan, rows.canvas, inputs, eager=not known)
            gathering.scatter(rows)
            took = time.perf_counter() - started, function.seconds_compiling - compiling
        for seat in seats:
            seat.note(*took)
            self._facts.pop(seat.slot, None)

    def show(self, slots: Iterable[int]) -> dict[int, StepRecord]:
        """Return what an observer would be shown after the last step of some rows, on the host; padding is left out.

        Raises:
            InputError: a row has made no step yet.
        """
        seats = [self.seat(slot) for slot in slots]
        with self._at_work() as gathering:
            return shown(gathering.home, seats)

    def take(self, slot: int) -> Generation:
        """Return what was made of a finished row, and free its slot.

        Raises:
            InputError: the row is not finished.
            NumericsError: NaN among its logits; the slot is free all the same, and other rows are sound.
            PluginError: masks are left in it; likewise.
        """
        seat = self.seat(slot)
        with self._at_work() as gathering:
            if seat.next is not None:
                raise InputError(f"the row in slot {slot} is not finished; make its steps, or release it")
            canvas = gathering.row(slot, seat.length, seat.padded)
            self.release(slot)
            return generation(
                self.model,
                seat.components,
                canvas,
                self._stop_ids,
                seat.effort,
                seat.room,
                [seat.span],
                fill=seat.fill,
                end=seat.end,
            )

    def release(self, slot: int) -> None:
        """Free a slot, whatever has become of its row."""
        del self._seats[self.seat(slot).slot]
        self._facts.pop(slot, None)

    def close(self) -> None:
        """Free canvas, cache and recorded steps; rows that are not finished are lost. May be called twice."""
        with self.turn:
            gathering, self._gathering, self._running = self._gathering, None, None
            self._seats.clear()
            if gathering is not None:
                if self.step_function.graphs is not None:
                    self.step_function.graphs.forget()
                gathering.close()

    def _kernels(self, components: Components) -> tuple[Components, bool]:
        """Return what a step of these components calls, and whether it may be compiled or recorded.

        A few sets of kernels are known, each of which is compiled and recorded by itself; steps of others are made as they are.
        """
        key = components.kernels
        if self.step_function.has_forms and (key in self._known or len(self._known) < _KERNELS):
            return self._known.setdefault(key, components), True
        return components, not self.step_function.has_forms

    @contextmanager
    def _at_work(self) -> Iterator[Gathering]:
        """Hold the engine's turn, on its device, and name whoever fails."""
        adapter = self.model.adapter
        blaming = naming_culprits(self.components, adapter, lambda: self._running)
        with self.turn, blaming, torch.inference_mode(), current(adapter.device):
            yield self._open()

    def _open(self) -> Gathering:
        if self._gathering is None:
            raise InputError("these slots are closed; make others")
        return self._gathering

    def seat(self, slot: int) -> Seat:
        """Return the row in a slot, and what it took so far.

        Raises:
            InputError: the slot is free.
        """
        if slot not in self._seats:
            raise InputError(f"slot {slot!r} is not taken; taken are {sorted(self._seats)}")
        return self._seats[slot]

    def _read(self, slot: int) -> Facts:
        """Return a slot's facts. All rows' are read at once, so that many which ask wait once."""
        if slot not in self._facts:
            home, seats = self._open().home, self._seats
            blocks = [seats[row].block if row in seats else (0, 0) for row in range(len(home.tokens))]
            read = home.facts_of_rows(sent(blocks, home.tokens.device), self._stop_ids)
            self._facts = {row: read[row] for row in seats}
        return self._facts[slot]
