"""post_transform of arrays."""

from __future__ import annotations

import numpy as np

from onward.graph import Array
from onward.ops.ml._common import checked_transform


def transformed_scores(scores: Array, how: str) -> Array:
    """Scores [N, columns] after post_transform; a single column knows PROBIT only."""
    how = checked_transform(how)
    if how == "PROBIT":
        return _probit(scores)
    if how == "NONE" or scores.shape[1] == 1:
        return scores
    if how == "LOGISTIC":
        tail = np.exp(-np.abs(scores))
        return np.where(scores < 0, tail, 1).astype(scores.dtype) / (1 + tail)
    largest = scores.max(1, keepdims=True)
    powers = np.exp(scores - largest)
    if how == "SOFTMAX":
        return powers / powers.sum(1, keepdims=True)
    counts = np.abs(scores) > 1e-7
    total = np.where(counts, powers, 0).sum(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(counts, powers, scores * np.exp(-largest)) / total


def _probit(p: Array) -> Array:
    x = 2 * p - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.log((1 - x) * (1 + x))
        v = 2 / (3.14159 * 0.147) + 0.5 * log
        root = np.sqrt(np.sqrt(v * v - log / 0.147) - v)
    return np.where(x < 0, -root, root) * p.dtype.type(1.41421356)
