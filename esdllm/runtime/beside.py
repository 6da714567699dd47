"""What rows of one canvas have in common, whatever each is decoded by."""

from __future__ import annotations

from esdllm.runtime.components import Components

__all__ = ["differences"]

_SHARED = ("cache", "attention", "observers", "compile", "compile_backend", "cuda_graphs", "canvas_multiple")
"""settings that are the same for all rows of one cache"""


def differences(held: Components, other: Components, n_layers: int) -> list[str]:
    """Return why rows of another configuration cannot lie in one canvas beside those of one that is held; empty if they can.

    Whatever sizes canvas and cache, and who holds or reads the cache, is the same for all rows; the rest is each row's own.
    """
    names = [name for name in _SHARED if getattr(held.config, name) != getattr(other.config, name)]
    if {held.branches, other.branches} == {1, 2}:
        names.append("cfg_scale, which is 0 for all rows or for none")
    mine, theirs, can, others = held.importance, other.importance, held.can, other.can
    if (mine.site, mine.keeps_history, *can.scoring) != (theirs.site, theirs.keeps_history, *others.scoring):
        names.append("importance, which scores at another site or remembers otherwise")
    if len({(each.memory, each.revisions, each.edits, each.drafting is None) for each in (can, others)}) > 1:
        names.append("unmasking, which remembers, puts back, replaces or drafts otherwise")
    if (can.learning is None) != (others.learning is None):
        names.append("refresh, which learns from drift in one alone")
    if (can.ending is None) != (others.ending is None):
        names.append("blocks, which end by the step's logits in one alone")
    if held.outputs(n_layers) != other.outputs(n_layers):
        names.append("skip or refresh, which let positions in at other layers")
    return names
