"""Token samplers: which token to put at a position. How sure the model is of it is always read from the unperturbed logits."""

from __future__ import annotations

import attrs
import torch
from attrs import validators
from torch import Tensor

from esdllm import Candidates, SampleView, gumbel


@attrs.frozen
class GumbelSampler:
    """The arg-max, or at a temperature above 0 a sample, drawn as the arg-max of Gumbel-perturbed logits in float64."""

    temperature: float = attrs.field(
        default=0.0, validator=validators.ge(0.0), metadata={"help": "0 takes the most probable token"}
    )
    top_p: float = attrs.field(
        default=1.0,
        validator=[validators.gt(0.0), validators.le(1.0)],
        metadata={"help": "sample from the most probable tokens that hold this probability together"},
    )
    top_k: int = attrs.field(
        default=0, validator=validators.ge(0), metadata={"help": "sample from this many most probable tokens; 0 is all"}
    )

    def sample(self, view: SampleView) -> Candidates:
        """Return tokens, and their probability at temperature 1."""
        best, tokens = view.logits.max(-1)
        # relative to the maximum: exp(best - logsumexp) would lose the digits that tell confidences near 1 apart
        most = (view.logits - best.unsqueeze(-1)).exp().sum(-1).reciprocal()
        if self.temperature == 0:
            return Candidates(tokens, most)
        scaled = self._nucleus(view.logits.double() / self.temperature)
        tokens = (scaled + gumbel(view.seeds, view.step, view.positions, scaled.shape[-1])).argmax(-1)
        chosen = view.logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        return Candidates(tokens, most * (chosen - best).exp())

    def _nucleus(self, logits: Tensor) -> Tensor:
        """Return logits (B, N, V) with -inf at the tokens that top_k and top_p leave out."""
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        if self.top_p < 1:
            ordered, index = logits.sort(dim=-1, descending=True)
            before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
            outside = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, before >= self.top_p)
            logits = logits.masked_fill(outside, float("-inf"))
        return logits
