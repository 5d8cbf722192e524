"""What is measured: networks, batch sizes, and the goals for ours ÷ peer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

__all__ = ["CASES", "INFERENCE_EACH", "INFERENCE_MEAN", "Case", "Kind", "find"]

Kind: TypeAlias = Literal["training", "inference"]

INFERENCE_MEAN = 0.90
"""Goal for the geometric mean of the inference ratios."""

INFERENCE_EACH = 1.10
"""Goal for every single inference ratio."""

INFERENCE_BATCHES = (1, 32)


@dataclass(frozen=True)
class Case:
    """One network of the zoo.

    Attributes:
        network: its name there; also the name in the results.
        shape: of one sample, without the batch axis.
        classes: outputs.
        batches: of training steps.
        goal: ours ÷ torch at most, for training steps.
        options: for the zoo. Dropout is off on both sides, so that the losses can be compared; torch spends
            more on it than we do.
        vocabulary: token ids are below this; None for images and other float inputs.
    """

    network: str
    shape: tuple[int, ...]
    classes: int
    batches: tuple[int, ...]
    goal: float
    options: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: int | None = None

    @property
    def convolutional(self) -> bool:
        """Whether torch's channels_last layout means something to it."""
        return len(self.shape) == 3 or self.network == "textcnn"

    @property
    def inference_batches(self) -> tuple[int, ...]:
        """Batch sizes of inference."""
        return INFERENCE_BATCHES

    def batch(self, n: int, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Inputs [n, *shape] (float32, or int64 token ids) and targets int64 [n]."""
        rng = np.random.default_rng(seed)
        if self.vocabulary is None:
            x: np.ndarray[Any, Any] = rng.standard_normal((n, *self.shape), np.float32)
        else:
            x = rng.integers(0, self.vocabulary, (n, *self.shape))
        return x, rng.integers(0, self.classes, n)


CASES = (
    Case("mlp", (784,), 10, (32, 64), 0.30),
    Case("lenet5", (1, 28, 28), 10, (64,), 0.35),
    Case(
        "textcnn",
        (50,),
        2,
        (64,),
        0.60,
        {"length": 50, "embedding_size": 128, "filters": 100, "dropout": 0.0},
        vocabulary=20_000,
    ),
    Case("resnet20", (3, 32, 32), 10, (128,), 0.60),
    Case("alexnet", (3, 227, 227), 1000, (32,), 0.90, {"dropout": 0.0}),
    Case("resnet18", (3, 224, 224), 1000, (16,), 0.75),
    Case("resnet50", (3, 224, 224), 1000, (8,), 0.80),
    Case("mobilenet_v2", (3, 224, 224), 1000, (16,), 0.60, {"dropout": 0.0}),
    Case(
        "transformer_encoder",
        (128,),
        2,
        (16,),
        0.95,
        {"length": 128, "layers": 4, "size": 256, "heads": 8, "dropout": 0.0},
        vocabulary=20_000,
    ),
    Case(
        "lstm_classifier",
        (100,),
        2,
        (32,),
        0.90,
        {"length": 100, "units": 128, "embedding_size": 128, "dropout": 0.0},
        vocabulary=20_000,
    ),
)


def find(name: str) -> Case:
    """The case of a network. Raises `KeyError` for an unknown one."""
    for case in CASES:
        if case.network == name:
            return case
    raise KeyError(f"no benchmark named {name!r}; there are {', '.join(c.network for c in CASES)}")
