"""OLMo 2's tokenizer, and how its conversations are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from esdllm import ModelSpec, TokenizerError
from esdllm.checkpoints.text import Codec
from esdllm.foreign import translated

TEMPLATE = (
    "<|endoftext|>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ '<|endoftext|>' if m.role == 'assistant' }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def codec_of(source: Any, spec: ModelSpec) -> Codec:
    """Return the codec of a checkpoint folder's tokenizer.json, or of the tokenizer that was passed.

    Where the tokenizer brings no chat template, conversations are written as OLMo 2's own writes them.

    Raises:
        TokenizerError: there is no tokenizer, or it cannot be read.
    """
    tokenizer = _read(source) if isinstance(source, Path) else source
    return Codec(tokenizer, spec, "<|endoftext|>", TEMPLATE)


def _read(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast  # slow to import, and only text needs it

    with translated(TokenizerError, f"the tokenizer in {folder} cannot be read"):
        # this class by name: the one that the config names may be code that came with the checkpoint
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
