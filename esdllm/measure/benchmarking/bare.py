"""The yardstick: ES-dLLM written straight down, with no framework around it, so that it shows what the framework costs.

The plan is made before; a step is what is left: the layers, early skipping by the hybrid score at alpha 0.5, one position a row
committed by confidence. It computes what the engine does with the preset `es-dllm`, and on the same weights gives its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from esdllm.errors import InputError
from esdllm.plan import Step
from esdllm.views import ModelSpec

__all__ = ["BareLayer", "BareLoop", "BareWeights"]

_Matrix = Callable[[Tensor], Tensor]  # features (..., I) to features (..., O)


class BareLayer(NamedTuple):
    """One layer's weights; queries, keys and values are one matrix, gate and up another."""

    attn_norm: Tensor
    qkv: _Matrix
    q: _Matrix
    kv: _Matrix
    out: _Matrix
    mlp_norm: Tensor
    gate_up: _Matrix
    down: _Matrix


class BareWeights(NamedTuple):
    """All weights, and what RoPE and the norms need to know."""

    embedding: Tensor
    layers: tuple[BareLayer, ...]
    norm: Tensor
    head: _Matrix
    theta: float
    eps: float

    @classmethod
    def of(cls, adapter: Any) -> BareWeights:
        """Return a model's own weights, so that both are computed from the same memory.

        Raises:
            InputError: they do not lie in it as in LLaDA's and Dream's adapters on one device, or its attention is block-causal.
        """
        try:
            spec: ModelSpec = adapter.spec
            if switched := getattr(adapter, "switched", ()):
                raise InputError(
                    f"the bare loop computes no model with {' and '.join(switched)}, as a {spec.family} is: leave out bare"
                )
            if spec.attention is not None:
                raise InputError(
                    f"the bare loop attends to the whole canvas, and a {spec.family} is block-causal: leave out bare"
                )
            layers = tuple(
                BareLayer(one.attn_norm, one.qkv, one.q, one.kv, one.out, one.mlp_norm, one.mlp.gate_up, one.mlp.down)
                for one in adapter.layers
            )
            theta, eps = adapter.geometry.rope.theta, adapter.geometry.norm_eps
            return cls(adapter.embedding, layers, adapter.norm, adapter.head, theta, eps)
        except AttributeError as error:
            raise InputError(
                f"the bare loop computes LLaDA and Dream on one device only; {type(adapter).__name__} is another: leave out bare"
            ) from error


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
        starts = torch.arange(self.rows * spec.n_kv_heads, device=self.tokens.device) * self.length
        self.starts, self.head_starts = starts[: self.rows, None], starts.view(self.rows, -1, 1)
        store = weights.embedding.new_zeros(spec.n_layers, self.rows, spec.n_kv_heads, self.length, spec.head_dim)
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
            h = h + weights.out(_attend(q, self.keys[layer], self.values[layer]))
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
        if plan.decided < h.shape[1]:
            rank = positions + self.length * ~self._open(positions, block.start, block.stop)
            undecided = rank.topk(plan.decided, largest=False).indices.sort(1).values
            h, positions = _take(h, undecided), positions.gather(1, undecided)
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
        x = self._norm(h, weights.attn_norm)
        if readers is None:
            turned, v = weights.qkv(x).unflatten(-1, (-1, dim)).split([self.spec.n_heads + kv_heads, kv_heads], 2)
            q, k = _rotate(turned, places).tensor_split([self.spec.n_heads], 2)
        else:
            q = weights.q(x[:, readers]).unflatten(-1, (-1, dim))
            q = _rotate(q, (places[0][:, readers], places[1][:, readers]))
            k, v = weights.kv(x).unflatten(-1, (-1, dim)).split([kv_heads, kv_heads], 2)
            k = _rotate(k, places)
        index = (positions[:, None] + self.head_starts).flatten()
        self.keys[layer].flatten(0, 2).index_copy_(0, index, k.transpose(1, 2).flatten(0, 2))
        self.values[layer].flatten(0, 2).index_copy_(0, index, v.transpose(1, 2).flatten(0, 2))
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
        held = logits[..., self.spec.mask_id].clone()
        logits[..., self.spec.mask_id] = float("-inf")  # the mask is no candidate, but its probability counts
        best, tokens = logits.max(-1)
        others = (logits - best[..., None]).exp_().sum(-1)
        confidence = (others + (held - best).exp()).reciprocal()
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


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return (B, N, H D): queries (B, N, H, D) attend to keys and values (B, G, L, D)."""
    rows, window, heads, dim = queries.shape
    groups = keys.shape[1]
    lined = queries.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4).reshape(rows, groups, -1, dim)
    if queries.device.type == "cpu" and queries.dtype == torch.bfloat16:  # torch's fused kernel is slow there
        lines = zip(lined * dim**-0.5, keys, values, strict=True)
        a = torch.stack([torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v) for q, k, v in lines])
    else:
        a = F.scaled_dot_product_attention(lined, keys, values)
    return a.view(rows, groups, -1, window, dim).permute(0, 3, 1, 2, 4).reshape(rows, window, heads * dim)
