"""The yardstick: three denoising steps written straight down, with no framework, on random weights.

A full step computes the whole canvas, a block step the block, a skip step the block with early skipping at the published
ratios. Each ends with the arg-max and its probability, and one committed position a row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

HIDDEN, LAYERS, HEADS, MLP, VOCAB = 1024, 16, 8, 3072, 126464
CANVAS, BLOCK, START = 192, 64, 128
DIM = HIDDEN // HEADS
KEEP = {2: 32, 4: 16}  # layer -> positions that go on after it
MASK = VOCAB - 1


class BareLoop:
    """Weights, caches and the three steps."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)

        def weight(*size: int) -> Tensor:
            return torch.randn(*size, generator=draw).mul_(0.02).to(dtype)

        self.embedding, self.head = weight(VOCAB, HIDDEN), weight(VOCAB, HIDDEN)
        self.layers = [
            (weight(3 * HIDDEN, HIDDEN), weight(HIDDEN, HIDDEN), weight(2 * MLP, HIDDEN), weight(HIDDEN, MLP))
            for _ in range(LAYERS)
        ]
        self.one = torch.ones(HIDDEN, dtype=dtype)
        self.keys = torch.zeros(LAYERS, 1, HEADS, CANVAS, DIM, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.last = {layer: torch.zeros(1, CANVAS, HIDDEN, dtype=dtype) for layer in KEEP}
        angles = torch.arange(CANVAS)[:, None] * 500000.0 ** -(torch.arange(0, DIM, 2) / DIM)
        self.cos, self.sin = angles.cos(), angles.sin()
        self.tokens = torch.randint(0, MASK, (1, CANVAS), generator=draw)
        self.tokens[:, START:] = MASK
        self.confidence = torch.zeros(1, CANVAS)

    def full(self) -> None:
        """The whole canvas; the last layer's queries and feed-forward for the block alone."""
        self._step(torch.arange(CANVAS), skip=False)

    def block(self) -> None:
        """The block against the cache."""
        self._step(torch.arange(START, START + BLOCK), skip=False)

    def skip(self) -> None:
        """The block, most of it dropped in early layers."""
        self._step(torch.arange(START, START + BLOCK), skip=True)

    def _step(self, positions: Tensor, skip: bool) -> None:
        h = self.embedding[self.tokens[:, positions]]
        for layer, (qkv, out, gate_up, down) in enumerate(self.layers):
            x = F.rms_norm(h, (HIDDEN,), self.one, 1e-5)
            q, k, v = F.linear(x, qkv).view(1, -1, 3, HEADS, DIM).unbind(2)
            q, k = self._rotate(q, positions), self._rotate(k, positions)
            self.keys[layer].index_copy_(2, positions, k.transpose(1, 2))
            self.values[layer].index_copy_(2, positions, v.transpose(1, 2))
            if layer == LAYERS - 1 and len(positions) > BLOCK:
                h, q, positions = h[:, START:], q[:, START:], positions[START:]
            a = F.scaled_dot_product_attention(q.transpose(1, 2), self.keys[layer], self.values[layer])
            h = h + F.linear(a.transpose(1, 2).flatten(2), out)
            gate, up = F.linear(F.rms_norm(h, (HIDDEN,), self.one, 1e-5), gate_up).chunk(2, -1)
            h = h + F.linear(F.silu(gate) * up, down)
            if layer in KEEP:
                if skip:
                    chosen = self._score(h, self.last[layer][:, positions], positions).topk(KEEP[layer]).indices[0]
                    h, positions = h[:, chosen], positions[chosen]
                self.last[layer][:, positions] = h
        self._commit(h, positions)

    def _rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        first, second = x.float().chunk(2, -1)
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)

    def _score(self, h: Tensor, last: Tensor, positions: Tensor) -> Tensor:
        h, last = h.float(), last.float()
        change = (h - last).abs().mean(-1) / (last.square().mean(-1).sqrt() + 1e-6)
        return 0.5 * self.confidence[:, positions] + 0.5 * change / change.amax(1, keepdim=True).clamp(min=1)

    def _commit(self, h: Tensor, positions: Tensor) -> None:
        logits = F.linear(F.rms_norm(h, (HIDDEN,), self.one, 1e-5), self.head).float()
        best, tokens = logits.max(-1)
        confidence = (logits - best[..., None]).exp().sum(-1).reciprocal()
        confidence = confidence.masked_fill(self.tokens[:, positions] != MASK, 0)
        self.confidence[:, positions] = confidence
        chosen = confidence.argmax(1)
        self.tokens[0, positions[chosen]] = tokens[0, chosen]
