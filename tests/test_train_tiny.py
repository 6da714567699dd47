"""The training tool's laws: disjoint splits, right answers, exact round trips, exact resumption, faithful exports."""

import json
import random
import re
import sys
import unicodedata
from pathlib import Path

import pytest
import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[1] / "tools" / "train_tiny"))

from batches import draw_masks, make_chunk
from blocks import block_causal
from card import Scores, card, read_scores
from curve import draw_curve, read_log, smoothed
from decoding import check_up, decode_batch, read
from dialects import DIALECTS
from export import export, load_average
from layouts import LAYOUTS
from model import SIZES, Size, TinyModel
from problems import TASKS, held_out_problems, make_problem, split_of, training_problem
from suite import COUNT, SUITE, TUNE, suite_lines
from tokenizers import Tokenizer
from train import Recipe, Trainer, train
from train import main as train_command
from vocabulary import build_tokenizer, token_id
from words import CITIES, JOBS, NAMES, THINGS

from esdllm import Catalogue, Engine, Model, load_model
from esdllm.runtime.plain import full_logits

FAMILIES = ("llada", "dream", "sdar")


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {family: build_tokenizer(family) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tokenizer(tokenizers: dict[str, Tokenizer], family: str) -> Tokenizer:
    return tokenizers[family]


def small_trainer(tokenizer: Tokenizer, family: str) -> Trainer:
    """A trainer of a family's model cut down to two layers, for 40 steps of 256 tokens; it grows after 12."""
    kv_heads = SIZES[family].kv_heads // 2
    size = SIZES[family]._replace(hidden=16, layers=2, heads=2, kv_heads=kv_heads, mlp=32)
    size = size._replace(vocab_size=tokenizer.get_vocab_size())
    return Trainer(Recipe(family, tokens=40 * 256, batch_tokens=256, grow_at=0.3), size, tokenizer, fast=False)


@pytest.fixture(scope="module")
def runs(tokenizers: dict[str, Tokenizer], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By family: a run of 20 steps, whose weights are then made large enough for every one to show in the logits."""
    folders = {}
    for family in FAMILIES:
        trainer, folders[family] = small_trainer(tokenizers[family], family), tmp_path_factory.mktemp(family)
        train(trainer, folders[family], stop_after=20)
        generator = torch.Generator().manual_seed(0)
        for weight in trainer.average.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.3)
        trainer.average.head.weight[trainer.mask_id] = 0  # the mask is no answer, as a longer training teaches
        trainer.save(folders[family] / "checkpoint.pt")
        export(folders[family], folders[family] / "tiny")
    return folders


@pytest.fixture
def original(runs: dict[str, Path], family: str) -> TinyModel:
    """The averaged weights of a family's run, rounded as its export rounds them."""
    return load_average(runs[family])[0].bfloat16().float()


@pytest.fixture
def exported(runs: dict[str, Path], family: str, catalogue: Catalogue) -> Model:
    return load_model(runs[family] / "tiny", "cpu", "float32", catalogue)


def test_no_training_problem_is_held_out() -> None:
    rng = random.Random(0)
    held_out = {problem.prompt for task in TASKS for problem in held_out_problems(task, 200)}
    assert len(held_out) == 200 * len(TASKS)
    assert all(split_of(prompt) == "held-out" for prompt in held_out)
    assert not held_out & {make_problem(rng, task, "train").prompt for task in TASKS for _ in range(3000)}


def test_a_seed_fixes_the_problems() -> None:
    streams = [[training_problem(random.Random(seed)) for seed in range(50)] for _ in range(2)]
    assert streams[0] == streams[1]
    assert held_out_problems("story", 20) == held_out_problems("story", 20)
    assert held_out_problems("story", 20) != held_out_problems("story", 20, seed=1)


def test_a_prompt_has_one_answer() -> None:
    rng, answers = random.Random(1), {}
    for _ in range(20000):
        problem = training_problem(rng, rng.random())
        assert answers.setdefault(problem.prompt, problem.answer) == problem.answer


def test_written_functions_run_and_written_sums_are_right() -> None:
    rng = random.Random(2)
    for _ in range(500):
        scope: dict[str, object] = {}
        exec(make_problem(rng, "code", "train").answer, scope)
        assert sum(callable(value) for value in scope.values()) == 1
        text = make_problem(rng, "story", "train").answer
        sums = re.findall(r"(\d+ [-+*] \d+) = (\d+)", text)
        assert sums
        assert all(eval(left) == int(right) for left, right in sums)


def test_sorted_lists_are_sorted() -> None:
    for problem in held_out_problems("lists", 100):
        found = re.fullmatch(r"Sorted from (\w+) to \w+ the numbers are ([\d, ]+)\..*", problem.answer)
        if found:
            numbers = [int(number) for number in found[2].split(", ")]
            assert numbers == sorted(numbers, reverse=found[1] == "large")


@pytest.mark.slow
def test_the_shipped_problems_are_what_the_generator_makes() -> None:
    assert SUITE.read_text(encoding="utf-8").splitlines() == suite_lines()


def test_no_shipped_problem_occurs_twice_and_its_split_is_one() -> None:
    rows = [json.loads(line) for line in SUITE.read_text(encoding="utf-8").splitlines()]
    assert len({row["prompt"] for row in rows}) == len(rows) == COUNT * len(TASKS)
    assert all(split_of(row["prompt"]) == "held-out" for row in rows)
    for task in TASKS:
        splits = [row["split"] for row in rows if row["task"] == task]
        assert splits == ["tune"] * TUNE + ["test"] * (COUNT - TUNE)


@pytest.mark.slow
def test_answers_survive_the_tokenizer(tokenizer: Tokenizer) -> None:
    rng = random.Random(3)
    for _ in range(200):
        problem = training_problem(rng)
        ids = tokenizer.encode(problem.answer).ids
        assert tokenizer.decode(ids) == problem.answer
        assert len(ids) < 64


@pytest.mark.parametrize("text", ["Zürich 1234 naïve 你好 🙂", "x_y={a}\t\n\n  b", "  two  spaces ", "e\u0301", ""])
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, family: str, text: str) -> None:
    expected = unicodedata.normalize("NFC", text) if family == "dream" else text  # as Qwen2's
    assert tokenizer.decode(tokenizer.encode(text).ids) == expected


def test_words_and_special_tokens_are_single(tokenizer: Tokenizer, family: str) -> None:
    for text in [*(f" {word}" for word in (*NAMES, *CITIES, *JOBS, *THINGS)), *DIALECTS[family].special]:
        assert len(tokenizer.encode(text).ids) == 1
    assert 700 <= tokenizer.get_vocab_size() <= 1400


def test_numbers_are_single_tokens_in_lladas_vocabulary_and_digits_in_dreams(tokenizers: dict[str, Tokenizer]) -> None:
    for number in range(100):
        assert len(tokenizers["llada"].encode(f" {number}").ids) == 1
        assert tokenizers["dream"].encode(f" {number}").tokens == ["Ġ", *str(number)]


def test_the_numbers_embeddings_are_close_where_the_numbers_are(tokenizers: dict[str, Tokenizer]) -> None:
    trainer = small_trainer(tokenizers["llada"], "llada")
    ids = [token_id(trainer.tokenizer, f"Ġ{number}") for number in range(100)]
    for table in (trainer.model.embedding.weight, trainer.model.head.weight):
        distances = torch.cdist(table[ids], table[ids])
        by_gap = [distances.diagonal(gap).mean() for gap in range(1, 60)]
        assert max(by_gap[gap - 1] for gap in (1, 2, 10)) < 0.9 * torch.stack(by_gap[22:]).mean()


def test_a_seed_fixes_the_numbers_embeddings_and_no_others_are_touched() -> None:
    def drawn(seed: int, numbers: int) -> TinyModel:
        torch.manual_seed(seed)
        model = TinyModel(SIZES["llada"]._replace(vocab_size=30, hidden=16, layers=1, mlp=8))
        if numbers:
            model.number_values(list(range(numbers)))
        return model

    first, again, other, plain = (drawn(*case).embedding.weight for case in ((0, 20), (0, 20), (1, 20), (0, 0)))
    assert torch.equal(first, again)
    assert not torch.equal(first[:20], other[:20])
    assert torch.equal(first[20:], plain[20:])
    assert not torch.isclose(first[:20], plain[:20]).all(1).any()


@pytest.mark.slow
def test_the_template_is_the_training_prompt(tokenizer: Tokenizer, family: str, exported: Model) -> None:
    assert exported.codec is not None
    for question in ("Sort 5, 3.", "Write a Python function test that takes n and returns n plus 12."):
        ids = exported.codec.encode_chat([{"role": "user", "content": question}])
        assert exported.codec.decode(ids, keep_special=True) == DIALECTS[family].prompt(question)
        assert ids == tokenizer.encode(DIALECTS[family].prompt(question)).ids


def test_masks_spare_the_prompt(tokenizer: Tokenizer, family: str) -> None:
    for batch in make_chunk(tokenizer, DIALECTS[family], random.Random(0), 1.0, 1024, batches=8):
        masked = draw_masks(batch, tokenizer.get_vocab_size(), torch.Generator().manual_seed(0))
        assert masked.any()
        assert not masked[torch.arange(batch.ids.shape[1]) < batch.start].any()


def test_a_token_is_read_off_its_position_less_the_shift(original: TinyModel, family: str) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, original.size.vocab_size, (3, 9), generator=generator)
    wanted = torch.rand(3, 9, generator=generator) < 0.5
    wanted[:, 0] = False
    logits, shift = original.head(original.features(ids)), int(family == "dream")
    expected = torch.stack([logits[row, place - shift] for row, place in wanted.nonzero().tolist()])
    torch.testing.assert_close(original.logits_at(ids, wanted), expected)


