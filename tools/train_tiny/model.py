"""LLaDA's architecture, written for training: whole sequences, batched, differentiable.

The package has a decoder of its own, which runs part of a canvas against a cache; training needs
none of that and a backward pass instead. The state dict here exports to the public names as is.

Shapes: B batch, L length, H heads, D head size, C hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Size(NamedTuple):
    """What the size of the model depends on; the names are those of LLaDA's `config.json`."""

    vocab_size: int
    d_model: int = 160
    n_layers: int = 8
    n_heads: int = 5
    mlp_hidden_size: int = 448
    rope_theta: float = 500000.0
    rms_norm_eps: float = 1e-5


class Block(nn.Module):
    """Full attention, then a SwiGLU layer, each behind an RMS norm; no biases anywhere."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.n_heads = size.n_heads
        self.attn_norm = nn.RMSNorm(size.d_model, size.rms_norm_eps)
        self.ff_norm = nn.RMSNorm(size.d_model, size.rms_norm_eps)
        self.q_proj = nn.Linear(size.d_model, size.d_model, bias=False)
        self.k_proj = nn.Linear(size.d_model, size.d_model, bias=False)
        self.v_proj = nn.Linear(size.d_model, size.d_model, bias=False)
        self.attn_out = nn.Linear(size.d_model, size.d_model, bias=False)
        self.ff_proj = nn.Linear(size.d_model, size.mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(size.d_model, size.mlp_hidden_size, bias=False)
        self.ff_out = nn.Linear(size.mlp_hidden_size, size.d_model, bias=False)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """(B, L, C) to (B, L, C); cosine and sine are (L, D) in float32."""
        batch, length, width = hidden.shape
        split = (batch, length, self.n_heads, width // self.n_heads)
        x = self.attn_norm(hidden)
        q = rotate(self.q_proj(x).view(split).transpose(1, 2), cosine, sine)
        k = rotate(self.k_proj(x).view(split).transpose(1, 2), cosine, sine)
        v = self.v_proj(x).view(split).transpose(1, 2)
        # Plain products: on a CPU the fused attention is four times slower to train.
        weights = (q @ k.transpose(2, 3) * split[-1] ** -0.5).softmax(-1)
        mixed = (weights.to(v.dtype) @ v).transpose(1, 2).reshape(batch, length, width)
        hidden = hidden + self.attn_out(mixed)
        x = self.ff_norm(hidden)
        added: Tensor = self.ff_out(functional.silu(self.ff_proj(x)) * self.up_proj(x))
        return hidden + added


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions, halves rotated, in float32: (B, H, L, D) to the same."""
    low, high = x.float().chunk(2, -1)
    return (torch.cat((low, high), -1) * cosine + torch.cat((-high, low), -1) * sine).to(x.dtype)


class TinyLLaDA(nn.Module):
    """The whole model: ids (B, L) to logits (B, L, V); no causal mask, an untied head."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.wte = nn.Embedding(size.vocab_size, size.d_model)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.n_layers))
        self.ln_f = nn.RMSNorm(size.d_model, size.rms_norm_eps)
        self.ff_out = nn.Linear(size.d_model, size.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                ends = name.endswith(("attn_out.weight", "ff_out.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * size.n_layers) ** (0.5 * ends))

    def features(self, ids: Tensor) -> Tensor:
        """The final, normed hidden states (B, L, C)."""
        cosine, sine = self.rotary(ids.shape[1])
        hidden = self.wte(ids)
        for block in self.blocks:
            hidden = block(hidden, cosine, sine)
        normed: Tensor = self.ln_f(hidden)
        return normed

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (B, L, V) for every position."""
        logits: Tensor = self.ff_out(self.features(ids))
        return logits

    def rotary(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine (L, D) of the positions 0 to `length - 1`, in float32."""
        width = self.size.d_model // self.size.n_heads
        rates = self.size.rope_theta ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
        angles = torch.arange(length, dtype=torch.float32)[:, None] * rates
        angles = torch.cat((angles, angles), -1)
        return angles.cos(), angles.sin()
