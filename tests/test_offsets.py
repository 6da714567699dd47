"""Stores that hold neighbours together are told where each row begins, so that padding changes nothing."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest
import torch
from helpers import offers

from esdllm import CacheShape, CacheWrite, Catalogue, Engine, KeyValue
from esdllm.runtime.samples import cache_shape
from esdllm.testing import tiny_model
from esdllm.testing.contracts.rows import padding_laws
from esdllm_backends.cache.dense import DenseCache, DenseStore


class Neighbours(DenseCache):
    """Rounds each channel of the keys to 15 parts of its range over four columns, counted from where the row begins, or not."""

    aligned: ClassVar[bool] = True
    heard: ClassVar[list[list[int]]] = []

    def update(self, write: CacheWrite) -> KeyValue:
        assert write.offsets is not None
        read = super().update(write)
        if not self.aligned:
            return read._replace(keys=_rounded(read.keys, torch.zeros_like(write.offsets)))
        return read._replace(keys=_rounded(read.keys, write.offsets))

    def recall_at(self, layer: int, site: Any, positions: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        self.heard.append(offsets.tolist())
        return self.recall(layer, site, positions)


def _rounded(keys: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    columns = torch.arange(keys.shape[1])
    group = (columns - offsets.unsqueeze(1)).clamp(min=-1) // 4  # padding apart
    same = (group.unsqueeze(1) == group.unsqueeze(2))[..., None, None]  # (R, K, K, 1, 1)
    low = torch.where(same, keys.unsqueeze(1), float("inf")).amin(2)
    high = torch.where(same, keys.unsqueeze(1), float("-inf")).amax(2)
    unit = (high - low).clamp(min=1e-9) / 15
    return ((keys - low) / unit).round() * unit + low


@attrs.frozen
class Neighbouring(DenseStore):
    """Offers it."""

    aligned: bool = True

    def allocate(self, shape: CacheShape) -> DenseCache:
        return type("Made", (Neighbours,), {"aligned": self.aligned})(shape)


def test_a_store_that_groups_columns_goes_by_where_rows_begin() -> None:
    with pytest.raises(
        AssertionError, match=r"behind \d columns of padding is off .* padding changes nothing: write\.offsets"
    ):
        padding_laws("it", Neighbouring(aligned=False), cache_shape())
    padding_laws("it", Neighbouring(), cache_shape())


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_cache_is_told_where_rows_begin_when_it_recalls(scale: float) -> None:
    catalogue = Catalogue.load({"made-up": offers("esdllm_cache_stores", {"mine": Neighbouring})})
    chosen = {"cache": "mine", "gen_length": 6, "block_length": 6, "cfg_scale": scale, "importance": {"site": "key"}}
    Neighbours.heard.clear()
    model = tiny_model()
    found = Engine.build(model, catalogue.configure("es-dllm", settings=chosen), catalogue)
    found.generate([[5, 6, 7, 8], [9, 10]])
    assert {tuple(told) for told in Neighbours.heard} == {(1, 3) * (2 if scale else 1)}