def test_a_model_of_twice_the_layers_begins_as_the_model_it_was(original: TinyModel) -> None:
    ids = torch.randint(0, original.size.vocab_size, (2, 30), generator=torch.Generator().manual_seed(0))
    deeper = original.deeper()
    assert deeper.size.layers == 2 * original.size.layers
    assert torch.equal(deeper.features(ids), original.features(ids))
    for weight in deeper.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    assert not torch.equal(deeper.features(ids), original.features(ids))


def test_embedding_and_head_are_one_table_unless_told_otherwise() -> None:
    size = Size(30, hidden=16, layers=1, heads=2, kv_heads=2, mlp=8)
    tied, apart = TinyModel(size), TinyModel(size._replace(tied=False))
    assert tied.head.weight is tied.embedding.weight
    assert tied.deeper().head.weight is not tied.head.weight
    assert not torch.equal(apart.head.weight, apart.embedding.weight)
    for model in (tied, apart):
        model.number_values([3, 4, 5])
        assert torch.equal(model.head.weight, model.embedding.weight) is model.size.tied


@pytest.mark.slow
def test_a_run_is_gone_on_with_by_its_own_recipe(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="holds a run of llada, not of dream"):
        train_command("dream", runs["llada"], resume=True)
    with pytest.raises(typer.BadParameter, match="holds a run already: go on with --resume"):
        train_command("llada", runs["llada"])


