"""Tuning: the fastest settings that lose no more quality than allowed."""

from esdllm.tuning.goal import Goal
from esdllm.tuning.problems import Prompts, parted
from esdllm.tuning.search import Search
from esdllm.tuning.space import Dimension, Space
from esdllm.tuning.trials import Trial, Tuning

__all__ = ["Dimension", "Goal", "Prompts", "Search", "Space", "Trial", "Tuning", "parted"]
