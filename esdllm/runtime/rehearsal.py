"""A rehearsal of what a step calls, on tiny made-up tensors before the first run: what misbehaves is named, and how.

A run pays nothing for it. Values go through everything that a step asks of a component: what it raises, shape, dtype, range,
NaN, inputs that it changes, a `reset` that does nothing. `esdllm.testing` looks closer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from esdllm.errors import PluginError
from esdllm.foreign import translated
from esdllm.interfaces import AttentionBackend, Cache, CacheStore, ModelAdapter
from esdllm.plan import Phase
from esdllm.plugins.capabilities import Capabilities, closing
from esdllm.runtime.components import Components
from esdllm.runtime.faults import (
    STATELESS,
    candidates_fault,
    change_fault,
    copied,
    draft_fault,
    memory_fault,
    score_fault,
    scored,
    selection_fault,
    state_fault,
    tensor_fault,
)
from esdllm.runtime.plain import plain_attention
from esdllm.runtime.samples import (
    cache_shape,
    cache_write,
    end_view,
    importance_view,
    key_value,
    sample_view,
    unmasking_view,
)
from esdllm.views import BlockView, CacheShape, KeyValue, ModelSpec

__all__ = ["rehearse", "store_fault"]

Put = Callable[[Any], Any]
"""Moves a view to where and what the model computes."""


def rehearse(components: Components, model: ModelAdapter) -> None:
    """Call what a step calls with tiny tensors, once; on the meta device nothing, for there are no values.

    Scorers, samplers, unmasking policies and blocks that move always, which takes a few milliseconds; attention and cache
    only where they are of a plugin that is not ours.

    Raises:
        PluginError: a component raised or broke its contract; names it, and says what it gave and what would do.
    """
    if model.device.type == "meta":
        return
    put: Put = partial(_put, model.device, model.dtype)
    kinds: dict[str, Callable[[], str]] = {
        "importance": lambda: _scoring(components.importance, components.can, model.spec, put),
        "sampler": lambda: _sampling(components.sampler, model.spec, put),
        "unmasking": lambda: _unmasking(components.unmasking, components.can, model.spec, put),
        "blocks": lambda: _placing(components.can.moving, put) or _ending(components.can.ending, put),
    }
    if "attention" in components.third_party:
        kinds["attention"] = lambda: _attending(components.attention, model.spec, put)
    if "cache" in components.third_party:
        shape = cache_shape(dtype=model.dtype, device=model.device, compiled=components.config.compile)
        kinds["cache"] = lambda: store_fault(components.cache, shape)
    for section, fault in kinds.items():
        who = components.called(section)
        with torch.inference_mode(), translated(PluginError, f"{who} failed in a rehearsal on tiny tensors"):
            if said := fault():
                raise PluginError(f"{who} {said}; it was rehearsed on tiny tensors: check it with esdllm.testing")


def _put(device: torch.device, dtype: torch.dtype, view: Any) -> Any:
    """Return a view on a device."""
    made = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, view)
    names = [name for name in ("raw", "x", "last", "keys", "values", "bias") if name in made._fields]
    return made._replace(**{name: x.to(dtype) for name in names if (x := getattr(made, name)) is not None})


def _pure(call: Callable[[Any], Any], view: tuple[Any, ...]) -> tuple[Any, str]:
    """Return what a call gives, and which input it changed."""
    before = copied(view)
    found = call(view)
    return found, change_fault(view, before)


def _scoring(scorer: Any, can: Capabilities, spec: ModelSpec, put: Put) -> str:
    sizes = {"hidden": spec.hidden, "query": spec.n_heads * spec.head_dim}
    features = sizes.get(scorer.site, spec.n_kv_heads * spec.head_dim)

    def made(seed: int) -> Any:
        view = importance_view(seed, 2, features=features, memory=can.score_memory, signals=can.signals)
        return put(view._replace(layer=0))

    view = made(0)
    score, changed = _pure(partial(scored, scorer), view)
    if view.memory is not None:
        kept, changed = _pure(scorer.remember, view)
        if fault := changed or memory_fault(kept, view, can.score_memory):
            return fault
    fault = changed or score_fault(score, view)
    if not fault and (state := state_fault(partial(scored, scorer), view, made(1))):
        return f"{state}; {STATELESS}"
    return fault


def _sampling(sampler: Any, spec: ModelSpec, put: Put) -> str:
    view = put(sample_view(rows=2, window=2, vocab=spec.vocab))
    view.raw[..., spec.mask_id] = float("-inf")  # as in a run
    found, changed = _pure(sampler.sample, view)
    return changed or candidates_fault(found, view)


def _unmasking(policy: Any, can: Capabilities, spec: ModelSpec, put: Put) -> str:
    size, revokes, edits = can.memory, can.revoking is not None, can.editing is not None
    view = put(unmasking_view(rows=2, window=3, quota=1, vocab=spec.vocab, memory=size, revokes=revokes, edits=edits))
    if size:
        kept, changed = _pure(policy.remember, view)
        if fault := changed or memory_fault(kept, view, size):
            return fault
        view = view._replace(memory=kept)
    chosen, changed = _pure(policy.select, view)
    fault = changed or selection_fault(chosen, view.eligible)
    for what, does, call in (("puts back", revokes, "revoke"), ("replaces", edits, "edit")):
        if does and not fault:
            found, changed = _pure(getattr(policy, call), view)
            fault = changed or tensor_fault(f"what it {what}", found, view.eligible.shape, torch.bool)
    if can.drafting is not None and not fault:
        drafted, changed = _pure(can.drafting.draft, view)
        fault = changed or draft_fault(drafted, view)
    return fault


def _placing(blocks: Any, put: Put) -> str:
    if blocks is None:
        return ""
    undecided = torch.arange(12).expand(2, -1) >= torch.tensor([[4], [7]])
    view = put(BlockView(torch.tensor([4, 7]), undecided, 4, 12, 4))
    starts, changed = _pure(blocks.starts, view)
    return changed or tensor_fault("the starts", starts, (2,), torch.int64)


def _ending(blocks: Any, put: Put) -> str:
    if blocks is None:
        return ""
    ends, changed = _pure(blocks.ends, put(end_view()))
    return changed or tensor_fault("the ends", ends, (3,), torch.int64)


def _attending(backend: AttentionBackend, spec: ModelSpec, put: Put) -> str:
    each = spec.n_heads // spec.n_kv_heads
    block = 0 if spec.attention is None else min(spec.attention.size, 4)
    made, given = key_value(rows=2, groups=spec.n_kv_heads, each=each, dim=spec.head_dim, padding=(0, 6), block=block)
    read = put(given)
    queries = made.to(read.keys)
    found, changed = _pure(
        lambda view: backend.attend(view[0], KeyValue(view[1], view[2], view[3], *read[3:])), (queries, *read[:3])
    )
    if fault := changed or tensor_fault("attention", found, queries.shape, queries.dtype):
        return fault
    if block and not _reads_blocks(found, queries, read):
        return "reads keys of blocks behind a query's own, though it says block_causal"
    return "" if bool(found.isfinite().all()) else "gave attention that is not finite, of queries and keys that are"


def _reads_blocks(found: Tensor, queries: Tensor, read: KeyValue) -> bool:
    """Return whether attention is near that under the mask, which is far from that without."""
    said = plain_attention(queries.float(), read._replace(keys=read.keys.float(), values=read.values.float()))
    return bool(((found.float() - said).abs() < 0.1).all())


def store_fault(store: CacheStore, shape: CacheShape) -> str:
    """Return which of its inputs a store's cache changes, or what it shows after a reset that a new one does not."""
    if store.problems(shape):
        return ""
    used, new = store.allocate(shape), store.allocate(shape)
    try:
        return _filled(used, shape) or (_shown(used, new, shape) if store.persistent else "")
    finally:
        for cache in (used, new):
            if (closable := closing(cache)) is not None:
                closable.close()