@pytest.mark.slow
def test_a_run_may_begin_with_the_weights_of_another(
    runs: dict[str, Path], tokenizer: Tokenizer, family: str, tmp_path: Path
) -> None:
    _, _, state = load_average(runs[family])
    first = {key: state[key] for key in ("recipe", "place")}
    recipe = Recipe(family, tokens=24 * 256, batch_tokens=256, shares={"sums": 1.0}, first=first)
    trainer = Trainer(recipe, Size(**state["size"]), tokenizer, fast=False)
    trainer.begin_with(state["average"])
    digits = [tokenizer.token_to_id(str(digit)) for digit in range(10)]
    pairs = zip(trainer.model.embedding.weight, state["average"]["embedding.weight"], strict=True)
    changed = {row for row, (mine, its) in enumerate(pairs) if not mine.equal(its)}
    assert changed == (set(digits) if family == "dream" else set())
    assert all(
        mine.equal(its) for mine, its in zip(trainer.model.parameters(), trainer.average.parameters(), strict=True)
    )
    train(trainer, tmp_path / "second")
    told = card(
        torch.load(tmp_path / "second" / "checkpoint.pt", weights_only=True), 1000, tmp_path / "second" / "log.jsonl"
    )
    assert f"python tools/train_tiny/train.py {family} --out runs/1 --tokens 10240" in told
    assert f"--out runs/{family} --start runs/1 --tokens 6144" in told
    assert "--share sums=1.0" in told


