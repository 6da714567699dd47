"""At which layers positions come in: back in where they were dropped, or from where a refresh begins. Host integers only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from esdllm.errors import ConfigError
from esdllm.plan import Moment, Scope, Window
from esdllm.planning.planners import LayeredRefresh, ReturningSkip

__all__ = ["checked_from", "joining_layers", "outputs", "remembered_outputs", "returning_layers"]


def returning_layers(schedule: ReturningSkip | None, n_layers: int) -> tuple[int, ...]:
    """Return the layers at which a skip schedule lets positions back in; none if there is no such schedule.

    Raises:
        ConfigError: it names layers that there are not.
    """
    found = () if schedule is None else schedule.returning(n_layers)
    return _layers("the skip schedule's `returning`", found, 0, n_layers)


def joining_layers(policy: LayeredRefresh | None, n_layers: int) -> tuple[int, ...]:
    """Return the layers from which a refresh may begin; none if there is no such policy.

    Raises:
        ConfigError: it names layers that there are not.
    """
    found = () if policy is None else policy.from_layers(n_layers)
    return _layers("the refresh policy's `from_layers`", found, 1, n_layers)


def _layers(whose: str, layers: Sequence[int], least: int, n_layers: int) -> tuple[int, ...]:
    within = all(type(layer) is int and least <= layer < n_layers for layer in layers)
    if not within or any(a >= b for a, b in pairwise(layers)):
        raise ConfigError(
            f"{whose} gave {layers!r:.80} for {n_layers} layers; give a tuple of layers from {least} to {n_layers - 1}, ascending"
        )
    return tuple(layers)


def remembered_outputs(returning: Sequence[int], joining: Sequence[int], after: bool) -> frozenset[int]:
    """Return the layers whose output is remembered, so that positions can come into the next with it.

    `after` says whether positions drop, and come back, after a layer; within one they come with its input.
    """
    return frozenset({layer - (not after) for layer in returning} | {layer - 1 for layer in joining})


def outputs(
    schedule: ReturningSkip | None, policy: LayeredRefresh | None, n_layers: int, site: str, keeps_history: bool
) -> frozenset[int]:
    """Return the layers whose output is remembered under a skip schedule and a refresh policy; `site` is the scorer's.

    Raises:
        ConfigError: they name layers that there are not, or the scorer remembers queries in place of hidden states.
    """
    returning, joining = returning_layers(schedule, n_layers), joining_layers(policy, n_layers)
    found = remembered_outputs(returning, joining, site == "hidden")
    if found and site == "query" and keeps_history:
        raise ConfigError(
            "positions come in at layers with hidden states that are remembered of them, and the importance scorer remembers "
            "queries in their place; set importance.site to hidden, key or value"
        )
    return found


def checked_from(scope: Scope, moment: Moment, joining: tuple[int, ...], whole: bool) -> int:
    """Return the layer from which a step computes its whole window; 0 where it is `whole` for another reason.

    Raises:
        ConfigError: nothing is remembered there, or the step is none that could begin at a layer.
    """
    first = scope.from_layer
    if first == 0 or whole:
        return 0
    asked = f"the refresh policy asked for a refresh from layer {first!r} at step {moment.step}"
    if first not in joining:
        known = f"here {joining}" if joining else "and it has none (see LayeredRefresh)"
        raise ConfigError(f"{asked}; it may from those that `from_layers` names, {known}")
    if not scope.refresh:
        raise ConfigError(f"{asked}, and no refresh; give Scope(window, refresh=True, from_layer={first})")
    if scope.window is Window.OPEN:
        raise ConfigError(f"{asked}, of the window 'open', which has no block that goes first; choose another window")
    if moment.since_prompt is None:
        raise ConfigError(
            f"{asked}, before any refresh of the canvas: nothing is remembered yet; begin with a whole one"
        )
    return first
