"""A trace as a page carries it: names and texts as JSON, numbers as gzipped bytes in base64. Read by page/trace.js.

A variation takes a byte, on a logarithmic scale, a share and an importance take two.
"""

from __future__ import annotations

import base64
import gzip
import math
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esdllm.measure.tracing.trace import Trace

__all__ = ["LEAST", "LEVELS", "packed"]

LEAST, MOST = 1e-4, 10.0
"""variations are told between these"""
LEVELS = 63
"""steps of their scale, each 20 % above the last; 0 stands for what is not known"""
_BEST = 3
_IMPORTANCE = 65534
_SHARES = 65535


def packed(trace: Trace) -> dict[str, Any]:
    """Return a trace as the page's script takes it."""
    steps = trace.steps
    low, high = _range(trace)
    return {
        "name": trace.name,
        "model": trace.model,
        "layers": trace.n_layers,
        "prompt": trace.prompt,
        "answer": trace.text,
        "config": dict(trace.config),
        "mask": trace.mask,
        "shift": trace.shift,
        "start": trace.start,
        "pieces": {str(token): text for token, text in trace.pieces.items()},
        "seconds": trace.seconds,
        "share": trace.layer_share,
        "scale": [LEAST, MOST, LEVELS],
        "importance": [low, high, _IMPORTANCE],
        "scoredLayers": _scored_layers(trace),
        "steps": [
            {
                "step": step.step,
                "block": step.block_number,
                "from": step.block.start,
                "to": step.block.stop,
                "window": step.window,
                "kind": step.kind,
                "keep": _runs(step.keep),
                "ms": None if step.seconds is None else float(f"{1000 * step.seconds:.4g}"),
                "revoked": list(step.revoked),
            }
            for step in steps
        ],
        "arrays": {name: _array(x) for name, x in _arrays(trace, low, high).items()},
    }


def _arrays(trace: Trace, low: float, high: float) -> dict[str, NDArray[Any]]:
    """Return the numbers: dense ones by step, layer and position, and flat ones with as many entries a step as counted."""
    steps, layers, length = trace.steps, _scored_layers(trace), len(trace.tokens)
    candidates = [one for step in steps for one in step.candidates]
    best = [[*one.best, *[(0, 0.0)] * (_BEST - len(one.best))] for one in candidates]
    scored = [{one.layer: one for one in step.scored} for step in steps]
    none = np.full(length, np.nan, dtype=np.float32)

    def stacked(name: str) -> NDArray[Any]:
        rows = [getattr(found[layer], name) if layer in found else none for found in scored for layer in layers]
        return np.stack(rows) if rows else np.empty((0, length))

    return {
        "tokens": trace.tokens.astype(np.int32),
        "depth": np.stack([step.depth for step in steps]).astype(np.uint16),
        "change": _levels(np.stack([step.change for step in steps])),
        "variation": _levels(stacked("variation")),
        "score": _importances(stacked("importance"), low, high),
        "committedCount": np.array([len(step.committed) for step in steps], dtype=np.uint16),
        "committedColumn": _flat(chain.from_iterable(step.committed for step in steps), np.uint16),
        "committedToken": _flat(chain.from_iterable(step.committed.values() for step in steps), np.int32),
        "candidateCount": np.array([len(step.candidates) for step in steps], dtype=np.uint16),
        "candidateColumn": _flat((one.column for one in candidates), np.uint16),
        "candidateToken": _flat((one.token for one in candidates), np.int32),
        "candidateConfidence": _shares([one.confidence for one in candidates]),
        "bestToken": _flat((token for row in best for token, _ in row), np.int32),
        "bestShare": _shares([share for row in best for _, share in row]),
    }


def _scored_layers(trace: Trace) -> list[int]:
    """Return the layers that dropped positions at any step."""
    return sorted({one.layer for step in trace.steps for one in step.scored})


def _range(trace: Trace) -> tuple[float, float]:
    """Return the smallest and the largest finite importance."""
    found = [one.importance[np.isfinite(one.importance)] for step in trace.steps for one in step.scored]
    known = [x for x in found if len(x)]
    return (min(float(x.min()) for x in known), max(float(x.max()) for x in known)) if known else (0.0, 0.0)


def _levels(x: NDArray[Any]) -> NDArray[Any]:
    """Return uint8: 0 where x is not known, else 1 to LEVELS on a logarithmic scale from LEAST to MOST."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.log(np.clip(x, LEAST, MOST) / LEAST) / math.log(MOST / LEAST)
    levels: NDArray[Any] = np.where(np.isnan(x), 0, 1 + np.nan_to_num(share) * (LEVELS - 1)).round().astype(np.uint8)
    return levels


def _importances(x: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    """Return uint16: 0 where x is not known, else 1 to 65535 from `low` to `high`."""
    share = (np.nan_to_num(x, nan=low, posinf=high, neginf=low) - low) / ((high - low) or 1.0)
    return np.where(np.isnan(x), 0, 1 + (share * _IMPORTANCE).round()).astype(np.uint16)


def _shares(x: list[float]) -> NDArray[Any]:
    shares: NDArray[Any] = (np.nan_to_num(np.array(x, dtype=np.float64)) * _SHARES).round().astype(np.uint16)
    return shares


def _flat(values: Any, kind: Any) -> NDArray[Any]:
    return np.fromiter(values, dtype=kind)


def _runs(keep: tuple[int, ...]) -> list[list[int]]:
    """Return keep counts with repeats folded: [count, times]."""
    runs: list[list[int]] = []
    for count in keep:
        if runs and runs[-1][0] == count:
            runs[-1][1] += 1
        else:
            runs.append([count, 1])
    return runs


def _array(x: NDArray[Any]) -> dict[str, Any]:
    little = x.astype(x.dtype.newbyteorder("<"), copy=False).tobytes()
    data = base64.b64encode(gzip.compress(little, 9, mtime=0)).decode("ascii")
    return {"type": x.dtype.name, "shape": list(x.shape), "data": data}