def test_growing_keeps_the_optimisers_state_of_what_was_there(tokenizer: Tokenizer, family: str) -> None:
    trainer = small_trainer(tokenizer, family)
    for _ in range(3):
        trainer.step()
    momentum = trainer.muon.state[trainer.model.blocks[0].q.weight]["momentum"]
    moments = trainer.adam.state[trainer.model.blocks[0].attn_norm.weight]
    trainer.grow()
    assert len(trainer.model.blocks) == 2
    assert trainer.muon.state[trainer.model.blocks[0].q.weight]["momentum"] is momentum
    assert trainer.adam.state[trainer.model.blocks[0].attn_norm.weight] is moments
    assert trainer.model.blocks[1].q.weight not in trainer.muon.state
    trainer.step()


@pytest.mark.slow
def test_a_resumed_run_ends_where_an_unbroken_one_does(tokenizer: Tokenizer, family: str, tmp_path: Path) -> None:
    unbroken = small_trainer(tokenizer, family)
    train(unbroken, tmp_path / "unbroken")
    for stop_after in (7, 20):
        broken = small_trainer(tokenizer, family)
        train(broken, tmp_path / "broken", stop_after=stop_after)
        resumed = small_trainer(tokenizer, family)
        resumed.load(tmp_path / "broken" / "checkpoint.pt")
        train(resumed, tmp_path / "broken")
        assert resumed.place.step == unbroken.place.step > 15
        for name, weight in unbroken.average.state_dict().items():
            assert torch.equal(weight, resumed.average.state_dict()[name])
        assert (tmp_path / "broken" / "loss.png").stat().st_size > 1000


def test_an_export_has_the_public_names_and_files(runs: dict[str, Path], family: str) -> None:
    from safetensors.torch import load_file

    weights = load_file(runs[family] / "tiny" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    files = {path.name for path in (runs[family] / "tiny").iterdir()}
    common = {"config.json", "model.safetensors", "tokenizer_config.json", "special_tokens_map.json"}
    if family == "llada":
        assert weights["model.transformer.blocks.1.ff_proj.weight"].shape == (32, 16)
        assert len(weights) == 2 * 9 + 3
        assert files == {*common, "tokenizer.json", "README.md", "loss.png"}
    elif family == "sdar":
        assert weights["model.layers.1.self_attn.k_norm.weight"].shape == (8,)
        assert len(weights) == 2 * 11 + 3
        assert files == {*common, "tokenizer.json", "README.md", "loss.png"}
    else:
        assert weights["model.layers.1.self_attn.k_proj.bias"].shape == (8,)
        assert len(weights) == 2 * 12 + 3
        assert files == {*common, "vocab.json", "merges.txt", "README.md", "loss.png"}


@pytest.mark.slow
def test_an_export_of_the_trained_size_is_at_most_12_megabytes(
    tokenizer: Tokenizer, family: str, tmp_path: Path
) -> None:
    size = SIZES[family]._replace(vocab_size=tokenizer.get_vocab_size())
    trainer = Trainer(Recipe(family, tokens=1), size, tokenizer, fast=False)
    trainer.grow()
    trainer.save(tmp_path / "checkpoint.pt")
    (tmp_path / "log.jsonl").write_text('{"loss": 1.0, "step": 0, "tokens": 0}\n')
    export(tmp_path, tmp_path / "tiny")
    assert 6e6 < sum(path.stat().st_size for path in (tmp_path / "tiny").iterdir()) < 12e6


def test_an_export_has_the_logits_of_the_trained_model(original: TinyModel, exported: Model) -> None:
    ids = torch.randint(0, original.size.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))
    attention = exported.spec.attention
    unseen = block_causal(40, attention.size) if attention else None
    assert (unseen is not None) == original.size.block_causal
    expected = original.head(original.features(ids, unseen=unseen))
    assert expected.std() > 0.5
    torch.testing.assert_close(full_logits(exported.adapter, ids), expected, atol=2e-5, rtol=0)


