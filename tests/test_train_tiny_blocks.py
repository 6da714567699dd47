"""The laws of training a tiny block-causal model: what a block is shown, what is masked, what the weights begin with."""

import random
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[1] / "tools" / "train_tiny"))

from batches import BLOCK_LENGTHS, Batch, make_chunk
from beginning import adopted_weights, fit_norms
from blocks import SIZES as BLOCK_SIZES
from blocks import block_causal, draw_block_masks, draw_size, noised
from card import card
from decoding import decode_batch
from dialects import DIALECTS
from model import SIZES, TinyModel
from tokenizers import Tokenizer
from train import Place, Recipe
from vocabulary import build_tokenizer, token_id

from esdllm import load_model
from esdllm.runtime.plain import full_logits

MASK = 29


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer("sdar")


@pytest.fixture(scope="module")
def model() -> TinyModel:
    """Two random layers with grouped queries, whose norms of queries and keys show in the logits."""
    torch.manual_seed(0)
    size = SIZES["sdar"]._replace(vocab_size=MASK + 1, hidden=16, layers=2, heads=2, kv_heads=1, mlp=32)
    drawn = TinyModel(size).requires_grad_(False)
    for weight in drawn.parameters():
        weight.add_(torch.randn(weight.shape), alpha=0.5)
    return drawn


def batch_of(rows: int, length: int, starts: list[int]) -> Batch:
    ids = torch.randint(0, MASK, (rows, length), generator=torch.Generator().manual_seed(1))
    return Batch(ids, torch.tensor(starts)[:, None], torch.full((rows, 1), length))


