"""How many rows can be decoded side by side in the memory that is free, so that none is admitted for which it would not do."""

from __future__ import annotations

import attrs

from esdllm.errors import InputError, UnavailableError, brief
from esdllm.machine import Device, Fit, Machine
from esdllm.plan import Layout
from esdllm.processor import logits_at_once
from esdllm.runtime.components import Components
from esdllm.runtime.engine import Engine
from esdllm.runtime.footprint import working_bytes

__all__ = ["MOST", "Sizing", "choose_slots", "outgrown"]

MOST = {"cpu": 16, "cuda": 64}
"""The most slots that are made unless a number is given: beyond, a step of more rows takes longer and is hardly cheaper."""

_KEPT = 0.1  # of what is free: allocators, kernels' scratch, what else runs here
_CHOICE = 12  # bytes a logit of a step: float32 copies of a policy that reads all probabilities, or of guidance
_NOISE = 28  # bytes a logit that a sampler draws noise for at once; a request may ask for a temperature


def choose_slots(engine: Engine, length: int, wanted: int | None = None, machine: Machine | None = None) -> int:
    """Return how many slots of `length` columns to make: those `wanted`, or as many as fit, `MOST` of them at most.

    The engine's model is loaded. What is free beside it is looked up, unless a `machine` tells; a tenth of that stays free.

    Raises:
        InputError: a slot has no room for a prompt, or `wanted` is no number of slots.
        UnavailableError: they do not fit, and how many would; or the cache store cannot hold slots.
    """
    if wanted is not None and (type(wanted) is not int or wanted < 1):
        raise InputError(f"{brief(wanted)} slots; give a whole number of at least 1, or none to make as many as fit")
    machine, device = machine or Machine.here(), engine.model.adapter.device
    sizing = Sizing.of(engine, length, machine.device(device), machine.devices[0])
    number = sizing.fitting(MOST.get(device.type, MOST["cpu"]) if wanted is None else wanted)
    if number < (wanted or 1):
        raise UnavailableError(sizing.refusal(wanted or 1, number))
    return number


@attrs.frozen
class Sizing:
    """What slots take of a device, and what is free there.

    Counted are the cache for all slots and the widest step of the configuration, made by all rows at once, whatever chooses
    tokens there; a row whose settings ask for more is `outgrown`. An attention backend that makes a tensor of queries times
    keys, as `eager` does, takes more.
    """

    engine: Engine
    length: int
    """L, the columns of a slot"""
    device: Device
    cpu: Device
    _widest: frozenset[tuple[int, int]]
    """what steps compute: positions, and of how many of them logits"""

    @classmethod
    def of(cls, engine: Engine, length: int, device: Device, cpu: Device) -> Sizing:
        """Return the sizing of slots of `length` columns on a device; the host is the `cpu`, which may be the device.

        Raises:
            InputError: a slot has no room for a prompt before `gen_length`, or is longer than the model's context.
        """
        spec, answer = engine.model.spec, engine.config.gen_length
        if type(length) is not int or not answer < length <= spec.context:
            raise InputError(
                f"slots of {brief(length)} columns; give more than gen_length = {answer}, or no prompt has room, and no more "
                f"than the model's context of {spec.context}"
            )
        return cls(engine, length, device, cpu, _widest(engine, engine.components, length))

    def fit(self, count: int) -> Fit:
        """Return what `count` slots take beside the weights."""
        engine, spec, adapter = self.engine, self.engine.model.spec, self.engine.model.adapter
        forms, store = engine.step_function.has_forms, engine.components.cache
        shape = engine.components.slots_shape(spec, count, self.length, forms, adapter.device, adapter.dtype)
        work = max(self._work(shape.rows, *widest) for widest in self._widest)
        return Fit(engine.config.cache.name, tuple(store.problems(shape)), store.memory(shape), 0, work)

    def fitting(self, most: int) -> int:
        """Return how many slots fit, of `most` at most."""
        left = [attrs.evolve(one, free=int(one.free * (1 - _KEPT))) for one in (self.device, self.cpu)]
        fitting, beyond = 0, most + 1
        while beyond - fitting > 1:
            middle = (fitting + beyond) // 2
            fitting, beyond = (middle, beyond) if self.fit(middle).fits(*left) else (fitting, middle)
        return fitting

    def refusal(self, wanted: int, fitting: int) -> str:
        """Return why `wanted` slots do not fit, and what would do, which is so many or fewer columns."""
        fit = self.fit(wanted)
        if fit.problems:
            return f"cache '{fit.store}' cannot hold slots here: {'; '.join(fit.problems)}"
        host = f", and {_size(fit.host())} of the host, where {_size(self.cpu.free)} are free" if fit.host() else ""
        return (
            f"{wanted} slots of {self.length} columns take {_size(fit.device())} of {self.device.name}, where "
            f"{_size(self.device.free)} are free{host}; a tenth is to stay free: "
            + (f"{fitting} would fit" if fitting else "give fewer columns, or a cache store that takes less")
        )

    def _work(self, rows: int, window: int, decided: int) -> int:
        """Return the bytes that a step takes at most beside weights and cache."""
        spec, adapter = self.engine.model.spec, self.engine.model.adapter
        logits = rows * decided * spec.vocab
        choosing = _CHOICE * logits + _NOISE * min(logits, logits_at_once(adapter.device))
        return working_bytes(spec, rows, window, decided, adapter.dtype, adapter.device) + choosing


def outgrown(engine: Engine, components: Components, length: int) -> str:
    """Return why a step of a row with settings of its own may take more than slots were made for; empty if it takes no more.

    The engine's slots have `length` columns; `components` are those of `Components.varied`. Takes a forecast of a whole slot, so
    remember what it said of which settings.
    """
    mine, theirs = (
        max(decided for _, decided in _widest(engine, each, length)) for each in (engine.components, components)
    )
    if theirs <= mine:
        return ""
    return (
        f"a step would compute the logits of up to {theirs} positions, and slots are made for {mine}: block_length = "
        f"{components.config.block_length}, {components.named('refresh', 'blocks', 'unmasking')}; give a block_length of at most "
        f"{engine.config.block_length}, and none of those that decide beyond their block"
    )


def _widest(engine: Engine, components: Components, length: int) -> frozenset[tuple[int, int]]:
    """Return what the steps of a row that fills a slot compute, all of it an answer: positions, and of how many logits.

    Of a block-causal model the prompt's pass is the widest: there a row is all prompt but for its last block, too.
    """
    spec = engine.model.spec
    columns = components.columns(length, spec, engine.step_function.has_forms)
    last = columns - 1 - spec.logit_shift
    answers = [last] if spec.attention is None else [last, min(spec.attention.size, last)]
    rows = [Layout.of(columns - answer, answer, spec.logit_shift, attention=spec.attention) for answer in answers]
    plans = {step.plan for row in rows for step in components.planner(row, spec.n_layers, few_sights=True).forecast()}
    return frozenset((plan.window, plan.decided) for plan in plans)


def _size(number: int) -> str:
    return f"{number / 1e9:.3g} GB"
