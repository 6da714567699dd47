"""Planning: which positions each step computes, on the host, over integers. Nothing here imports torch."""

from esdllm.planning.schedule import Planner, Planners

__all__ = ["Planner", "Planners"]
