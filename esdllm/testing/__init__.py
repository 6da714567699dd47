"""What helps to test plugins and to check that decoding is right.

One check a kind, each a plain function that takes a component and raises an AssertionError whose sentence says which law
failed and with what values. `esdllm.testing.strategies`, which needs hypothesis, draws what components are put through.
"""

from collections.abc import Callable, Mapping

from esdllm.checkpoints.loading import random_model
from esdllm.runtime.plain import full_logits
from esdllm.testing.conformance import Conformance, conformance
from esdllm.testing.contracts.backends import check_attention_backend
from esdllm.testing.contracts.families import check_model_family
from esdllm.testing.contracts.generation import check_generation
from esdllm.testing.contracts.kernels import check_token_sampler, check_unmasking_policy
from esdllm.testing.contracts.others import check_preset, check_step_observer, check_suite
from esdllm.testing.contracts.planners import check_block_schedule, check_refresh_policy, check_skip_schedule
from esdllm.testing.contracts.scorers import check_importance_scorer
from esdllm.testing.contracts.stores import check_cache_store
from esdllm.testing.models import GEOMETRIES, tiny_model

__all__ = [
    "CHECKS",
    "GEOMETRIES",
    "Conformance",
    "check_attention_backend",
    "check_block_schedule",
    "check_cache_store",
    "check_generation",
    "check_importance_scorer",
    "check_model_family",
    "check_preset",
    "check_refresh_policy",
    "check_skip_schedule",
    "check_step_observer",
    "check_suite",
    "check_token_sampler",
    "check_unmasking_policy",
    "conformance",
    "full_logits",
    "random_model",
    "tiny_model",
]

CHECKS: Mapping[str, Callable[..., None]] = {
    "importance": check_importance_scorer,
    "skip": check_skip_schedule,
    "refresh": check_refresh_policy,
    "blocks": check_block_schedule,
    "sampler": check_token_sampler,
    "unmasking": check_unmasking_policy,
    "attention": check_attention_backend,
    "cache": check_cache_store,
    "model": check_model_family,
    "preset": check_preset,
    "observers": check_step_observer,
    "suite": check_suite,
}
"""The check of every kind of component, by the kind's name in a catalogue. That of a model family takes a config too."""