def test_the_package_decodes_an_export_as_the_check_ups_do(
    original: TinyModel, exported: Model, catalogue: Catalogue
) -> None:
    lengths = {"gen_length": 24, "block_length": exported.spec.attention.size if exported.spec.attention else 8}
    config = catalogue.configure("vanilla", settings={**lengths, "delay_eos": False, "early_stop": False})
    prompts = torch.randint(0, original.size.vocab_size // 2, (4, 11), generator=torch.Generator().manual_seed(0))
    mask_id = exported.spec.mask_id
    expected = decode_batch(original, prompts, mask_id, **lengths)
    found = Engine.build(exported, config, catalogue).generate(prompts).tokens[:, 11:35]
    assert found.tolist() == expected
    assert len(set(found.flatten().tolist())) > 8  # says something
    other = {"block_causal": False} if original.size.block_causal else {"shift": 1 - original.size.shift}
    original.size = original.size._replace(**other)
    assert decode_batch(original, prompts, mask_id, **lengths) != expected


def test_check_ups_fill_the_canvas_and_score_every_task(original: TinyModel, tokenizer: Tokenizer, family: str) -> None:
    dialect = DIALECTS[family]
    mask_id = token_id(tokenizer, dialect.mask)
    prompts = torch.tensor([tokenizer.encode(dialect.prompt("Hello")).ids] * 2)
    first, second = decode_batch(original, prompts, mask_id, 8, 4)
    assert first == second
    assert len(first) == 8
    assert mask_id not in first
    scores, wrong = check_up(original, tokenizer, dialect, count=1, gen_length=4, block_length=4)
    assert scores == dict.fromkeys(TASKS, 0.0)
    assert len(wrong) == len(TASKS)


def test_an_answer_is_read_up_to_its_end(tokenizer: Tokenizer, family: str) -> None:
    dialect = DIALECTS[family]
    for end in (dialect.end_of_turn, dialect.end_of_text):
        assert read(tokenizer, dialect, tokenizer.encode(f"3, 5.{end} 7{dialect.end_of_text}").ids) == "3, 5."


def test_the_card_says_what_the_run_recorded(runs: dict[str, Path], family: str) -> None:
    state, log = torch.load(runs[family] / "checkpoint.pt", weights_only=True), runs[family] / "log.jsonl"
    shares = {"vanilla": {task: place / 10 for place, task in enumerate(TASKS)}}
    text = card(state, 1_234_567, log, Scores(shares, 50, {"gen_length": 64, "block_length": 16}))
    losses = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
    assert f"# Tiny {LAYOUTS[family].title}\n" in text
    assert "1.2 million parameters" in text
    assert " 20 steps of about 256," in text
    assert f"last 20 steps: {losses[-1]:.3f}" in text
    assert "| task | `vanilla` |\n|---|---|\n| describe | 0.0 % |\n| lookup | 10.0 % |" in text
    assert "| mean | 20.0 % |" in text
    assert f"train.py {family} --out runs/{family} --tokens 10240 --batch-tokens 256`" in text
    assert "## Scores" not in card(state, 1_234_567, log)


def test_the_card_s_scores_are_what_eval_printed(tmp_path: Path) -> None:
    tasks = {task: {"value": 0.5, "low": 0.4, "high": 0.6} for task in TASKS}
    config = {"gen_length": 64, "block_length": 16}
    printed = {"problems": 10, "contenders": [{"name": "vanilla", "tasks": tasks, "config": config}]}
    (tmp_path / "scores.json").write_text(json.dumps(printed))
    assert read_scores(tmp_path / "scores.json") == Scores({"vanilla": dict.fromkeys(TASKS, 0.5)}, 10, config)


@pytest.mark.parametrize(
    "scores", [[], {"contenders": []}, {"problems": 1, "contenders": [{"name": "a", "tasks": {}}]}]
)
def test_scores_of_another_form_are_refused(tmp_path: Path, scores: object) -> None:
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    with pytest.raises(typer.BadParameter, match="holds no scores: give what `esdllm eval --suite tiny --json` prints"):
        read_scores(tmp_path / "scores.json")


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match=r"holds no checkpoint\.pt: give the folder that train\.py wrote"):
        load_average(tmp_path)


def test_of_steps_made_twice_the_log_counts_the_later(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": loss, "tokens": step} for step, loss in ((20, 3.0), (40, 2.0), (60, 9.0), (60, 1.0))]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["loss"] for row in read_log(tmp_path / "log.jsonl")] == [3.0, 2.0, 1.0]
    draw_curve(tmp_path / "log.jsonl", tmp_path / "loss.png", "dream", 3_000_000)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_smoothing_keeps_a_straight_line_and_the_ends() -> None:
    straight = [2.0 ** -(place / 50) for place in range(500)]
    assert smoothed(straight) == pytest.approx(straight)
    rng = random.Random(0)
    noisy = [rng.uniform(1, 2) for _ in range(500)]
    assert (smoothed(noisy)[0], smoothed(noisy)[-1]) == pytest.approx((noisy[0], noisy[-1]))
    assert max(smoothed(noisy)[20:-20]) - min(smoothed(noisy)[20:-20]) < 0.9