@pytest.mark.parametrize("size", BLOCK_SIZES)
@pytest.mark.parametrize("starts", [[3, 40, 17], [64, 70, 90], [0, 127, 5]])
def test_a_noised_block_is_computed_as_decoding_computes_it(model: TinyModel, size: int, starts: list[int]) -> None:
    batch = batch_of(3, 128, starts)
    masked = draw_block_masks(batch, size, MASK, torch.Generator().manual_seed(2))
    shown = noised(batch, masked, size, MASK)
    behind = model.head(model.features(shown.ids, shown.positions, shown.unseen))[:, 128:]
    first = int(shown.positions[128])
    assert first % size == 0
    for begin in range(first, 128, size):
        block = slice(begin, begin + size)
        canvas = batch.ids[:, : block.stop].clone()
        canvas[:, block] = canvas[:, block].masked_fill(masked[:, block], MASK)
        alone = model.head(model.features(canvas, unseen=block_causal(block.stop, size)))[:, block]
        torch.testing.assert_close(behind[:, begin - first : block.stop - first], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_what_is_wanted_is_what_is_masked_and_no_masked_answer_is_left_out(size: int) -> None:
    batch = batch_of(4, 64, [9, 30, 17, 63])
    masked = draw_block_masks(batch, size, MASK, torch.Generator().manual_seed(0))
    shown = noised(batch, masked, size, MASK)
    assert masked.any()
    assert not masked[torch.arange(64) < batch.start].any()
    assert shown.wanted.sum() == masked.sum()
    assert shown.ids[shown.wanted].eq(MASK).all()
    assert shown.ids[~shown.wanted].ne(MASK).all()
    for row in range(4):
        assert shown.positions[shown.wanted[row]].tolist() == masked[row].nonzero()[:, 0].tolist()


def test_a_clean_position_sees_no_later_block_and_no_noised_text() -> None:
    shown = noised(batch_of(1, 16, [5]), torch.zeros(1, 16, dtype=torch.bool), 4, MASK)
    for query, key in ((0, 3), (3, 0), (7, 1), (15, 15)):
        assert not shown.unseen[query, key]
    for query, key in (
        (0, 4),
        (3, 8),
        *((query, key) for query in range(16) for key in range(16, len(shown.positions))),
    ):
        assert shown.unseen[query, key]


def test_masks_take_every_ratio_in_every_block() -> None:
    batch = batch_of(256, 64, [0] * 256)
    masked = draw_block_masks(batch, 16, MASK, torch.Generator().manual_seed(0)).float().view(256, 4, 16).mean(2)
    for quarter in masked.unbind(1):
        assert 0.4 < quarter.mean() < 0.6
        assert quarter.std() > 0.25


def test_every_block_size_that_divides_the_length_is_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    for length in BLOCK_LENGTHS:
        drawn = {draw_size(length, generator) for _ in range(100)}
        assert drawn == {size for size in BLOCK_SIZES if length % size == 0}
    assert {size for length in BLOCK_LENGTHS for size in BLOCK_SIZES if length % size == 0} == set(BLOCK_SIZES)


def test_a_batch_s_answers_start_near_one_another(tokenizer: Tokenizer) -> None:
    def drawn(block_causal: bool) -> list[Batch]:
        return make_chunk(tokenizer, DIALECTS["sdar"], random.Random(0), 1.0, 1024, block_causal=block_causal)

    near, spread = (
        sum(int(batch.start.max() - batch.start.min()) for batch in drawn(kind)) / len(drawn(kind))
        for kind in (True, False)
    )
    assert near < 0.5 * spread
    assert {batch.ids.shape[1] for batch in drawn(True)} <= set(BLOCK_LENGTHS)


def test_the_weights_of_lladas_checkpoint_come_with_their_words(tokenizer: Tokenizer) -> None:
    folder = Path(__file__).parents[1] / "models" / "esdllm_models" / "tiny" / "llada"
    size = SIZES["sdar"]._replace(vocab_size=tokenizer.get_vocab_size(), qk_norm=False, norm_eps=1e-5)
    mine, its = TinyModel(size).requires_grad_(False), load_model("tiny-llada", "cpu", "float32")
    mine.load_state_dict(adopted_weights(folder, mine, tokenizer, "sdar"))
    old = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pairs = [("<|im_start|>", "<|start_header_id|>"), ("<|im_end|>", "<|eot_id|>"), ("<|MASK|>", "<|mdm_mask|>")]
    pairs += [("<|endoftext|>", "<|endoftext|>"), *((word, word) for word in ("Ġ31", "Sort", "Hugo", "Ċ", "Ã"))]
    new_ids, old_ids = (
        torch.tensor([[token_id(one, pair[side]) for pair in pairs]]) for side, one in enumerate((tokenizer, old))
    )
    torch.testing.assert_close(
        mine.head(mine.features(new_ids))[..., new_ids[0]],
        full_logits(its.adapter, old_ids)[..., old_ids[0]],
        atol=1e-3,
        rtol=0,
    )
    with pytest.raises(typer.BadParameter, match="dream cannot begin with a checkpoint"):
        adopted_weights(folder, mine, tokenizer, "dream")


def test_fitted_norms_keep_the_size_of_queries_and_keys_layer_by_layer(model: TinyModel) -> None:
    fitted = TinyModel(model.size).requires_grad_(False)
    fitted.load_state_dict(model.state_dict())
    ids, unseen = torch.randint(0, MASK, (8, 32), generator=torch.Generator().manual_seed(0)), block_causal(32, 16)
    fit_norms(fitted, ids, unseen)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for block in fitted.blocks:
        for norm in (block.q_norm, block.k_norm):
            norm.register_forward_hook(lambda norm, inputs, out: seen.append((inputs[0], out)))
    fitted.features(ids, unseen=unseen)
    assert len(seen) == 4
    for before, after in seen:
        torch.testing.assert_close(after.square().mean(), before.square().mean(), rtol=1e-3, atol=0)
    assert all(block.q_norm.weight.unique().numel() == 1 for block in fitted.blocks)


def test_a_block_causal_canvas_ends_with_a_whole_block_and_shows_nothing_behind_it(model: TinyModel) -> None:
    prompts = torch.randint(0, MASK, (2, 11), generator=torch.Generator().manual_seed(0))
    short, long = (decode_batch(model, prompts, MASK, length, 8) for length in (5, 21))
    assert [row[:5] for row in long] == short
    assert all(len(row) == 21 and MASK not in row for row in long)


def test_the_card_of_a_run_begun_with_a_checkpoint_says_so_and_how_it_is_made_again(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    first = asdict(Recipe("sdar", 4_000_000, 2048, first={"checkpoint": "llada"}))
    recipe = Recipe("sdar", 760_000, 2048, first={"recipe": first, "place": asdict(Place(414, 841_376, 1594.0))})
    size = SIZES["sdar"]._replace(vocab_size=tokenizer.get_vocab_size())
    state = {"recipe": asdict(recipe), "place": asdict(Place(374, 760_000, 1300.0)), "size": size._asdict()}
    (tmp_path / "log.jsonl").write_text('{"loss": 0.04, "step": 20, "tokens": 40000}\n')
    told = card(state, 5_000_000, tmp_path / "log.jsonl")
    assert "trained on from Tiny LLaDA's weights\nfor this package" in told
    assert "0.8 million tokens of a budget of 4, then stopped, 0.4 hours" in told
    assert "sdar --out runs/1 --start models/esdllm_models/tiny/llada --tokens 4000000 --batch-tokens 2048`" in told
    assert (
        "`python tools/train_tiny/train.py sdar --out runs/sdar --start runs/1 --tokens 760000 --batch-tokens 2048`"
        in told
    )
    assert "all 16 layers from the first step" in told
    assert "longer than 128 tokens" in told
