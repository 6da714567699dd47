"""The shipped block-causal checkpoint: one for blocks of every size that it was trained on."""

import pytest

from esdllm import Catalogue, Engine, load_model
from esdllm.checkpoints.loading import shipped_checkpoints

ANSWERS = {
    "Sort these numbers: 31, 4, 15.": "Sorted from small to large the numbers are 4, 15, 31.",
    "What is 12 + 7?": "The result is 12 + 7 = 19.",
}


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 16, 32, 64])
def test_at_every_block_size_it_answers_rightly_and_the_prefix_cache_is_exact(catalogue: Catalogue, size: int) -> None:
    model = load_model("tiny-sdar", "cpu", "float32", catalogue, family=f"sdar,block_size={size}")
    assert model.spec.attention is not None
    assert model.spec.attention.size == size
    tokens = {}
    for preset in ("vanilla", "dual-cache", "es-dllm"):
        config = catalogue.configure(preset, settings={"gen_length": 32, "block_length": size})
        found = Engine.build(model, config, catalogue).generate(list(ANSWERS), chat=True)
        assert found.text == list(ANSWERS.values())
        tokens[preset] = found.tokens.tolist()
    assert tokens["vanilla"] == tokens["dual-cache"]


def test_every_shipped_checkpoint_is_at_most_12_megabytes_and_has_a_card(catalogue: Catalogue) -> None:
    for folder in shipped_checkpoints(catalogue).values():
        assert sum(path.stat().st_size for path in folder.iterdir()) < 12e6
        assert "## Scores" in (folder / "README.md").read_text(encoding="utf-8")
