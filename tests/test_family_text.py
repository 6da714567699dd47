"""Tokenizers and chat templates of the families, over made-up tokenizers of the form that their public files have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from helpers import CASES
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from esdllm import Catalogue, CheckpointError, ComponentConfig, ModelSpec, TextCodec, TokenizerError, describe_model
from esdllm.checkpoints.reading import mask_token_id
from esdllm_models.tokenizers import fast_tokenizer

WORDS = ["hello", "user", "assistant", "system", "HUMAN", "ASSISTANT", "SYSTEM", "think", "no", "\n", "\n\n"]
CHAT = [{"role": "system", "content": "no"}, {"role": "user", "content": "hello"}]
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"]
LING = ["<|endoftext|>", "<role>", "</role>", "<|role_end|>", "<|mask|>"]
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|mask|>"]
THINKING = (
    "{{ messages[0].content }}{% if enable_thinking is defined %}{{ 'think' if enable_thinking else 'no' }}{% endif %}"
)


def tokenizer(special: list[str], **more: Any) -> PreTrainedTokenizerFast:
    made = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="hello"))
    made.pre_tokenizer = pre_tokenizers.Split("|||", "removed")
    made.add_special_tokens([AddedToken(word, special=True) for word in special])
    named = {"mask_token": "<|mask|>"} if "<|mask|>" in special else {}
    return PreTrainedTokenizerFast(tokenizer_object=made, **{**named, **more})


def codec(name: str, made: PreTrainedTokenizerFast, catalogue: Catalogue, eos: str, **options: Any) -> TextCodec:
    plain = describe_model(CASES / "llada-0")
    mask = made.mask_token_id if made.mask_token_id is not None else plain.mask_id
    spec: ModelSpec = attrs.evolve(plain, mask_id=mask, eos_id=made.convert_tokens_to_ids(eos))
    found: TextCodec = catalogue.build("model", ComponentConfig(name, options)).codec(made, spec)
    return found


def stops(found: TextCodec, made: PreTrainedTokenizerFast) -> set[str]:
    return set(made.convert_ids_to_tokens(found.stop_ids))


QWENS = [
    "a2d-qwen3-mdlm",
    "a2d-qwen3-bd3lm",
    "a2d-qwen2-mdlm",
    "a2d-qwen2-bd3lm",
    "open-dcoder",
    "sdar",
    "sdar_moe",
    "fast-dllm-v2",
    "Dream",
]


@pytest.mark.parametrize("name", QWENS)
def test_qwens_families_speak_chatml_and_end_at_a_turns_end_and_a_texts(name: str, catalogue: Catalogue) -> None:
    made = tokenizer(QWEN)
    found = codec(name, made, catalogue, "<|im_end|>")
    assert found.has_chat
    assert stops(found, made) == {"<|im_end|>", "<|endoftext|>"}
    shown = found.decode(found.encode_chat(CHAT), keep_special=True)
    assert shown.count("<|im_start|>") == 3
    assert shown.count("<|im_end|>") == 2
    assert made.convert_ids_to_tokens(found.encode_chat(CHAT))[-2] == "<|im_start|>"


@pytest.mark.parametrize("name", ["llada-moe", "llada2_moe"])
def test_lings_families_write_roles_and_end_at_a_roles_end(name: str, catalogue: Catalogue) -> None:
    made = tokenizer(LING)
    found = codec(name, made, catalogue, "<|endoftext|>")
    assert stops(found, made) == {"<|role_end|>", "<|endoftext|>"}
    words = made.convert_ids_to_tokens(found.encode_chat(CHAT))
    expected = "<role> SYSTEM </role> no <|role_end|> <role> HUMAN </role> hello <|role_end|> <role> ASSISTANT </role>"
    assert words == expected.split(" ")


@pytest.mark.parametrize("name", ["a2d-llama-mdlm", "a2d-llama-bd3lm"])
def test_llamas_conversions_speak_as_llama_3(name: str, catalogue: Catalogue) -> None:
    made = tokenizer(LLAMA3)
    found = codec(name, made, catalogue, "<|end_of_text|>")
    assert stops(found, made) == {"<|eot_id|>", "<|end_of_text|>"}
    words = made.convert_ids_to_tokens(found.encode_chat(CHAT[1:]))
    assert words[0] == "<|begin_of_text|>"
    assert words[1:4] == ["<|start_header_id|>", "user", "<|end_header_id|>"]
    assert words[-3:-1] == ["assistant", "<|end_header_id|>"]


@pytest.mark.parametrize("name", ["illada", "stable-diffcoder", "nemotron_labs_diffusion", "rnd1"])
def test_a_family_without_a_template_of_its_own_chats_only_by_the_checkpoints(name: str, catalogue: Catalogue) -> None:
    assert not codec(name, tokenizer(QWEN), catalogue, "<|im_end|>").has_chat
    brought = tokenizer(QWEN, chat_template="{{ messages[0].content }}")
    found = codec(name, brought, catalogue, "<|im_end|>")
    assert found.has_chat
    assert found.encode_chat(CHAT) == found.encode("no")


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("a2d-qwen3-mdlm", {}, "no"),
        ("a2d-qwen3-bd3lm", {}, "no"),
        ("a2d-qwen3-mdlm", {"enable_thinking": True}, "think"),
        ("sdar", {}, ""),
        ("sdar", {"enable_thinking": False}, "no"),
        ("sdar_moe", {"enable_thinking": True}, "think"),
        ("nemotron_labs_diffusion", {"enable_thinking": True}, "think"),
        ("nemotron_labs_diffusion", {}, ""),
        ("a2d-qwen2-mdlm", {}, ""),
    ],
)
def test_who_thinks_aloud_is_told_by_the_family_or_the_user(
    name: str, options: dict[str, Any], expected: str, catalogue: Catalogue
) -> None:
    made = tokenizer([*QWEN, "think", "no"], chat_template=THINKING)
    found = codec(name, made, catalogue, "<|im_end|>", **options)
    assert found.encode_chat([{"role": "user", "content": "hello"}]) == found.encode(f"hello{expected}")


def test_another_mask_than_the_models_is_refused(catalogue: Catalogue) -> None:
    made = tokenizer(QWEN)
    spec = attrs.evolve(describe_model(CASES / "llada-0"), mask_id=3, eos_id=0)
    with pytest.raises(CheckpointError, match=r"the tokenizer's mask token '<\|mask\|>' has the id"):
        catalogue.build("model", ComponentConfig("sdar")).codec(made, spec)


# files


def files(folder: Path, vocabulary: list[str], config: dict[str, Any], more: dict[str, Any] | None = None) -> Path:
    """Write a tokenizer.json with added tokens, and what the other files say."""
    tokenizer(vocabulary).backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    for name, content in (more or {}).items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


FIRST = len(WORDS)


def decoder(*words: str) -> dict[str, Any]:
    return {str(FIRST + at): {"content": word, "special": True} for at, word in enumerate(words)}


def test_a_mask_that_the_vocabulary_has_under_another_name_is_found_by_its_id(tmp_path: Path) -> None:
    told = {"mask_token": "<|MASK|>", "added_tokens_decoder": decoder("<|endoftext|>", "<|MASK|>")}
    folder = files(tmp_path, ["<|endoftext|>", "<MASK>"], told)
    assert fast_tokenizer(folder).mask_token_id == mask_token_id(folder) == FIRST + 1


def test_tokens_that_only_the_config_adds_get_the_ids_that_it_tells(tmp_path: Path) -> None:
    told = {"mask_token": "<|MASK|>", "added_tokens_decoder": decoder("<|endoftext|>", "<|im_end|>", "<|MASK|>")}
    folder = files(tmp_path, ["<|endoftext|>"], told)
    found = fast_tokenizer(folder)
    assert found.mask_token_id == mask_token_id(folder) == FIRST + 2
    assert found.convert_tokens_to_ids("<|im_end|>") == FIRST + 1
    assert found.encode("<|im_end|>") == [FIRST + 1]


def test_a_mask_whose_id_is_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    told = {
        "mask_token": "<|MASK|>",
        "added_tokens_decoder": {str(FIRST + 9): {"content": "<|MASK|>", "special": True}},
    }
    with pytest.raises(TokenizerError, match=r"the mask token '<\|MASK\|>' .* is not in the vocabulary"):
        fast_tokenizer(files(tmp_path, ["<|endoftext|>"], told))


def test_a_mask_that_only_the_map_of_special_tokens_names_is_found(tmp_path: Path) -> None:
    folder = files(tmp_path, QWEN, {}, {"special_tokens_map.json": {"mask_token": "<|mask|>"}})
    assert mask_token_id(folder) == fast_tokenizer(folder).mask_token_id == FIRST + 3
    with_decoder = {"added_tokens_decoder": decoder(*QWEN)}
    files(folder, QWEN, with_decoder, {"special_tokens_map.json": {"mask_token": "<|mask|>"}})
    assert mask_token_id(folder) is None  # which transformers passes over then
    assert fast_tokenizer(folder).mask_token is None
