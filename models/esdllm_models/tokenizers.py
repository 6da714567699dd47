"""Tokenizers and chat templates, built from a checkpoint's files and never from its code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from esdllm import CheckpointError, TokenizerError
from esdllm.reading import json_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

__all__ = ["LLADA_TEMPLATE", "fast_tokenizer", "tokenizer_of"]

LLADA_TEMPLATE = (
    "<|startoftext|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)

_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer_of(source: Path | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a checkpoint folder's tokenizer, or the one that was passed."""
    return fast_tokenizer(source) if isinstance(source, Path) else source


def fast_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of tokenizer.json, or of Qwen2's vocab.json and merges.txt; no class that a config names.

    Raises:
        TokenizerError: neither is there, a file cannot be read, or an added token would get another id than it is to have.
    """
    from transformers import PreTrainedTokenizerFast  # slow to import, and only text needs it

    whole, about = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not whole.is_file() and not (folder / "vocab.json").is_file():
        raise TokenizerError(
            f"{folder} has no tokenizer: neither tokenizer.json nor vocab.json and merges.txt; copy them there, or pass "
            "token ids instead of text"
        )
    try:
        config = json_object(about) if about.is_file() else {}
        tokenizer = Tokenizer.from_file(str(whole)) if whole.is_file() else _qwen2(folder, config)
    except CheckpointError as error:
        raise TokenizerError(str(error)) from error
    except Exception as error:  # the tokenizers library raises plain Exception
        raise TokenizerError(f"the tokenizer files in {folder} cannot be read: {error}") from error
    template = folder / "chat_template.jinja"
    chat = template.read_text(encoding="utf-8") if template.is_file() else config.get("chat_template")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=chat)


def _qwen2(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    """Return Qwen2's byte-level BPE with the added tokens of tokenizer_config.json at their own ids."""
    tokenizer = Tokenizer(BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = sorted((int(number), token) for number, token in config.get("added_tokens_decoder", {}).items())
    for number, token in added:
        keys = ("lstrip", "rstrip", "single_word", "normalized")
        new = AddedToken(token["content"], special=bool(token.get("special")), **{k: bool(token.get(k)) for k in keys})
        (tokenizer.add_special_tokens if token.get("special") else tokenizer.add_tokens)([new])
        if tokenizer.token_to_id(token["content"]) != number:
            raise CheckpointError(
                f"tokenizer_config.json gives '{token['content']}' the id {number}, but after vocab.json it would be "
                f"{tokenizer.token_to_id(token['content'])}"
            )
    return tokenizer
