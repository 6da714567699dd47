"""The tokenizer: one token per word and per number from 0 to 99, single bytes for all the rest.

A byte-level BPE without merges: a word that the vocabulary holds is one token
(`ignore_merges`), any other word falls apart into its bytes. So every UTF-8 text encodes, and
decoding gives the text back exactly.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from problems import SMALL_TALK, TASKS, casual
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from words import MEN, WOMEN

START, END_OF_TEXT, MASK = "<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>"
HEADER, END_OF_HEADER, END_OF_TURN = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
SPECIAL = (START, END_OF_TEXT, MASK, HEADER, END_OF_HEADER, END_OF_TURN)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = '<|startoftext|>' + content %}{% endif %}"
    "{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

_WORDS = r"\n+ *| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]|\s+"


def chat_prompt(question: str) -> str:
    """The text that `CHAT_TEMPLATE` makes of one question, up to where the answer begins."""
    return f"{START}{HEADER}user{END_OF_HEADER}\n\n{question}{END_OF_TURN}{HEADER}assistant{END_OF_HEADER}\n\n"


def build_tokenizer(samples: int = 3000, seed: int = 0) -> Tokenizer:
    """The tokenizer whose words are those of `samples` generated problems of each task."""
    splitter = _splitter()
    words = {"user", "assistant", "system"}
    words.update(f" {number}" for number in range(100))
    words.update(form for name in (*WOMEN, *MEN) for form in (name, f" {name}"))
    rng = random.Random(seed)
    texts = [text for pair in SMALL_TALK.items() for text in pair]
    for make in TASKS.values():
        for _ in range(samples):
            prompt, answer = make(rng, 1.0)
            texts += [prompt, answer, casual(rng, prompt)]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in texts:
        words.update(piece for piece, _ in splitter.pre_tokenize_str(f"\n\n{text}"))
    pieces = {encoded for word in words for encoded, _ in byte_level.pre_tokenize_str(word)}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ordered = [*alphabet, *sorted(pieces - set(alphabet))]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(ordered)},
            merges=[],
            ignore_merges=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([splitter, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that the vocabulary holds."""
    number = tokenizer.token_to_id(token)
    if number is None:
        raise KeyError(f"the tokenizer has no token {token!r}")
    return number


def _splitter() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {
        "bos_token": START,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "mask_token": MASK,
    }
    config = {
        **special,
        "additional_special_tokens": [HEADER, END_OF_HEADER, END_OF_TURN],
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(name)): {
                "content": name,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for name in SPECIAL
        },
        "add_bos_token": False,
        "add_eos_token": False,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "padding_side": "left",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _write(folder / "tokenizer_config.json", config)
    _write(folder / "special_tokens_map.json", special)


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
