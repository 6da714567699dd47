"""Run with `pytest` where the package and esdllm are installed."""

import torch
from esdllm_example_recency import RecencyScorer

from esdllm import Engine, ImportanceView, configure, load_model


def test_positions_near_the_last_commit_score_higher() -> None:
    positions = torch.tensor([[9, 4, 5, 20]])  # in no particular order
    none = torch.zeros(1, 4)
    view = ImportanceView(0, none, none, none, positions > 0, positions == 5, positions)
    assert RecencyScorer(reach=2.0).score(view).argsort(descending=True).tolist() == [[2, 1, 0, 3]]


def test_it_decodes_under_its_own_name() -> None:
    config = configure("es-dllm", sets=["importance.name=recency", "importance.reach=4.0", "gen_length=32"])
    engine = Engine.build(load_model("tiny-llada", device="cpu"), config)
    assert engine.generate("Who are you?", chat=True).steps > 0
