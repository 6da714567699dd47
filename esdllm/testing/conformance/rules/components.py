"""Which component a recorded rule is, and with which options; and why others are not run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from esdllm.testing.conformance.result import NotRun

__all__ = ["COMPONENTS", "NOT_BUILT", "Recorded"]

Recorded = Mapping[str, Any]
"""A case, its settings, or a file of them."""


def _cai(settings: Recorded) -> dict[str, Any]:
    chosen: dict[str, Any] = {"name": "cai", "gated": settings["gated"], "stalls": "batch"}
    if "end" in settings:
        given = {"start": settings["start"], "ends": [settings["end"]], "shape": settings.get("shape", "cosine")}
        return {**chosen, **given, "warmup": settings["warmup"]}
    if settings["theta_ends"] is None:  # the published table, which no other setting changes
        return chosen
    return {**chosen, "start": settings["theta_start"], "ends": settings["theta_ends"], "warmup": settings["warmup"]}


def _frechet_profile(settings: Recorded) -> dict[str, Any]:
    return {"name": "frechet-profile", "margin": settings["margin"]}


def _local_leap(settings: Recorded) -> dict[str, Any]:
    threshold, relaxed = settings["threshold"], settings["relaxed_threshold"]
    return {
        "name": "local-leap",
        "threshold": threshold,
        "relaxed_threshold": threshold if relaxed is None else relaxed,
        "radius": settings["radius"],
    }


def _hierarchical(settings: Recorded) -> dict[str, Any]:
    threshold, low = settings["threshold"], settings["low_threshold"]
    return {
        "name": "hierarchical",
        "threshold": 1.0 if threshold is None else threshold,
        "low_threshold": 0.0 if low is None else low,
    }


def _threshold(settings: Recorded) -> dict[str, Any]:
    return {"name": "threshold", "threshold": settings["threshold"]}


COMPONENTS: Mapping[str, Callable[[Recorded], dict[str, Any]]] = {
    "cai": _cai,
    "dinfer-threshold": _threshold,
    "frechet-profile": _frechet_profile,
    "hierarchical": _hierarchical,
    "hierarchical-fast-v2": _hierarchical,
    "local-leap": _local_leap,
}
"""The unmasking policy of each rule, by its recorded settings."""

NOT_BUILT: Mapping[str, NotRun] = {
    rule: NotRun(f"there is no component for this rule: {why}")
    for rule, why in {
        "adablock": "a block schedule sees no logits",
        "daedal": "the canvas has one length",
        "dc-leap": "what is not decided is never part of the input",
        "dsb": "a block that moves keeps its length",
        "freedave": "a row has one branch",
        "hierarchical-remask": "what is put back is decided again by a later step",
        "polestar-gate": "a policy sees nothing of attention",
        "remdm": "what a step has decided it does not put back",
        "rho-eos": "the canvas has one length",
    }.items()
}
"""Why the cases of other rules are not run."""
