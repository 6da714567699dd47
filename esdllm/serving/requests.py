"""What is asked for, and what is told of it while it is decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

import attrs

from esdllm.errors import EsdllmError
from esdllm.use.frames import Frame
from esdllm.views import Message

__all__ = ["Completion", "FinishReason", "Request", "Update"]


class FinishReason(str, Enum):
    """Why an answer ends where it does."""

    STOP = "stop"
    """at an end-of-text, or before a stop string"""
    LENGTH = "length"
    """all positions that were asked for are decided"""
    CANCELLED = "cancelled"
    """whoever asked wants no more of it"""
    DEADLINE = "deadline"
    """its time is over"""
    ERROR = "error"
    """it cannot be decoded any further; `Completion.error` says why"""


@attrs.frozen(kw_only=True)
class Request:
    """One prompt, to be decoded as `Engine.generate` decodes it alone."""

    prompt: str | Sequence[int] | Sequence[Message]
    """a text, token ids, or a conversation; for infilling, token ids with masks"""
    chat: bool | None = None
    """whether a text goes through the chat template; None where the checkpoint brings one"""
    infill: bool = False
    """whether the masks of `prompt` are filled in"""
    seed: int | None = None
    """of the row's noise; None for the configuration's"""
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    """what differs from the engine's configuration, as `DecodeConfig.from_dict` takes it"""
    stop: tuple[str, ...] = ()
    """texts before which the answer ends"""
    stream: bool = False
    """whether updates tell of the answer before it is complete; the last one does in any case"""
    drafts: bool = False
    """whether those updates also tell what is not settled yet"""
    logprobs: bool = False
    """whether tokens come with the logarithm of their confidence"""
    timeout: float | None = None
    """seconds from its submission after which it ends with what is settled; None for no limit"""


class Completion(NamedTuple):
    """How a request ended."""

    finish_reason: FinishReason
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    """of each token, the natural logarithm of the confidence with which it was committed; empty unless asked for"""
    prompt_tokens: int
    steps: int
    """denoising steps made for it"""
    queued: float
    """seconds that it waited for a slot"""
    decoding: float
    """seconds from then on"""
    error: EsdllmError | None = None
    """what went wrong, if anything did"""


class Update(NamedTuple):
    """What has become known of an answer. All that is `new`, joined, is the text of the completion."""

    new: str
    """settled text that this adds; never taken back"""
    draft: str = ""
    """how it may go on; empty unless asked for"""
    frame: Frame | None = None
    """the canvas; None unless asked for"""
    tokens: tuple[int, ...] = ()
    """settled tokens that this adds"""
    logprobs: tuple[float, ...] = ()
    """of each, the natural logarithm of the confidence with which it was committed; empty unless asked for"""
    completion: Completion | None = None
    """how the request ended; None but in the last update"""
