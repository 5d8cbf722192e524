"""How far rounding inside a node moves a result that is a sum of many terms.

Two engines add the terms of a sum in different orders, and round each partial sum. Of y = t₁ + … + tₙ, added
one after another with every partial sum off by u · r, r uniform in (−1, 1) of its own size (u = 2⁻²⁴ in
float32), the variance is u²/3 · Σₖ sₖ². Where terms come in random order the partial sum sₖ is k/n · y plus
√k times the deviation of a term, so with q = Σ tᵢ²

    Σₖ sₖ² ≈ (n − 1) · (y²/3 + q/2).

That is large against y where terms cancel, and of the size √n · y where they have one sign. Pairwise,
blocked and fused sums err by less. Source: that n roundings err by √n · u and not by n · u, Higham and Mary
2019, A new approach to probabilistic rounding error analysis.

q comes from the operator itself, as its terms are products of its operands' elements: it is what the kernel
makes of their squares.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from onward.graph import Array, Op

__all__ = ["ROUNDING", "SUMS", "rounding_error"]

ROUNDING = 2.0**-24
"""The most that one rounding to float32 moves a number by, relative to it."""

_Terms: TypeAlias = "Callable[[Any, Sequence[Array | None], Array], tuple[Array | float, Array]]"
"""The number of terms of each element of a result, and the sum of their squares."""


def rounding_error(operator: Op | None, operands: Sequence[Array | None], y: Array) -> Array:
    """For each element of a node's result what rounding to float32 inside the node moves it by.

    A run's error is this times a number of the size 1, uniform in (−1, 1) in the model of the module's text.

    Args:
        operator: one that has a rule in `SUMS`, bound to its node's attributes; of another the result is
            taken to be rounded once.
        operands: float64 where they are floats.
        y: the result, float64.
    """
    squares = y * y
    rule = None if operator is None else SUMS.get((operator.domain, operator.op_type))
    if rule is not None:
        with np.errstate(all="ignore"):
            count, q = rule(operator, operands, y)
            squares = squares + np.maximum(np.asarray(count) - 1, 0) * (squares / 3 + q / 2)
    return np.asarray(ROUNDING * np.sqrt(squares))


def _products(op: Any, operands: Sequence[Array | None], y: Array) -> tuple[Array | float, Array]:
    """Of an operator that is linear in each of its operands, and sums products of their elements."""
    count = op.kernel(*(None if x is None else _mapped(np.ones_like, x) for x in operands))
    return count, op.kernel(*(None if x is None else _mapped(np.square, x) for x in operands))


def _scaled_products(op: Any, operands: Sequence[Array | None], y: Array) -> tuple[Array | float, Array]:
    """Gemm: products times alpha, and C times beta."""
    count, _ = _products(dataclasses.replace(op, alpha=1.0, beta=1.0), operands, y)
    squared = dataclasses.replace(op, alpha=op.alpha**2, beta=op.beta**2)
    return count, _products(squared, operands, y)[1]


def _means(op: Any, operands: Sequence[Array | None], y: Array) -> tuple[Array | float, Array]:
    """Of one operand over axes or windows: terms are elements by their number."""
    x = operands[0]
    assert x is not None
    kernel = getattr(op, "kernel_shape", None)
    count = max(x.size / max(y.size, 1), 1.0) if kernel is None else float(math.prod(kernel))
    return count, _products(op, operands, y)[1] / count


def _mapped(change: Callable[[Array], Array], x: Array) -> Array:
    return change(x) if x.dtype.kind == "f" else x


SUMS: Mapping[tuple[str, str], _Terms] = {
    **dict.fromkeys((("", name) for name in ("Conv", "ConvTranspose", "Einsum", "MatMul")), _products),
    **dict.fromkeys((("", name) for name in ("CumSum", "ReduceSum", "ReduceSumSquare", "Sum")), _products),
    **dict.fromkeys((("", name) for name in ("AveragePool", "GlobalAveragePool", "ReduceMean")), _means),
    **dict.fromkeys(
        (("ai.onward", name) for name in ("ConvGradInput", "ConvGradWeight", "GatherGrad")), _products
    ),
    ("", "Gemm"): _scaled_products,
}
"""Rules by domain and operator, of those that give sums of products of their operands' elements alone."""
