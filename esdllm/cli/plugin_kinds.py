"""The kinds of component that `esdllm new-plugin` writes a package of."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

__all__ = ["KINDS", "Kind"]


@attrs.frozen
class Kind:
    """What is written for a kind of component."""

    section: str
    """the kind's name in a catalogue, and its section of the configuration; a command is no component and has neither"""
    what: str
    """what the component is"""
    summary: str
    """what the one that is written does"""
    suffix: str
    """what its class' name ends with"""
    check: str
    """the contract of its kind, in `esdllm.testing`; empty if it has none"""


KINDS: Mapping[str, Kind] = {
    "scorer": Kind(
        "importance",
        "An importance scorer",
        "confidence, and what was just committed goes first.",
        "Scorer",
        "check_importance_scorer",
    ),
    "skip": Kind("skip", "A skip schedule", "one share of the window in every layer.", "Skip", "check_skip_schedule"),
    "refresh": Kind("refresh", "A refresh policy", "the canvas every few steps.", "Refresh", "check_refresh_policy"),
    "blocks": Kind("blocks", "A block schedule", "no block is very short.", "Blocks", "check_block_schedule"),
    "sampler": Kind("sampler", "A token sampler", "a sample at a temperature.", "Sampler", "check_token_sampler"),
    "unmasking": Kind(
        "unmasking",
        "An unmasking policy",
        "what is nearly as sure as the surest.",
        "Unmasking",
        "check_unmasking_policy",
    ),
    "attention": Kind(
        "attention", "An attention backend", "the formula, written out.", "Attention", "check_attention_backend"
    ),
    "cache": Kind("cache", "A cache store", "everything, in a dtype of its own.", "Store", "check_cache_store"),
    "family": Kind("model", "A model family", "a small bidirectional decoder.", "Family", "check_model_family"),
    "observer": Kind("observers", "A step observer", "a line every few steps.", "Observer", "check_step_observer"),
    "preset": Kind("preset", "A preset", "early skipping, several tokens per step.", "", "check_preset"),
    "command": Kind("command", "A command", "how many tokens a text has.", "_command", ""),
}
"""The kinds, by the word that `--kind` takes."""
