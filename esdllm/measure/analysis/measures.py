"""What is measured between two steps, as functions of arrays. Source of the measures: ES-dLLM, arXiv 2603.10088, section 3."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "midranks", "pearson", "spearman", "top_share"]

Floats: TypeAlias = NDArray[np.floating[Any]]


def midranks(x: Floats) -> Floats:
    """Return the ranks from 0 along each row of x (K, n), equal values sharing the mean of their ranks."""
    order = np.argsort(x, axis=1, kind="stable")
    ordered = np.take_along_axis(x, order, axis=1)
    opens = np.ones(x.shape, dtype=bool)  # a run of equal values begins here
    opens[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.flatnonzero(opens)
    lengths = np.diff(np.append(first, x.size))
    shared = first % max(1, x.shape[1]) + (lengths - 1) / 2
    ranks = np.empty(x.shape)
    np.put_along_axis(ranks, order, np.repeat(shared, lengths).reshape(x.shape), axis=1)
    return ranks


def pearson(x: Floats, y: Floats) -> Floats:
    """Return Pearson's correlation (K, M) of every row of x (K, n) with every row of y (M, n).

    cov(x, y) / (std(x) std(y)); NaN where a row is constant or n < 2.
    """
    found: Floats = _standardised(x) @ _standardised(y).T
    return found


def spearman(x: Floats, y: Floats) -> Floats:
    """Return Spearman's correlation (K, M): Pearson's, of the midranks."""
    return pearson(midranks(x), midranks(y))


def _standardised(x: Floats) -> Floats:
    """Return the rows less their mean, of length 1; NaN where constant."""
    if x.shape[1] < 2:
        return np.full(x.shape, np.nan) if x.shape[1] else np.full((x.shape[0], 1), np.nan)
    centred = x - x.mean(axis=1, keepdims=True, dtype=np.float64)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    constant = np.ptp(x, axis=1, keepdims=True) == 0
    return np.where(constant, np.nan, centred / np.where(constant, 1.0, length))


def top_share(x: Floats, part: float) -> Floats:
    """Return (K,), the share of each row's sum that its largest ceil(part n) values hold; NaN where the sum is 0.

    x is (K, n), nothing negative. Equal values everywhere give about `part`, a single change gives 1.
    """
    size = x.shape[1]
    if not size:
        return np.full(x.shape[0], np.nan)
    count = math.ceil(part * size)
    top = np.partition(x.astype(np.float64), size - count, axis=1)[:, size - count :].sum(axis=1)
    total = x.sum(axis=1, dtype=np.float64)
    return np.where(total > 0, top / np.where(total > 0, total, 1.0), np.nan)
