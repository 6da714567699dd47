"""What plugins receive and return.

Views are NamedTuples, so that they can grow without breaking a plugin, and so that a compiled step can make them.

Shapes: B prompts, R rows of the model's batch (B, or 2 B under guidance), N positions, L canvas, K keys, H heads,
G key-value heads, D head dimension, C hidden, V vocabulary, F features of a scored tensor.
"""

from esdllm.views.kernels import (
    BlockView,
    Candidates,
    EndView,
    ImportanceView,
    Projection,
    SampleView,
    Signal,
    Site,
    UnmaskingView,
)
from esdllm.views.loading import ComputeChoice, KernelTime, LoadPlan
from esdllm.views.models import ExpertLayers, Message, ModelSpec
from esdllm.views.observers import StepRecord
from esdllm.views.presets import Preset
from esdllm.views.published import Published
from esdllm.views.stores import CacheShape, CacheWrite, KeyValue, Memory
from esdllm.views.suites import Problem

__all__ = [
    "BlockView",
    "CacheShape",
    "CacheWrite",
    "Candidates",
    "ComputeChoice",
    "EndView",
    "ExpertLayers",
    "ImportanceView",
    "KernelTime",
    "KeyValue",
    "LoadPlan",
    "Memory",
    "Message",
    "ModelSpec",
    "Preset",
    "Problem",
    "Projection",
    "Published",
    "SampleView",
    "Signal",
    "Site",
    "StepRecord",
    "UnmaskingView",
]
