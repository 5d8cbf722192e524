"""Cases of convolution and pooling."""

from __future__ import annotations

from typing import Any

import numpy as np
from tests.ops.harness import Case

from onward.graph import Array

_NO_CHANNELS = "onnxruntime's Conv never returns for an input without channels, which an empty batch becomes"


def _distinct(*shape: int) -> Array:
    """Floats no two of which are near each other, so that differences do not cross a tie."""
    size = int(np.prod(shape))
    return (np.random.default_rng(size).permutation(size) * 0.05 - size * 0.02).reshape(shape)


def _ties(*shape: int) -> Array:
    """Small whole numbers as floats."""
    return np.random.default_rng(5).integers(-2, 3, shape).astype(np.float64)


_CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 9), (4, 3, 3), {}),
    ((2, 3, 9, 8), (4, 3, 3, 2), {"strides": (2, 3), "pads": (1, 0, 2, 1)}),
    ((2, 4, 9, 8), (6, 2, 3, 3), {"group": 2, "dilations": (2, 1), "pads": (1, 2, 0, 1)}),
    ((1, 4, 6, 6), (4, 1, 3, 3), {"group": 4, "pads": (1, 1, 1, 1)}),
    ((2, 3, 7, 7), (6, 1, 3, 3), {"group": 3, "pads": (1, 1, 1, 1), "strides": (2, 2)}),
    ((2, 3, 5, 6, 4), (2, 3, 3, 2, 2), {"pads": (1, 0, 1, 0, 1, 1), "strides": (1, 2, 1)}),
    ((2, 4, 7, 4, 5), (4, 2, 3, 2, 1), {"pads": (2, 0, 1, 1, 1, 1), "group": 2, "dilations": (2, 1, 1)}),
    ((1, 2, 8, 5, 3), (3, 2, 2, 3, 3), {"strides": (3, 1, 2), "pads": (1, 1, 1, 0, 1, 1)}),
    ((2, 3, 4, 3, 5), (2, 3, 1, 1, 3), {"pads": (0, 0, 1, 0, 0, 1), "strides": (1, 1, 2)}),
    ((2, 3, 4, 3, 5), (2, 3, 1, 1, 1), {"strides": (3, 2, 2)}),
    ((2, 3, 10, 10), (4, 3, 3, 3), {"auto_pad": "SAME_UPPER", "strides": (2, 2)}),
    ((2, 3, 10, 9), (4, 3, 4, 2), {"auto_pad": "SAME_LOWER", "strides": (3, 2)}),
    ((2, 3, 10, 9), (4, 3, 4, 2), {"auto_pad": "VALID", "strides": (3, 2)}),
    ((2, 6, 5, 5), (4, 6, 1, 1), {}),
    ((2, 6, 5, 5), (4, 3, 1, 1), {"group": 2}),
    ((2, 6, 5, 5), (4, 6, 1, 1), {"strides": (2, 2)}),
    ((2, 6, 5, 5), (4, 6, 1, 1), {"pads": (1, 1, 0, 0)}),
    ((2, 4, 3, 3), (4, 1, 1, 1), {"group": 4}),
    ((2, 1, 4, 4), (3, 1, 5, 5), {"pads": (2, 2, 2, 2)}),
    ((2, 1, 6, 6), (3, 1, 2, 2), {"pads": (3, 3, 3, 3), "strides": (3, 2)}),
    ((2, 2, 8), (3, 2, 2), {"strides": (5,), "dilations": (3,)}),
]

_TRANSPOSED: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 5), (3, 4, 3), {}),
    ((2, 3, 5, 4), (3, 4, 3, 2), {"strides": (2, 3), "pads": (1, 0, 1, 1), "output_padding": (1, 2)}),
    ((2, 4, 5, 4), (4, 2, 3, 2), {"group": 2, "strides": (2, 2), "dilations": (1, 2)}),
    ((2, 4, 5, 4), (4, 1, 3, 3), {"group": 4, "pads": (1, 1, 1, 1)}),
    ((2, 4, 5, 4), (4, 2, 3, 3), {"group": 4, "strides": (2, 2), "output_padding": (1, 1)}),
    ((1, 2, 3, 2, 3), (2, 2, 2, 3, 2), {"strides": (2, 1, 2)}),
    (
        (1, 4, 2, 2, 3),
        (4, 1, 3, 3, 2),
        {"strides": (2, 2, 1), "pads": (1, 1, 0, 1, 0, 1), "output_padding": (1, 1, 0), "group": 2},
    ),
    ((2, 2, 3, 2, 3), (2, 3, 1, 1, 2), {}),
    ((2, 3, 5, 5), (3, 4, 3, 3), {"auto_pad": "SAME_UPPER", "strides": (2, 2)}),
    ((2, 3, 5, 5), (3, 4, 4, 3), {"auto_pad": "SAME_LOWER", "strides": (2, 3)}),
    ((2, 3, 5, 5), (3, 4, 3, 3), {"auto_pad": "VALID", "strides": (2, 2)}),
    ((2, 3, 5, 5), (3, 4, 3, 3), {"output_shape": (10, 8), "strides": (2, 2), "output_padding": (1, 0)}),
    ((2, 3, 5, 5), (3, 4, 3, 3), {"output_shape": (10, 8), "strides": (2, 2), "auto_pad": "SAME_UPPER"}),
    ((2, 3, 5, 5), (3, 4, 3, 3), {"pads": (3, 2, 2, 3)}),
]

