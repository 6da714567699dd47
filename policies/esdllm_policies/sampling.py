"""Token samplers: which token to put at a position. How sure the model is of it is always read from the unperturbed logits."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch
from attrs import validators
from torch import Tensor

from esdllm import Candidates, SampleView, gumbel, logits_at_once, option
from esdllm_policies.gpus import check_triton


@attrs.frozen
class GumbelSampler:
    """The arg-max, or at a temperature above 0 a sample, drawn as the arg-max of Gumbel-perturbed logits in float64."""

    temperature: float = option("0 takes the most probable token", validators.ge(0.0), default=0.0)
    top_p: float = option(
        "sample from the most probable tokens that hold this probability together; no effect at temperature 0",
        validators.gt(0.0),
        validators.le(1.0),
        default=1.0,
    )
    top_k: int = option(
        "sample from this many most probable tokens; 0 is all; no effect at temperature 0", validators.ge(0), default=0
    )

    fused: bool = option(
        "read the logits once, by a Triton kernel, which needs a CUDA GPU; not measured on one", default=False
    )

    def sample(self, view: SampleView) -> Candidates:
        """Return tokens, and their probability at temperature 1."""
        tokens, best, most = _fused(view.raw) if self.fused else _most_probable(view.raw)
        if self.temperature == 0:
            return Candidates(tokens, most.float())
        every = self.top_p == 1 and not 0 < self.top_k < view.raw.shape[-1]
        tokens = self._drawn(view) if every else self._drawn_from_nucleus(view)
        chosen = view.raw.gather(-1, tokens) - best
        return Candidates(tokens.squeeze(-1), (most * chosen.squeeze(-1).exp()).float())

    def _drawn(self, view: SampleView) -> Tensor:
        """Return (B, N, 1) int64, drawn from the whole vocabulary: the best of the slices' best."""
        values: list[Tensor] = []
        tokens: list[Tensor] = []
        for first, part in _slices(view.raw):
            ids = torch.arange(first, first + part.shape[-1], device=part.device)
            noisy = part.double() / self.temperature + gumbel(view.seeds, view.step, view.positions, ids)
            value, token = noisy.max(-1, keepdim=True)
            values.append(value)
            tokens.append(token + first)
        return torch.cat(tokens, -1).gather(-1, torch.cat(values, -1).argmax(-1, keepdim=True))

    def _drawn_from_nucleus(self, view: SampleView) -> Tensor:
        """Return (B, N, 1) int64, drawn from what top_k and top_p leave."""
        kept, ids = self._nucleus(view.raw.double() / self.temperature)
        drawn = (kept + gumbel(view.seeds, view.step, view.positions, ids)).argmax(-1, keepdim=True)
        return ids.gather(-1, drawn)

    def _nucleus(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (B, N, K) that top_k and top_p leave, others at -inf, and their ids."""
        vocab = logits.shape[-1]
        count = min(self.top_k, vocab) or vocab
        kept, ids = logits.topk(count, dim=-1)
        if self.top_p < 1:
            probability = (kept - logits.logsumexp(-1, keepdim=True)).exp()
            before = probability.cumsum(-1) - probability
            kept = kept.masked_fill(before >= self.top_p, float("-inf"))
        return kept, ids


def _most_probable(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return of logits (B, N, V) the largest's ids (B, N) int64, the largest (B, N, 1), and its probability (B, N).

    Both in the logits' dtype, float32 at least.
    """
    top, tokens = logits.max(-1)
    best = top.unsqueeze(-1).to(torch.promote_types(top.dtype, torch.float32))
    # relative to the maximum: exp(best - logsumexp) would lose the digits that tell confidences near 1 apart
    parts = [(part - best).exp_().sum(-1, keepdim=True) for _, part in _slices(logits)]
    return tokens, best, torch.cat(parts, -1).sum(-1).reciprocal()


def _fused(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same by one kernel, in float32.

    Raises:
        UnavailableError: no such kernel runs on their device, or takes their dtype.
    """
    if torch.compiler.is_compiling() or logits.is_meta:
        tokens, most = _operator(logits)
    else:
        check_triton("sampler.fused", logits)
        tokens, most = _launch(logits)
    return tokens, logits.gather(-1, tokens.unsqueeze(-1)).float(), most


def _launch(logits: Tensor) -> tuple[Tensor, Tensor]:
    from esdllm_policies.fused import most_probable  # imports triton, which only GPUs have

    return most_probable(logits)


@torch.library.custom_op("esdllm::most_probable", mutates_args=())
def _operator(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the kernel gives as one operator, which a compiled step does not look into."""
    return _launch(logits)


@_operator.register_fake
def _shapes(logits: Tensor) -> tuple[Tensor, Tensor]:
    shape = logits.shape[:-1]
    return logits.new_empty(shape, dtype=torch.int64), logits.new_empty(shape, dtype=torch.float32)


def _slices(logits: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield logits (B, N, V) along the vocabulary, with the first id of each slice.

    All at once where the step is compiled: there the float32 copy exists in registers only.
    """
    vocab = logits.shape[-1]
    whole = torch.compiler.is_compiling()
    count = vocab if whole else max(1, logits_at_once(logits.device) // logits[..., 0].numel())
    return ((first, logits[..., first : first + count]) for first in range(0, vocab, count))
