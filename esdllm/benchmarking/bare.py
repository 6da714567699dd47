"""The yardstick: ES-dLLM written straight down, with no framework around it, so that it shows what the framework costs.

The plan is made before; a step is what is left: the layers, early skipping by the hybrid score at alpha 0.5, one position a row
committed by confidence. It computes what the engine does with the preset `es-dllm`, and on the same weights gives its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from esdllm.benchmarking.kernels import Matrix, attend, matrix
from esdllm.plan import Step
from esdllm.views import ModelSpec

__all__ = ["BareLayer", "BareLoop", "BareWeights"]


class BareLayer(NamedTuple):
    """One layer's weights; queries, keys and values are one matrix (the last layer's queries another), gate and up one."""

    attn_norm: Tensor
    qkv: tuple[Matrix, ...]
    out: Matrix
    mlp_norm: Tensor
    gate_up: Matrix
    down: Matrix

    @classmethod
    def of(
        cls,
        attn_norm: Tensor,
        qkv: Tensor,
        bias: Tensor | None,
        out: Tensor,
        mlp_norm: Tensor,
        gate_up: Tensor,
        down: Tensor,
        queries: int | None = None,
    ) -> BareLayer:
        """Return the layer of its weights; `queries` are the features of the queries in the last layer, None in others."""
        sizes = [len(qkv)] if queries is None else [queries, len(qkv) - queries]
        biases = [None] * len(sizes) if bias is None else bias.split(sizes)
        joint = tuple(matrix(part, own) for part, own in zip(qkv.split(sizes), biases, strict=True))
        return cls(attn_norm, joint, matrix(out), mlp_norm, matrix(gate_up), matrix(down))


class BareWeights(NamedTuple):
    """All weights, and what RoPE and the norms need to know."""

    embedding: Tensor
    layers: tuple[BareLayer, ...]
    norm: Tensor
    head: Matrix
    theta: float = 500000.0
    eps: float = 1e-5

    @classmethod
    def random(cls, spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> BareWeights:
        """Return weights that keep the hidden states of one size."""
        draw = torch.Generator(device).manual_seed(0)

        def weight(*size: int) -> Tensor:
            width = (3 / size[-1]) ** 0.5
            return torch.empty(*size, dtype=dtype, device=device).uniform_(-width, width, generator=draw)

        hidden, dim, inside = spec.hidden, spec.head_dim, spec.intermediate
        one = torch.ones(hidden, dtype=dtype, device=device)
        joint = (spec.n_heads + 2 * spec.n_kv_heads) * dim
        layers = [
            BareLayer.of(
                one,
                weight(joint, hidden),
                None,
                weight(hidden, spec.n_heads * dim),
                one,
                weight(2 * inside, hidden),
                weight(hidden, inside),
                spec.n_heads * dim if layer == spec.n_layers - 1 else None,
            )
            for layer in range(spec.n_layers)
        ]
        return cls(weight(spec.vocab, hidden), tuple(layers), one, matrix(weight(spec.vocab, hidden)))


_Places = tuple[Tensor, Tensor]  # cosine and sine (B, N, 1, D / 2)


class BareLoop:
    """A canvas (B, L), its caches, and the step."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: BareWeights,
        prompts: Tensor,
        gen_length: int,
        scored: Sequence[int],
        delay_eos: bool,
    ) -> None:
        self.spec, self.weights, self.delay_eos = spec, weights, delay_eos
        masks = prompts.new_full((prompts.shape[0], gen_length), spec.mask_id)
        self.tokens = torch.cat([prompts, masks], 1)
        self.rows, self.length = self.tokens.shape
        self.given = self.tokens != spec.mask_id
        self.undecided = torch.zeros_like(self.given)
        self.undecided[:, : self.length - spec.logit_shift] = ~self.given[:, spec.logit_shift :]
        self.committed = torch.zeros_like(self.given)
        self.confidence = torch.zeros(self.tokens.shape, device=self.tokens.device)
        self.columns = torch.arange(self.length, device=self.tokens.device)
        self.starts = torch.arange(self.rows, device=self.tokens.device)[:, None] * self.length
        store = weights.embedding.new_zeros(spec.n_layers, self.rows, self.length, spec.n_kv_heads, spec.head_dim)
        self.keys, self.values = store, torch.zeros_like(store)
        self.last = {layer: store.new_zeros(self.rows, self.length, spec.hidden) for layer in scored}
        powers = torch.arange(0, spec.head_dim, 2, device=self.tokens.device) / spec.head_dim
        angles = self.columns[:, None] * weights.theta**-powers
        self.cos, self.sin = angles.cos()[:, None], angles.sin()[:, None]  # (L, 1, D / 2)

    def step(self, step: Step) -> None:
        """Make one denoising step: write the canvas and the caches."""
        plan, block, n_layers = step.plan, step.block, self.spec.n_layers
        start = step.start or 0
        positions = self.columns[start : start + plan.window]
        if plan.clamped:
            first = self.columns.expand_as(self.committed).masked_fill(~self.committed, self.length).amin()
            positions = positions.clamp(min=first.minimum(self.columns[block.start]))
        positions = positions.expand(self.rows, -1)
        readers = slice(block.start - start, block.start - start + plan.block)
        h, places = F.embedding(self.tokens.gather(1, positions), self.weights.embedding), self._places(positions)
        for layer, weights in enumerate(self.weights.layers):
            narrow = plan.narrow and layer == n_layers - 1
            q = self._project(layer, weights, h, positions, places, readers if narrow else None)
            if narrow:
                h, positions = h[:, readers], positions[:, readers]
            h = h + weights.out(attend(q, self.keys[layer], self.values[layer]))
            gate, up = weights.gate_up(self._norm(h, weights.mlp_norm)).chunk(2, -1)
            h = h + weights.down(F.silu(gate) * up)
            if plan.keep[layer] < h.shape[1] and not narrow:
                chosen = self._score(layer, h, positions, block.start, block.stop).topk(plan.keep[layer], sorted=False)
                h, positions = _take(h, chosen.indices), positions.gather(1, chosen.indices)
                places = self._places(positions)
            if layer in plan.scored:
                self.last[layer].flatten(0, 1).index_copy_(0, self._flat(positions), h.flatten(0, 1))
        if plan.skips:
            positions, order = positions.sort(1)
            h = _take(h, order)
        elif h.shape[1] > plan.block:
            h, positions = h[:, readers], positions[:, readers]
        self._commit(h, positions, block.start, block.stop)

    def decode(self, steps: Sequence[Step]) -> Tensor:
        """Return the canvas (B, L) after all steps."""
        for step in steps:
            self.step(step)
        return self.tokens

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (self.spec.hidden,), weight, self.weights.eps)

    def _places(self, positions: Tensor) -> _Places:
        return self.cos[positions], self.sin[positions]

    def _flat(self, positions: Tensor) -> Tensor:
        return (positions + self.starts).flatten()

    def _project(
        self, layer: int, weights: BareLayer, h: Tensor, positions: Tensor, places: _Places, readers: slice | None
    ) -> Tensor:
        """Return the queries, of `readers` if given; write keys and values."""
        kv_heads, dim = self.spec.n_kv_heads, self.spec.head_dim
        x, first = self._norm(h, weights.attn_norm), weights.qkv[0]
        if readers is None:
            joint = torch.cat([part(x) for part in weights.qkv], -1) if weights.qkv[1:] else first(x)
            joint = joint.unflatten(-1, (-1, dim))
            turned, v = joint.split([self.spec.n_heads + kv_heads, kv_heads], 2)
            q, k = _rotate(turned, places).tensor_split([self.spec.n_heads], 2)
        else:
            q = first(x[:, readers]).unflatten(-1, (-1, dim))
            q = _rotate(q, (places[0][:, readers], places[1][:, readers]))
            k, v = weights.qkv[1](x).unflatten(-1, (-1, dim)).split([kv_heads, kv_heads], 2)
            k = _rotate(k, places)
        index = self._flat(positions)
        self.keys[layer].flatten(0, 1).index_copy_(0, index, k.flatten(0, 1))
        self.values[layer].flatten(0, 1).index_copy_(0, index, v.flatten(0, 1))
        return q

    def _open(self, positions: Tensor, start: int, stop: int) -> Tensor:
        return self.undecided.gather(1, positions) & (positions >= start) & (positions < stop)

    def _score(self, layer: int, h: Tensor, positions: Tensor, start: int, stop: int) -> Tensor:
        x, last = h.float(), self.last[layer].flatten(0, 1)[self._flat(positions)].view(h.shape).float()
        change = (x - last).abs().mean(-1) / (last.square().mean(-1).sqrt() + 1e-6)
        confidence = self.confidence.gather(1, positions)
        top = confidence.topk(min(2, confidence.shape[1]), 1)
        score = 0.5 * confidence + 0.5 * change / change.amax(1, keepdim=True).clamp(min=1)
        score = score + 2.0 * torch.zeros_like(score).scatter(1, top.indices, (top.values > 0).float())
        score += 3.0 * self.committed.gather(1, positions)
        leftmost = positions.masked_fill(~self._open(positions, start, stop), self.length).amin(1, keepdim=True)
        return score.masked_fill(positions == leftmost, float("inf"))

    def _commit(self, h: Tensor, positions: Tensor, start: int, stop: int) -> None:
        logits = self.weights.head(self._norm(h, self.weights.norm)).float()
        best, tokens = logits.max(-1)
        confidence = (logits - best[..., None]).exp_().sum(-1).reciprocal()
        eligible = self._open(positions, start, stop)
        if self.delay_eos:
            started = ((self.tokens == self.spec.eos_id) & ~self.given).any(1, keepdim=True)
            before = self.undecided.gather(1, (positions - 1).clamp(min=0)) & (positions > start)
            eligible = eligible & ~((tokens == self.spec.eos_id) & before & ~started)
        confidence = confidence.masked_fill(~eligible, 0.0)
        chosen = confidence.argmax(1, keepdim=True)
        where, there = positions.gather(1, chosen), confidence.gather(1, chosen) > 0
        self.confidence.scatter_(1, positions, confidence.scatter(1, chosen, 0.0))
        self.committed.zero_().scatter_(1, where, there)
        self.undecided &= ~self.committed
        column = where + self.spec.logit_shift
        self.tokens.scatter_(1, column, torch.where(there, tokens.gather(1, chosen), self.tokens.gather(1, column)))


def _take(x: Tensor, chosen: Tensor) -> Tensor:
    """Return x (B, N, C) at chosen (B, k): (B, k, C)."""
    return x.gather(1, chosen[..., None].expand(-1, -1, x.shape[-1]))


def _rotate(x: Tensor, places: _Places) -> Tensor:
    """Return x (B, N, heads, D) with its halves rotated."""
    first, second = x.float().chunk(2, -1)
    cos, sin = places
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
