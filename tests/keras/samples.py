"""Data of the scripts, from scikit-learn and made."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits


def samples() -> dict[str, np.ndarray[Any, Any]]:
    """Inputs and targets by the names that `scripts.TRAINED` uses, in a fixed random order."""
    rng = np.random.default_rng(0)

    def mixed(*arrays: Any) -> list[Any]:
        order = rng.permutation(len(arrays[0]))
        return [np.asarray(a)[order] for a in arrays]

    pixels, labels = mixed(*load_digits(return_X_y=True))
    images = (pixels / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    cancer, cancer_labels = mixed(*load_breast_cancer(return_X_y=True))
    diabetes, targets = mixed(*load_diabetes(return_X_y=True))
    tokens = rng.integers(2, 20, (600, 12))
    marked = rng.random(600) < 0.5
    tokens[marked, rng.integers(0, 12, marked.sum())] = 1
    return {
        "images": images,
        "rows": images[..., 0],
        "labels": labels.astype(np.int64),
        "one_hot": np.eye(10, dtype=np.float32)[labels],
        "cancer": ((cancer - cancer.mean(0)) / cancer.std(0)).astype(np.float32),
        "cancer_labels": cancer_labels.astype(np.float32),
        "diabetes": ((diabetes - diabetes.mean(0)) / diabetes.std(0)).astype(np.float32),
        "diabetes_targets": ((targets - targets.mean()) / targets.std()).astype(np.float32),
        "tokens": tokens.astype(np.int32),
        "token_labels": marked.astype(np.float32),
    }
