"""Many prompts from a file to a file: batches of like length, a run that can be killed and goes on."""

from esdllm.use.batching.grouping import alike
from esdllm.use.batching.rows import BadLine, write_rows
from esdllm.use.batching.run import BatchResult, BatchRun, Progress
from esdllm.use.batching.workers import Batch, Done, PromptAnswer, Setup, alone

__all__ = [
    "BadLine",
    "Batch",
    "BatchResult",
    "BatchRun",
    "Done",
    "Progress",
    "PromptAnswer",
    "Setup",
    "alike",
    "alone",
    "write_rows",
]
