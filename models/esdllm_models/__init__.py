"""First-party model families."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from esdllm import ModelFamily, hookimpl
from esdllm_models.dream import DreamFamily
from esdllm_models.llada import LladaFamily


@hookimpl
def esdllm_model_adapters() -> Mapping[str, Callable[..., ModelFamily]]:
    """Offer LLaDA and Dream, by the `model_type` of their config.json."""
    return {"llada": LladaFamily, "Dream": DreamFamily}
