"""What people pass as prompts, as lists: arrays, tensors, columns of tables, generators, encodings, conversations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from esdllm.checkpoints.loading import Model
from esdllm.errors import InputError, brief
from esdllm.interfaces import TextCodec

__all__ = ["codec_of", "one", "prompt_list", "shown", "template_list"]

_WANTED = "give text, a list of token ids, a conversation (a list of turns with role and content), or a list of those"


def codec_of(model: Model) -> TextCodec:
    """Return what turns text into a model's tokens.

    Raises:
        InputError: there is no tokenizer; says why.
    """
    if model.codec is None:
        raise InputError(f"text needs a tokenizer: {model.codec_error or 'this model has none'}")
    return model.codec


def shown(prompt: Any) -> str | None:
    """Return what an answer keeps of its prompt."""
    if isinstance(prompt, str):
        return prompt
    return prompt[-1].get("content") if isinstance(prompt[-1], dict) else None


def prompt_list(prompts: Any) -> tuple[list[Any], bool]:
    """Return prompts as a list, and whether it is one that came alone: text, token ids, or a flat conversation.

    Raises:
        InputError: they are none; says what to pass.
    """
    prompts = _plain(prompts)
    if isinstance(prompts, str):
        return [prompts], True
    found = _listed(prompts)
    _check_present(found)
    if found and (all(map(_is_id, found)) or all(map(_is_turn, found))):
        return [_turns(found)], True
    return [one(prompt) for prompt in found], False


def one(prompt: Any) -> Any:
    """Return one prompt: text as it is, token ids or the turns of a conversation as a list.

    Raises:
        InputError: it is none; says what to pass.
    """
    return prompt if isinstance(prompt, str) else _turns(_listed(prompt))


def template_list(templates: Any) -> tuple[list[Any], bool]:
    """Return texts with blanks as a list, and whether it is one that came alone.

    Raises:
        InputError: they are none; says what to pass.
    """
    templates = _plain(templates)
    if isinstance(templates, str) or not isinstance(templates, Iterable):
        return [templates], True
    found = _listed(templates)
    _check_present(found)
    return found, False


def _listed(given: Any) -> list[Any]:
    """Return anything that holds several things as a list."""
    if isinstance(given, Mapping):
        if "input_ids" not in given:
            raise InputError(f"a prompt is no mapping, such as {brief(dict(given))}; {_WANTED}")
        ids, mask = _listed(given["input_ids"]), given.get("attention_mask")
        return ids if mask is None else _unpadded(ids, _listed(mask))
    if hasattr(given, "columns"):
        such = [f", such as table[{brief(column)}]" for column in given.columns]
        raise InputError(f"a table is no list of prompts; give one of its columns{such[0] if such else ''}")
    given = _plain(given)
    if isinstance(given, (bytes, bytearray)) or not isinstance(given, Iterable) or isinstance(given, str):
        raise InputError(f"prompts cannot be {brief(given)}; {_WANTED}")
    return list(given)


def _plain(given: Any) -> Any:
    """Return an array, a tensor or a table's column as the list, number or text that it holds."""
    return given.tolist() if hasattr(given, "tolist") and not hasattr(given, "columns") else given


def _check_present(found: list[Any]) -> None:
    """Refuse a list with values that are missing, as tables have them: None, NaN, NaT, pandas' NA."""
    for number, value in enumerate(found):
        if _is_missing(value):
            raise InputError(
                f"prompts cannot be {brief(value)}; {_WANTED}, and leave out those that are missing, such as number {number} "
                "here (a column's dropna() does)"
            )


def _is_missing(value: Any) -> bool:
    if isinstance(value, Iterable):
        return False
    try:
        return value is None or bool(value != value)
    except TypeError:  # pandas' NA is neither true nor false
        return True


def _unpadded(ids: list[Any], mask: list[Any]) -> list[Any]:
    """Return token ids, of one prompt or of several, without those that a mask hides."""
    if ids and not _is_id(ids[0]):
        return [_unpadded(list(row), list(seen)) for row, seen in zip(ids, mask, strict=True)]
    return [token for token, seen in zip(ids, mask, strict=True) if seen]


def _is_id(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool) and getattr(value, "ndim", 0) == 0


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and "role" in value


def _turns(prompt: list[Any]) -> list[Any]:
    """Return token ids as int, and the turns of a conversation with their content as text."""
    if all(map(_is_id, prompt)):
        return [int(token) for token in prompt]
    return [{**turn, "content": _content(turn.get("content"))} if _is_turn(turn) else turn for turn in prompt]


def _content(content: Any) -> Any:
    """Return a turn's text, of OpenAI's content parts joined."""
    if not isinstance(content, (list, tuple)):
        return content
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InputError(f'only parts of text can be read, {{"type": "text", "text": ...}}, not {brief(part)}')
    return "".join(part["text"] for part in content)
