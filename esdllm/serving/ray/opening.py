"""A session, opened where Ray has put its process."""

from __future__ import annotations

import torch

from esdllm.config import DecodeConfig
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.allocator import keep_freed_memory
from esdllm.runtime.components import Components
from esdllm.runtime.engine import Engine
from esdllm.serving.coupling import check_uncoupled
from esdllm.serving.session import Session
from esdllm.serving.sizing import choose_slots
from esdllm.use.batching import Setup

__all__ = ["open_session"]


def open_session(setup: Setup, slots: int, length: int | None, max_queue: int) -> Session:
    """Return a session over an engine of this process, with `slots` of `length` columns; as many as the model's context if None.

    Raises:
        ConfigError: the configuration is wrong, or lets answers depend on each other.
        CheckpointError: the model is not there, or cannot be loaded.
        UnavailableError: the device is not there, or the slots do not fit into its memory.
    """
    keep_freed_memory()
    if setup.threads is not None:
        torch.set_num_threads(setup.threads)
    catalogue, config = Catalogue.load(), DecodeConfig.from_dict(setup.config)
    check_uncoupled(Components.resolve(config, catalogue), catalogue)
    engine = Engine.build(setup.load(catalogue), config, catalogue)
    columns = length or engine.model.spec.context
    made = choose_slots(engine, columns, slots)
    return Session.open(engine, slots=made, length=columns, max_queue=max_queue, catalogue=catalogue)
