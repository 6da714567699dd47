"""Planning: which positions each step computes, on the host, over integers. Nothing here imports torch."""

from esdllm.planning.planners import Planners
from esdllm.planning.schedule import Planner

__all__ = ["Planner", "Planners"]
