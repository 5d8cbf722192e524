"""Requests for element-wise operations that no expression says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from onward.graph.expression import Expression
from onward.graph.requests.base import Request, Static, Values, first_misfit

__all__ = [
    "AdamUpdate",
    "Dropout",
]


@dataclass(frozen=True)
class Dropout(Request):
    """y = x / (1 − ratio) where a number drawn for the element's position is at least ratio, else 0.

    Attributes:
        seed, step, salt: what the numbers follow from.
        share: int64 [2], the first sample that x holds and how many: positions begin at the first · size of x
            / the number; None where they begin at 0.
    """

    y: ir.Value
    x: ir.Value
    seed: ir.Value
    step: ir.Value
    ratio: float
    salt: int
    share: ir.Value | None = None

    @property
    def same_layout(self) -> Values:
        return self.x, self.y


@dataclass(frozen=True)
class AdamUpdate(Request):
    """A parameter's step by Adam: (parameter, first and second moment) after it.

    Attributes:
        operands: the parameter, its gradient, the moments.
        learning_rate, t: η, and the number of the step.
        element: the results of one element, given those of `operands`, η / (1 − β1^t), sqrt(1 − β2^t) and
            1 − η weight_decay.
    """

    outputs: Values
    operands: Values
    learning_rate: ir.Value
    t: ir.Value
    beta1: float
    beta2: float
    weight_decay: float
    element: Callable[..., tuple[Expression, ...]]

    def misfit(self, static: Static) -> str | None:
        shape = static.shape(self.operands[0])
        return first_misfit(static, *zip("PGMV", self.operands, (shape,) * 4, strict=True))
