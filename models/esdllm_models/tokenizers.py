"""Tokenizers, built from a checkpoint's files and never from its code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from esdllm import CheckpointError, TokenizerError
from esdllm.checkpoints.reading import json_object
from esdllm.foreign import translated

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

__all__ = ["LLADA_TEMPLATE", "LLAMA3_TEMPLATE", "ROLES_TEMPLATE", "fast_tokenizer", "tokenizer_of"]

LLADA_TEMPLATE = (
    "<|startoftext|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)

LLAMA3_TEMPLATE = LLADA_TEMPLATE.replace("<|startoftext|>", "<|begin_of_text|>", 1)
ROLES_TEMPLATE = (
    "{% for m in messages %}<role>{{ 'HUMAN' if m.role == 'user' else m.role | upper }}</role>{{ m.content }}<|role_end|>"
    "{% endfor %}{% if add_generation_prompt %}<role>ASSISTANT</role>{% endif %}"
)
"""of LLaDA-MoE and LLaDA2, as Ling's checkpoints have it"""

_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_OTHERS = ("additional_special_tokens", "extra_special_tokens")
"""what transformers 4 and 5 call the special tokens without a name of their own; a mapping of the latter names some"""


def tokenizer_of(source: Path | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a checkpoint folder's tokenizer, or the one that was passed."""
    return fast_tokenizer(source) if isinstance(source, Path) else source


def fast_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of tokenizer.json, or of Qwen2's vocab.json and merges.txt; no class that a config names.

    It has the special tokens and the chat templates that transformers finds in the folder's other files.

    Raises:
        TokenizerError: neither is there, a file cannot be read, a special token has no id, or an added token would get another
            id than it is to have.
    """
    from transformers import PreTrainedTokenizerFast  # slow to import, and only text needs it

    whole = folder / "tokenizer.json"
    if not whole.is_file() and not (folder / "vocab.json").is_file():
        raise TokenizerError(
            f"{folder} has no tokenizer: neither tokenizer.json nor vocab.json and merges.txt; copy them there, or pass "
            "token ids instead of text"
        )
    try:
        with translated(TokenizerError, f"the tokenizer files in {folder} cannot be read"):
            config = _object(folder / "tokenizer_config.json")
            special = _special(folder, config)
            tokenizer = _whole(whole, config) if whole.is_file() else _qwen2(folder, config, special)
            mask = special.get("mask_token")
            if mask is not None and tokenizer.token_to_id(str(mask)) is None:  # transformers would give it a new id
                special["mask_token"] = _other_name(str(mask), tokenizer, config, folder)
            return PreTrainedTokenizerFast(
                tokenizer_object=tokenizer, chat_template=_chat_template(folder, config), **special
            )
    except TokenizerError:
        raise
    except CheckpointError as error:
        raise TokenizerError(str(error)) from error


def _whole(file: Path, config: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer of tokenizer.json, with the tokens that only tokenizer_config.json adds, at the ids told there."""
    tokenizer = Tokenizer.from_file(str(file))
    for number, told in _decoder(config):
        if number == tokenizer.get_vocab_size() and tokenizer.token_to_id(told.content) is None:
            (tokenizer.add_special_tokens if told.special else tokenizer.add_tokens)([told])
    return tokenizer


def _other_name(mask: str, tokenizer: Tokenizer, config: Mapping[str, Any], folder: Path) -> AddedToken:
    """Return what the vocabulary calls the id of a mask token that it has under another name, such as SDAR's <MASK>.

    Raises:
        TokenizerError: no id is told, or the vocabulary has none such.
    """
    number = next((number for number, told in _decoder(config) if told.content == mask), None)
    other = None if number is None else tokenizer.id_to_token(number)
    if other is None:
        raise TokenizerError(f"the mask token '{mask}' that the configs in {folder} name is not in the vocabulary")
    return AddedToken(other, special=True, normalized=False)


def _decoder(config: Mapping[str, Any]) -> list[tuple[int, AddedToken]]:
    """Return the added tokens of a tokenizer_config.json by their ids."""
    told = config.get("added_tokens_decoder") or {}
    found = ((int(number), _added({"special": False, **one})) for number, one in told.items())
    return sorted(found, key=lambda pair: pair[0])


def _object(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds; nothing if there is none."""
    return json_object(path) if path.is_file() else {}


def _special(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the special tokens by the names that transformers gives them.

    As in transformers, special_tokens_map.json goes before tokenizer_config.json where that has no `added_tokens_decoder`, and
    does not count where it has one.
    """
    told = config if "added_tokens_decoder" in config else {**config, **_object(folder / "special_tokens_map.json")}
    others: Any = next((told[name] for name in _OTHERS if told.get(name)), [])
    named = {**told, **others} if isinstance(others, Mapping) else told
    found: dict[str, Any] = {name: _added(named[name]) for name in _NAMES if named.get(name) is not None}
    more = {
        name: one for name, one in named.items() if name.endswith("_token") and name not in _NAMES
    }  # such as gmask_token
    found |= {name: _added(one) for name, one in more.items() if isinstance(one, (str, Mapping))}
    if not isinstance(others, Mapping):
        found["additional_special_tokens"] = [_added(one) for one in others]
    return found


def _added(told: str | Mapping[str, Any]) -> AddedToken:
    """Return a token as JSON has it: its text, or that with its flags."""
    if isinstance(told, str):
        return AddedToken(told, special=True)
    keys = ("lstrip", "rstrip", "single_word", "normalized")
    return AddedToken(told["content"], special=bool(told.get("special", True)), **{k: bool(told.get(k)) for k in keys})


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | dict[str, str] | None:
    """Return the template, or several by name: those in files of their own, else tokenizer_config.json's, else a processor's."""
    alone, more = folder / "chat_template.jinja", sorted((folder / "additional_chat_templates").glob("*.jinja"))
    named = {path.stem: path.read_text(encoding="utf-8") for path in more}
    if alone.is_file():
        named["default"] = alone.read_text(encoding="utf-8")
    told = named or config.get("chat_template") or _object(folder / "chat_template.json").get("chat_template")
    if isinstance(told, list):
        told = {one["name"]: one["template"] for one in told}
    texts = told.values() if isinstance(told, Mapping) else [] if told is None else [told]
    for text in texts:
        if not isinstance(text, str):
            raise TokenizerError(f"a chat template in {folder} is a {type(text).__name__}, where text is needed")
    return told


def _qwen2(folder: Path, config: Mapping[str, Any], special: Mapping[str, Any]) -> Tokenizer:
    """Return Qwen2's byte-level BPE with its added tokens at their own ids."""
    tokenizer = Tokenizer(BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    named = {str(one) for name in _NAMES if (one := special.get(name)) is not None}
    named |= {str(one) for one in special.get("additional_special_tokens", ())}
    file, tokens = _added_tokens(folder, config, named)
    for number, token in tokens:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(token.content) != number:
            raise TokenizerError(
                f"{file} gives '{token.content}' the id {number}, but after vocab.json it would be "
                f"{tokenizer.token_to_id(token.content)}"
            )
    missing = sorted(one for one in named if tokenizer.token_to_id(one) is None)
    if missing:
        raise TokenizerError(
            f"{folder} has no id of the special token '{missing[0]}': copy the checkpoint's added_tokens.json there, or its "
            "tokenizer_config.json with added_tokens_decoder"
        )
    return tokenizer


def _added_tokens(
    folder: Path, config: Mapping[str, Any], special: set[str]
) -> tuple[str, list[tuple[int, AddedToken]]]:
    """Return the file that gives the added tokens' ids, and the tokens by their ids; `special` are those that a config names."""
    if config.get("added_tokens_decoder") is not None:
        return "tokenizer_config.json", _decoder(config)
    listed = sorted((int(number), text) for text, number in _object(folder / "added_tokens.json").items())
    return "added_tokens.json", [
        (number, AddedToken(text, special=text in special, normalized=text not in special)) for number, text in listed
    ]