_POOLS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 9), {"kernel_shape": (3,)}),
    ((2, 3, 9, 8), {"kernel_shape": (3, 2), "strides": (2, 3), "pads": (1, 0, 2, 1)}),
    ((2, 3, 9, 8), {"kernel_shape": (2, 2), "strides": (2, 2)}),
    ((1, 2, 6, 7, 5), {"kernel_shape": (3, 2, 2), "strides": (2, 1, 2), "pads": (1, 0, 1, 1, 1, 0)}),
    ((2, 2, 10, 11), {"kernel_shape": (3, 3), "auto_pad": "SAME_UPPER", "strides": (2, 3)}),
    ((2, 2, 10, 11), {"kernel_shape": (4, 2), "auto_pad": "SAME_LOWER", "strides": (3, 3)}),
    ((2, 2, 5, 5), {"kernel_shape": (5, 5)}),
    ((2, 2, 5, 5), {"kernel_shape": (6, 6), "pads": (1, 1, 1, 1), "strides": (2, 2)}),
]

_CEILED: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 9, 8), {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}),
    ((2, 3, 9, 8), {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (0, 0, 1, 1)}),
    ((2, 2, 10, 11), {"kernel_shape": (4, 2), "auto_pad": "VALID", "strides": (3, 3)}),
    ((2, 2, 7), {"kernel_shape": (5,), "strides": (4,), "pads": (2, 1)}),
]

_DILATED: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((2, 2, 10, 11), {"kernel_shape": (3, 2), "dilations": (2, 3), "strides": (2, 2), "pads": (1, 1, 0, 1)}),
    ((2, 2, 10, 11), {"kernel_shape": (3, 2), "dilations": (2, 3), "strides": (3, 4), "ceil_mode": 1}),
    ((2, 3, 5, 4, 4), {"kernel_shape": (2, 3, 2), "pads": (0, 1, 0, 1, 0, 1), "dilations": (2, 1, 1)}),
]

_EVERY = [*_POOLS, *((shape, {**at, "ceil_mode": 1}) for shape, at in _CEILED), *_DILATED]

CONVOLUTION = [
    *(Case("Conv", [x, w, w[:1]], at) for x, w, at in _CONVOLUTIONS),
    *(Case("Conv", [x, w], at, opset=opset, wrt=()) for x, w, at in _CONVOLUTIONS for opset in (10, 22)),
    *(
        Case("Conv", [x, w, w[:1]], at, batch=[0], without_ort=_NO_CHANNELS, name=f"Conv-batch-{i}")
        for i, (x, w, at) in enumerate(_CONVOLUTIONS)
    ),
    *(Case("ConvTranspose", [x, w, (w[1] * at.get("group", 1),)], at) for x, w, at in _TRANSPOSED),
    *(
        Case("ConvTranspose", [x, w], at, opset=opset, wrt=())
        for x, w, at in _TRANSPOSED
        for opset in (10, 22)
    ),
    *(
        Case(
            "ConvTranspose", [x, w], at, batch=[0], without_ort=_NO_CHANNELS, name=f"ConvTranspose-batch-{i}"
        )
        for i, (x, w, at) in enumerate(_TRANSPOSED)
    ),
]

_SMALL = {"strides": (2, 3), "pads": (1, 0, 2, 1)}
_GROUPED = {"strides": (2, 2), "pads": (1, 0, 0, 1), "group": 2, "dilations": (1, 2)}

