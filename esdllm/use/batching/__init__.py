"""Many prompts from a file to a file: batches of like length, a run that can be killed and goes on."""

from esdllm.use.batching.grouping import alike
from esdllm.use.batching.rows import BadLine
from esdllm.use.batching.run import BatchResult, BatchRun, Progress
from esdllm.use.batching.workers import Setup

__all__ = ["BadLine", "BatchResult", "BatchRun", "Progress", "Setup", "alike"]
