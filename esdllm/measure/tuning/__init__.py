"""Tuning: the fastest settings that lose no more quality than allowed."""

from esdllm.measure.tuning.goal import Goal
from esdllm.measure.tuning.problems import Prompts, parted
from esdllm.measure.tuning.search import Search
from esdllm.measure.tuning.space import Dimension, Space
from esdllm.measure.tuning.trials import Trial, Tuning

__all__ = ["Dimension", "Goal", "Prompts", "Search", "Space", "Trial", "Tuning", "parted"]
