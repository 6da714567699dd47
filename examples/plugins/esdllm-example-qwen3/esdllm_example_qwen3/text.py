"""Qwen3's tokenizer and ChatML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from esdllm import ModelSpec, TokenizerError
from esdllm.checkpoints.text import CHATML, Codec
from esdllm.foreign import translated


def codec_of(source: Any, spec: ModelSpec) -> Codec:
    """Return the codec of a checkpoint folder's tokenizer.json, or of the tokenizer that was passed.

    It writes ChatML if the tokenizer brings no template; Qwen3's own is told not to think aloud.

    Raises:
        TokenizerError: there is no tokenizer, or it cannot be read.
    """
    tokenizer = _read(source) if isinstance(source, Path) else source
    return Codec(tokenizer, spec, "<|im_end|>", CHATML, ends=["<|endoftext|>"], enable_thinking=False)


def _read(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast  # slow to import, and only text needs it

    with translated(TokenizerError, f"the tokenizer in {folder} cannot be read"):
        # this class by name: the one that the config names may be code that came with the checkpoint
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
