"""How often skipping provably changed nothing: each commit of a run held against a pass that recomputes everything.

    certified = Certified(engine)
    engine.generate("Sort 3 1 2.", chat=True, observers=[certified])
    print(certified.shares())

A run commits the token of its largest logit. If the exact logits of that position are all within half the gap to the second
largest, their largest is the same one: the step provably decoded what a full computation decodes. docs/bounds.md says more.
"""

from __future__ import annotations

from typing import NamedTuple

import attrs
import torch
from torch import Tensor

from esdllm.errors import ConfigError
from esdllm.plan import Phase
from esdllm.runtime.engine import Engine
from esdllm.runtime.plain import layers, plain_attention
from esdllm.testing.bounds.stack import Attended, Path, StackWeights, through_layer, to_logits
from esdllm.views import KeyValue, ModelSpec, Projection, Site, StepRecord

__all__ = ["CachedLayer", "Certified", "Commit", "Shares", "read_cache"]


class Commit(NamedTuple):
    """One committed position, and how far its logits were from the exact ones."""

    step: int
    """number of the step, from 0, as they were made"""
    row: int
    column: int
    gap: float
    """the run's largest logit less its second largest"""
    drift: float
    """the largest difference between a logit of the run and the exact one"""
    bound: float
    """what `esdllm.testing.bounds.stack` says that it is at most; inf if that was not asked for"""
    skipped: bool
    """whether the step skipped positions"""
    greedy: bool
    """whether the token is that of the run's largest logit"""
    same: bool
    """whether the token is that of the exact pass's largest logit"""

    @property
    def measured(self) -> bool:
        """Whether the drift is below half the gap, so that no full computation would say another token."""
        return self.greedy and self.drift < self.gap / 2

    @property
    def bounded(self) -> bool:
        """Whether the bound alone says so."""
        return self.greedy and self.bound < self.gap / 2


class Shares(NamedTuple):
    """Shares of the commits, from 0 to 1, each part of the one before; NaN of none."""

    commits: int
    """how many there were"""
    same: float
    """whose token is the exact pass's"""
    measured: float
    """whose measured drift is below half the gap"""
    bounded: float
    """whose bound is"""


class CachedLayer(NamedTuple):
    """What attention read in one layer."""

    keys: Tensor
    """(R, L, G, D)"""
    values: Tensor
    """(R, L, G, D)"""


class _Seen(NamedTuple):
    """What attention reads of a row at a step, all of which the positions decided see."""

    columns: slice
    blocks: Tensor | None
    """(1, N) int64, the numbers of their blocks; None if all see all"""
    shift: int
    """columns from a position to the one that it decides"""


def read_cache(engine: Engine, rows: int, length: int) -> list[CachedLayer]:
    """Return what an engine's cache holds of a canvas in each layer; nothing if its store keeps nothing."""
    cache, spec = engine.cache, engine.model.spec
    if cache is None or not engine.components.cache.persistent:
        return []
    columns = torch.arange(length, device=engine.model.adapter.device).expand(rows, -1)
    sites: tuple[Site, Site] = ("key", "value")
    keys, values = (
        [cache.recall(layer, site, columns).unflatten(-1, (spec.n_kv_heads, -1)) for layer in range(spec.n_layers)]
        for site in sites
    )
    return [CachedLayer(*layer) for layer in zip(keys, values, strict=True)]