def _all(shape: CacheShape) -> Tensor:
    return torch.arange(shape.length).expand(shape.rows, -1)


def _filled(cache: Cache, shape: CacheShape) -> str:
    """Write every layer, remember what is to be remembered; return which input that changed."""
    x = torch.ones(shape.rows, shape.length, shape.features, dtype=shape.dtype, device=shape.device)
    for layer in range(shape.n_layers):
        write = cache_write(shape, layer, _all(shape), seed=layer, phase=Phase.ALL, padding=(0, 5))
        changed = _pure(cache.update, write)[1]
        if layer in shape.remembered and not changed:
            changed = _pure(partial(_remember, cache, layer), (write.positions, x))[1]
        if changed:
            return changed.replace("a kernel is a pure function", "it belongs to the step")
    return ""


def _remember(cache: Cache, layer: int, view: tuple[Tensor, Tensor]) -> None:
    cache.remember(layer, *view)


def _shown(used: Cache, new: Cache, shape: CacheShape) -> str:
    """Reset a cache that was written, write the first columns of both; return where they differ."""
    used.reset()
    for layer in range(shape.n_layers):
        part = cache_write(shape, layer, _all(shape)[:, :6], seed=9, phase=Phase.ALL, padding=(0, 5))
        mine, theirs = ([x.clone() for x in cache.update(part)[:2]] for cache in (used, new))
        if layer in shape.remembered:
            for cache, shown in ((used, mine), (new, theirs)):
                shown.append(cache.recall(layer, "hidden", part.positions).clone())
        if not all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)):
            return f"resets too little: layer {layer} of a cache that was reset shows what was written before"
    return ""
