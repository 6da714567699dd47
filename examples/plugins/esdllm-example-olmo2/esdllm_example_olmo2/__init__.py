"""Masked diffusion on OLMo 2's architecture, as a model family of esdllm."""

from collections.abc import Callable, Mapping

from esdllm import ModelFamily, hookimpl
from esdllm_example_olmo2.family import Olmo2Family
from esdllm_example_olmo2.model import Olmo2

__all__ = ["Olmo2", "Olmo2Family"]


@hookimpl
def esdllm_model_adapters() -> Mapping[str, Callable[..., ModelFamily]]:
    """Offer the family for checkpoints whose config.json says `"model_type": "a2d-olmo2"`."""
    return {"a2d-olmo2": Olmo2Family}
