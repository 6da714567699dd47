"""Masked diffusion on Qwen3's architecture, as a model family of esdllm."""

from collections.abc import Callable, Mapping

from esdllm import ModelFamily, hookimpl
from esdllm_example_qwen3.family import Qwen3Family
from esdllm_example_qwen3.model import Qwen3

__all__ = ["Qwen3", "Qwen3Family"]


@hookimpl
def esdllm_model_adapters() -> Mapping[str, Callable[..., ModelFamily]]:
    """Offer the family for checkpoints whose config.json says `"model_type": "a2d-qwen3"`."""
    return {"a2d-qwen3": Qwen3Family}
