"""Which components let a row's answer depend on the rows that happen to be beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esdllm.config import DEFAULT_PRESET
from esdllm.errors import ConfigError, PluginError
from esdllm.foreign import translated
from esdllm.interfaces import AttentionBackend
from esdllm.plan import Moment
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.components import Components
from esdllm.runtime.faults import scored
from esdllm.runtime.samples import (
    SPEC,
    block_view,
    cache_shape,
    end_view,
    importance_view,
    key_value,
    sample_view,
    unmasking_view,
)
from esdllm.testing.contracts.kernels import selected
from esdllm.testing.contracts.laws import row_laws
from esdllm.testing.contracts.rows import slot_laws
from esdllm.views import KeyValue

__all__ = ["check_uncoupled", "coupled"]

_ASKED = range(24)
_CPU = torch.device("cpu")


def coupled(components: Components, catalogue: Catalogue | None = None) -> list[str]:
    """Return why rows in slots are not each as alone: a sentence for each component at fault, with the setting that would do.

    A row in a slot is planned by itself, so rows can meet only inside of components, whose contracts forbid it (see
    `esdllm.testing`). So each is tried on made-up values, on the CPU: a kernel gives a row what it gives it alone, a planner
    answers as it did before it was asked about others, a store's slots do not see each other. A backend or a store that cannot
    serve on the CPU is not tried; of those that come with esdllm the tests say it.

    Raises:
        PluginError: a component raises where it is tried; names it.
    """
    found = []
    for section, attempt in _attempts(components):
        who = f"{components.called(section)} failed when rows were tried beside each other"
        with torch.inference_mode(), translated(PluginError, who):
            if said := _fault(attempt):
                found.append(
                    f"{components.called(section)} couples rows: {said}{_cure(components, section, catalogue)}"
                )
    return found


def check_uncoupled(components: Components, catalogue: Catalogue | None = None) -> None:
    """Return if rows in slots are each as alone.

    Raises:
        ConfigError: they are not; gives all reasons of `coupled`.
        PluginError: as `coupled`.
    """
    if reasons := coupled(components, catalogue):
        raise ConfigError("; ".join(reasons))


def _fault(attempt: Callable[[], None]) -> str:
    try:
        attempt()
    except AssertionError as error:
        return str(error)
    return ""


def _cure(components: Components, section: str, catalogue: Catalogue | None) -> str:
    """Return which setting would do: the default preset's, where it is another."""
    named = getattr((catalogue or Catalogue.load()).configure(DEFAULT_PRESET), section).name
    other = named != getattr(components.config, section).name
    return f'; choose another, such as {section} = "{named}"' if other else "; choose another"


def _attempts(components: Components) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield each section with what tries it."""
    can, scorer, policy = components.can, components.importance, components.unmasking
    view = unmasking_view(memory=can.memory, revokes=can.revoking is not None, edits=can.editing is not None)
    shown = importance_view(memory=can.score_memory, signals=can.signals)
    yield "importance", lambda: row_laws("its scores", partial(scored, scorer), shown)
    yield "sampler", lambda: row_laws("its candidates", components.sampler.sample, sample_view())
    yield "unmasking", lambda: row_laws("what it selects", lambda one: selected(policy, one), view)
    if (revoking := can.revoking) is not None:
        yield "unmasking", lambda: row_laws("what it puts back", revoking.revoke, view)
    if (editing := can.editing) is not None:
        yield "unmasking", lambda: row_laws("what it replaces", editing.edit, view)
    if (drafting := can.drafting) is not None:
        yield "unmasking", lambda: row_laws("what it drafts", drafting.draft, view)
    if (moving := can.moving) is not None:
        yield "blocks", lambda: row_laws("where its blocks begin", moving.starts, block_view())
    if (ending := can.ending) is not None:
        yield "blocks", lambda: row_laws("where its blocks end", ending.ends, end_view())
    if not components.attention.problems(SPEC, _CPU, torch.float32):
        yield "attention", lambda: _attending(components.attention)
    if "cache" in components.third_party and not components.cache.problems(cache_shape()):
        yield "cache", lambda: slot_laws("its cache", components.cache, cache_shape(), 1e-4)
    for section, ask in _questions(components).items():
        yield section, partial(_asking, ask)


class _Read(NamedTuple):
    """Queries, and what they read."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    bias: Tensor | None
    padding: Tensor | None
    query_blocks: Tensor | None
    key_blocks: Tensor | None


def _attending(backend: AttentionBackend) -> None:
    queries, read = key_value(groups=SPEC.n_kv_heads, each=SPEC.n_heads // SPEC.n_kv_heads, padding=(0, 6, 2))
    row_laws("its attention", lambda one: backend.attend(one.queries, KeyValue(*one[1:])), _Read(queries, *read))


def _questions(components: Components) -> dict[str, Callable[[int], Any]]:
    """Return what each planner is asked, by a number."""
    learned = () if components.can.learning is None else components.can.learning.learned

    def moment(at: int) -> Moment:
        step, since = at % 8, at % 8 or 1
        return Moment(at, step, at // 8, step, None if at == 0 else since, None if at == 0 else since, learned)

    return {
        "blocks": lambda at: components.blocks.next_block(at, 40 + at, 8),
        "refresh": lambda at: components.refresh.scope(moment(at)),
        "skip": lambda at: components.skip.keep_counts(32, 8 + at, at % 4, 8),
        "unmasking": lambda at: components.unmasking.counts(1 + at, 2),
        "cache": components.cache.phase,
    }


def _asking(ask: Callable[[int], Any]) -> None:
    """Ask a planner about some rows, then about the same in another order."""
    first, again = ([_answer(ask, at) for at in order] for order in (_ASKED, reversed(_ASKED)))
    for one, other in zip(first, again[::-1], strict=True):
        if one != other:
            raise AssertionError(f"it answered {one}, and {other} when it was asked about others in between")


def _answer(ask: Callable[[int], Any], at: int) -> Any:
    try:
        return ask(at)
    except ConfigError as error:
        return str(error)
