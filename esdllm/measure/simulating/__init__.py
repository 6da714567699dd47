"""Serving, simulated: the scheduler of `esdllm.serving` before machines that are arithmetic."""

from esdllm.measure.simulating.calibrating import measured_steps
from esdllm.measure.simulating.courses import Course, Courses
from esdllm.measure.simulating.pricing import Measured, Pricing, StepSeconds, fitted
from esdllm.measure.simulating.replicas import SlotReplica, StaticReplica
from esdllm.measure.simulating.results import Served, Simulated
from esdllm.measure.simulating.simulation import Simulation, TimeLimits
from esdllm.measure.simulating.traffic import Demand, WantedLengths, asked

__all__ = [
    "Course",
    "Courses",
    "Demand",
    "Measured",
    "Pricing",
    "Served",
    "Simulated",
    "Simulation",
    "SlotReplica",
    "StaticReplica",
    "StepSeconds",
    "TimeLimits",
    "WantedLengths",
    "asked",
    "fitted",
    "measured_steps",
]
