"""Tokenizers and chat templates, built from a checkpoint's files and never from its code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from esdllm import CheckpointError, Message, ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

__all__ = ["CHATML_TEMPLATE", "LLADA_TEMPLATE", "Codec", "fast_tokenizer", "tokenizer_of"]

LLADA_TEMPLATE = (
    "<|startoftext|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)

CHATML_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Codec:
    """A TextCodec over a tokenizer of transformers."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spec: ModelSpec, end_of_turn: str, template: str) -> None:
        self._tokenizer = tokenizer
        self._template = tokenizer.chat_template or template
        turn = tokenizer.get_vocab().get(end_of_turn)
        self._stop_ids = (spec.eos_id,) if turn is None else (spec.eos_id, turn)
        self._has_chat = bool(tokenizer.chat_template) or turn is not None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """End of text, and end of turn if the vocabulary has it."""
        return self._stop_ids

    @property
    def has_chat(self) -> bool:
        """Whether the folder brings a template, or the tokens that the family's own needs."""
        return self._has_chat

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a plain text, nothing added."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a conversation, rendered in transformers' sandbox."""
        text = self._tokenizer.apply_chat_template(
            [{"role": m["role"], "content": m["content"]} for m in messages],
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=True,
        )
        return self.encode(str(text))

    def decode(self, ids: Sequence[int], keep_special: bool = False) -> str:
        """Return the text of tokens."""
        return str(
            self._tokenizer.decode(list(ids), skip_special_tokens=not keep_special, clean_up_tokenization_spaces=False)
        )


def tokenizer_of(source: Path | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a checkpoint folder's tokenizer, or the one that was passed."""
    return fast_tokenizer(source) if isinstance(source, Path) else source


def fast_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of tokenizer.json, or of Qwen2's vocab.json and merges.txt; no class that a config names.

    Raises:
        CheckpointError: neither is there, or a file cannot be read.
    """
    from transformers import PreTrainedTokenizerFast  # slow to import, and only text needs it

    config = _config(folder)
    whole = folder / "tokenizer.json"
    if not whole.is_file() and not (folder / "vocab.json").is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer: neither tokenizer.json nor vocab.json and merges.txt; copy them there, or pass "
            "token ids instead of text"
        )
    try:
        tokenizer = Tokenizer.from_file(str(whole)) if whole.is_file() else _qwen2(folder, config)
    except CheckpointError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception
        raise CheckpointError(f"the tokenizer files in {folder} cannot be read: {error}") from error
    template = folder / "chat_template.jinja"
    chat = template.read_text(encoding="utf-8") if template.is_file() else config.get("chat_template")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=chat)


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, where an object is needed")
    return found


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