CONVOLUTION_GRADIENTS = [
    Case(
        "ConvGradInput",
        [(2, 4, 5, 3), (4, 3, 3, 2)],
        {**_SMALL, "spatial": (9, 8)},
        domain="ai.onward",
    ),
    Case(
        "ConvGradInput",
        [(2, 4, 5, 3), (4, 3, 3, 2)],
        {**_SMALL, "spatial": (9, 8)},
        domain="ai.onward",
        batch=[0],
        without_ort=_NO_CHANNELS,
        name="ConvGradInput-batch",
    ),
    Case(
        "ConvGradInput",
        [(2, 4, 5, 3), (4, 3, 3, 2), [2, 3, 9, 8]],
        _SMALL,
        domain="ai.onward",
        runtime=[2],
    ),
    Case("ConvGradInput", [(2, 4, 4, 3), (4, 3, 3, 3)], {**_GROUPED, "spatial": (9, 9)}, domain="ai.onward"),
    Case(
        "ConvGradInput",
        [(2, 4, 7, 7), (4, 1, 3, 3)],
        {"group": 4, "pads": (1, 1, 1, 1), "spatial": (7, 7)},
        domain="ai.onward",
    ),
    Case(
        "ConvGradWeight",
        [(2, 4, 5, 3), (2, 3, 9, 8)],
        {**_SMALL, "kernel_shape": (3, 2)},
        domain="ai.onward",
    ),
    Case(
        "ConvGradWeight",
        [(2, 4, 4, 3), (2, 6, 9, 9)],
        {**_GROUPED, "kernel_shape": (3, 3)},
        domain="ai.onward",
    ),
    Case(
        "ConvGradWeight",
        [(2, 6, 7, 7), (2, 3, 7, 7)],
        {"group": 3, "pads": (1, 1, 1, 1), "kernel_shape": (3, 3)},
        domain="ai.onward",
        batch=[0, 1],
        without_ort=_NO_CHANNELS,
    ),
]

POOLING = [
    *(Case("MaxPool", [_distinct(*x)], at, batch=[0]) for x, at in _EVERY),
    *(
        Case("MaxPool", [_ties(*x)], {**at, "storage_order": order}, outputs=2, opset=opset, wrt=())
        for x, at in _EVERY
        for opset, order in ((12, 0), (22, 1))
    ),
    *(Case("MaxPool", [_ties(*x)], at, outputs=2, opset=9, wrt=()) for x, at in _POOLS),
    *(Case("MaxPool", [_ties(*x)], at, opset=7, wrt=()) for x, at in _POOLS),
    Case("MaxPool", [_ties(2, 2, 6, 6).astype(np.int8)], {"kernel_shape": (3, 3)}, runtime=[0], wrt=()),
    Case("MaxPool", [(2, 2, 5, 5)], {"kernel_shape": (6, 6)}, wrt=(), name="MaxPool-without-windows"),
    *(
        Case("AveragePool", [x], {**at, "count_include_pad": pads}, batch=[0])
        for x, at in _EVERY
        for pads in (0, 1)
    ),
    *(
        Case("AveragePool", [x], {**at, "count_include_pad": pads}, opset=opset, wrt=())
        for x, at in _POOLS
        for opset, pads in ((7, 0), (9, 1), (10, 0), (18, 1), (22, 1))
    ),
    *(Case("LpPool", [x], {**at, "p": p}, batch=[0], kinks=[0.0]) for x, at in _EVERY for p in (1, 2, 3)),
    *(Case("LpPool", [x], at, opset=opset, wrt=()) for x, at in _POOLS for opset in (7, 11, 18, 22)),
    *(
        Case(name, [_distinct(*x)], batch=[0])
        for name in ("GlobalAveragePool", "GlobalMaxPool")
        for x in ((2, 3, 4, 5), (2, 3, 7), (1, 2, 3, 2, 2), (2, 3, 1, 1))
    ),
    *(Case(name, [(2, 3, 4, 5)], opset=22, wrt=()) for name in ("GlobalAveragePool", "GlobalMaxPool")),
    *(Case("GlobalLpPool", [(2, 3, 4, 5)], {"p": p}, batch=[0], kinks=[0.0]) for p in (1, 2, 3)),
    Case(
        "GlobalLpPool",
        [(2, 3, 4)],
        opset=22,
        wrt=(),
        without_ort="onnxruntime has no GlobalLpPool of version 22",
    ),
]

POOLING_GRADIENTS = [
    Case(
        "MaxPoolGrad",
        [(2, 3, 5, 3), _distinct(2, 3, 9, 8)],
        {"kernel_shape": (3, 2), "strides": (2, 3), "pads": (1, 0, 2, 1)},
        domain="ai.onward",
        wrt=[0],
        batch=[0, 1],
    ),
    Case(
        "MaxPoolGrad",
        [(2, 3, 8, 7), _ties(2, 3, 9, 8)],
        {"kernel_shape": (2, 2)},
        domain="ai.onward",
        wrt=[0],
        name="MaxPoolGrad-ties",
    ),
    Case(
        "AveragePoolGrad",
        [(2, 3, 5, 3)],
        {"kernel_shape": (3, 2), "strides": (2, 3), "pads": (1, 0, 2, 1), "spatial": (9, 8)},
        domain="ai.onward",
        batch=[0],
    ),
    Case(
        "AveragePoolGrad",
        [(2, 3, 5)],
        {"kernel_shape": (3,), "strides": (2,), "ceil_mode": 1, "count_include_pad": 1, "spatial": (10,)},
        domain="ai.onward",
    ),
]

WINDOWS = [*CONVOLUTION, *CONVOLUTION_GRADIENTS, *POOLING, *POOLING_GRADIENTS]
