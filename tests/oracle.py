"""Early skipping written down once more, plainly: loops over rows, dynamic shapes, a look at every value.

What `docs/how-it-works.md` says under "One step, exactly", point by point, and with nothing shared with the runtime but the
model's own layers. Slow, and for tests only: of the method (`oracle`), of what it plans (`is_refresh`, `window`, `keep_counts`)
and of attention (`attention`). CONTRIBUTING says which oracles there are beside, and why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esdllm import KeyValue, ModelAdapter


class Settings(NamedTuple):
    gen_length: int
    block_length: int
    tokens_per_step: int | None
    threshold: float | None
    prompt_refresh: int
    block_refresh: int
    keep: list[list[float]]
    alpha: float
    site: str
    delay_eos: bool


def is_refresh(step: int, prompt_refresh: int, block_refresh: int) -> bool:
    """Return whether a step computes its window in every layer."""
    return step % prompt_refresh == 0 or step % block_refresh == 0


def window(
    step: int, step_in_block: int, block: range, latest: Sequence[int], length: int, prompt_refresh: int
) -> range:
    """Return the positions that a step computes; `latest` are those that the step before committed."""
    if step == 0:
        return range(length)
    if step % prompt_refresh == 0:
        return range(block.stop)
    return range(min([block.start, *latest]) if step_in_block == 0 else block.start, block.stop)


def keep_counts(
    keep: Sequence[Sequence[float]], n_layers: int, window: int, committed: int, block: int, refresh: bool
) -> tuple[int, ...]:
    """Return the positions that each layer hands on of a window, `committed` of them by the step before."""
    counts, alive = [], window
    for layer in range(n_layers):
        _, ratio = max((depth, ratio) for depth, ratio in keep if layer >= depth * n_layers)
        alive = alive if refresh else min(alive, max(int(ratio * window), min(committed + 2, block)))
        counts.append(alive)
    return tuple(counts)


def attention(queries: Tensor, read: KeyValue) -> Tensor:
    """Return attention of one row after the other, in float64, reading only the keys that are not left out.

    Queries of several blocks go one by one, for each reads the keys up to its own block's.
    """
    if read.query_blocks is not None and read.key_blocks is not None:
        rows = [_by_block(queries, read, row) for row in range(len(queries))]
        return torch.cat(rows)
    each, made = queries.shape[2] // read.keys.shape[2], []
    for row, asked in enumerate(queries.double()):
        seen = slice(None) if read.bias is None else read.bias[row] == 0
        keys, values = (x[row, seen].double().repeat_interleave(each, 1) for x in (read.keys, read.values))
        weights = torch.einsum("nhd,khd->hnk", asked, keys) / math.sqrt(queries.shape[-1])
        made.append(torch.einsum("hnk,khd->nhd", weights.softmax(-1), values))
    return torch.stack(made)


def _by_block(queries: Tensor, read: KeyValue, row: int) -> Tensor:
    assert read.query_blocks is not None
    assert read.key_blocks is not None
    made = []
    for number, block in enumerate(read.query_blocks[row].tolist()):
        seen = [k for k, other in enumerate(read.key_blocks[row].tolist()) if other <= block]
        bias = None if read.bias is None else read.bias[row : row + 1, seen]
        asked = queries[row : row + 1, number : number + 1]
        made.append(attention(asked, KeyValue(read.keys[row : row + 1, seen], read.values[row : row + 1, seen], bias)))
    return torch.cat(made, 1)


class Oracle:
    """One generation."""

    def __init__(self, model: ModelAdapter, prompts: list[list[int]], settings: Settings) -> None:
        self.model, self.spec, self.s = model, model.spec, settings
        self.rows, self.prompt = len(prompts), max(map(len, prompts))
        self.pad = [self.prompt - len(row) for row in prompts]
        padded = [[self.spec.eos_id] * pad + row for pad, row in zip(self.pad, prompts, strict=True)]
        self.tokens = torch.tensor([row + [self.spec.mask_id] * settings.gen_length for row in padded])
        self.length = self.tokens.shape[1]
        self.keys: dict[tuple[int, int, int], Tensor] = {}  # (layer, row, position) -> (G, D)
        self.values: dict[tuple[int, int, int], Tensor] = {}
        self.last: dict[tuple[int, int, int], Tensor] = {}  # what variation is measured against
        self.confidence = torch.zeros(self.rows, self.length)
        self.committed: list[list[int]] = [[] for _ in range(self.rows)]
        self.forwards = 0
        self.margin = math.inf
        """the smallest difference that any decision rested on"""

    def run(self) -> list[list[int]]:
        step, first, end = 0, self.prompt - self.spec.logit_shift, self.length - self.spec.logit_shift
        for start in range(first, end, self.s.block_length):
            block = range(start, min(start + self.s.block_length, end))
            step, step_in_block = math.ceil(step / self.s.block_length) * self.s.block_length, 0
            while any(self.masked(row, p) for row in range(self.rows) for p in block):
                self.step(step, step_in_block, block)
                step, step_in_block = step + 1, step_in_block + 1
        return self.tokens.tolist()

    def masked(self, row: int, position: int) -> bool:
        return bool(self.tokens[row, position + self.spec.logit_shift] == self.spec.mask_id)

    def step(self, step: int, step_in_block: int, block: range) -> None:
        latest = [p for row in self.committed for p in row]
        seen = window(step, step_in_block, block, latest, self.length, self.s.prompt_refresh)
        refresh = is_refresh(step, self.s.prompt_refresh, self.s.block_refresh)
        committed = max(len(row) for row in self.committed)
        keeps = keep_counts(self.s.keep, self.spec.n_layers, len(seen), committed, len(block), refresh)
        self.forwards += 1
        found = [self.forward(row, seen, block, keeps) for row in range(self.rows)]
        self.committed = [self.commit(row, block, *found[row]) for row in range(self.rows)]

    def forward(self, row: int, seen: range, block: range, keeps: Sequence[int]) -> tuple[list[int], Tensor]:
        alive = list(seen)
        hidden = self.model.embed(self.tokens[row : row + 1, alive])
        for layer, keep in enumerate(keeps):
            places = self.model.encode(torch.tensor([[max(0, p - self.pad[row]) for p in alive]]))
            q, k, v = self.model.project(layer, hidden, places)
            if self.s.site != "hidden":
                x = {"query": q, "key": k, "value": v}[self.s.site][0].flatten(1)
                chosen = self.choose(row, layer, alive, x, keep, block)
                alive, hidden = [alive[i] for i in chosen], hidden[:, chosen]
                q, k, v, x = q[:, chosen], k[:, chosen], v[:, chosen], x[chosen]
                self.last.update({(layer, row, p): x[i] for i, p in enumerate(alive)})
            for i, p in enumerate(alive):
                self.keys[layer, row, p], self.values[layer, row, p] = k[0, i], v[0, i]
            hidden = self.model.mix(layer, hidden, self.attend(row, layer, q))
            if self.s.site == "hidden":
                chosen = self.choose(row, layer, alive, hidden[0], keep, block)
                alive, hidden = [alive[i] for i in chosen], hidden[:, chosen]
                self.last.update({(layer, row, p): hidden[0, i] for i, p in enumerate(alive)})
        return alive, self.model.logits(hidden)[0]

    def attend(self, row: int, layer: int, queries: Tensor) -> Tensor:
        seen = range(self.pad[row], self.length)
        keys = torch.stack([self.keys[layer, row, p] for p in seen])  # (K, G, D)
        values = torch.stack([self.values[layer, row, p] for p in seen])
        return attention(queries, KeyValue(keys[None], values[None], None, None)).to(queries.dtype)

    def choose(self, row: int, layer: int, alive: list[int], x: Tensor, keep: int, block: range) -> list[int]:
        if keep == len(alive):
            return list(range(len(alive)))
        confidence = [float(self.confidence[row, p]) for p in alive]
        score = [self.s.alpha * c for c in confidence]
        if self.s.alpha < 1:
            last = torch.stack([self.last[layer, row, p] for p in alive])
            change = (x - last).abs().mean(1) / (last.pow(2).mean(1).sqrt() + 1e-6)
            change = change / max(1.0, float(change.max()))
            score = [s + (1 - self.s.alpha) * float(c) for s, c in zip(score, change, strict=True)]
            score = [s + 3 * (p in self.committed[row]) for s, p in zip(score, alive, strict=True)]
        if self.s.alpha > 0:
            sure = [i for i, c in enumerate(confidence) if c > 0]
            for i in self.best([confidence[i] for i in sure], 2):
                score[sure[i]] += 2
        masked = [p for p in block if self.masked(row, p)]
        score = [s + 5 * (masked[:1] == [p]) for s, p in zip(score, alive, strict=True)]
        return sorted(self.best(score, keep))

    def best(self, score: list[float], number: int) -> list[int]:
        """Return the indices of the highest scores, and note how clear the cut was."""
        ordered = sorted(range(len(score)), key=lambda i: -score[i])
        if 0 < number < len(score):
            self.margin = min(self.margin, score[ordered[number - 1]] - score[ordered[number]])
        return ordered[:number]

    def commit(self, row: int, block: range, alive: list[int], logits: Tensor) -> list[int]:
        probability, token = logits.softmax(-1).max(-1)
        eos = (self.tokens[row, self.prompt :] == self.spec.eos_id).any()
        candidates: dict[int, float] = {}
        for i, p in enumerate(alive):
            stored = float(probability[i]) if p in block and self.masked(row, p) else 0.0
            allowed = stored
            if (
                self.s.delay_eos
                and token[i] == self.spec.eos_id
                and not eos
                and p - 1 in block
                and self.masked(row, p - 1)
            ):
                allowed = 0.0
            self.confidence[row, p] = stored if self.spec.remembers_forbidden else allowed
            if allowed > 0:
                candidates[p] = allowed
        places, scores = list(candidates), list(candidates.values())
        if self.s.threshold is None:
            taken = [places[i] for i in self.best(scores, self.s.tokens_per_step or 1)]
        else:
            first = self.best(scores, 1)
            taken = [p for i, p in enumerate(places) if i in first or scores[i] > self.s.threshold]
            self.margin = min([self.margin, *(abs(score - self.s.threshold) for score in scores)])
        for p in taken:
            self.tokens[row, p + self.spec.logit_shift] = token[alive.index(p)]
            self.confidence[row, p] = 0.0
        return taken


def oracle(model: Any, prompts: list[list[int]], settings: Settings) -> tuple[list[list[int]], int, float]:
    """Return the canvas, the number of forwards, and the smallest difference that a decision rested on."""
    run = Oracle(model, prompts, settings)
    with torch.inference_mode():
        return run.run(), run.forwards, run.margin


class Whole(NamedTuple):
    """What a whole row computes at once."""

    logits: Tensor
    """(N, V) float32"""
    keys: list[Tensor]
    """(N, G, D), one per layer"""
    values: list[Tensor]


def whole(model: ModelAdapter, tokens: Sequence[int], numbers: Sequence[int]) -> Whole:
    """Compute a whole row in which token q reads token k where `numbers[k] <= numbers[q]`; attention in float64."""
    hidden, places = model.embed(torch.tensor([tokens])), model.encode(torch.arange(len(tokens)).unsqueeze(0))
    hides = torch.tensor(numbers).unsqueeze(0) > torch.tensor(numbers).unsqueeze(1)
    keys, values = [], []
    for layer in range(model.spec.n_layers):
        q, k, v = (x[0] for x in model.project(layer, hidden, places))
        wide_k, wide_v = (x.double().repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        scores = torch.einsum("nhd,khd->hnk", q.double(), wide_k) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(hides, -math.inf).softmax(-1)
        attended = torch.einsum("hnk,khd->nhd", weights, wide_v).to(hidden.dtype)
        hidden = model.mix(layer, hidden, attended.unsqueeze(0))
        keys.append(k)
        values.append(v)
    return Whole(model.logits(hidden)[0].float(), keys, values)


class Decoded(NamedTuple):
    tokens: list[int]
    margin: float
    """the smallest difference that any decision rested on"""


def block_causal(model: ModelAdapter, row: Sequence[int], fill: bool, each: int = 1) -> Decoded:
    """Decode the masks of one row of a block-causal model, the `each` likeliest of the block a step, computing all anew."""
    spec, found = model.spec, list(row)
    kind, mask = spec.attention, spec.mask_id
    assert kind is not None
    first = found.index(mask)
    before = -first % kind.size if kind.grid == "prompt-end" else 0
    if kind.fills and fill:
        found += [mask] * (-(before + len(found)) % kind.size)
    written, margin = kind.written or kind.size, math.inf
    for block in range((before + first) // kind.size, -(-(before + len(found)) // kind.size)):
        start, stop = max(0, block * kind.size - before), min(len(found), (block + 1) * kind.size - before)
        numbers = [(place + before) // written * written - before for place in range(start)] + [start] * (stop - start)
        if kind.whole_prompt:
            numbers[:first] = [-before] * first
        if kind.leads and start > 0 and found[start] == mask:
            logits = whole(model, found[:start], numbers[:start]).logits[-1]
            logits[mask] = -math.inf
            top = logits.topk(2)
            found[start], margin = int(top.indices[0]), min(margin, float(top.values[0] - top.values[1]))
        while places := [place for place in range(start, stop) if found[place] == mask]:
            logits = whole(model, found[:stop], numbers).logits
            chances = torch.stack([logits[place - spec.logit_shift] for place in places]).softmax(1)
            chances[:, mask] = 0
            best, token = chances.max(1)
            order = best.argsort(descending=True).tolist()
            margin = min(margin, *(float(row.topk(2).values.diff().abs()) for row in chances))
            if len(order) > each:
                margin = min(margin, float(best[order[each - 1]] - best[order[each]]))
            for index in order[:each]:
                found[places[index]] = int(token[index])
    return Decoded(found, margin)
