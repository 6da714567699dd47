"""An importance scorer that remembers: variation as an average over steps."""

from __future__ import annotations

import attrs
import torch
from attrs import validators
from torch import Tensor

from esdllm import ImportanceView, Site, option
from esdllm_policies.importance import JUST_COMMITTED, site_option, variation


@attrs.frozen
class AverageScorer:
    """alpha * confidence + (1 - alpha) * variation's exponential moving average; what was just committed goes first.

    ES-dLLM's score (arXiv 2603.10088, section 4.2) takes the last change alone, so a position that moves in spurts is left out
    between them. Here m becomes decay * m + (1 - decay) * variation at each step that scores the layer.
    """

    alpha: float = option(
        "weight of confidence against variation, 0 to 1", validators.ge(0.0), validators.le(1.0), default=0.5
    )
    decay: float = option(
        "share of the average that a step leaves, from 0 (the last change alone) to below 1",
        validators.ge(0.0),
        validators.lt(1.0),
        default=0.5,
        tune=(0.0, 0.5, 0.8, 0.9),
    )
    site: Site = site_option()

    @property
    def keeps_history(self) -> bool:
        """Variation needs the last value."""
        return True

    @property
    def memory(self) -> int:
        """The average."""
        return 1

    def remember(self, view: ImportanceView) -> Tensor:
        """Return the average with this step's variation."""
        assert view.memory is not None
        return torch.lerp(variation(view).unsqueeze(-1), view.memory, self.decay)

    def score(self, view: ImportanceView) -> Tensor:
        """Return the weighted sum, what was just committed raised."""
        assert view.memory is not None
        average = view.memory.squeeze(-1)
        return self.alpha * view.confidence + (1 - self.alpha) * average + JUST_COMMITTED * view.committed
