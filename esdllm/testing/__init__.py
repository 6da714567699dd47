"""What helps to test plugins and to check that decoding is right."""

from esdllm.loading import random_model
from esdllm.testing.conformance import Report, conformance

__all__ = ["Report", "conformance", "random_model"]
