"""Which component a recorded rule is, and with which options; and why others are not run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from esdllm.testing.conformance.result import NotRun

__all__ = ["BLOCKS", "COMPONENTS", "NOT_BUILT", "Recorded", "decoding"]

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


def _hierarchical_remask(settings: Recorded) -> dict[str, Any]:
    chosen = _hierarchical(settings)
    return {**chosen, "name": "hierarchical-remask", "remask_threshold": settings["remask_threshold"]}


def _dc_leap(settings: Recorded) -> dict[str, Any]:
    return {
        "name": "dc-leap",
        "threshold": settings["commit_threshold"],
        "draft_threshold": settings["draft_threshold"],
        "window": settings["window"],
    }


def _remdm(settings: Recorded) -> dict[str, Any]:
    return {"name": "remdm", "number": settings["number"]}


def _parallel(settings: Recorded) -> dict[str, Any]:
    """Return the policy of a rule that is a block schedule: above a threshold, by a factor, or one at a step."""
    if settings.get("factor") is not None:
        return {"name": "factor", "factor": settings["factor"], "with_last": True}
    return {"name": "top-k"} if settings["threshold"] is None else _threshold(settings)


def _growing(settings: Recorded) -> dict[str, Any]:
    limit = settings["max_block_length"]
    return {"name": "growing", "reach": 0, **({} if limit < 0 else {"limit": limit})}


def _adablock(settings: Recorded) -> dict[str, Any]:
    chosen = {name: settings[name] for name in ("delimiters", "delimiter_threshold")}
    return {"name": "adablock", "reach": 0, **chosen}


def _threshold(settings: Recorded) -> dict[str, Any]:
    return {"name": "threshold", "threshold": settings["threshold"]}


COMPONENTS: Mapping[str, Callable[[Recorded], dict[str, Any]]] = {
    "adablock": _parallel,
    "cai": _cai,
    "dc-leap": _dc_leap,
    "dinfer-threshold": _threshold,
    "dsb": _parallel,
    "frechet-profile": _frechet_profile,
    "hierarchical": _hierarchical,
    "hierarchical-fast-v2": _hierarchical,
    "hierarchical-remask": _hierarchical_remask,
    "local-leap": _local_leap,
    "remdm": _remdm,
}
"""The unmasking policy of each rule, by its recorded settings."""


BLOCKS: Mapping[str, Callable[[Recorded], dict[str, Any]]] = {"adablock": _adablock, "dsb": _growing}
"""The block schedule of each rule that is one; of others `fixed`."""


def decoding(rule: str, settings: Recorded) -> dict[str, Any]:
    """Return the settings of a whole run by a rule; without a block's length the answer is one."""
    length = settings["gen_length"]
    return {
        "gen_length": length,
        "block_length": settings.get("block_length", length),
        "delay_eos": settings.get("delay_eos", False),
        "early_stop": False,
        "blocks": BLOCKS[rule](settings) if rule in BLOCKS else "fixed",
        "unmasking": COMPONENTS[rule](settings),
    }


NOT_BUILT: Mapping[str, NotRun] = {
    rule: NotRun(f"there is no component for this rule: {why}")
    for rule, why in {
        "daedal": "the canvas has one length",
        "freedave": "a row has one branch",
        "polestar-gate": "a policy sees nothing of attention",
        "rho-eos": "the canvas has one length",
    }.items()
}
"""Why the cases of other rules are not run."""
