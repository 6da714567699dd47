"""Token samplers: which token to put at a position. How sure the model is of it is always read from the unperturbed logits."""

from __future__ import annotations

import attrs
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
        metadata={
            "help": "sample from the most probable tokens that hold this probability together; no effect at temperature 0"
        },
    )
    top_k: int = attrs.field(
        default=0,
        validator=validators.ge(0),
        metadata={"help": "sample from this many most probable tokens; 0 is all; no effect at temperature 0"},
    )

    def sample(self, view: SampleView) -> Candidates:
        """Return tokens, and their probability at temperature 1."""
        best, tokens = view.logits.max(-1)
        # relative to the maximum: exp(best - logsumexp) would lose the digits that tell confidences near 1 apart
        most = (view.logits - best.unsqueeze(-1)).exp_().sum(-1).reciprocal()
        if self.temperature == 0:
            return Candidates(tokens, most)
        scaled, ids = self._nucleus(view.logits.double() / self.temperature)
        drawn = (scaled + gumbel(view.seeds, view.step, view.positions, ids)).argmax(-1, keepdim=True)
        tokens = drawn if isinstance(ids, int) else ids.gather(-1, drawn)
        chosen = view.logits.gather(-1, tokens).squeeze(-1)
        return Candidates(tokens.squeeze(-1), most * (chosen - best).exp())

    def _nucleus(self, logits: Tensor) -> tuple[Tensor, Tensor | int]:
        """Return the logits (B, N, K) that top_k and top_p leave, others at -inf, and their ids; K = V if they are all."""
        vocab = logits.shape[-1]
        count = min(self.top_k, vocab) or vocab
        if count == vocab and self.top_p == 1:
            return logits, vocab
        kept, ids = logits.topk(count, dim=-1)
        if self.top_p < 1:
            probability = (kept - logits.logsumexp(-1, keepdim=True)).exp()
            before = probability.cumsum(-1) - probability
            kept = kept.masked_fill(before >= self.top_p, float("-inf"))
        return kept, ids
