"""Quality and speed, measured side by side: suites of problems, contenders, intervals, plots."""

from esdllm.measure.evaluation.contenders import Contender, check_names
from esdllm.measure.evaluation.measure import EvaluationInterrupted, evaluate
from esdllm.measure.evaluation.outcomes import Evaluation, Outcome
from esdllm.measure.evaluation.statistics import ONE_BATCH, Interval, Speedup, difference, share, speedup
from esdllm.measure.evaluation.suites import JsonlSuite, load_suite, of_split, taken

__all__ = [
    "ONE_BATCH",
    "Contender",
    "Evaluation",
    "EvaluationInterrupted",
    "Interval",
    "JsonlSuite",
    "Outcome",
    "Speedup",
    "check_names",
    "difference",
    "evaluate",
    "load_suite",
    "of_split",
    "share",
    "speedup",
    "taken",
]
