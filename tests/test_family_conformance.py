"""Recorded cases of model families: what is read, what is compared, and what is told where nothing can be."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CASES, read_config
from safetensors.torch import load_file, save_file
from torch import Tensor

from esdllm import Catalogue, load_model
from esdllm.cli import main
from esdllm.testing import conformance
from esdllm.testing.conformance.greedy import Greedy
from esdllm.testing.conformance.logits import recorded_logits
from esdllm.testing.conformance.result import NotRun

FAMILIES = Path(__file__).parent / "conformance-families"
SMALL = CASES / "llada-0"
LENGTH, BLOCK, PREFIX = 21, 4, 8


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 250, (2, LENGTH), generator=torch.Generator().manual_seed(0))


def masked(tokens: Tensor, sees: Tensor, layers: int = 0) -> Tensor:
    """Return logits of LLaDA's small checkpoint under a mask (B, L, L), computed plainly from its weights."""
    weights, config = load_file(SMALL / "model.safetensors"), read_config("llada-0")
    heads, kv_heads = config["n_heads"], config.get("n_kv_heads") or config["n_heads"]
    dim, eps = config["d_model"] // heads, config["rms_norm_eps"]
    turns = torch.outer(
        torch.arange(tokens.shape[1]).float(), config["rope_theta"] ** (-torch.arange(0, dim, 2).float() / dim)
    )
    cos, sin = torch.cat([turns, turns], 1).cos(), torch.cat([turns, turns], 1).sin()

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weights[f"model.transformer.{name}.weight"]

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    x = weights["model.transformer.wte.weight"][tokens]
    for layer in range(config["n_layers"]):
        at = f"blocks.{layer}."

        def linear(y: Tensor, name: str, at: str = at) -> Tensor:
            return y @ weights[f"model.transformer.{at}{name}.weight"].T

        def split(y: Tensor, count: int) -> Tensor:
            return y.unflatten(-1, (count, dim)).transpose(1, 2)

        y = norm(x, f"{at}attn_norm")
        q, k = turned(split(linear(y, "q_proj"), heads)), turned(split(linear(y, "k_proj"), kv_heads))
        v = split(linear(y, "v_proj"), kv_heads)
        k, v = k.repeat_interleave(heads // kv_heads, 1), v.repeat_interleave(heads // kv_heads, 1)
        seen = torch.nn.functional.scaled_dot_product_attention(q, k, v, sees[:, None])
        x = x + linear(seen.transpose(1, 2).flatten(-2), "attn_out")
        y = norm(x, f"{at}ff_norm")
        x = x + linear(torch.nn.functional.silu(linear(y, "ff_proj")) * linear(y, "up_proj"), "ff_out")
    return norm(x, "ln_f") @ weights["model.transformer.ff_out.weight"].T


def block_mask(size: int, length: int = LENGTH) -> Tensor:
    return (torch.arange(length)[:, None] // size >= torch.arange(length) // size).expand(2, -1, -1)


def record(tokens: Tensor, **logits: Tensor) -> dict[str, Tensor]:
    one = {"block_length": BLOCK, "prefix_length": PREFIX}
    return {"tokens": tokens, **{name: torch.tensor([value]) for name, value in one.items()}, **logits}


@pytest.fixture(scope="module")
def recorded(tokens: Tensor) -> dict[str, Tensor]:
    """Logits of every kind, each by whole passes under one mask, since a block's own keys are those of such a pass."""
    seen = torch.ones(2, LENGTH, dtype=torch.int64)
    seen[1, -3:] = 0
    stop, start = PREFIX + BLOCK, 2
    ends = block_mask(BLOCK)
    part = torch.tensor([[7, 8], [9, 10]])
    causal = torch.ones(2, LENGTH, LENGTH).tril().bool()
    write = torch.where(
        torch.arange(LENGTH)[:, None] < PREFIX, ends, causal
    )  # the prefix by blocks, the block causally
    return record(
        tokens,
        attention_mask_padded=seen,
        sub_block_start=torch.tensor([start]),
        sub_block_tokens=part,
        logits_bidirectional=masked(tokens, torch.ones(2, LENGTH, LENGTH).bool()),
        logits_bidirectional_padded=masked(tokens, seen[:, None].expand(-1, LENGTH, -1).bool()),
        logits_block_causal=masked(tokens, ends),
        logits_causal=masked(tokens, causal),
        logits_block_step=masked(tokens, ends)[:, PREFIX:stop],
        logits_block_write=masked(tokens, write)[:, PREFIX:stop],
    )


def test_logits_under_every_mask_are_those_of_one_pass_under_it(recorded: dict[str, Tensor]) -> None:
    adapter = load_model(SMALL, "cpu", "float32").adapter
    found = {name: (own, expected) for name, own, expected in recorded_logits(adapter, recorded)}
    assert len(found) == 6
    for name, (own, expected) in found.items():
        torch.testing.assert_close(own, expected, atol=1e-4, rtol=0, msg=name)
    seen = recorded["attention_mask_padded"].bool()
    assert len(found["logits_bidirectional_padded"][0]) == int(seen.sum())


def test_a_sub_block_reads_its_own_new_keys_and_the_first_ones_of_the_rest(tokens: Tensor) -> None:
    adapter = load_model(SMALL, "cpu", "float32").adapter
    size, start = BLOCK, 2

    def sub_block(part: Tensor) -> Tensor:
        given = record(tokens, sub_block_start=torch.tensor([start]), sub_block_tokens=part, logits_sub_block_step=part)
        ((_, found, _),) = recorded_logits(adapter, given)
        return found

    same = sub_block(tokens[:, PREFIX + start : PREFIX + size])
    whole = masked(tokens, block_mask(size))[:, PREFIX + start : PREFIX + size]
    torch.testing.assert_close(same, whole, atol=1e-4, rtol=0)
    assert (sub_block(torch.tensor([[7, 8], [9, 10]])) - whole).abs().max() > 0.01


def folder_of(folder: Path, case: dict[str, Any], **logits: Tensor) -> Path:
    """Write a checkpoint that says it is of iLLaDA's kind of cases, with one case and perhaps logits."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(read_config("llada-0")), encoding="utf-8")
    (folder / "model.safetensors").symlink_to(SMALL / "model.safetensors")
    (folder / "cases.json").write_text(json.dumps([case]), encoding="utf-8")
    if logits:
        save_file({name: x.clone() for name, x in logits.items()}, folder / "logits.safetensors")
    return folder


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of one procedure, by LLaDA."""

    def read(case: dict[str, Any], told: str) -> Greedy | NotRun:
        if "why" in case:
            return NotRun(case["why"])
        settings = {"gen_length": 8, "block_length": 4, "early_stop": False}
        rows, prompts = case["expected"], case["prompts"]
        given = {name: case.get(name) for name in ("steps", "forwards")}
        return Greedy(
            f"{case.get('family', 'llada')}{told}", case.get("preset", "vanilla"), settings, prompts, rows, **given
        )

    monkeypatch.setattr(import_module("esdllm.testing.conformance.families"), "READERS", {"llada": {"": read}})


def recorded_run(catalogue: Catalogue, prompts: list[list[int]]) -> list[list[int]]:
    import esdllm

    engine = esdllm.Engine.build(
        load_model(SMALL, "cpu"),
        catalogue.configure("vanilla", sets=["gen_length=8", "block_length=4", "early_stop=false"]),
    )
    return [engine.generate([prompt]).tokens[0, len(prompt) :].tolist() for prompt in prompts]


@pytest.mark.usefixtures("reading")
def test_a_greedy_run_is_compared_row_by_row_behind_its_prompt(tmp_path: Path, catalogue: Catalogue) -> None:
    prompts = [[5, 6, 7], [9, 8, 7, 6, 5]]
    expected = recorded_run(catalogue, prompts)
    base: dict[str, Any] = {"id": "run", "mask_id": 254, "prompts": prompts, "expected": expected, "forwards": 8}

    def found(name: str, **changed: Any) -> str | None:
        result = conformance(folder_of(tmp_path / name, {**base, **changed}), catalogue=catalogue)
        return result.cases["run"]

    assert found("equal") is None
    assert found("shorter", expected=[row[:5] for row in expected]) is None
    wrong = [expected[0], [*expected[1][:3], expected[1][3] ^ 1, *expected[1][4:]]]
    assert str(found("wrong", expected=wrong)).startswith(f"row 1, token 3 behind the prompt: {expected[1][3]}, where")
    assert str(found("longer", expected=[[*row, 1] for row in expected])).startswith(
        "row 0, token 8 behind the prompt: none"
    )
    assert found("forwards", forwards=9) == "equal tokens, but 8 forwards where 9 are expected"
    assert "InputError" in str(found("refused", prompts=[[5, 254], [6]]))


@pytest.mark.usefixtures("reading")
def test_the_positions_that_each_step_fills_are_counted_from_the_rows_first_token(
    tmp_path: Path, catalogue: Catalogue
) -> None:
    prompts = [[5, 6, 7]]
    base: dict[str, Any] = {
        "id": "run",
        "mask_id": 254,
        "prompts": prompts,
        "expected": recorded_run(catalogue, prompts),
    }
    told = str(conformance(folder_of(tmp_path / "a", {**base, "steps": [[99]]}), catalogue=catalogue).cases["run"])
    first = int(told.split("fills [")[1].split("]")[0])
    assert told == f"equal tokens, but step 0 fills [{first}] position, where [99] is expected"
    assert 3 <= first < 7
    assert (
        conformance(folder_of(tmp_path / "b", {**base, "steps": [[first]]}), catalogue=catalogue).cases["run"] is None
    )


@pytest.mark.usefixtures("reading")
def test_where_confidences_are_1_alike_another_order_is_no_difference(tmp_path: Path, catalogue: Catalogue) -> None:
    base: dict[str, Any] = {"id": "run", "mask_id": 254, "prompts": [[5, 6, 7]], "expected": [[0] * 8]}
    folder = folder_of(tmp_path / "sure", base)
    weights = load_file(SMALL / "model.safetensors")
    weights["model.transformer.ff_out.weight"] *= 1e4  # every candidate leaves nothing to the others
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors")
    assert "in no order that it promises" in conformance(folder, catalogue=catalogue).not_run["run"]
    assert conformance(folder_of(tmp_path / "unsure", base), catalogue=catalogue).failures


def test_a_family_that_no_adapter_can_read_says_what_stands_in_the_way(tmp_path: Path, catalogue: Catalogue) -> None:
    folder = folder_of(tmp_path / "conv", {"id": "run", "mask_id": 254}, logits_bidirectional=torch.zeros(1))
    (folder / "config.json").write_text(json.dumps({"model_type": "lfm2"}), encoding="utf-8")
    found = conformance(folder, catalogue=catalogue).not_run
    assert set(found) == {"run", "conv/logits_bidirectional"}
    assert all("its convolutions make of a position what its neighbours' states say" in why for why in found.values())


@pytest.mark.usefixtures("reading")
def test_what_cannot_be_run_is_told_and_never_passes(
    tmp_path: Path, catalogue: Catalogue, capsys: pytest.CaptureFixture[str]
) -> None:
    base: dict[str, Any] = {"id": "run", "mask_id": 254, "prompts": [[1]], "expected": [[1]]}

    def found(name: str, **changed: Any) -> str:
        result = conformance(folder_of(tmp_path / name, {**base, **changed}), catalogue=catalogue)
        assert str(result) == "0 passed, 0 failed, 1 not run"
        assert not result.failures
        return result.not_run["run"]

    assert found("family", family="no-such") == "no plugin here offers the model 'no-such'"
    assert found("preset", preset="no-such") == "no plugin here offers the preset 'no-such'"
    assert found("sampler", sampler="bd3lm") == "no reader of runs of llada, bd3lm"
    assert found("why", why="because") == "because"
    assert main(["conformance", str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "0 passed, 0 failed, 1 not run"


def test_logits_that_differ_or_have_another_shape_are_told(
    tmp_path: Path, catalogue: Catalogue, recorded: dict[str, Tensor]
) -> None:
    wrong = recorded["logits_causal"].clone()
    wrong[1, 5, 7] += 0.01
    logits = {**recorded, "logits_causal": wrong, "logits_block_step": wrong, "logits_strange": wrong}
    folder = folder_of(tmp_path / "wrong", {"id": "run", "mask_id": 254}, **logits)
    found = conformance(folder, mode="logits", catalogue=catalogue)
    assert str(found) == "4 passed, 2 failed, 1 not run"
    assert found.failures["wrong/logits_causal"].startswith("logits differ by up to 0.01")
    assert "the logits are (2, 4, 256), where (2, 21, 256)" in found.failures["wrong/logits_block_step"]
    assert found.not_run == {"wrong/logits_strange": "logits of a kind that is not known here"}
