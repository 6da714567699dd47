"""Hypothesis strategies: what components are put through, drawn. Needs hypothesis: `pip install "esdllm[testing]"`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from esdllm.config import DEFAULT_PRESET, DecodeConfig
from esdllm.errors import ConfigError, EsdllmError, installing
from esdllm.plan import Layout, Moment
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.components import Components
from esdllm.runtime.samples import SPEC, cache_shape, importance_view, key_value, sample_view, unmasking_view
from esdllm.views import CacheShape, ImportanceView, KeyValue, SampleView, Signal, UnmaskingView

try:
    from hypothesis import assume
    from hypothesis import strategies as st
except ImportError as error:
    raise EsdllmError(
        f"esdllm.testing.strategies needs hypothesis, which is not installed: {installing('testing')}"
    ) from error

__all__ = [
    "attention_cases",
    "cache_shapes",
    "configurations",
    "importance_views",
    "layouts",
    "moments",
    "prompts",
    "sample_views",
    "skip_questions",
    "unmasking_views",
]

_SEEDS = st.integers(0, 2**31)
_ROWS = st.integers(1, 4)


@st.composite
def importance_views(
    draw: st.DrawFn, dtype: torch.dtype = torch.float32, memory: int = 0, signals: Collection[Signal] = ()
) -> ImportanceView:
    """Draw what a scorer may read: 1 to 4 rows of 1 to 24 positions of 1 to 16 features, in no order."""
    window, features = draw(st.integers(1, 24)), draw(st.integers(1, 16))
    return importance_view(draw(_SEEDS), draw(_ROWS), window, features, dtype, memory, signals)


@st.composite
def sample_views(draw: st.DrawFn) -> SampleView:
    """Draw what a sampler may read: 1 to 4 rows of 1 to 12 positions, 2 to 40 tokens, from flat to sharp logits."""
    window, vocab = draw(st.integers(1, 12)), draw(st.integers(2, 40))
    return sample_view(draw(_SEEDS), draw(_ROWS), window, vocab, draw(st.floats(0.01, 30.0)))


@st.composite
def unmasking_views(draw: st.DrawFn, memory: int = 0) -> UnmaskingView:
    """Draw what an unmasking policy may read: 1 to 4 rows, perhaps padded, of 1 to 16 positions, some of them eligible."""
    window, vocab = draw(st.integers(1, 16)), draw(st.integers(2, 12))
    sharp, quota, padding = draw(st.floats(0.1, 9.0)), draw(st.integers(1, window)), draw(st.integers(0, 6))
    return unmasking_view(draw(_SEEDS), draw(_ROWS), window, vocab, sharp, quota, padding, memory)


@st.composite
def attention_cases(draw: st.DrawFn) -> tuple[Tensor, KeyValue]:
    """Draw queries and what they read: grouped or not, with padding, with any keys left out, or with none."""
    rows, window, keys = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 40))
    groups, each, dim = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from([4, 16, 20]))
    padding = draw(st.none() | st.tuples(*[st.integers(0, keys - 1)] * rows))
    holes = padding is None and draw(st.booleans())
    return key_value(draw(_SEEDS), rows, window, keys, groups, each, dim, padding, holes)


@st.composite
def cache_shapes(draw: st.DrawFn) -> CacheShape:
    """Draw what a cache is asked to hold: 1 to 3 rows of 4 to 20 columns, 1 to 6 layers, float32 or bfloat16."""
    n_layers = draw(st.integers(1, 6))
    return cache_shape(
        rows=draw(st.integers(1, 3)),
        length=draw(st.integers(4, 20)),
        n_layers=n_layers,
        remembered=tuple(sorted(draw(st.sets(st.integers(0, n_layers - 1), max_size=3)))),
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16])),
    )


@st.composite
def moments(draw: st.DrawFn, known: bool | None = None) -> Moment:
    """Draw when a step happens; `known` says whether what was committed since the last refresh is, either if None."""
    block, step_in_block = draw(st.integers(0, 8)), draw(st.integers(0, 63))
    counted = draw(st.booleans()) if known is None else known
    since = draw(st.integers(1, 64)) if block or step_in_block else None
    return Moment(
        step=64 * block + step_in_block,
        step_in_block=step_in_block,
        block=block,
        unrefreshed=draw(st.integers(0, 256)) if counted else None,
        since_refresh=since,
        since_prompt=None if since is None else draw(st.integers(since, 256)),
    )


@st.composite
def skip_questions(draw: st.DrawFn) -> dict[str, int]:
    """Draw what a skip schedule is asked, as keywords of `keep_counts`: a window of one block or more, of any depth."""
    block = draw(st.integers(1, 64))
    return {
        "n_layers": draw(st.integers(1, 80)),
        "window": draw(st.integers(block, 300)),
        "committed": draw(st.integers(0, 80)),
        "block": block,
    }


@st.composite
def prompts(draw: st.DrawFn, vocab: int = SPEC.mask_id - 1, rows: int = 4, longest: int = 16) -> list[list[int]]:
    """Draw 1 to `rows` prompts of token ids below `vocab`, of lengths of their own, so that a batch is padded."""
    row = st.lists(st.integers(0, vocab - 1), min_size=1, max_size=longest)
    return draw(st.lists(row, min_size=1, max_size=rows))


@st.composite
def layouts(draw: st.DrawFn, logit_shift: int = 0) -> Layout:
    """Draw a canvas as planning sees it: 1 to 3 rows, with masks anywhere after the first column, a hole or two included."""
    length = draw(st.integers(2, 40))
    masked = st.sets(st.integers(1, length - 1), max_size=length - 1)
    rows: Sequence[set[int]] = draw(st.lists(masked, min_size=1, max_size=3).filter(any))
    return Layout(length, tuple(tuple(column - logit_shift for column in sorted(row)) for row in rows))


_DRAWN = ("blocks", "refresh", "skip", "importance", "unmasking")


@st.composite
def configurations(draw: st.DrawFn, /, catalogue: Catalogue | None = None, **fixed: Any) -> DecodeConfig:
    """Draw a configuration of short runs, of any policies that go together at their defaults; `fixed` settings stay."""
    catalogue = catalogue or Catalogue.load()
    gen_length = draw(st.integers(1, 16))
    settings: dict[str, Any] = {"gen_length": gen_length, "block_length": draw(st.integers(1, 16)), "early_stop": False}
    for section in _DRAWN:
        if section not in fixed:
            settings[section] = draw(st.sampled_from(_at_defaults(catalogue, section)))
    config = catalogue.configure(DEFAULT_PRESET, settings={**settings, **fixed})
    try:
        components = Components.resolve(config, catalogue)
        components.planner(Layout.of(2, config.gen_length, 1), SPEC.n_layers).forecast()
    except ConfigError:  # they contradict each other
        assume(False)
    return config


def _at_defaults(catalogue: Catalogue, kind: str) -> list[str]:
    """Return the names of the components of a kind that need no option."""
    entries = (catalogue.entry(kind, name) for name in catalogue.names(kind))
    return [entry.name for entry in entries if all(option.default is not attrs.NOTHING for option in entry.options)]
