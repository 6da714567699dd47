"""How each family writes a conversation: its special tokens and its chat template."""

from __future__ import annotations

from typing import NamedTuple

from esdllm.checkpoints.text import CHATML

_LLADA_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


class Dialect(NamedTuple):
    """One family's chat: what the tokenizer, the batches and the exported files have to agree on."""

    start: str
    end_of_text: str
    mask: str
    end_of_turn: str
    others: tuple[str, ...]
    template: str
    before: str
    """what stands before a question, from the beginning of the text"""
    after: str
    """what stands between a question and its answer"""

    @property
    def special(self) -> tuple[str, ...]:
        """All special tokens, each once, in the order of their ids."""
        named = (self.start, self.end_of_text, *self.others, self.end_of_turn, self.mask)
        return tuple(dict.fromkeys(named))

    def prompt(self, question: str) -> str:
        """The text that the template makes of one question, up to where the answer begins."""
        return f"{self.before}{question}{self.after}"


DIALECTS = {
    "llada": Dialect(
        start="<|startoftext|>",
        end_of_text="<|endoftext|>",
        mask="<|mdm_mask|>",
        end_of_turn="<|eot_id|>",
        others=("<|start_header_id|>", "<|end_header_id|>"),
        template=_LLADA_TEMPLATE,
        before="<|startoftext|><|start_header_id|>user<|end_header_id|>\n\n",
        after="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "dream": Dialect(
        start="<|endoftext|>",
        end_of_text="<|endoftext|>",
        mask="<|mask|>",
        end_of_turn="<|im_end|>",
        others=("<|im_start|>",),
        template=CHATML,
        before="<|im_start|>user\n",
        after="<|im_end|>\n<|im_start|>assistant\n",
    ),
    "sdar": Dialect(
        start="<|endoftext|>",
        end_of_text="<|endoftext|>",
        mask="<|MASK|>",
        end_of_turn="<|im_end|>",
        others=("<|im_start|>",),
        template=CHATML,
        before="<|im_start|>user\n",
        after="<|im_end|>\n<|im_start|>assistant\n",
    ),
}
