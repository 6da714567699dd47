"""The tokenizers: byte-level, with one token for each word of the problems.

LLaDA's is a `tokenizer.json`: a BPE without merges, in which a word (and a number from 0 to 99) that the vocabulary
holds is one token (`ignore_merges`) and any other falls apart into its bytes. SDAR's is the same with other special
tokens. Dream's is Qwen2's: `vocab.json` and `merges.txt`, whose merges build each word, and which reads numbers digit
by digit. Every UTF-8 text encodes, and decoding gives the text back exactly (Dream's in Unicode's composed form, NFC).
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

from dialects import DIALECTS, Dialect
from problems import SMALL_TALK, TASKS, casual
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from words import MEN, WOMEN

from esdllm_models.tokenizers import fast_tokenizer

_WORDS = r"\n+ *| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]|\s+"


def build_tokenizer(family: str, samples: int = 3000, seed: int = 0) -> Tokenizer:
    """A family's tokenizer, whose words are those of `samples` generated problems of each task."""
    texts = _texts(samples, seed)
    return _qwen2(texts) if family == "dream" else _whole_words(texts, DIALECTS[family])


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that the vocabulary holds."""
    number = tokenizer.token_to_id(token)
    if number is None:
        raise KeyError(f"the tokenizer has no token {token!r}")
    return number


def _texts(samples: int, seed: int) -> list[str]:
    """Every kind of text, each as it begins after a line feed."""
    rng = random.Random(seed)
    texts = [text for pair in SMALL_TALK.items() for text in pair]
    for make in TASKS.values():
        for _ in range(samples):
            prompt, answer = make(rng, 1.0)
            texts += [prompt, answer, casual(rng, prompt)]
    texts += [f" {number}" for number in range(100)]
    texts += [form for name in (*WOMEN, *MEN) for form in (name, f" {name}")]
    return [*texts, "user", "assistant", "system"]


def _whole_words(texts: list[str], dialect: Dialect) -> Tokenizer:
    splitter = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
    started = [text if text.startswith(" ") else f"\n\n{text}" for text in texts]
    words = {piece for text in started for piece, _ in splitter.pre_tokenize_str(text)}
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = {encoded for word in words for encoded, _ in byte_level.pre_tokenize_str(word)}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ordered = [*alphabet, *sorted(pieces - set(alphabet))]
    vocab = {piece: number for number, piece in enumerate(ordered)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([splitter, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in dialect.special])
    return tokenizer


def _qwen2(texts: list[str]) -> Tokenizer:
    """Learns merges until every word is one token; reads them back as the package reads Dream's files."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    with tempfile.TemporaryDirectory() as folder:
        _write_qwen2(Path(folder), {piece: number for number, piece in enumerate(alphabet)}, [])
        empty = fast_tokenizer(Path(folder)).backend_tokenizer
        splitter = empty.pre_tokenizer
        words = sorted({piece for text in texts for piece, _ in splitter.pre_tokenize_str(text)})
        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.Split("\x00", behavior="removed")
        trainer = trainers.BpeTrainer(
            vocab_size=1 << 14, min_frequency=1, initial_alphabet=alphabet, show_progress=False
        )
        learner.train_from_iterator(words, trainer)
        learned = json.loads(learner.to_str())["model"]
        _write_qwen2(Path(folder), learned["vocab"], learned["merges"])
        return fast_tokenizer(Path(folder)).backend_tokenizer


def save_tokenizer(tokenizer: Tokenizer, family: str, folder: Path, max_length: int) -> None:
    """Writes the tokenizer's files as the family's public checkpoints have them."""
    folder.mkdir(parents=True, exist_ok=True)
    dialect = DIALECTS[family]
    named = {"eos_token": dialect.end_of_text, "pad_token": dialect.end_of_text, "mask_token": dialect.mask}
    if family == "llada":
        named = {"bos_token": dialect.start, **named}
    if family == "dream":
        model = json.loads(tokenizer.to_str())["model"]
        _write_qwen2(folder, model["vocab"], model["merges"])
    else:
        tokenizer.save(str(folder / "tokenizer.json"))
    others = [name for name in dialect.special if name not in named.values()]
    config = {
        **named,
        "additional_special_tokens": others,
        "added_tokens_decoder": _added({name: token_id(tokenizer, name) for name in dialect.special}),
        "add_bos_token": False,
        "add_eos_token": False,
        "chat_template": dialect.template,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "padding_side": "left",
        "tokenizer_class": "DreamTokenizer" if family == "dream" else "PreTrainedTokenizerFast",
    }
    _write(folder / "tokenizer_config.json", config)
    _write(folder / "special_tokens_map.json", {**named, "additional_special_tokens": others})


def _added(ids: dict[str, int]) -> dict[str, object]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {str(number): {"content": name, **flags} for name, number in ids.items()}


def _write_qwen2(folder: Path, vocab: dict[str, int], merges: list[list[str]]) -> None:
    _write(folder / "vocab.json", vocab)
    lines = "".join(f"{left} {right}\n" for left, right in merges)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{lines}", encoding="utf-8")
    added = {name: len(vocab) + place for place, name in enumerate(DIALECTS["dream"].special)}
    _write(folder / "tokenizer_config.json", {"added_tokens_decoder": _added(added)})


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
