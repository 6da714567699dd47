"""What changes between one denoising step and the next: the observation that early skipping rests on, on any model.

    found = analyze(engine, ["Sort 3 1 2."], chat=True)
    found.confidence["masked"].share_below

(ES-dLLM, arXiv 2603.10088, section 3.)
"""

from __future__ import annotations

from esdllm.measure.analysis.analyze import AnalysisInterrupted, analyze
from esdllm.measure.analysis.result import (
    Analysis,
    Concentration,
    ConfidenceChange,
    Correlation,
    Distribution,
    DriftByAge,
    LayerCorrelation,
    Means,
)

__all__ = [
    "Analysis",
    "AnalysisInterrupted",
    "Concentration",
    "ConfidenceChange",
    "Correlation",
    "Distribution",
    "DriftByAge",
    "LayerCorrelation",
    "Means",
    "analyze",
]
