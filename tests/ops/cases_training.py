"""Cases of the training operators of `ai.onward`: losses, counter-based dropout, optimizer updates."""

from __future__ import annotations

from typing import Any

import numpy as np
from tests.ops.harness import Array, Case

_ONWARD: dict[str, Any] = {"domain": "ai.onward"}
_RATE = np.array(0.1)
_STEP = np.array(3, np.int64)


def _squares(*shape: int) -> Array:
    return np.random.default_rng(3).uniform(0.1, 1.0, shape)


def _labels(*shape: int) -> Array:
    return np.random.default_rng(4).integers(0, 5, shape)


_UPDATED: list[tuple[str, list[Any], int, list[dict[str, Any]]]] = [
    ("SGDUpdate", [(3, 4), (3, 4), _RATE], 1, [{}, {"weight_decay": 0.1}]),
    (
        "MomentumUpdate",
        [(3, 4), (3, 4), (3, 4), _RATE],
        2,
        [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": 1, "weight_decay": 0.1}],
    ),
    (
        "RMSpropUpdate",
        [(3, 4), (3, 4), _squares(3, 4), (3, 4), _RATE],
        3,
        [
            {"alpha": 0.9, "epsilon": 1e-3},
            {"alpha": 0.9, "epsilon": 1e-3, "momentum": 0.5, "weight_decay": 0.1},
            {"alpha": 0.9, "epsilon": 1e-1, "inner_epsilon": 1},
        ],
    ),
    (
        "AdagradUpdate",
        [(3, 4), (3, 4), _squares(3, 4), _RATE],
        2,
        [{"epsilon": 1e-3}, {"epsilon": 1e-3, "weight_decay": 0.1}, {"epsilon": 1e-1, "inner_epsilon": 1}],
    ),
    (
        "AdamUpdate",
        [(3, 4), (3, 4), (3, 4), _squares(3, 4), _RATE, _STEP],
        3,
        [
            {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-3},
            {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-3, "weight_decay": 0.1},
            {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-3, "weight_decay": 0.1, "decoupled": 1},
            {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-1, "inner_epsilon": 1},
        ],
    ),
]

UPDATES = [
    Case(name, inputs, attrs, outputs=outputs, runtime=[5], name=f"{name}-{i}", **_ONWARD)
    for name, inputs, outputs, variants in _UPDATED
    for i, attrs in enumerate(variants)
]

DROPOUT = [
    Case(
        "PhiloxDropout",
        [(5, 4), np.array(7), np.array(2)],
        {"ratio": 0.4, "salt": 3},
        batch=[0],
        runtime=[1, 2],
        **_ONWARD,
    ),
    Case(
        "PhiloxDropout",
        [(5, 4), np.array(7), np.array(2), np.array([6, 5])],
        {"ratio": 0.4, "salt": 3},
        batch=[0],
        runtime=[1, 2, 3],
        **_ONWARD,
    ),
]

_LOSSES: list[dict[str, Any]] = [
    {},
    {"reduction": "sum"},
    {"reduction": "none", "label_smoothing": 0.1},
    {"ignore_index": 2},
    {"ignore_index": 2, "label_smoothing": 0.2},
]

LOSSES = [
    Case(
        "SoftmaxCrossEntropy",
        [(6, 5, *inner), _labels(6, *inner), *weights],
        attrs,
        outputs=2,
        wrt=[0],
        seeds=[0],
        runtime=[1],
        name=f"SoftmaxCrossEntropy-{i}-{len(inner)}-{len(weights)}",
        **_ONWARD,
    )
    for i, attrs in enumerate(_LOSSES)
    for inner in ((), (3,))
    for weights in ([], [_squares(5)])
]

LOSS_GRADIENTS = [
    Case(
        "SoftmaxCrossEntropyGrad",
        [_squares(*([6] if attrs.get("reduction") == "none" else [])), (6, 5), _labels(6), *weights],
        attrs,
        runtime=[2],
        name=f"SoftmaxCrossEntropyGrad-{i}-{len(weights)}",
        **_ONWARD,
    )
    for i, attrs in enumerate(_LOSSES)
    for weights in ([], [_squares(5)])
]

_INTEGERS = {"to": 3}
QUANTIZED = [
    Case(
        "FakeQuantize",
        [(3, 4), np.array(0.02), np.array(-40.0), np.array(30.0)],
        {**_INTEGERS, **more},
        **_ONWARD,
        wrt=(),
        name=name,
    )
    for name, more in (("", {}), ("lowest", {"nan_to_low": 1}))
] + [
    Case(
        "FakeQuantize",
        [(3, 4, 2), np.array([[0.02], [0.1], [0.3], [1.0]]), np.full((4, 1), -128.0), np.full((4, 1), 127.0)],
        _INTEGERS,
        **_ONWARD,
        wrt=(),
        name="by channel",
    )
]
"""The straight-through estimator is no slope: see the tests of quantised training."""

_BYTES = np.random.default_rng(5)

DEQUANTIZED = [
    Case(
        "DequantizedMatMul",
        [(2, 3, k), _BYTES.integers(low, high, (lines, 20)).astype(kind), scale, *zeros],
        {"K": k, "bits": bits, "block_size": block},
        wrt=[0],
        constants=[2],
        batch=[0],
        name=f"DequantizedMatMul-{bits}-{block}-{len(zeros)}",
        **_ONWARD,
    )
    for k, bits, block, lines, low, high, kind in (
        (9, 8, 0, 9, -128, 128, np.int8),
        (10, 8, 4, 10, -128, 128, np.int8),
        (11, 4, 0, 6, 0, 256, np.uint8),
        (12, 4, 4, 6, 0, 256, np.uint8),
    )
    for scale in [_BYTES.uniform(0.01, 0.05, (-(-k // (block or k)), 20))]
    for zeros in ([], [_BYTES.integers(-8, 8, scale.shape).astype(np.int8)])
]

DYNAMIC = [
    Case(
        "DynamicMatMul",
        [
            (3, 40),
            np.array(0.03),
            np.array(zero, np.uint8),
            _BYTES.integers(-128, 128, (40, 20)).astype(np.int8),
        ],
        wrt=(),
        batch=[0],
        runtime=[2],
        name=f"DynamicMatMul-{zero}",
        **_ONWARD,
    )
    for zero in (0, 97, 255)
]
"""Rounding has no slope."""

TRAINING = [*QUANTIZED, *DEQUANTIZED, *DYNAMIC, *UPDATES, *DROPOUT, *LOSSES, *LOSS_GRADIENTS]
