"""Text to tokens and back, over a tokenizer of transformers; this package itself does not import them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from esdllm.checkpoints.templates import ChatTemplate
from esdllm.errors import CheckpointError, InputError
from esdllm.foreign import translated
from esdllm.views import Message, ModelSpec

__all__ = ["CHATML", "Codec", "check_unicode"]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The chat template of Qwen's models and those made of them; `<|im_end|>` ends a turn."""


class Codec:
    """A TextCodec over a tokenizer of transformers.

    `template` is the family's own chat template, for tokenizers that bring none (empty for a family that has none), and
    `end_of_turn` the word that ends a turn in it; `ends` are further words that end an answer, beside the tokenizer's end of
    text and its padding. Words that the vocabulary does not have are passed over. `template_options` are variables that the
    template reads, such as `enable_thinking=False`; the special tokens, such as `bos_token`, are variables too. Of several
    templates, that named `default` is taken. Templates render as transformers' `apply_chat_template` renders them (see
    `ChatTemplate`).

    Raises:
        CheckpointError: the tokenizer's mask token is another than the model's.
    """

    def __init__(
        self,
        tokenizer: Any,
        spec: ModelSpec,
        end_of_turn: str,
        template: str,
        *,
        ends: Sequence[str] = (),
        **template_options: Any,
    ) -> None:
        _check_mask(tokenizer, spec)
        self._tokenizer = tokenizer
        named = tokenizer.special_tokens_map
        self._variables = {**named, **template_options}
        words = tokenizer.get_vocab()
        found = (words.get(word) for word in (end_of_turn, *ends, named.get("eos_token"), named.get("pad_token")))
        own = (number for number in found if number is not None and number != spec.mask_id)
        self._stop_ids = tuple(dict.fromkeys((spec.eos_id, *spec.stop_ids, *own)))
        self._template = tokenizer.chat_template or template
        self._has_chat = bool(tokenizer.chat_template) or (bool(template) and end_of_turn in words)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(stop_ids={self._stop_ids}, has_chat={self._has_chat})"

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """End of text, the config's others, end of turn, and what else ends an answer and the vocabulary has."""
        return self._stop_ids

    @property
    def has_chat(self) -> bool:
        """Whether the tokenizer brings a template, or the tokens that the family's own needs."""
        return self._has_chat

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a plain text, nothing added.

        Raises:
            InputError: the text is not valid Unicode, or the tokenizer cannot read it.
        """
        check_unicode("the text", text)
        with translated(InputError, "the tokenizer cannot read this text"):
            return list(self._tokenizer.encode(text, add_special_tokens=False))

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a conversation, up to where the answer begins.

        Raises:
            InputError: the template refuses the conversation or cannot render it, or what it renders has no tokens.
            CheckpointError: the template is none, or leaves its bounds; see `ChatTemplate.render`.
        """
        return self.encode(ChatTemplate(_default(self._template), self._variables).render(messages))

    def decode(self, ids: Sequence[int], keep_special: bool = False) -> str:
        """Return the text of tokens.

        Raises:
            CheckpointError: the tokenizer cannot write them.
        """
        options = {"skip_special_tokens": not keep_special, "clean_up_tokenization_spaces": False}
        with translated(CheckpointError, "the checkpoint's tokenizer cannot write what was decoded"):
            return str(self._tokenizer.decode(list(ids), **options))


def check_unicode(what: str, text: str) -> None:
    """Refuse a text with half of a surrogate pair in it, which no tokenizer takes.

    Raises:
        InputError: names `what` and the character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} is not valid UTF-8 at character {error.start}; convert it first, say with iconv"
        ) from error


def _default(template: str | Mapping[str, str] | Sequence[Mapping[str, str]]) -> str:
    """Return a tokenizer's template; of several, by name or listed with their names, that named `default`."""
    if isinstance(template, str):
        return template
    named = template if isinstance(template, Mapping) else {one["name"]: one["template"] for one in template}
    if "default" not in named:
        raise CheckpointError(
            f"the checkpoint's chat templates are {', '.join(sorted(named))}, and none is named 'default'; name one so in "
            "tokenizer_config.json, or pass text and chat=False (--no-chat)"
        )
    return named["default"]


def _check_mask(tokenizer: Any, spec: ModelSpec) -> None:
    """Refuse a tokenizer that has a mask token, and not the model's: what is decoded would be conditioned on a word."""
    found = tokenizer.mask_token_id
    if found is not None and found != spec.mask_id:
        raise CheckpointError(
            f"the tokenizer's mask token '{tokenizer.mask_token}' has the id {found}, but the model's is {spec.mask_id}; "
            f'write "mask_token_id": {found} into config.json, or take the tokenizer that the model was trained with'
        )
