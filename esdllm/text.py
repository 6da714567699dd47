"""Text to tokens and back, over a tokenizer of transformers; this package itself does not import them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from esdllm.errors import CheckpointError
from esdllm.views import Message, ModelSpec

__all__ = ["CHATML", "Codec"]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The chat template of Qwen's models and those made of them; `<|im_end|>` ends a turn."""


class Codec:
    """A TextCodec over a tokenizer of transformers.

    `template` is the family's own chat template, for tokenizers that bring none, and `end_of_turn` the word that ends a turn
    in it; `ends` are further words that end an answer. Words that the vocabulary does not have are passed over.
    `template_options` are variables that the template reads, such as `enable_thinking=False`.

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
        self._template = tokenizer.chat_template or template
        self._options = template_options
        words = tokenizer.get_vocab()
        found = (words[word] for word in (end_of_turn, *ends) if word in words)
        self._stop_ids = tuple(dict.fromkeys((spec.eos_id, *found)))
        self._has_chat = bool(tokenizer.chat_template) or end_of_turn in words

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """End of text, then end of turn and the others that the vocabulary has."""
        return self._stop_ids

    @property
    def has_chat(self) -> bool:
        """Whether the tokenizer brings a template, or the tokens that the family's own needs."""
        return self._has_chat

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a plain text, nothing added."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a conversation, rendered in transformers' sandbox, up to where the answer begins."""
        text = self._tokenizer.apply_chat_template(
            [{"role": m["role"], "content": m["content"]} for m in messages],
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=True,
            **self._options,
        )
        return self.encode(str(text))

    def decode(self, ids: Sequence[int], keep_special: bool = False) -> str:
        """Return the text of tokens."""
        return str(
            self._tokenizer.decode(list(ids), skip_special_tokens=not keep_special, clean_up_tokenization_spaces=False)
        )


def _check_mask(tokenizer: Any, spec: ModelSpec) -> None:
    """Refuse a tokenizer that has a mask token, and not the model's: what is decoded would be conditioned on a word."""
    found = tokenizer.mask_token_id
    if found is not None and found != spec.mask_id:
        raise CheckpointError(
            f"the tokenizer's mask token '{tokenizer.mask_token}' has the id {found}, but the model's is {spec.mask_id}; "
            f'write "mask_token_id": {found} into config.json, or take the tokenizer that the model was trained with'
        )