@attrs.define(eq=False)
class Certified:
    """A step observer that recomputes each step's canvas in full, and says which commits a full computation would repeat.

    Costs a full pass per step, and with `bound` far more. Takes runs of one engine, one after the other. The run's logits are
    made again from what its cache holds after the step, which is what each layer attended to. A commit whose token is not the
    largest of these (drawn at a temperature, or attention read something else) is never certified.

    Raises:
        ConfigError: the engine decodes with guidance, or its cache store shows attention a part of the cache only.
        InputError: `bound`, and the model's weights cannot be read.
    """

    engine: Engine
    bound: bool = True
    """whether to work the bound out as well"""
    staleness: float = 1.0
    """what share of each key's and value's drift the run is taken to have had; less than 1 shows how the bound falls with it"""
    commits: list[Commit] = attrs.field(factory=list, init=False)
    """all commits so far"""
    _steps: int = attrs.field(default=0, init=False)
    _stack: StackWeights | None = attrs.field(default=None, init=False)
    _before: Tensor = attrs.field(factory=lambda: torch.empty(0), init=False)
    _ends: list[int] = attrs.field(factory=list, init=False)
    _prompts: list[int] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        if scale := self.engine.config.cfg_scale:
            raise ConfigError(f"cfg_scale = {scale}: commits are certified without guidance; set cfg_scale = 0")
        self._stack = StackWeights.of(self.engine.model.adapter) if self.bound else None

    def start(self, tokens: Tensor, spec: ModelSpec) -> None:
        """Take the canvas before the first step."""
        self._before = tokens.clone()
        masks = torch.arange(tokens.shape[1], device=tokens.device) * (tokens == spec.mask_id)
        self._ends = (masks.amax(1) + 1).tolist()  # of rows whose last block is short, padding is behind
        self._prompts = (tokens == spec.mask_id).long().argmax(1).tolist()

    def step(self, record: StepRecord) -> None:
        """Certify a step's commits, row by row."""
        if record.plan.phase is Phase.KEPT:
            raise ConfigError(
                f"the cache store {self.engine.config.cache.name!r} shows attention a part of what it holds, which cannot be "
                'certified; choose cache = "dense"'
            )
        cached = read_cache(self.engine, *record.tokens.shape)
        for row in record.committed.any(1).nonzero()[:, 0].tolist():
            seen = self._seen(record, row)
            columns = record.committed[row].nonzero()[:, 0]
            there = [CachedLayer(*(x[row : row + 1, seen.columns] for x in layer)) for layer in cached]
            self._certify(record, row, seen, columns, there)
        self._before, self._steps = record.tokens.clone(), self._steps + 1

    def end(self) -> None:
        """Nothing is left to do."""

    def _seen(self, record: StepRecord, row: int) -> _Seen:
        """Return what a row's attention reads: all but padding, or up to the end of a block-causal model's block."""
        spec, (_, length) = self.engine.model.spec, record.tokens.shape
        start = record.padding[row] if record.padding else 0
        if spec.attention is None:
            return _Seen(slice(start, length), None, spec.logit_shift)
        size, written = spec.attention.size, spec.attention.write_size
        border = (record.block.start + spec.logit_shift) // size * size
        stop = border if record.plan.leads else min(border + size, self._ends[row])
        columns = torch.arange(start, stop, device=record.tokens.device)
        border = stop if record.plan.leads else border
        blocks = torch.where(columns < border, columns // written * written, border)
        if spec.attention.whole_prompt:
            blocks[: self._prompts[row] - start] = -1
        return _Seen(slice(start, stop), blocks[None], 1 if record.plan.leads else spec.logit_shift)

    def _certify(self, record: StepRecord, row: int, seen: _Seen, columns: Tensor, cached: list[CachedLayer]) -> None:
        tokens, model = self._before[row : row + 1, seen.columns], self.engine.model.adapter
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        decided = columns - seen.columns.start - seen.shift
        hidden, places = model.embed(tokens[:, decided]), model.encode(decided[None])
        path = Path.exact(hidden[0])
        for layer, full in enumerate(layers(model, model.embed(tokens), positions, blocks=seen.blocks)):
            exact, made = full
            read = self._read(cached[layer], made) if cached else CachedLayer(made.keys, made.values)
            queries = model.project(layer, hidden, places).queries
            if self._stack is not None:
                off = [(x - y)[0].double().norm(dim=-1) for x, y in zip(read, (made.keys, made.values), strict=True)]
                there = [x[0].double() for x in (queries, *read)]
                attended_to = Attended(hidden[0].double(), decided, *there, *off)
                path = through_layer(self._stack.layers[layer], attended_to, path, self._stack)
            attended = plain_attention(queries, KeyValue(*read))
            hidden = model.mix(layer, hidden, attended)
        logits, truth = (model.logits(x)[0].double() for x in (hidden, exact[:, decided]))
        for x in (logits, truth):  # the mask is no candidate
            x[:, model.spec.mask_id] = torch.finfo(x.dtype).min / 4
        bound = None if self._stack is None else to_logits(self._stack, hidden[0].double(), path).amax(-1)
        self._note(record, row, columns, logits, truth, bound)

    def _read(self, cached: CachedLayer, made: Projection) -> CachedLayer:
        if self.staleness == 1:
            return cached
        now = (made.keys, made.values)
        return CachedLayer(*(y + self.staleness * (x - y) for x, y in zip(cached, now, strict=True)))

    def _note(
        self, record: StepRecord, row: int, columns: Tensor, logits: Tensor, truth: Tensor, bound: Tensor | None
    ) -> None:
        first, second = logits.topk(2, dim=-1).values.unbind(-1)
        drift = (logits - truth).abs().amax(-1)
        written = record.tokens[row, columns]
        limits = [float("inf")] * len(columns) if bound is None else bound.tolist()
        found = (columns, first - second, drift, logits.argmax(-1) == written, truth.argmax(-1) == written)
        for (column, gap, moved, greedy, same), limit in zip(
            zip(*(x.tolist() for x in found), strict=True), limits, strict=True
        ):
            self.commits.append(Commit(self._steps, row, column, gap, moved, limit, record.plan.skips, greedy, same))

    def shares(self, skipped: bool = False) -> Shares:
        """Return what share of the commits was certified; with `skipped`, of those that skip steps made."""
        taken = [commit for commit in self.commits if commit.skipped or not skipped]
        return _shares([(commit.same, commit.measured, commit.bounded) for commit in taken])

    def step_shares(self) -> Shares:
        """Return the same of steps: one counts if all its commits do. Steps that commit nothing are left out."""
        steps: dict[int, list[Commit]] = {}
        for commit in self.commits:
            steps.setdefault(commit.step, []).append(commit)
        made = steps.values()
        return _shares(
            [(all(x.same for x in step), all(x.measured for x in step), all(x.bounded for x in step)) for step in made]
        )


def _shares(holds: list[tuple[bool, bool, bool]]) -> Shares:
    same, measured, bounded = (
        (sum(column) / len(holds) for column in zip(*holds, strict=True)) if holds else (float("nan"),) * 3
    )
    return Shares(len(holds), same, measured, bounded)
