"""Everything the operator suites leave out, and why. An entry that is no longer needed fails its suite."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tests.ops.harness import Array, away

NODE_CASES: dict[str, str] = {}
"""Cases of the ONNX project that our kernels do not pass."""

NO_NODE_CASE: dict[str, str] = {}
"""Registered classes of the standard without a case of either kind."""

NO_GRADIENT: dict[str, str] = {}
"""Operators that the standard calls differentiable and that have no gradient rule."""

GRADIENT_CASES: dict[str, str] = {}
"""Cases, by the ONNX project's name, that are left out of the gradient suite."""

ORT_GRADIENTS: dict[str, str] = {}
"""Operators whose gradient graph onnxruntime cannot run."""

_AT_ZERO = "the slope jumps at 0"

MOVED: dict[str, tuple[Callable[[Array], Array], str]] = {
    **{name: (lambda x: away(x, [0.0]), _AT_ZERO) for name in ("Abs", "PRelu", "LeakyRelu", "Relu", "Elu")},
    **{name: (lambda x: away(x, [0.0]), _AT_ZERO) for name in ("Celu", "Selu", "ReduceL1", "Softsign")},
    "ThresholdedRelu": (lambda x: away(x, [1.0, 2.0]), "the value jumps at alpha"),
    "HardSigmoid": (
        lambda x: away(x, [-0.8, 0.8, -2.5, 2.5, -1.2]),
        "the slope jumps where the value is clipped",
    ),
    "HardSwish": (lambda x: away(x, [-3.0, 3.0]), "the slope jumps at -3 and 3"),
    "Clip": (lambda x: away(x, [-5.0, -1.0, 0.0, 1.0, 5.0]), "the slope jumps at the limits"),
    **{
        name: (
            lambda x: x + np.linspace(0, 0.1, x.size, dtype=x.dtype).reshape(x.shape),
            "ties have no slope",
        )
        for name in ("Max", "Min", "ReduceMax", "ReduceMin", "TopK")
    },
    **{name: (lambda x: 0.9 * x, "the slope is unbounded at 1") for name in ("Acos", "Asin", "Atanh")},
    "Acosh": (lambda x: x + np.float32(0.1), "the slope is unbounded at 1"),
}
"""Operators whose operands are moved before differences are taken: how, and why."""
