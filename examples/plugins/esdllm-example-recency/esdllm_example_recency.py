"""An importance scorer that keeps what stands near the latest commits."""

from typing import ClassVar

import attrs
import torch
from attrs import validators

from esdllm import ImportanceView, Site, hookimpl, option


@attrs.frozen
class RecencyScorer:
    """Nearness to what was committed last, plus confidence."""

    site: ClassVar[Site] = "hidden"
    keeps_history: ClassVar[bool] = False
    reach: float = option("distance at which nearness has fallen to 1/e", validators.gt(0.0), default=8.0)

    def score(self, view: ImportanceView) -> torch.Tensor:
        """Return (R, N) float32, higher survives: exp(-distance / reach) + confidence."""
        distance = (view.positions.unsqueeze(2) - view.positions.unsqueeze(1)).abs().float()  # (R, N, N)
        nearest = distance.masked_fill(~view.committed.unsqueeze(1), float("inf")).amin(2)  # inf where none is alive
        return torch.exp(-nearest / self.reach) + view.confidence


@hookimpl
def esdllm_importance_scorers() -> dict[str, type[RecencyScorer]]:
    """Offer the scorer as `importance = "recency"`."""
    return {"recency": RecencyScorer}
