"""The families' architecture, written for training: whole sequences, batched, differentiable.

The package has a decoder of its own, which runs part of a canvas against a cache; training needs
none of that and a backward pass instead. The state dict here exports to the public names as is.

Shapes: B batch, L length, H heads, G key-value heads, D head size, C hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Size(NamedTuple):
    """What the model depends on: its size, and where the families differ."""

    vocab_size: int
    hidden: int = 160
    layers: int = 16
    heads: int = 5
    kv_heads: int = 5
    mlp: int = 448
    rope_theta: float = 500000.0
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    qk_norm: bool = False
    """whether each head's queries and keys are normed before they are rotated"""
    block_causal: bool = False
    """whether a position sees its own block and those before it only, instead of all"""
    shift: int = 0
    """logits at position i predict the token at i + shift"""
    tied: bool = True
    """whether embedding and head are one table in training; what copies one word then copies every word"""

    @property
    def head_dim(self) -> int:
        """The width of a head."""
        return self.hidden // self.heads


SIZES = {
    "llada": Size(0),
    "dream": Size(0, heads=4, kv_heads=2, rope_theta=1e6, norm_eps=1e-6, qkv_bias=True, shift=1),
    "sdar": Size(0, norm_eps=1e-6, qk_norm=True, block_causal=True),
}
"""The shape of each family's tiny model; the vocabulary's size is the tokenizer's."""


class Block(nn.Module):
    """Attention with grouped queries, then a SwiGLU layer, each behind an RMS norm."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads, self.kv_heads = size.heads, size.kv_heads
        wide, narrow = size.hidden, size.head_dim * size.kv_heads
        self.attn_norm = nn.RMSNorm(wide, size.norm_eps)
        self.mlp_norm = nn.RMSNorm(wide, size.norm_eps)
        self.q = nn.Linear(wide, wide, bias=size.qkv_bias)
        self.k = nn.Linear(wide, narrow, bias=size.qkv_bias)
        self.v = nn.Linear(wide, narrow, bias=size.qkv_bias)
        self.q_norm, self.k_norm = (
            nn.RMSNorm(size.head_dim, size.norm_eps) if size.qk_norm else nn.Identity() for _ in "qk"
        )
        self.out = nn.Linear(wide, wide, bias=False)
        self.gate = nn.Linear(wide, size.mlp, bias=False)
        self.up = nn.Linear(wide, size.mlp, bias=False)
        self.down = nn.Linear(size.mlp, wide, bias=False)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor, unseen: Tensor | None = None) -> Tensor:
        """(B, L, C) to (B, L, C); cosine and sine are (L, D) in float32, unseen is which keys a query does not see, (L, L)."""
        batch, length, width = hidden.shape
        size = width // self.heads
        x = self.attn_norm(hidden)
        group = self.heads // self.kv_heads
        q = rotate(self.q_norm(self.q(x).view(batch, length, self.heads, size)).transpose(1, 2), cosine, sine)
        k = rotate(self.k_norm(self.k(x).view(batch, length, self.kv_heads, size)).transpose(1, 2), cosine, sine)
        v = self.v(x).view(batch, length, self.kv_heads, size).transpose(1, 2)
        q = q.reshape(batch, self.kv_heads, group * length, size)  # a group's heads stand in line as more queries
        # Plain products: on a CPU the fused attention is four times slower to train.
        scores = q @ k.transpose(2, 3) * size**-0.5
        if unseen is not None:
            scores = scores.masked_fill(unseen.repeat(group, 1), -torch.inf)
        weights = scores.softmax(-1)
        mixed = (weights.to(v.dtype) @ v).view(batch, self.heads, length, size)
        mixed = mixed.transpose(1, 2).reshape(batch, length, width)
        hidden = hidden + self.out(mixed)
        x = self.mlp_norm(hidden)
        added: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return hidden + added


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions, halves rotated, in float32: (B, H, L, D) to the same."""
    low, high = x.float().chunk(2, -1)
    return (torch.cat((low, high), -1) * cosine + torch.cat((-high, low), -1) * sine).to(x.dtype)


def deeper_names(name: str) -> list[str]:
    """What a weight is called in the model of twice the layers: layer i is its layers 2 i and 2 i + 1."""
    parts = name.split(".")
    if parts[0] != "blocks":
        return [name]
    return [".".join((parts[0], str(2 * int(parts[1]) + after), *parts[2:])) for after in (0, 1)]


class TinyModel(nn.Module):
    """The whole model: ids (B, L) to logits (B, L, V)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.embedding = nn.Embedding(size.vocab_size, size.hidden)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.RMSNorm(size.hidden, size.norm_eps)
        self.head = nn.Linear(size.hidden, size.vocab_size, bias=False)
        if size.tied:
            self.head.weight = self.embedding.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                ends = name.endswith((".out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * size.layers) ** (0.5 * ends))
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)

    def features(self, ids: Tensor, positions: Tensor | None = None, unseen: Tensor | None = None) -> Tensor:
        """The final, normed hidden states (B, L, C); positions (L,) are 0 to L - 1 unless given, unseen as in `Block`."""
        cosine, sine = self.rotary(torch.arange(ids.shape[1]) if positions is None else positions)
        hidden = self.embedding(ids)
        for block in self.blocks:
            hidden = block(hidden, cosine, sine, unseen)
        normed: Tensor = self.norm(hidden)
        return normed

    def logits_at(
        self, ids: Tensor, wanted: Tensor, positions: Tensor | None = None, unseen: Tensor | None = None
    ) -> Tensor:
        """Logits (M, V) of the M tokens that wanted (B, L), bool, names; the first position is never among them."""
        read = wanted.roll(-self.size.shift, dims=1)
        logits: Tensor = self.head(self.features(ids, positions, unseen)[read])
        return logits

    def deeper(self) -> TinyModel:
        """This model with a layer after each of its own that changes nothing yet, to go on training with.

        The new layer is a copy of the one before whose two output projections are zero, so both models compute the
        same; training a shallow model first takes half the time, and learns faster too.
        """
        grown = TinyModel(self.size._replace(layers=2 * self.size.layers))
        state = self.state_dict()
        grown.load_state_dict({new: state[name] for name in state for new in deeper_names(name)})
        with torch.no_grad():
            for block in grown.blocks[1::2]:
                block.out.weight.zero_()
                block.down.weight.zero_()
        return grown

    def number_values(self, ids: list[int], spread: float = 0.02, keep: float = 0.2) -> None:
        """Put waves of their value into the embeddings of the numbers 0, 1, 2, ..., or the ten digits, in a random subspace.

        Their distances then say which numbers are close, even, or alike in a digit, in place of unrelated words whose
        order is to be found out. Of what the embeddings were, the share `keep` stays.
        """
        values = torch.arange(len(ids), dtype=torch.float32)[:, None]
        periods = torch.tensor([2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0])
        if len(ids) == 10:  # digits: what adds up modulo 10
            periods = 10.0 / torch.arange(1, 6)
        angles = 2 * torch.pi * values / periods
        waves = torch.cat((angles.cos(), angles.sin()), 1)
        tables = (self.embedding.weight, self.head.weight)
        for table in tables[: 2 - self.size.tied]:
            directions = torch.randn(waves.shape[1], table.shape[1]) / len(periods) ** 0.5
            with torch.no_grad():
                table[ids] = spread * (waves @ directions) + keep * table[ids]

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (L, D) of positions (L,), in float32."""
        width = self.size.head_dim
        rates = self.size.rope_theta ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
        angles = positions.to(torch.float32)[:, None] * rates
        angles = torch.cat((angles, angles), -1)
        return angles.cos(), angles.sin()
