"""First-party backends: attention kernels and cache stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from esdllm import AttentionBackend, CacheStore, hookimpl
from esdllm_backends.attention.eager import EagerAttention
from esdllm_backends.attention.flex import FlexAttention
from esdllm_backends.attention.matmul import MatmulAttention
from esdllm_backends.attention.sdpa import SdpaAttention
from esdllm_backends.attention.triton import TritonAttention
from esdllm_backends.attention.xformers import XformersAttention
from esdllm_backends.cache.dense import DenseStore
from esdllm_backends.cache.disk import DiskStore
from esdllm_backends.cache.int8 import Int8Store
from esdllm_backends.cache.none import NoStore
from esdllm_backends.cache.offloaded import OffloadedStore
from esdllm_backends.cache.sparse import SparseStore


@hookimpl
def esdllm_attention_backends() -> Mapping[str, Callable[..., AttentionBackend]]:
    """Offer the attention backends."""
    return {
        "eager": EagerAttention,
        "flex": FlexAttention,
        "matmul": MatmulAttention,
        "sdpa": SdpaAttention,
        "triton": TritonAttention,
        "xformers": XformersAttention,
    }


@hookimpl
def esdllm_cache_stores() -> Mapping[str, Callable[..., CacheStore]]:
    """Offer the cache stores."""
    return {
        "dense": DenseStore,
        "disk": DiskStore,
        "int8": Int8Store,
        "none": NoStore,
        "offloaded": OffloadedStore,
        "sparse": SparseStore,
    }
