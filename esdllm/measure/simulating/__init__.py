"""Serving, simulated: the scheduler of `esdllm.serving` before machines that are arithmetic, at sizes that no machine here has.

from esdllm.measure.simulating import Courses, Lengths, Poisson, Pricing, Simulation, SlotReplica, StepTime
"""

from esdllm.measure.simulating.courses import Course, Courses
from esdllm.measure.simulating.pricing import Measured, Pricing, StepTime, fitted
from esdllm.measure.simulating.replicas import SlotReplica, StaticReplica
from esdllm.measure.simulating.results import Served, Simulated, Waits
from esdllm.measure.simulating.simulation import Limits, Simulation
from esdllm.measure.simulating.traffic import Bursts, ClosedLoop, Demand, Lengths, Poisson

__all__ = [
    "Bursts",
    "ClosedLoop",
    "Course",
    "Courses",
    "Demand",
    "Lengths",
    "Limits",
    "Measured",
    "Poisson",
    "Pricing",
    "Served",
    "Simulated",
    "Simulation",
    "SlotReplica",
    "StaticReplica",
    "StepTime",
    "Waits",
    "fitted",
]
