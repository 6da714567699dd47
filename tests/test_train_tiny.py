"""The training tool's laws: disjoint splits, right answers, exact round trips, exact resumption."""

import random
import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tools" / "train_tiny"))

from batches import draw_masks, make_chunk
from decoding import decode_batch, read
from export import export
from model import Size
from problems import TASKS, held_out_problems, make_problem, split_of, training_problem
from tokenizers import Tokenizer
from train import Recipe, Trainer, train
from vocabulary import CHAT_TEMPLATE, SPECIAL, build_tokenizer, chat_prompt


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer()


def small_trainer(tokenizer: Tokenizer) -> Trainer:
    recipe = Recipe(tokens=20 * 512, batch_tokens=512)
    size = Size(tokenizer.get_vocab_size(), d_model=16, n_layers=2, n_heads=2, mlp_hidden_size=32)
    return Trainer(recipe, size, tokenizer, fast=False)


def test_no_training_problem_is_held_out():
    rng = random.Random(0)
    held_out = {problem.prompt for task in TASKS for problem in held_out_problems(task, 200)}
    assert len(held_out) == 200 * len(TASKS)
    assert all(split_of(prompt) == "held-out" for prompt in held_out)
    assert not held_out & {make_problem(rng, task, "train").prompt for task in TASKS for _ in range(3000)}


def test_a_seed_fixes_the_problems():
    streams = [[training_problem(random.Random(seed)) for seed in range(50)] for _ in range(2)]
    assert streams[0] == streams[1]
    assert held_out_problems("story", 20) == held_out_problems("story", 20)
    assert held_out_problems("story", 20) != held_out_problems("story", 20, seed=1)


def test_a_prompt_has_one_answer():
    rng, answers = random.Random(1), {}
    for _ in range(20000):
        problem = training_problem(rng, rng.random())
        assert answers.setdefault(problem.prompt, problem.answer) == problem.answer


def test_written_functions_run_and_written_sums_are_right():
    rng = random.Random(2)
    for _ in range(500):
        scope: dict[str, object] = {}
        exec(make_problem(rng, "code", "train").answer, scope)
        assert sum(callable(value) for value in scope.values()) == 1
        text = make_problem(rng, "story", "train").answer
        sums = re.findall(r"(\d+ [-+*] \d+) = (\d+)", text)
        assert sums
        assert all(eval(left) == int(right) for left, right in sums)


def test_sorted_lists_are_sorted():
    for problem in held_out_problems("lists", 100):
        found = re.fullmatch(r"Sorted from (\w+) to \w+ the numbers are ([\d, ]+)\..*", problem.answer)
        if found:
            numbers = [int(number) for number in found[2].split(", ")]
            assert numbers == sorted(numbers, reverse=found[1] == "large")


def test_answers_survive_the_tokenizer(tokenizer: Tokenizer):
    rng = random.Random(3)
    for _ in range(2000):
        problem = training_problem(rng)
        ids = tokenizer.encode(problem.answer).ids
        assert tokenizer.decode(ids) == problem.answer
        assert len(ids) < 64


@pytest.mark.parametrize("text", ["Zürich 1234 naïve 你好 🙂", "x_y={a}\t\n\n  b", "  two  spaces ", ""])
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str):
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_numbers_and_special_tokens_are_single(tokenizer: Tokenizer):
    for text in [*(f" {number}" for number in range(100)), *SPECIAL]:
        assert len(tokenizer.encode(text).ids) == 1
    assert 700 <= tokenizer.get_vocab_size() <= 1200


def test_the_template_is_the_training_prompt():
    jinja2 = pytest.importorskip("jinja2")
    messages = [{"role": "user", "content": "Sort 5, 3."}]
    template = jinja2.Environment().from_string(CHAT_TEMPLATE)
    assert template.render(messages=messages, add_generation_prompt=True) == chat_prompt("Sort 5, 3.")


def test_masks_spare_the_prompt(tokenizer: Tokenizer):
    for batch in make_chunk(tokenizer, random.Random(0), 1.0, 1024, batches=8):
        masked = draw_masks(batch, tokenizer.get_vocab_size(), torch.Generator().manual_seed(0))
        assert masked.any()
        assert not masked[torch.arange(batch.ids.shape[1]) < batch.start].any()


def test_a_resumed_run_ends_where_an_unbroken_one_does(tokenizer: Tokenizer, tmp_path: Path):
    unbroken = small_trainer(tokenizer)
    train(unbroken, tmp_path / "unbroken")
    broken = small_trainer(tokenizer)
    train(broken, tmp_path / "broken", stop_after=7)
    resumed = small_trainer(tokenizer)
    resumed.load(tmp_path / "broken" / "checkpoint.pt")
    train(resumed, tmp_path / "broken")
    assert resumed.place.step == unbroken.place.step > 15
    for name, weight in unbroken.average.state_dict().items():
        assert torch.equal(weight, resumed.average.state_dict()[name])
    assert (tmp_path / "broken" / "loss.png").stat().st_size > 1000


def test_an_exported_run_has_the_public_names(tokenizer: Tokenizer, tmp_path: Path):
    from safetensors.torch import load_file

    trainer = small_trainer(tokenizer)
    train(trainer, tmp_path, stop_after=1)
    export(tmp_path, tmp_path / "tiny")
    weights = load_file(tmp_path / "tiny" / "model.safetensors")
    assert len(weights) == 2 * 9 + 3
    assert {"wte", "ln_f", "ff_out"} == {name.split(".")[2] for name in weights} - {"blocks"}
    assert weights["model.transformer.blocks.1.ff_proj.weight"].shape == (32, 16)


def test_check_ups_fill_the_canvas(tokenizer: Tokenizer):
    model, mask_id = small_trainer(tokenizer).average, tokenizer.token_to_id("<|mdm_mask|>")
    prompts = torch.tensor([tokenizer.encode(chat_prompt("Hello")).ids] * 2)
    first, second = decode_batch(model, prompts, mask_id, 8, 4)
    assert first == second
    assert len(first) == 8
    assert mask_id not in first
    assert isinstance(read(tokenizer, first), str)
