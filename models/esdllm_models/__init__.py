"""First-party model families, and the suite of the checkpoints that ship with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from esdllm import ModelFamily, Suite, hookimpl
from esdllm_models.dream import DreamFamily
from esdllm_models.llada import LladaFamily
from esdllm_models.suite import TinySuite


@hookimpl
def esdllm_model_adapters() -> Mapping[str, Callable[..., ModelFamily]]:
    """Offer LLaDA and Dream, by the `model_type` of their config.json."""
    return {"llada": LladaFamily, "Dream": DreamFamily}


@hookimpl
def esdllm_suites() -> Mapping[str, Callable[..., Suite]]:
    """Offer the tiny checkpoints' problems."""
    return {"tiny": TinySuite}
