"""Which kernel multiplies by weights in full where none is named: the fastest here whose rounding is at most the dtype's.

That is measured, with the model's own shapes, and kept. A small model goes by rule, as all do whose choice is between devices:
packed where the processor multiplies bfloat16, and else plain, so that its hidden states have the checkpoint's dtype everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from esdllm import ComputeChoice, KernelTime, LoadPlan
from esdllm_models.linear.kept import Measurements, measurement_key
from esdllm_models.linear.kernels import COMPUTES
from esdllm_models.linear.packed import packs
from esdllm_models.linear.timing import FEW, MANY, Matrix, Seconds, measured

__all__ = ["choose"]

SMALL = 1 << 24
"""weights of a model, below which measuring would take longer than what it gains"""

_STEPS = 15  # with few positions to one with many, about as in a run of `es-dllm`
_GAIN = 1.1  # times as fast as those before it a kernel must be, lest chance decide between equals
_ROOM = 1.25  # times as many bytes as the weights have, that filling up may take


def choose(matrices: Sequence[Matrix], size: int, plan: LoadPlan, measure: bool) -> ComputeChoice:
    """Return the kernel of a plan for a model of so many weights in matrices; unless `measure`, from what is kept or by rule."""
    reasons = {name: tuple(_reasons(name, matrices, plan)) for name in COMPUTES}
    told = tuple(KernelTime(name, why) for name, why in reasons.items())
    if len(plan.devices) > 1:
        return ComputeChoice(None, "by rule, on each of several devices", told)
    able, rule = [name for name, why in reasons.items() if not why], _by_rule(plan.device, plan.dtype)
    if len(able) == 1:
        return ComputeChoice(able[0], "the only one that serves", told)
    if size < SMALL:
        small = "plain" if rule == "pieces" else rule
        return ComputeChoice(small, "by rule, as for all small models", told)
    key, kept, lost = measurement_key(matrices, able, plan.dtype), Measurements.of_user(), ""
    found: Mapping[str, Seconds] | None = kept.find(key, able)
    if found is None and not measure:
        return ComputeChoice(rule, "by rule, until it is measured in loading", told)
    if found is None:
        found, lost = kept.keep(key, measured(matrices, able, plan.dtype))
    reason = f"measured with {FEW} and {MANY} positions, {lost or f'kept in {kept.path(key)}'}"
    times = tuple(
        KernelTime(name, why, found[name].few, found[name].many) if name in found else KernelTime(name, why)
        for name, why in reasons.items()
    )
    return ComputeChoice(_fastest(found, rule), reason, times)


def _by_rule(device: torch.device, dtype: torch.dtype) -> str:
    if device.type != "cpu" or dtype != torch.bfloat16:
        return "plain"
    return "packed" if packs(device, dtype) else "pieces"


def _reasons(name: str, matrices: Sequence[Matrix], plan: LoadPlan) -> list[str]:
    """Return why a kernel is not to be chosen: it cannot serve, rounds more than the dtype, or takes more than its bytes."""
    kernel, size = COMPUTES[name], plan.dtype.itemsize
    found = list(dict.fromkeys(why for device in plan.devices for why in kernel.problems(device, plan.dtype)))
    rounds, own = kernel.rounding(plan.dtype), torch.finfo(plan.dtype).eps
    if rounds > own:
        found.append(f"it rounds to {rounds:.1g}, {str(plan.dtype).removeprefix('torch.')} to {own:.1g}")
    held = sum(kernel.bytes(one.outputs, one.inputs, size) * one.times for one in matrices if not one.expert)
    full = size * sum(one.weights for one in matrices if not one.expert)
    if held > _ROOM * full:
        found.append(f"it would take {held / full:.1f} times the weights' bytes, for layers this narrow")
    return found


def _fastest(found: Mapping[str, Seconds], rule: str) -> str:
    """Return the kernel that takes least in a run; the rule's, if another gains little over it."""
    costs = {name: _STEPS * one.few + one.many for name, one in found.items() if one.many is not None}
    best = min(costs, key=lambda name: (costs[name], name))
    return rule if costs.get(rule, float("inf")) <= _GAIN * costs[best] else best
