"""Many prompts from a file to a file: batches of like length, a run that can be killed and goes on."""

from esdllm.batching.plan import alike
from esdllm.batching.rows import BadLine
from esdllm.batching.run import BatchReport, BatchRun, Progress
from esdllm.batching.workers import Setup

__all__ = ["BadLine", "BatchReport", "BatchRun", "Progress", "Setup", "alike"]
