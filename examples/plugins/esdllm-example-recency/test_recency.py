"""Run with `pytest` where the package and esdllm are installed."""

import torch
from esdllm_example_recency import RecencyScorer

from esdllm import Engine, ImportanceView, configure, load_model


def test_positions_near_the_last_commit_score_higher() -> None:
    positions = torch.tensor([[9, 4, 5, 20]])  # in no particular order
    none, one = torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64)
    view = ImportanceView(
        layer=0,
        x=none,
        last=none,
        confidence=none,
        undecided=positions > 0,
        committed=positions == 5,
        positions=positions,
        seeds=one,
        step=one.squeeze(0),
    )
    assert RecencyScorer(reach=2.0).score(view).argsort(descending=True).tolist() == [[2, 1, 0, 3]]


def test_it_decodes_under_its_own_name() -> None:
    config = configure("es-dllm", sets=["importance.name=recency", "importance.reach=4.0", "gen_length=32"])
    engine = Engine.build(load_model("tiny-llada", device="cpu"), config)
    assert engine.generate("Who are you?", chat=True).steps > 0
